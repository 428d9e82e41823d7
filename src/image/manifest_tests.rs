//! What is read from manifests and indexes, and what is refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const A: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn parse(value: &Value, content_type: Option<&str>) -> Result<Document, ManifestError> {
    Document::parse(value.to_string().as_bytes(), content_type)
}

fn descriptor(media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": A, "size": 7})
}

fn image(config: &str, layers: &[&str]) -> Value {
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(layer)).collect();
    json!({"schemaVersion": 2, "config": descriptor(config), "layers": layers})
}

fn entry(platform: Option<(&str, &str, &str)>, size: u64) -> Value {
    let mut entry = json!({"mediaType": OCI_MANIFEST, "digest": A, "size": size});
    if let Some((os, architecture, variant)) = platform {
        entry["platform"] = json!({"os": os, "architecture": architecture, "variant": variant});
    }
    entry
}

fn index_of(entries: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
}

fn with(mut value: Value, key: &str, field: Value) -> Value {
    value[key] = field;
    value
}

/// Sizes stand for entries, to see the order.
fn order(entries: &[Value], platform: &str) -> Result<Vec<u64>, ManifestError> {
    let Document::Index(index) = parse(&index_of(entries), None).unwrap() else {
        panic!("not an index");
    };
    let platform: Platform = platform.parse().unwrap();
    let found = index.candidates(&platform)?;
    Ok(found.iter().map(|entry| entry.size).collect())
}

#[test]
fn reads_an_image_manifest() {
    let mut value = image(
        CONFIG,
        &[LAYER, "application/vnd.oci.image.layer.v1.tar+zstd"],
    );
    value["annotations"] = json!({"a": "b", "c": null});
    value["layers"][0]["annotations"] = json!({"d": "e"});
    value["layers"][0]["urls"] = json!(["https://example.com/x"]);
    let Ok(Document::Manifest(manifest)) = parse(&value, None) else {
        panic!("not a manifest");
    };
    assert_eq!(manifest.config.media_type, CONFIG);
    assert_eq!(manifest.annotations.len(), 2);
    let compressions: Vec<_> = manifest
        .layers
        .iter()
        .map(|layer| layer.compression().unwrap())
        .collect();
    assert_eq!(compressions, [Compression::Gzip, Compression::Zstd]);
    assert_eq!(manifest.layers[0].annotations["d"], "e");
    assert_eq!(
        (
            manifest.layers[1].size,
            manifest.layers[1].digest.to_string()
        ),
        (7, A.into())
    );
}

#[test]
fn decides_the_kind() {
    let manifest = image(CONFIG, &[LAYER]);
    let index = json!({"schemaVersion": 2, "manifests": [entry(None, 1)]});
    for (value, own, sent, want) in [
        (&manifest, None, None, "manifest"),
        (&manifest, Some(""), Some(""), "manifest"),
        (&manifest, Some(OCI_MANIFEST), None, "manifest"),
        (
            &manifest,
            Some(DOCKER_MANIFEST),
            Some(OCI_MANIFEST),
            "manifest",
        ),
        (&manifest, None, Some("application/json"), "manifest"),
        (
            &manifest,
            None,
            Some("text/plain; charset=utf-8"),
            "manifest",
        ),
        (
            &manifest,
            Some(OCI_MANIFEST),
            Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
            "manifest",
        ),
        (&index, None, None, "index"),
        (&index, None, Some(DOCKER_LIST), "index"),
        (&index, Some(DOCKER_LIST), None, "index"),
        (
            &manifest,
            None,
            Some(OCI_INDEX),
            "but it is an image manifest",
        ),
        (
            &manifest,
            Some(OCI_MANIFEST),
            Some(OCI_INDEX),
            "but it is an image manifest",
        ),
        (&index, None, Some(OCI_MANIFEST), "but it is an index"),
        (
            &manifest,
            Some(OCI_INDEX),
            None,
            "not those of its mediaType",
        ),
        (
            &index,
            Some(OCI_MANIFEST),
            None,
            "not those of its mediaType",
        ),
        (
            &manifest,
            Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
            None,
            "obsolete",
        ),
        (
            &manifest,
            Some("application/vnd.docker.plugin.v1+json"),
            None,
            "plugin",
        ),
        (&manifest, Some(CONFIG), None, "is not an image manifest"),
        (
            &manifest,
            None,
            Some("application/vnd.docker.distribution.manifest.v1+json"),
            "obsolete",
        ),
    ] {
        let value = match own {
            Some(own) => with(value.clone(), "mediaType", json!(own)),
            None => value.clone(),
        };
        let got = match parse(&value, sent) {
            Ok(Document::Manifest(_)) => "manifest".to_owned(),
            Ok(Document::Index(_)) => "index".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(want), "{own:?} {sent:?}: {got}");
    }
}

#[test]
fn refuses_what_is_no_image() {
    let manifest = image(CONFIG, &[LAYER]);
    let many: BTreeMap<_, _> = (0..20_000).map(|n| (n.to_string(), "")).collect();
    for (value, reason) in [
        (
            json!({"schemaVersion": 1, "fsLayers": [{"blobSum": A}], "history": []}),
            "obsolete",
        ),
        (json!({"fsLayers": [{"blobSum": A}]}), "obsolete"),
        (json!({}), "neither layers nor manifests"),
        (
            json!({"errors": [{"code": "MANIFEST_UNKNOWN"}]}),
            "neither layers nor manifests",
        ),
        (json!([]), "malformed"),
        (json!("x"), "malformed"),
        (
            with(manifest.clone(), "schemaVersion", json!(3)),
            "only 2 is known",
        ),
        (
            with(manifest.clone(), "manifests", json!([])),
            "more than one kind",
        ),
        (
            with(manifest.clone(), "fsLayers", json!([])),
            "more than one kind",
        ),
        (json!({"manifests": [], "layers": []}), "more than one kind"),
        (json!({"layers": []}), "no config"),
        (
            image("application/vnd.cncf.helm.config.v1+json", &[]),
            "helm.config",
        ),
        (
            with(
                image(
                    "application/vnd.oci.empty.v1+json",
                    &["application/vnd.oci.empty.v1+json"],
                ),
                "artifactType",
                json!("application/vnd.example.sbom"),
            ),
            "artifact of type \"application/vnd.example.sbom\"",
        ),
        (image(CONFIG, &["application/vnd.in-toto+json"]), "in-toto"),
        (
            image(
                CONFIG,
                &["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"],
            ),
            "encrypted",
        ),
        (image(CONFIG, &[""]), "not a tar"),
        (
            image(CONFIG, &vec![LAYER; 501]),
            "501 layers, the limit is 500",
        ),
        (image(CONFIG, &vec![LAYER; 10_000]), "10000 layers"),
        (
            json!({"manifests": vec![entry(None, 1); 1001]}),
            "1001 manifests",
        ),
        (
            with(manifest.clone(), "annotations", json!(many)),
            "10000 entries",
        ),
        (
            with(manifest.clone(), "annotations", json!({"a": 5})),
            "malformed",
        ),
        (
            with(
                manifest.clone(),
                "config",
                json!({"digest": "sha256:12", "size": 1}),
            ),
            "exactly 64",
        ),
        (
            with(manifest.clone(), "config", json!({"digest": A, "size": -1})),
            "malformed",
        ),
        (
            with(manifest.clone(), "config", json!({"digest": A})),
            "size",
        ),
        (
            with(
                manifest.clone(),
                "config",
                json!({"digest": A, "size": 1e30}),
            ),
            "malformed",
        ),
        (
            with(manifest.clone(), "layers", json!("x".repeat(1 << 20))),
            "malformed",
        ),
    ] {
        let error = parse(&value, None).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(error.len() < 500, "{reason}: {} bytes", error.len());
    }
}

#[test]
fn takes_the_config_types_of_old_tools() {
    for config in [
        "",
        "application/octet-stream",
        "application/json",
        "text/html",
        CONFIG,
    ] {
        assert!(parse(&image(config, &[LAYER]), None).is_ok(), "{config}");
    }
    let none = json!({"schemaVersion": 2, "config": {"digest": A, "size": 1}, "layers": null});
    assert!(parse(&none, Some(DOCKER_MANIFEST)).is_ok());
    assert!(parse(&image(CONFIG, &vec![LAYER; 500]), None).is_ok());
}

#[test]
fn refuses_bytes_that_are_no_json_and_names_their_type() {
    let error = Document::parse(b"<html>Sign in</html>", Some("text/html")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the registry calls it \"text/html\""),
        "{error}"
    );
    let large = vec![b' '; 4 * 1024 * 1024 + 1];
    let error = Document::parse(&large, None).unwrap_err().to_string();
    assert!(
        error.contains("4194305 bytes, the limit is 4194304"),
        "{error}"
    );
    for bytes in [
        &b""[..],
        b"{",
        &[b'['; 100_000],
        b"\xff\xfe",
        b"{\"config\":1,\"config\":2}",
    ] {
        assert!(matches!(
            Document::parse(bytes, None),
            Err(ManifestError::Malformed(_))
        ));
    }
}

#[test]
fn a_field_given_twice_is_refused() {
    let twice = format!("{{\"manifests\":[],\"manifests\":[{}]}}", entry(None, 1));
    assert!(Document::parse(twice.as_bytes(), None).is_err());
}

#[test]
fn orders_the_entries_of_an_index() {
    let entries = [
        entry(Some(("linux", "386", "")), 1),
        entry(Some(("linux", "arm64", "v8")), 2),
        entry(Some(("linux", "amd64", "")), 3),
        entry(Some(("linux", "amd64", "v2")), 4),
        entry(None, 5),
        entry(Some(("linux", "x86_64", "v1")), 6),
        entry(Some(("linux", "arm", "v7")), 7),
        entry(Some(("windows", "amd64", "")), 8),
        with(entry(None, 9), "mediaType", json!(OCI_INDEX)),
        with(
            entry(Some(("linux", "amd64", "")), 10),
            "mediaType",
            json!(""),
        ),
    ];
    for (platform, want) in [
        ("linux/amd64", &[3, 6, 10, 1, 5, 9][..]),
        ("linux/amd64/v3", &[4, 3, 6, 10, 1, 5, 9]),
        ("linux/arm64", &[2, 7, 5, 9]),
        ("linux/s390x", &[5, 9]),
    ] {
        assert_eq!(order(&entries, platform).unwrap(), want, "{platform}");
    }
}

#[test]
fn leaves_out_what_is_no_image_and_lists_what_is_offered() {
    let amd64 = Some(("linux", "amd64", ""));
    let entries = [
        entry(Some(("unknown", "unknown", "")), 1),
        with(
            entry(amd64, 2),
            "artifactType",
            json!("application/vnd.amazon.soci.index.v2+json"),
        ),
        with(
            entry(amd64, 3),
            "annotations",
            json!({"vnd.docker.reference.type": "attestation-manifest"}),
        ),
        with(
            entry(amd64, 4),
            "mediaType",
            json!("application/vnd.example+json"),
        ),
        with(entry(amd64, 5), "artifactType", json!(CONFIG)),
        entry(Some(("linux", "arm64", "v8")), 6),
        entry(Some(("linux", "arm64", "v8")), 7),
    ];
    assert_eq!(order(&entries, "linux/amd64").unwrap(), [5]);
    let error = order(&entries, "linux/riscv64").unwrap_err();
    assert_eq!(
        error.to_string(),
        "no image for platform linux/riscv64; the index offers linux/amd64, linux/arm64"
    );
    let error = order(&[], "linux/amd64").unwrap_err().to_string();
    assert!(error.ends_with("offers none"), "{error}");
    let many: Vec<_> = (0..1000)
        .map(|n| entry(Some(("linux", &format!("{n}{}", "x".repeat(500)), "")), n))
        .collect();
    let error = order(&many, "linux/amd64").unwrap_err().to_string();
    assert!(
        error.ends_with(", ...") && error.len() < 5000,
        "{}",
        error.len()
    );
}

proptest! {
    #[test]
    fn never_panics_on_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300), sent in ".{0,30}") {
        let _ = Document::parse(&bytes, Some(&sent));
    }

    #[test]
    fn never_panics_on_damage(at in 0usize..400, byte: u8, cut in 0usize..400) {
        let mut bytes = index_of(&[entry(Some(("linux", "amd64", "")), 1), entry(None, 2)])
            .to_string()
            .into_bytes();
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        let _ = Document::parse(bytes.get(..cut).unwrap_or(&bytes), None);
        if let Ok(Document::Index(index)) = Document::parse(&bytes, None) {
            let _ = index.candidates(&Platform::host());
        }
    }
}
