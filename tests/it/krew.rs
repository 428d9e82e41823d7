//! The manifest of the plugin for krew: its form, and that what `make krew` packs is what it names.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::need;
use crate::support::process::run;

const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

fn manifest(path: &Path) -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no {pointer} in {value:#}"))
}

#[test]
fn the_plugins_manifest_has_krews_form() {
    let manifest = manifest(&Path::new(PACKAGE).join("manifests/krew/larder.yaml"));
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    for (pointer, expected) in [
        (
            "/apiVersion",
            "krew.googlecontainertools.github.com/v1alpha2",
        ),
        ("/kind", "Plugin"),
        // As the file is called, and as it is typed.
        ("/metadata/name", "larder"),
        ("/spec/version", &version),
        ("/spec/homepage", env!("CARGO_PKG_REPOSITORY")),
    ] {
        assert_eq!(text(&manifest, pointer), expected, "{pointer}");
    }
    let short = text(&manifest, "/spec/shortDescription");
    assert!(short.len() <= 50 && !short.ends_with('.'), "{short}");
    for pointer in ["/spec/description", "/spec/caveats"] {
        let long = text(&manifest, pointer);
        assert!(long.lines().all(|line| line.len() <= 80), "{long}");
    }
    let platforms = manifest["spec"]["platforms"].as_array().unwrap();
    let mut seen = Vec::new();
    for platform in platforms {
        let labels = &platform["selector"]["matchLabels"];
        assert_eq!(labels["os"], "linux");
        let arch = text(labels, "/arch");
        let archive = format!("{version}/kubectl-larder_linux_{arch}.tar.gz");
        assert!(text(platform, "/uri").ends_with(&archive), "{platform}");
        let sum = text(platform, "/sha256");
        assert!(sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_eq!(text(platform, "/bin"), "kubectl-larder");
        seen.push(arch);
    }
    assert_eq!(seen, ["amd64", "arm64"]);
}

#[test]
fn what_is_packed_is_what_the_manifest_names() {
    let Some([make, tar]) = need("what_is_packed_is_what_the_manifest_names", ["make", "tar"])
    else {
        return;
    };
    let target = tempfile::tempdir().unwrap();
    std::fs::create_dir(target.path().join("release")).unwrap();
    let program = target.path().join("release/kubectl-larder");
    std::fs::write(&program, "#!/bin/sh\n").unwrap();
    let mut command = Command::new(make);
    command.current_dir(PACKAGE).args(["krew", "CARGO=true"]);
    command.env("CARGO_TARGET_DIR", target.path());
    run(command.env_remove("MAKEFLAGS")).ok();
    let krew = target.path().join("krew");
    let packed = manifest(&krew.join("larder.yaml"));
    let platforms = packed["spec"]["platforms"].as_array().unwrap();
    let named = |platform: &&Value| {
        let archive = text(platform, "/uri").rsplit('/').next().unwrap();
        krew.join(archive).exists()
    };
    let own: Vec<&Value> = platforms.iter().filter(named).collect();
    assert_eq!(own.len(), 1, "{platforms:#?}");
    let archive = krew.join(text(own[0], "/uri").rsplit('/').next().unwrap());
    let bytes = std::fs::read(&archive).unwrap();
    let sum = larder::image::Digest::sha256(&bytes).to_string();
    assert_eq!(sum, format!("sha256:{}", text(own[0], "/sha256")));
    let listed = run(Command::new(tar).arg("-tzf").arg(&archive)).ok();
    assert_eq!(
        listed.lines().collect::<Vec<_>>(),
        ["kubectl-larder", "LICENSE"]
    );
}
