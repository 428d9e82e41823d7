//! Bad input through a running agent: what kubelet and a terminal are told, and that nothing is left of it.
//!
//! Each row is one image that cannot be had. For each: the code and the words of CRI, the exit code and the words of
//! `larder pull`, no image and no byte more than before, and an agent that serves a good image right after.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use axum::http::Method;
use larder::cri::proto::image_service_client::ImageServiceClient;
use larder::cri::proto::{
    ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest, RemoveImageRequest,
};
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::doors::connect;
use crate::support::build::{self, BuiltImage, BuiltLayer, GZIP, MANIFEST, ZSTD, noise};
use crate::support::hub::{Fault, Hub, blob_path};
use crate::support::process::{AgentProcess, agent_command};

type Client = ImageServiceClient<Channel>;

/// Limits so small that a test reaches them, and patience that a test has.
const CONFIG: &str = r#"
[limits]
max_entries = 500
max_layer_bytes = 100663296
[registry]
stall_timeout = "1s"
attempts = 3
max_retry_after = "2s"
"#;

/// In place of a path: that of the layer.
const LAYER: &str = "layer";

/// An image that cannot be had.
struct Row {
    name: &'static str,
    reference: String,
    code: Code,
    /// In the message: what is wrong, and what to do.
    words: Vec<String>,
}

fn spec(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec {
        image: name.to_owned(),
        ..ImageSpec::default()
    })
}

async fn pull(client: &mut Client, name: &str) -> Result<String, Status> {
    let request = PullImageRequest {
        image: spec(name),
        ..PullImageRequest::default()
    };
    Ok(client.pull_image(request).await?.into_inner().image_ref)
}

async fn listed(client: &mut Client) -> Vec<String> {
    let list = client.list_images(ListImagesRequest::default()).await;
    let images = list.unwrap().into_inner().images;
    images.into_iter().map(|image| image.id).collect()
}

/// How a terminal's command ended.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

/// `larder ARGS` through the agent at `socket`.
async fn larder(socket: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARDER_") {
            command.env_remove(name);
        }
    }
    command
        .env_remove("REGISTRY_AUTH_FILE")
        .env("DOCKER_CONFIG", "/nonexistent")
        .stdin(Stdio::null())
        .arg("--socket")
        .arg(socket)
        .args(args);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Bytes on disk of all that the store keeps of images, and its files; the database is not among them.
fn occupied(root: &Path) -> (u64, Vec<String>) {
    fn walk(folder: &Path, bytes: &mut u64, files: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                walk(&path, bytes, files);
            } else {
                *bytes += meta.blocks() * 512;
                // A segment is opened when something is to be written, and may stay for the next; empty it holds nothing.
                if path.extension().is_none_or(|ext| ext != "pack") {
                    files.push(path.display().to_string());
                }
            }
        }
    }
    let (mut bytes, mut files) = (0, Vec::new());
    for part in ["packs", "layers", "blobs", "staging"] {
        walk(&root.join(part), &mut bytes, &mut files);
    }
    files.sort();
    (bytes, files)
}

/// A tar whose entries are taken as they are given.
struct Tar(Vec<u8>);

impl Tar {
    /// With some good content first: what is refused later must be taken back.
    fn new() -> Self {
        Tar(Vec::new()).file("good/content", &noise(77, 200_000))
    }
    fn entry(self, kind: u8, name: &str, link: &str, data: &[u8]) -> Self {
        self.changed(kind, name, link, data, |_| ())
    }
    fn changed(
        mut self,
        kind: u8,
        name: &str,
        link: &str,
        data: &[u8],
        change: impl FnOnce(&mut [u8; 512]),
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(data.len() as u64);
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        if matches!(kind, b'3' | b'4') {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        change(header.as_mut_bytes());
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
    fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(b'0', name, "", data)
    }
    fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "", b"")
    }
    fn link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, target, b"")
    }
    /// PAX records for the entry to come.
    fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let digits = (1..9).find(|digits| (body + digits).to_string().len() == *digits);
            text += &format!("{} {key}={value}\n", body + digits.unwrap());
        }
        self.entry(b'x', "pax", "", text.as_bytes())
    }
    /// A file that claims this size in 12 bytes of its header, and has no data.
    fn sized(self, name: &str, size: [u8; 12]) -> Self {
        self.changed(b'0', name, "", b"", |header| {
            header[124..136].copy_from_slice(&size);
        })
    }
    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A layer whose blob is not what its compression makes of the tar.
fn blob(tar: &[u8], blob: Vec<u8>, media_type: &'static str) -> BuiltLayer {
    build::layer(tar, blob, media_type)
}

fn layer(seed: u64) -> BuiltLayer {
    build::gzip(&build::tar(&[("a", &noise(seed, 300_000))]))
}

/// The registry with all its bad images; each has a repository of its own, so that no fault meets another.
struct Table {
    hub: Hub,
    rows: Vec<Row>,
    seed: u64,
}

impl Table {
    fn row(&mut self, name: &'static str, tag: &str, code: Code, words: &[&str]) {
        self.rows.push(Row {
            name,
            reference: self.hub.reference(&format!("{name}:{tag}")),
            code,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
        });
    }

    /// A good image of one layer in the repository of a row.
    fn good(&mut self, name: &str) -> BuiltImage {
        self.seed += 1;
        let image = BuiltImage::new(&[layer(self.seed)]);
        self.hub.push(name, "1", &image);
        image
    }

    /// A registry that answers `part` of a good image's requests so; `layer` stands for the path of its one layer.
    fn answers(
        &mut self,
        name: &'static str,
        part: &str,
        fault: Fault,
        code: Code,
        words: &[&str],
    ) {
        let image = self.good(name);
        let path = match part {
            LAYER => blob_path(name, &image.layers[0].digest),
            part => format!("/v2/{name}/{part}"),
        };
        self.hub.fault_all(&path, fault);
        self.row(name, "1", code, words);
    }

    /// An image of this layer.
    fn layer(&mut self, name: &'static str, layer: BuiltLayer, code: Code, words: &[&str]) {
        self.hub.push(name, "1", &BuiltImage::new(&[layer]));
        self.row(name, "1", code, words);
    }

    /// An image of this tar.
    fn tar(&mut self, name: &'static str, tar: Tar, code: Code, words: &[&str]) {
        self.layer(name, build::gzip(&tar.end()), code, words);
    }

    fn manifest(&mut self, name: &'static str, json: &serde_json::Value, words: &[&str]) {
        let bytes = serde_json::to_vec(json).unwrap();
        self.hub.put_manifest(name, "1", &bytes, MANIFEST);
        self.row(name, "1", Code::DataLoss, words);
    }
}

fn registries(table: &mut Table) {
    let unavailable = Code::Unknown;
    table.good("status-401");
    table.hub.require("status-401", &["someone:else"]);
    table.row(
        "status-401",
        "1",
        Code::Unauthenticated,
        &["401", "pull secret"],
    );
    let all = "";
    table.answers(
        "status-403",
        all,
        Fault::Status(403),
        Code::PermissionDenied,
        &["403", "no right"],
    );
    table.row(
        "status-404",
        "1",
        Code::NotFound,
        &["404", "check repository and tag"],
    );
    table.answers(
        "layer-404",
        LAYER,
        Fault::Status(404),
        Code::NotFound,
        &["404"],
    );
    table.answers(
        "status-429",
        all,
        Fault::Status(429),
        Code::Unavailable,
        &["429", "wait"],
    );
    table.answers(
        "long-429",
        all,
        Fault::StatusAfter(429, "3600".to_owned()),
        Code::Unavailable,
        &["429", "Retry-After 3600", "wait"],
    );
    table.answers(
        "status-500",
        all,
        Fault::Status(500),
        unavailable,
        &["RegistryUnavailable: ", "500", "try again later"],
    );
    table.answers(
        "layer-500",
        LAYER,
        Fault::Status(500),
        unavailable,
        &["RegistryUnavailable: ", "500", "try again later"],
    );
    table.answers(
        "never",
        all,
        Fault::Never,
        unavailable,
        &["RegistryUnavailable: ", "no answer", "check"],
    );
    table.answers(
        "stall",
        LAYER,
        Fault::Stall(1000),
        unavailable,
        &["RegistryUnavailable: ", "no byte came", "check the network"],
    );
    table.answers(
        "breaks",
        LAYER,
        Fault::Cut(0),
        unavailable,
        &["RegistryUnavailable: ", "check the network"],
    );
    table.answers(
        "html",
        all,
        Fault::Html,
        Code::DataLoss,
        &["web page", "check that it is a registry"],
    );
    table.answers(
        "html-layer",
        LAYER,
        Fault::Html,
        Code::DataLoss,
        &["web page", "check that it is a registry"],
    );
    let looped = format!("{}/v2/redirects/manifests/1", table.hub.url());
    table.answers(
        "redirects",
        all,
        Fault::Redirect(looped),
        Code::DataLoss,
        &["redirects", "check"],
    );
    table.answers(
        "wrong-type",
        "manifests/",
        Fault::ContentType(build::INDEX),
        Code::DataLoss,
        &["the registry calls it", "push"],
    );
    table.answers(
        "layer-bytes",
        LAYER,
        Fault::WrongBytes,
        Code::DataLoss,
        &["wrong content"],
    );
    let image = table.good("layer-short");
    let BuiltLayer { digest, blob, .. } = &image.layers[0];
    table.hub.put_blob("layer-short", digest, &blob[..1000]);
    table.row(
        "layer-short",
        "1",
        Code::DataLoss,
        &["offers 1000 bytes", "push it again"],
    );
    let image = table.good("layer-cut");
    let BuiltLayer { digest, blob, .. } = &image.layers[0];
    table.hub.put_blob("layer-cut", digest, &blob[..1000]);
    let path = blob_path("layer-cut", digest);
    table.hub.fault_all(&path, Fault::Short(usize::MAX));
    table.row(
        "layer-cut",
        "1",
        unavailable,
        &["only 1000 of", "push it again"],
    );
    table.answers(
        "layer-long",
        LAYER,
        Fault::Excess(10),
        Code::DataLoss,
        &["more than the", "push"],
    );
    table.answers(
        "manifest-bytes",
        "manifests/",
        Fault::WrongBytes,
        Code::DataLoss,
        &["damaged or changed on the way"],
    );
}

fn images(table: &mut Table) {
    let bad = Code::DataLoss;
    let mut swapped = layer(900);
    swapped.diff_id = build::digest(b"something else");
    table.layer(
        "wrong-diffid",
        swapped,
        bad,
        &["the config says", "push it again"],
    );

    // The manifest names another size than the blob has.
    for (name, more) in [("size-large", true), ("size-small", false)] {
        let image = table.good(name);
        let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        let size = image.layers[0].blob.len();
        manifest["layers"][0]["size"] = json!(if more { size + 10 } else { size - 10 });
        table.manifest(name, &manifest, &["the manifest names", "push"]);
    }

    let tar = Tar::new().end();
    let (gzip, zstd) = (build::gzip(&tar).blob, build::zstd(&tar).blob);
    for (name, whole, media_type) in [("gzip", &gzip, GZIP), ("zstd", &zstd, ZSTD)] {
        let (cut, more) = match name {
            "gzip" => ("gzip-cut", "gzip-garbage"),
            _ => ("zstd-cut", "zstd-garbage"),
        };
        let half = whole[..whole.len() / 2].to_vec();
        table.layer(
            cut,
            blob(&tar, half, media_type),
            bad,
            &["truncated", "push"],
        );
        let garbage = [&whole[..], &noise(5, 100)].concat();
        table.layer(
            more,
            blob(&tar, garbage, media_type),
            bad,
            &["garbage", "push"],
        );
    }
    let zeros = Tar(Vec::new()).file("zeros", &vec![0; 80 << 20]).end();
    table.layer(
        "bomb-ratio",
        build::zstd(&zeros),
        Code::ResourceExhausted,
        &["ratio", "limits.max_ratio"],
    );
    let zeros = Tar(Vec::new()).file("zeros", &vec![0; 97 << 20]).end();
    table.layer(
        "bomb-size",
        build::gzip(&zeros),
        Code::ResourceExhausted,
        &["limits.max_layer_bytes"],
    );
    // Each byte stands in a block of zeros of its own.
    let map: Vec<String> = (0..100_u64).map(|n| format!("{},1", n << 24)).collect();
    table.tar(
        "bomb-sparse",
        Tar::new()
            .pax(&[
                ("GNU.sparse.size", "1099511627776"),
                ("GNU.sparse.map", &map.join(",")),
            ])
            .file("sparse", &[1; 100]),
        Code::ResourceExhausted,
        &["\"sparse\"", "limits."],
    );
    table.layer(
        "no-tar",
        blob(b"x", b"<html>no layer</html>".repeat(99), GZIP),
        bad,
        &["no tar", "push"],
    );
}

fn tars(table: &mut Table) {
    let (bad, much) = (Code::DataLoss, Code::ResourceExhausted);
    let long = "long/".repeat(1000);
    let mut many = Tar::new();
    for n in 0..501 {
        many = many.file(&format!("{n}"), b"");
    }
    // Minus one, 2^62 and the largest octal number.
    let negative = [0xff; 12];
    let mut huge = [0; 12];
    (huge[0], huge[4]) = (0x80, 0x40);
    let rows: Vec<(&'static str, Tar, Code, &[&str])> = vec![
        (
            "dotdot",
            Tar::new().file("../evil", b""),
            bad,
            &["../evil", "leaves", "push"],
        ),
        (
            "dotdot-deep",
            Tar::new().file("a/../../evil", b""),
            bad,
            &["evil", "push"],
        ),
        (
            "no-name",
            Tar::new().file("", b""),
            bad,
            &["without a name", "push"],
        ),
        (
            "long-name",
            Tar::new()
                .entry(b'L', "././@LongLink", "", long.as_bytes())
                .file("x", b""),
            much,
            &["5000 bytes", "limits.max_path"],
        ),
        ("many", many, much, &["entries", "limits.max_entries"]),
        (
            "link-nowhere",
            Tar::new().link("h", "nothing"),
            bad,
            &["hard link \"h\" to \"nothing\"", "push"],
        ),
        (
            "link-outside",
            Tar::new().link("h", "../../etc/passwd"),
            bad,
            &["hard link \"h\"", "push"],
        ),
        (
            "below-a-file",
            Tar::new().file("f", b"x").file("f/below", b""),
            bad,
            &["not a directory", "push"],
        ),
        (
            "negative",
            Tar::new().sized("n", negative),
            bad,
            &["\"n\"", "negative", "push"],
        ),
        (
            "huge",
            Tar::new().sized("h", huge),
            much,
            &["\"h\"", "limits.max_layer_bytes"],
        ),
        (
            "huge-octal",
            Tar::new().sized("o", *b"77777777777\0"),
            much,
            &["\"o\"", "8589934591 bytes", "limits.max_layer_bytes"],
        ),
        (
            "huge-pax",
            Tar::new()
                .pax(&[("size", "18446744073709551615")])
                .file("p", b""),
            much,
            &["\"p\"", "limits.max_layer_bytes"],
        ),
        (
            "negative-pax",
            Tar::new().pax(&[("size", "-1")]).file("p", b""),
            bad,
            &["PAX size: a negative number", "push"],
        ),
    ];
    for (name, tar, code, words) in rows {
        table.tar(name, tar, code, words);
    }
}

fn documents(table: &mut Table) {
    let bad = Code::DataLoss;
    let large = vec![b' '; (4 << 20) + 1];
    table
        .hub
        .put_manifest("manifest-large", "1", &large, MANIFEST);
    table.row(
        "manifest-large",
        "1",
        bad,
        &["4194305 bytes", "the limit is 4194304"],
    );
    let config = build::config("amd64", &[]);
    let one = json!({"mediaType": GZIP, "digest": build::digest(b"x"), "size": 1});
    table.manifest(
        "layers-10000",
        &json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": build::CONFIG, "digest": build::digest(b"c"), "size": 1},
            "layers": vec![one; 10_000],
        }),
        &["10000 layers, the limit is 500", "fewer"],
    );
    table.manifest(
        "manifest-shape",
        &json!({"schemaVersion": 2}),
        &["malformed", "push"],
    );
    table
        .hub
        .put_manifest("manifest-json", "1", b"{\"schemaVersion\":", MANIFEST);
    table.row("manifest-json", "1", bad, &["malformed", "push"]);
    let old = json!({"schemaVersion": 1, "name": "old", "tag": "1", "fsLayers": []});
    let old_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let old = serde_json::to_vec(&old).unwrap();
    table.hub.put_manifest("schema-1", "1", &old, old_type);
    table.row("schema-1", "1", bad, &["schema 1", "push it again"]);

    let image = BuiltImage::with_config(&[layer(901)], &json!({"not": "a config"}));
    table.hub.push("config-shape", "1", &image);
    table.row("config-shape", "1", bad, &["config", "push"]);
    let image = table.good("config-bytes");
    table
        .hub
        .put_blob("config-bytes", &image.id(), &vec![b' '; image.config.len()]);
    table.row("config-bytes", "1", bad, &["damaged or changed on the way"]);
    let image = BuiltImage::with_config(&[layer(902), layer(903)], &config);
    table.hub.push("config-layers", "1", &image);
    table.row("config-layers", "1", bad, &["2 layers", "push"]);

    let arm = BuiltImage::with_config(&[], &build::config("arm64", &[]));
    table.hub.push("platform", "plain", &arm);
    let index = build::index(&[
        ("linux/arm64", &arm.manifest, MANIFEST),
        ("windows/amd64", &arm.manifest, MANIFEST),
    ]);
    table.hub.push_index("platform", "index", &index);
    let no = Code::InvalidArgument;
    table.row("platform", "plain", no, &["linux/amd64", "linux/arm64"]);
    table.row(
        "platform",
        "index",
        no,
        &["linux/amd64", "linux/arm64, windows/amd64"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_told_by_name_with_a_remedy_and_leaves_nothing() {
    let mut table = Table {
        hub: Hub::start().await,
        rows: Vec::new(),
        seed: 1000,
    };
    registries(&mut table);
    images(&mut table);
    tars(&mut table);
    documents(&mut table);
    let Table { hub, rows, .. } = table;
    let (kept, fresh) = (BuiltImage::new(&[layer(1)]), BuiltImage::new(&[layer(2)]));
    hub.push("kept", "1", &kept);
    hub.push("fresh", "1", &fresh);

    let dir = tempfile::tempdir().unwrap();
    let agent = start(dir.path(), &hub);
    let mut client = ImageServiceClient::new(connect(&agent.socket).await);
    pull(&mut client, &hub.reference("kept:1")).await.unwrap();
    // Once, so that what the first pull makes for all later ones is there.
    serves(&mut client, &hub.reference("fresh:1")).await;
    let root = dir.path().join("root");
    let before = occupied(&root);

    let mut wrong = Vec::new();
    for row in &rows {
        let began = Instant::now();
        let mut note = |what: String| wrong.push(format!("{}: {what}", row.name));
        match pull(&mut client, &row.reference).await {
            Ok(id) => note(format!("CRI pulled {id}")),
            Err(status) => {
                eprintln!("{} {:?}: {}", row.name, status.code(), status.message());
                if status.code() != row.code {
                    note(format!("CRI says {status:?}"));
                }
                let words = row.words.iter().map(String::as_str);
                for word in words.chain([row.reference.as_str()]) {
                    if !status.message().contains(word) {
                        note(format!("{word:?} is not in {:?}", status.message()));
                    }
                }
            }
        }
        let ran = larder(&agent.socket, &["pull", &row.reference]).await;
        let code = if row.code == Code::NotFound { 3 } else { 1 };
        if ran.code != Some(code) || !ran.out.is_empty() {
            note(format!(
                "larder pull ended with {:?}: {}",
                ran.code, ran.out
            ));
        }
        let last = ran.err.lines().last().unwrap_or_default();
        let words = row.words.iter().filter(|word| !word.ends_with(": "));
        if !last.starts_with("larder: ") || !words.clone().all(|word| last.contains(word)) {
            note(format!("larder pull says {:?}", ran.err));
        }
        let status = ImageStatusRequest {
            image: spec(&row.reference),
            verbose: true,
        };
        let status = client.image_status(status).await;
        if status.is_ok_and(|status| status.into_inner().image.is_some()) {
            note("it is visible".to_owned());
        }
        if listed(&mut client).await != [kept.id()] {
            note("the list has changed".to_owned());
        }
        serves(&mut client, &hub.reference("fresh:1")).await;
        let after = occupied(&root);
        if after != before {
            note(format!(
                "{} bytes before, {} after; {after:?}",
                before.0, after.0
            ));
        }
        if began.elapsed() > Duration::from_secs(20) {
            note(format!("it took {:?}", began.elapsed()));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let log = agent.log();
    assert!(!log.contains("panicked"), "{log}");
    let ran = larder(&agent.socket, &["fsck", "-o", "json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.out);
}

/// An agent with [`CONFIG`] and little patience with the hub's connections.
fn start(dir: &Path, hub: &Hub) -> AgentProcess {
    let folder = dir.join("hosts.d").join(&hub.host);
    std::fs::create_dir_all(&folder).unwrap();
    let hosts = format!("server = \"{}\"\ndial_timeout = \"300ms\"\n", hub.url());
    std::fs::write(folder.join("hosts.toml"), hosts).unwrap();
    std::fs::write(dir.join("larder.toml"), CONFIG).unwrap();
    let mut command = agent_command(dir);
    command.arg("--config").arg(dir.join("larder.toml"));
    command.args(["--platform", "linux/amd64"]);
    AgentProcess::start_with(dir, command).unwrap_or_else(|(_, log)| panic!("{log}"))
}

/// A good image comes, and goes again.
async fn serves(client: &mut Client, name: &str) {
    let id = pull(client, name).await.unwrap();
    let image = spec(&id);
    let remove = RemoveImageRequest { image };
    client.remove_image(remove).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unusual_and_harmless_is_taken() {
    let hub = Hub::start().await;
    // What is in them after unpacking: paths and contents.
    type Wanted = Vec<(&'static str, &'static [u8])>;
    let tars: Vec<(&str, Vec<u8>, Wanted)> = vec![
        (
            "absolute",
            Tar::new()
                .file("/etc/motd", b"hi")
                .dir("//var/")
                .file("/./var/a", b"a")
                .end(),
            vec![("etc/motd", b"hi"), ("var/a", b"a")],
        ),
        (
            "file-over-directory",
            Tar::new()
                .dir("d/")
                .file("d/below", b"x")
                .file("d", b"file")
                .end(),
            vec![("d", b"file")],
        ),
        (
            "directory-over-file",
            Tar::new()
                .file("f", b"x")
                .dir("f/")
                .file("f/below", b"new")
                .end(),
            vec![("f/below", b"new")],
        ),
        (
            "unknown-pax",
            Tar::new()
                .pax(&[
                    ("VENDOR.weird", "x"),
                    ("comment", "hello"),
                    ("SCHILY.fflags", "x"),
                ])
                .file("f", b"f")
                .end(),
            vec![("f", b"f")],
        ),
        (
            "dot-dot-within",
            Tar::new().dir("a/").file("a/../b", b"b").end(),
            vec![("b", b"b")],
        ),
        (
            "after-the-end",
            [Tar::new().file("f", b"f").end(), vec![7; 4096]].concat(),
            vec![("f", b"f")],
        ),
        (
            "devices",
            Tar::new()
                .entry(b'3', "dev/null", "", b"")
                .entry(b'4', "dev/loop", "", b"")
                .entry(b'6', "dev/pipe", "", b"")
                .file("f", b"f")
                .end(),
            vec![("f", b"f")],
        ),
    ];
    for (name, tar, _) in &tars {
        hub.push(name, "1", &BuiltImage::new(&[build::gzip(tar)]));
    }
    // Two members, as pigz and stargz write them.
    let tar = Tar::new().end();
    let (head, tail) = tar.split_at(100_000);
    let members = [build::gzip(head).blob, build::gzip(tail).blob].concat();
    hub.push(
        "members",
        "1",
        &BuiltImage::new(&[blob(&tar, members, GZIP)]),
    );
    hub.push("slow", "1", &BuiltImage::new(&[layer(1)]));
    let drip = Fault::Drip(60_000, Duration::from_millis(300));
    hub.fault_all("/v2/slow/blobs/", drip);
    hub.push("mislabelled", "1", &BuiltImage::new(&[layer(2)]));
    hub.fault_all(
        "/v2/mislabelled/manifests/",
        Fault::ContentType("text/plain"),
    );
    hub.push("busy", "1", &BuiltImage::new(&[layer(3)]));
    let busy = Fault::StatusAfter(429, "1".to_owned());
    hub.fault_times(Method::HEAD, "/v2/busy/", busy.clone(), 1);
    hub.fault_times(Method::GET, "/v2/busy/blobs/", busy, 1);

    let dir = tempfile::tempdir().unwrap();
    let agent = start(dir.path(), &hub);
    let mut client = ImageServiceClient::new(connect(&agent.socket).await);
    for (name, _, wanted) in &tars {
        let reference = hub.reference(&format!("{name}:1"));
        pull(&mut client, &reference)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let to = dir.path().join(name);
        let ran = larder(&agent.socket, &["unpack", &reference, to.to_str().unwrap()]).await;
        if *name == "devices" && !crate::support::is_root() {
            continue;
        }
        assert_eq!(ran.code, Some(0), "{name}: {}", ran.err);
        for (path, content) in wanted {
            let found = std::fs::read(to.join(path)).ok();
            assert_eq!(found.as_deref(), Some(*content), "{name}: {path}");
        }
    }
    for (name, least) in [("members", 0), ("slow", 1), ("mislabelled", 0), ("busy", 2)] {
        let began = Instant::now();
        let reference = hub.reference(&format!("{name}:1"));
        pull(&mut client, &reference)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(began.elapsed() >= Duration::from_secs(least), "{name}");
    }
    let seen = hub.take_log();
    assert_eq!(
        seen.iter()
            .filter(|line| line.contains("/v2/slow/blobs/"))
            .count(),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_references_are_refused_before_anybody_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start().await;
    let agent = start(dir.path(), &hub);
    let mut client = ImageServiceClient::new(connect(&agent.socket).await);
    let long = format!("{}/a:{}", hub.host, "t".repeat(5000));
    for name in [
        "",
        " ",
        "a b",
        "UPPER/Case",
        "a:b:c",
        "a@sha256:12",
        "a@md5:d41d8cd98f00b204e9800998ecf8427e",
        "../../etc/passwd",
        "http://example.com/a",
        "a/",
        "/a",
        "a:",
        "a@",
        "-a",
        "a\u{0}b",
        "ä:1",
        &long,
    ] {
        let error = pull(&mut client, name).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{name:?}: {error}");
        assert!(error.message().len() < 1000, "{name:?}: {error}");
        if name.contains('\0') {
            continue;
        }
        let ran = larder(&agent.socket, &["pull", "--", name]).await;
        assert_eq!(ran.code, Some(2), "{name:?}: {}", ran.err);
        assert!(
            ran.err.starts_with("larder: ") && ran.err.len() < 1000,
            "{name:?}: {}",
            ran.err
        );
    }
    assert!(hub.take_log().is_empty());
}

/// A file system in memory for a root; it goes with the test.
struct Memory(std::path::PathBuf);

impl Memory {
    fn mount(at: &Path, size: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size},mode=0755");
        let args = ["-t", "tmpfs", "-o", &options, "larder-test"];
        let mounted = Command::new("mount").args(args).arg(at).status().unwrap();
        assert!(mounted.success());
        Memory(at.to_owned())
    }
    fn read_only(&self) {
        let args = ["-o", "remount,ro"];
        let status = Command::new("mount").args(args).arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_and_one_that_cannot_be_written_are_told() {
    let name = "a_full_disk_and_one_that_cannot_be_written_are_told";
    if !crate::support::is_root() {
        return crate::support::skip(name, "mounting needs root");
    }
    let hub = Hub::start().await;
    let large: Vec<BuiltLayer> = (0..3)
        .map(|n| build::gzip(&build::tar(&[("large", &noise(n + 50, 12 << 20))])))
        .collect();
    hub.push("large", "1", &BuiltImage::new(&large));
    hub.push("small", "1", &BuiltImage::new(&[layer(1)]));
    let (large, small) = (hub.reference("large:1"), hub.reference("small:1"));

    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let memory = Memory::mount(&root, "24m");
    let agent = start(dir.path(), &hub);
    let mut client = ImageServiceClient::new(connect(&agent.socket).await);
    serves(&mut client, &small).await;
    let before = occupied(&root);
    for _ in 0..2 {
        let error = pull(&mut client, &large).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        for word in [large.as_str(), "no space left", "remove images"] {
            assert!(error.message().contains(word), "{word}: {error}");
        }
        let ran = larder(&agent.socket, &["pull", &large]).await;
        assert_eq!(ran.code, Some(1), "{}", ran.err);
        assert!(ran.err.contains("remove images"), "{}", ran.err);
        assert!(listed(&mut client).await.is_empty());
        serves(&mut client, &small).await;
        assert_eq!(occupied(&root), before);
    }
    let kept = pull(&mut client, &small).await.unwrap();
    drop(client);
    let log = agent.log();
    assert!(!log.contains("panicked"), "{log}");
    tokio::task::spawn_blocking(|| agent.terminate())
        .await
        .unwrap();

    // What is there cannot be served from where nothing can be written.
    memory.read_only();
    let log = match AgentProcess::start_with(dir.path(), agent_command(dir.path())) {
        Ok(_) => panic!("a read-only root is served"),
        Err((status, log)) => {
            assert_eq!(status.code(), Some(1), "{log}");
            log
        }
    };
    for word in ["root", "read-only", "remount it writable"] {
        assert!(log.contains(word), "{word}: {log}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.arg("--root").arg(&root).args(["images", "-q"]);
    let ran = command.stdin(Stdio::null()).output().unwrap();
    let err = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(1), "{err}");
    assert!(err.contains("remount it writable"), "{err}");

    let remount = ["-o", "remount,rw"];
    let status = Command::new("mount").args(remount).arg(&root).status();
    assert!(status.unwrap().success());
    let agent = start(dir.path(), &hub);
    let mut client = ImageServiceClient::new(connect(&agent.socket).await);
    assert_eq!(listed(&mut client).await, [kept]);
}

#[test]
fn a_root_of_a_newer_format_or_another_agent_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let ask = |verb: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.arg("--root").arg(&root).args(verb);
        let ran = command.stdin(Stdio::null()).output().unwrap();
        let err = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(1), "{verb:?}: {err}");
        assert!(
            err.starts_with("larder: ") && err.lines().count() == 1,
            "{err}"
        );
        err
    };
    let verbs = [
        &["images"][..],
        &["pull", "127.0.0.1:1/a:1"],
        &["rmi", "a"],
        &["df"],
        &["fsck"],
    ];
    let agent = AgentProcess::start(dir.path());
    for verb in verbs {
        let err = ask(verb);
        for word in ["in use by process", "--socket"] {
            assert!(err.contains(word), "{verb:?}: {err}");
        }
    }
    agent.terminate();

    let meta = root.join("meta.json");
    let mut format: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&meta).unwrap()).unwrap();
    for (key, value) in [
        ("version", json!(2)),
        ("incompat", json!(["erofs-packs", "something-newer"])),
    ] {
        format[key] = value;
        let text = serde_json::to_string(&format).unwrap();
        std::fs::write(&meta, &text).unwrap();
        for verb in verbs {
            let err = ask(verb);
            assert!(err.contains("use a newer larder"), "{verb:?}: {err}");
        }
        assert_eq!(std::fs::read_to_string(&meta).unwrap(), text);
        format["version"] = json!(1);
    }
}
