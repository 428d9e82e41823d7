//! Whether containerd takes its snapshots from larder, and is told so rightly: pure.

use toml::{Table, Value};

use super::kubelet::ImageService;
use super::{Containerd, Facts, Finding, mirror};
use crate::app::config::overlay;
use crate::app::machine::version;
use crate::app::setup::{IMAGES as NEW, MAPS_OWNERS, OLD_IMAGES as OLD, TRANSFER};

const NAME: &str = "containerd";
/// The first that can say where a proxy keeps its files.
const VERSION: (u64, u64) = (1, 7);
const HOW: &str = "larder setup containerd; or see docs/containerd.md";

pub(super) fn check(facts: &Facts, images: &ImageService) -> Vec<Finding> {
    let Some(containerd) = &facts.containerd else {
        return vec![Finding::ok(NAME, "none on this machine")];
    };
    let config = match merged(containerd) {
        Ok(config) => config,
        Err(fault) => {
            return vec![Finding::bad(
                NAME,
                fault,
                "mend the file, or run it as root",
            )];
        }
    };
    let plugin = if is_old(&config) { OLD } else { NEW };
    let folder = mirror::folder(&config, plugin);
    let mut findings = snapshots(facts, containerd, &config, images);
    findings.extend(mirror::check(facts, folder, is_old(&config)));
    findings
}

fn snapshots(
    facts: &Facts,
    containerd: &Containerd,
    config: &Table,
    images: &ImageService,
) -> Vec<Finding> {
    let Some(plugin) = get(config, &["proxy_plugins", "larder"]) else {
        return vec![absent(images)];
    };
    let mut findings = running(containerd);
    findings.extend(proxy(facts, plugin));
    let version = containerd.version.as_deref().and_then(number);
    let newer = version.is_some_and(|(major, _)| major >= 2);
    findings.extend(snapshotter(config, newer));
    findings.extend(sandbox(facts, config, images));
    if findings.is_empty() {
        let version = containerd
            .version
            .as_deref()
            .unwrap_or("of unknown version");
        findings.push(Finding::ok(
            NAME,
            format!("{version}, starts containers on larder's layers"),
        ));
    }
    findings
}

/// All files in one: what is imported counts more.
fn merged(containerd: &Containerd) -> Result<Table, String> {
    let mut merged = Table::new();
    for (path, text) in &containerd.files {
        let fault = |cause: &dyn std::fmt::Display| format!("{}: {cause}", path.display());
        let text = text.as_ref().map_err(|cause| fault(cause))?;
        // What a parser says has the lines it means below it.
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| fault(&error.message()))?;
        overlay(&mut merged, table);
    }
    Ok(merged)
}

fn get<'a>(table: &'a Table, keys: &[&str]) -> Option<&'a Value> {
    let (first, rest) = keys.split_first()?;
    let mut value = table.get(*first)?;
    for key in rest {
        value = value.as_table()?.get(*key)?;
    }
    Some(value)
}

fn absent(images: &ImageService) -> Finding {
    match images {
        ImageService::Larder => Finding::bad(
            NAME,
            "the kubelet pulls here, and containerd has no proxy_plugins.larder: no container will start",
            HOW,
        ),
        _ => Finding::ok(NAME, "it keeps images of its own: no proxy_plugins.larder"),
    }
}

/// A name may stand before it.
fn number(text: &str) -> Option<(u64, u64)> {
    version(text.rsplit(' ').next()?)
}

fn running(containerd: &Containerd) -> Vec<Finding> {
    match containerd
        .version
        .as_deref()
        .map(|text| (text, number(text)))
    {
        Some((text, Some(found))) if found < VERSION => vec![Finding::bad(
            NAME,
            format!("{text} is too old for larder's snapshots"),
            "containerd 1.7 or newer",
        )],
        _ => Vec::new(),
    }
}

fn proxy(facts: &Facts, plugin: &Value) -> Vec<Finding> {
    let socket = facts.socket.display().to_string();
    let root = facts.root.display().to_string();
    let text = |keys: &[&str]| {
        let found = plugin.as_table().and_then(|table| get(table, keys));
        found.and_then(Value::as_str).unwrap_or_default()
    };
    let mut findings = Vec::new();
    let mut wrong = |key: &str, found: &str, wanted: &str| {
        let message = format!("proxy_plugins.larder: {key} is {found:?}");
        findings.push(Finding::bad(
            NAME,
            message,
            format!("{key} = {wanted:?}, and restart containerd"),
        ));
    };
    if text(&["type"]) != "snapshot" {
        wrong("type", text(&["type"]), "snapshot");
    }
    if text(&["address"]).trim_start_matches("unix://") != socket {
        wrong("address", text(&["address"]), &socket);
    }
    if text(&["exports", "root"]) != root {
        wrong("exports.root", text(&["exports", "root"]), &root);
    }
    let capabilities = plugin.get("capabilities").and_then(Value::as_array);
    let has = |name: &str| {
        let mut list = capabilities.into_iter().flatten();
        list.any(|item| item.as_str() == Some(name))
    };
    if has("rebase") {
        findings.push(Finding::bad(
            NAME,
            "proxy_plugins.larder: with the capability rebase, containerd does not tell what is below a layer",
            "take it out of capabilities, and restart containerd",
        ));
    }
    if !has(MAPS_OWNERS) {
        findings.push(Finding::warn(
            NAME,
            format!("proxy_plugins.larder: without the capability {MAPS_OWNERS}, containerd copies the image of each pod with a user namespace"),
            format!("capabilities = [{MAPS_OWNERS:?}], and restart containerd"),
        ));
    }
    findings
}

fn is_old(config: &Table) -> bool {
    config
        .get("version")
        .and_then(Value::as_integer)
        .unwrap_or(1)
        < 3
}

fn snapshotter(config: &Table, newer: bool) -> Vec<Finding> {
    let keys: &[&str] = match is_old(config) {
        true => &["plugins", OLD, "containerd", "snapshotter"],
        false => &["plugins", NEW, "snapshotter"],
    };
    let found = get(config, keys)
        .and_then(Value::as_str)
        .unwrap_or("overlayfs");
    // containerd 2 takes over the snapshotter of version 2 only with the runtimes beside it.
    let lost = is_old(config)
        && newer
        && get(config, &["plugins", OLD, "containerd", "runtimes"]).is_none()
        && get(config, &["plugins", NEW, "snapshotter"]).is_none();
    if lost && found == "larder" {
        return vec![Finding::warn(
            NAME,
            format!("containerd 2 does not see the snapshotter in [plugins.{OLD:?}.containerd]"),
            format!("snapshotter = \"larder\" in [plugins.{NEW:?}] too; {HOW}"),
        )];
    }
    if found != "larder" {
        return vec![Finding::warn(
            NAME,
            format!("pods have their layers from {found}, though larder is there"),
            format!(
                "snapshotter = \"larder\" in [plugins.{:?}]; {HOW}",
                if is_old(config) { OLD } else { NEW }
            ),
        )];
    }
    let unpacks = get(config, &["plugins", TRANSFER, "unpack_config"]);
    let unpacks = unpacks.and_then(Value::as_array).into_iter().flatten();
    let mut named = unpacks.filter_map(|one| one.get("snapshotter")?.as_str());
    if is_old(config) || named.any(|name| name == "larder") {
        return Vec::new();
    }
    vec![Finding::warn(
        NAME,
        "what it pulls itself is unpacked for another snapshotter",
        format!("[[plugins.{TRANSFER:?}.unpack_config]] with snapshotter = \"larder\"; {HOW}"),
    )]
}

/// The kubelet collects by our list: what it may not take must be pinned here.
fn sandbox(facts: &Facts, config: &Table, images: &ImageService) -> Option<Finding> {
    let keys: &[&str] = match is_old(config) {
        true => &["plugins", OLD, "sandbox_image"],
        false => &["plugins", NEW, "pinned_images", "sandbox"],
    };
    let image = get(config, keys)?.as_str()?;
    let pinned = |pattern: &String| match pattern.strip_suffix('*') {
        Some(beginning) => image.starts_with(beginning),
        None => pattern == image,
    };
    // The agent is told by containerd itself which image that is.
    let known = facts.follows || facts.pinned.iter().any(pinned);
    if *images != ImageService::Larder || known {
        return None;
    }
    Some(Finding::warn(
        NAME,
        format!("the sandbox image {image} is not pinned here: the kubelet may collect it"),
        format!("larder agent --containerd SOCKET, or LARDER_PINNED={image}"),
    ))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::Verdict::{Bad, Ok as Good, Warn};
    use super::*;

    const GOOD: &str = r#"
        version = 3
        [proxy_plugins.larder]
        type = "snapshot"
        address = "/run/larder/larder.sock"
        exports = {root = "/var/lib/larder"}
        capabilities = ["remap-ids"]
        [plugins."io.containerd.cri.v1.images"]
        snapshotter = "larder"
        pinned_images = {sandbox = "registry.k8s.io/pause:3.10"}
        [[plugins."io.containerd.transfer.v1.local".unpack_config]]
        platform = "linux"
        snapshotter = "larder"
    "#;

    fn facts(files: &[&str], version: &str) -> Facts {
        let read = |text: &&str| (PathBuf::from("config.toml"), Ok((*text).to_owned()));
        Facts {
            root: PathBuf::from("/var/lib/larder"),
            socket: PathBuf::from("/run/larder/larder.sock"),
            pinned: vec!["registry.k8s.io/pause*".to_owned()],
            containerd: Some(Containerd {
                version: Some(version.to_owned()),
                files: files.iter().map(read).collect(),
            }),
            ..Facts::default()
        }
    }

    fn one(facts: &Facts, images: &ImageService) -> (super::super::Verdict, String) {
        let findings = check(facts, images);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        let finding = findings.into_iter().next().unwrap();
        (finding.verdict, finding.message)
    }

    #[test]
    fn what_is_right_is_one_line() {
        for images in [ImageService::Larder, ImageService::Runtime] {
            assert_eq!(one(&facts(&[GOOD], "v2.4.2"), &images).0, Good);
        }
        let old = r#"
            version = 2
            [proxy_plugins.larder]
            type = "snapshot"
            address = "unix:///run/larder/larder.sock"
            capabilities = ["remap-ids"]
            [proxy_plugins.larder.exports]
            root = "/var/lib/larder"
            [plugins."io.containerd.grpc.v1.cri"]
            sandbox_image = "registry.k8s.io/pause:3.8"
            [plugins."io.containerd.grpc.v1.cri".containerd]
            snapshotter = "larder"
        "#;
        assert_eq!(one(&facts(&[old], "1.7.2"), &ImageService::Larder).0, Good);
        assert_eq!(one(&facts(&[old], "v2.0.1"), &ImageService::Larder).0, Warn);
        let both = format!("{old}\n[plugins.{NEW:?}]\nsnapshotter = 'larder'\n");
        assert_eq!(
            one(&facts(&[&both], "v2.0.1"), &ImageService::Larder).0,
            Good
        );
        // What is imported is put over it.
        let over = "[plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = \"overlayfs\"\n";
        assert_eq!(
            one(&facts(&[GOOD, over], "v2"), &ImageService::Larder).0,
            Warn
        );
    }

    #[test]
    fn each_mistake_is_named() {
        for (from, to, verdict, words) in [
            ("\"snapshot\"", "\"content\"", Bad, "type is \"content\""),
            ("larder.sock", "other.sock", Bad, "other.sock"),
            ("/var/lib/larder", "/srv", Bad, "exports.root"),
            ("\"remap-ids\"", "\"remap-ids\", \"rebase\"", Bad, "rebase"),
            ("\"remap-ids\"", "", Warn, "remap-ids"),
            (
                "snapshotter = \"larder\"\n        pinned",
                "pinned",
                Warn,
                "overlayfs",
            ),
            ("unpack_config", "other", Warn, "unpacked for another"),
            (
                "registry.k8s.io/pause",
                "mirror.example/pause",
                Warn,
                "mirror.example/pause:3.10",
            ),
            ("version", "version version", Bad, "config.toml: "),
        ] {
            let text = GOOD.replacen(from, to, 1);
            let (found, message) = one(&facts(&[&text], "v2.0.0"), &ImageService::Larder);
            assert_eq!(
                (found, message.contains(words)),
                (verdict, true),
                "{message}"
            );
        }
        let other = GOOD.replace("registry.k8s.io/pause", "mirror.example/pause");
        let mut follows = facts(&[&other], "v2.0.0");
        follows.follows = true;
        assert_eq!(one(&follows, &ImageService::Larder).0, Good);
        assert_eq!(
            one(&facts(&[GOOD], "v1.6.36"), &ImageService::Larder).0,
            Bad
        );
    }

    #[test]
    fn a_kubelet_that_pulls_here_needs_the_plugin() {
        let none = facts(&["version = 3\n"], "v2.0.0");
        assert_eq!(one(&none, &ImageService::Larder).0, Bad);
        assert_eq!(one(&none, &ImageService::Runtime).0, Good);
        assert_eq!(one(&Facts::default(), &ImageService::Unknown).0, Good);
        let mut unread = none;
        unread.containerd.as_mut().unwrap().files[0].1 = Err("permission denied".to_owned());
        assert_eq!(one(&unread, &ImageService::Runtime).0, Bad);
    }
}
