//! `larder inspect`.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::Done;
use super::client::Client;
use super::failure::Failures;
use super::output::{self, Format, ago, facts, familiar, say, short, size};
use super::run::Terminal;
use crate::control::proto::{InspectRequest, InspectResponse};

pub(super) const AFTER: &str = "\
Prints JSON, an array with one object for each image, unless -o says otherwise.

Examples:
  larder inspect busybox
  larder inspect -o table busybox
  larder inspect nginx:1.27 | jq -r '.[0].config.config.Env[]'";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names, ids or the first digits of ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    id: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    size: u64,
    created: String,
    pinned: bool,
    staged: bool,
    declared_by: Vec<String>,
    platform: String,
    pulled_at: String,
    chain_id: String,
    layers: Vec<LayerView>,
    config: Value,
    /// Its digest.
    manifest: String,
    manifest_document: Value,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LayerView {
    diff_id: String,
    digest: String,
    size: u64,
    tar_bytes: u64,
    users: u64,
}

impl From<InspectResponse> for View {
    fn from(details: InspectResponse) -> Self {
        let image = details.image.unwrap_or_default();
        View {
            id: image.id,
            repo_tags: image.repo_tags,
            repo_digests: image.repo_digests,
            size: image.size,
            created: image.created,
            pinned: image.pinned,
            staged: image.staged,
            declared_by: image.declared_by,
            platform: image.platform,
            pulled_at: image.pulled_at,
            chain_id: details.chain_id,
            layers: details
                .layers
                .into_iter()
                .map(|layer| LayerView {
                    diff_id: layer.diff_id,
                    digest: layer.digest,
                    size: layer.size,
                    tar_bytes: layer.tar_bytes,
                    users: layer.users,
                })
                .collect(),
            config: json(&details.config),
            manifest: image.manifest,
            manifest_document: json(&details.manifest),
        }
    }
}

/// The agent took it for JSON; should it be none, it is shown as it is.
fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

pub(super) async fn run(args: &Args, client: &mut Client, terminal: &Terminal) -> Done {
    let mut views = Vec::new();
    // The others are shown even if one is absent.
    let mut failures = Failures::default();
    for name in &args.names {
        let name = name.clone();
        match client.images.inspect(InspectRequest { name }).await {
            Ok(details) => views.push(View::from(details.into_inner())),
            Err(status) => failures.note(&client.failure(&status)),
        }
    }
    if terminal.quiet {
        for view in &views {
            say(&view.id)?;
        }
    } else if !terminal.format.unwrap_or(Format::Json).print(&views)? {
        let texts: Vec<_> = views
            .iter()
            .map(|view| text(view, Timestamp::now()))
            .collect();
        say(texts.join("\n\n"))?;
    }
    failures.end()
}

fn text(view: &View, now: Timestamp) -> String {
    let mut lines = vec![("ID", view.id.clone())];
    for (at, name) in view.repo_tags.iter().chain(&view.repo_digests).enumerate() {
        lines.push((if at == 0 { "NAMES" } else { "" }, familiar(name)));
    }
    lines.push(("OS/ARCH", view.platform.clone()));
    if !view.created.is_empty() {
        let ago = ago(&view.created, now);
        lines.push(("CREATED", format!("{} ({ago})", view.created)));
    }
    lines.push(("PULLED", view.pulled_at.clone()));
    lines.push(("SIZE", size(view.size)));
    let config = view.config.get("config").unwrap_or(&Value::Null);
    for (name, key) in [
        ("USER", "User"),
        ("WORKDIR", "WorkingDir"),
        ("ENTRY", "Entrypoint"),
        ("CMD", "Cmd"),
    ] {
        match config.get(key) {
            Some(Value::String(text)) if !text.is_empty() => lines.push((name, text.clone())),
            Some(list @ Value::Array(words)) if !words.is_empty() => {
                lines.push((name, list.to_string()));
            }
            _ => {}
        }
    }
    lines.push(("PINNED", if view.pinned { "yes" } else { "no" }.to_owned()));
    if view.staged {
        let note = "yes: pods see it after a pull with credentials of their own";
        lines.push(("STAGED", note.to_owned()));
    }
    if !view.declared_by.is_empty() {
        lines.push(("DECLARED BY", view.declared_by.join(", ")));
    }
    let layers = view.layers.iter().enumerate().map(|(at, layer)| {
        [
            (at + 1).to_string(),
            short(&layer.diff_id).to_owned(),
            short(&layer.digest).to_owned(),
            size(layer.size),
            size(layer.tar_bytes),
            layer.users.to_string(),
        ]
    });
    let header = ["LAYER", "DIFF ID", "BLOB", "COMPRESSED", "TAR", "IMAGES"];
    let layers = output::table(header, layers, &[0, 3, 4, 5]);
    format!("{}\n\n{layers}", facts(&lines))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::proto::{Image, LayerDetail};

    fn details() -> InspectResponse {
        InspectResponse {
            image: Some(Image {
                id: format!("sha256:{}", "a".repeat(64)),
                repo_tags: vec!["docker.io/library/busybox:1".to_owned()],
                repo_digests: vec![format!(
                    "docker.io/library/busybox@sha256:{}",
                    "b".repeat(64)
                )],
                platform: "linux/amd64".to_owned(),
                pulled_at: "2026-05-06T00:00:00Z".to_owned(),
                size: 4_260_000,
                manifest: "sha256:cc".to_owned(),
                ..Image::default()
            }),
            config: br#"{"config":{"Cmd":["sh","-c"],"User":""}}"#.to_vec(),
            manifest: b"no json".to_vec(),
            layers: vec![LayerDetail {
                diff_id: "sha256:0123456789abcdef".to_owned(),
                digest: "sha256:fedcba9876543210".to_owned(),
                size: 2_100_000,
                tar_bytes: 4_500_000,
                users: 2,
            }],
            chain_id: "sha256:dd".to_owned(),
        }
    }

    #[test]
    fn for_programs() {
        let json = serde_json::to_value(View::from(details())).unwrap();
        assert_eq!(json["config"]["config"]["Cmd"][0], "sh");
        assert_eq!(json["manifestDocument"], "no json");
        assert_eq!(json["layers"][0]["diffId"], "sha256:0123456789abcdef");
        assert_eq!(json["layers"][0]["tarBytes"], 4_500_000);
        assert_eq!(json["manifest"], "sha256:cc");
        assert_eq!(json["chainId"], "sha256:dd");
    }

    #[test]
    fn for_people() {
        let text = text(&View::from(details()), Timestamp::UNIX_EPOCH);
        let layers = "\
LAYER   DIFF ID        BLOB           COMPRESSED      TAR   IMAGES
    1   0123456789ab   fedcba987654       2.10MB   4.50MB        2";
        assert!(text.ends_with(layers), "{text}");
        assert!(
            text.contains("\nNAMES    busybox:1\n         busybox@sha256:bbbb"),
            "{text}"
        );
        assert!(text.contains("\nCMD      [\"sh\",\"-c\"]\n"), "{text}");
        assert!(!text.contains("USER"), "{text}");
    }
}
