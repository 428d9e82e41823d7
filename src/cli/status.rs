//! `larder status`.

use jiff::Timestamp;
use serde::Serialize;

use super::Done;
use super::client::Client;
use super::failure::Failure;
use super::output::{ago, count, facts, familiar, say, short, size, table, wrapped};
use super::run::Terminal;
use crate::control::proto::{
    PrepullImage, PrepullStatus, PrunePolicyStatus, StatusRequest, StatusResponse,
};

pub(super) const AFTER: &str = "\
What this node holds because a prepull declares it, what it waits for, and what went wrong; what prune policies
removed, or would, and why not. With -q: the prepulls that are not ready, which are none where all is well.

Examples:
  larder status
  larder status -o json | jq -r '.prepulls[] | select(.state == \"Failed\") | .name'";

/// Columns of what is said in sentences.
const WIDTH: usize = 80;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<ApiView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifests: Option<ManifestsView>,
    prepulls: Vec<PrepullView>,
    prunes: Vec<PruneView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    emergency: Option<EmergencyView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PruneView {
    policy: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    file: String,
    revision: String,
    mode: String,
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    last_run: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_run: String,
    removed_images: u64,
    freed_bytes: u64,
    would_remove_images: u64,
    would_free_bytes: u64,
    top: Vec<PrunedView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PrunedView {
    image: String,
    rule: String,
    bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EmergencyView {
    began: String,
    removed_images: u64,
    freed_bytes: u64,
    short_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiView {
    synced: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    fault: String,
    watches: Vec<WatchView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WatchView {
    resource: String,
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestsView {
    folder: String,
    faults: Vec<FaultView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FaultView {
    #[serde(skip_serializing_if = "String::is_empty")]
    file: String,
    message: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PrepullView {
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
    uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    file: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    revision: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_revision: String,
    state: String,
    ready: u64,
    total: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    pinned: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    retained_until: String,
    images: Vec<ImageView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageView {
    image: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    platform: String,
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "is_zero")]
    attempts: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_try: String,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

pub(super) async fn run(_: &Args, client: &mut Client, terminal: &Terminal) -> Done {
    let Some(prepulls) = &mut client.prepulls else {
        return Err(Failure::usage(
            "status asks an agent: leave --root out; a store alone declares nothing",
        ));
    };
    let answer = prepulls.status(StatusRequest {}).await;
    let status = client.answer(answer)?;
    if terminal.quiet {
        for prepull in status.prepulls.iter().filter(|p| p.state != "Ready") {
            say(name(prepull))?;
        }
        return Ok(());
    }
    let text = text(&status, Timestamp::now());
    if !terminal.format().print(&view(status))? {
        say(text)?;
    }
    Ok(())
}

fn view(status: StatusResponse) -> View {
    View {
        node: status.node,
        api: status.api.map(|api| ApiView {
            synced: api.synced,
            fault: api.fault,
            watches: api
                .watches
                .into_iter()
                .map(|watch| WatchView {
                    resource: watch.resource,
                    state: watch.state,
                    message: watch.message,
                })
                .collect(),
        }),
        manifests: (!status.manifests.is_empty()).then(|| ManifestsView {
            folder: status.manifests,
            faults: status
                .manifest_faults
                .into_iter()
                .map(|fault| FaultView {
                    file: fault.file,
                    message: fault.message,
                })
                .collect(),
        }),
        prepulls: status.prepulls.into_iter().map(prepull).collect(),
        prunes: status.prunes.into_iter().map(prune).collect(),
        emergency: status.emergency.map(|emergency| EmergencyView {
            began: emergency.began,
            removed_images: emergency.removed_images,
            freed_bytes: emergency.freed_bytes,
            short_bytes: emergency.short_bytes,
        }),
    }
}

fn prune(prune: PrunePolicyStatus) -> PruneView {
    PruneView {
        policy: prune.policy,
        file: prune.file,
        revision: prune.revision,
        mode: prune.mode,
        state: prune.state,
        reason: prune.reason,
        message: prune.message,
        last_run: prune.last_run,
        next_run: prune.next_run,
        removed_images: prune.removed_images,
        freed_bytes: prune.freed_bytes,
        would_remove_images: prune.would_remove_images,
        would_free_bytes: prune.would_free_bytes,
        top: prune
            .top
            .into_iter()
            .map(|top| PrunedView {
                image: top.image,
                rule: top.rule,
                bytes: top.bytes,
            })
            .collect(),
    }
}

fn prepull(prepull: PrepullStatus) -> PrepullView {
    PrepullView {
        kind: prepull.kind,
        namespace: prepull.namespace,
        name: prepull.name,
        uid: prepull.uid,
        file: prepull.file,
        revision: prepull.revision,
        next_revision: prepull.next_revision,
        state: prepull.state,
        ready: prepull.ready,
        total: prepull.total,
        reason: prepull.reason,
        message: prepull.message,
        pinned: prepull.pinned,
        retained_until: prepull.retained_until,
        images: prepull.images.into_iter().map(image).collect(),
    }
}

fn image(image: PrepullImage) -> ImageView {
    ImageView {
        image: image.image,
        digest: image.digest,
        platform: image.platform,
        state: image.state,
        reason: image.reason,
        message: image.message,
        attempts: image.attempts,
        next_try: image.next_try,
    }
}

/// As `kubectl` takes it.
fn name(prepull: &PrepullStatus) -> String {
    let kind = prepull.kind.to_lowercase();
    match prepull.namespace.as_str() {
        "" => format!("{kind}/{}", prepull.name),
        namespace => format!("{kind}/{namespace}/{}", prepull.name),
    }
}

fn text(status: &StatusResponse, now: Timestamp) -> String {
    let mut parts = vec![head(status, now)];
    if status.prepulls.is_empty() {
        parts.push("No prepull chooses this node.".to_owned());
    } else {
        parts.push(table(
            ["PREPULL", "REVISION", "STATE", "READY", "WHY"],
            status.prepulls.iter().map(|prepull| {
                let revision = match (&prepull.revision[..], &prepull.next_revision[..]) {
                    ("", next) => next.to_owned(),
                    (held, "") => held.to_owned(),
                    (held, next) => format!("{held} -> {next}"),
                };
                [
                    name(prepull),
                    revision,
                    prepull.state.clone(),
                    format!("{}/{}", prepull.ready, prepull.total),
                    why(prepull, now),
                ]
            }),
            &[],
        ));
    }
    let images: Vec<_> = status
        .prepulls
        .iter()
        .flat_map(|prepull| prepull.images.iter().map(move |image| (prepull, image)))
        .collect();
    if !images.is_empty() {
        parts.push(table(
            ["IMAGE", "DIGEST", "STATE", "FOR"],
            images.iter().map(|(prepull, image)| {
                let platform = match image.platform.as_str() {
                    "" => String::new(),
                    platform => format!(" ({platform})"),
                };
                [
                    format!("{}{platform}", familiar(&image.image)),
                    short(&image.digest).to_owned(),
                    image.state.clone(),
                    name(prepull),
                ]
            }),
            &[],
        ));
    }
    let failures: Vec<_> = images
        .iter()
        .filter(|(_, image)| !image.reason.is_empty())
        .map(|(_, image)| failure(image, now))
        .collect();
    if !failures.is_empty() {
        parts.push(failures.join("\n"));
    }
    if !status.prunes.is_empty() {
        parts.push(table(
            ["PRUNE", "MODE", "RAN", "IMAGES", "BYTES", "WHY"],
            status.prunes.iter().map(|prune| pruned(prune, now)),
            &[],
        ));
        let told = status
            .prunes
            .iter()
            .filter(|prune| !prune.message.is_empty());
        parts.extend(told.map(|prune| {
            let told = format!("{}: {}", prune.policy, prune.message);
            wrapped(&told, "  ", WIDTH)
        }));
    }
    parts.join("\n\n")
}

/// What a policy did, or would do, and what keeps it from it.
fn pruned(prune: &PrunePolicyStatus, now: Timestamp) -> [String; 6] {
    let (images, bytes) = match (prune.would_remove_images, prune.removed_images) {
        (0, 0) => ("none".to_owned(), String::new()),
        (0, went) => (format!("{went} went"), size(prune.freed_bytes)),
        (go, _) => (format!("{go} would go"), size(prune.would_free_bytes)),
    };
    let mut why = prune.reason.clone();
    if why.is_empty() && !prune.next_run.is_empty() {
        why = format!("next {}", until(&prune.next_run, now));
    }
    [
        prune.policy.clone(),
        prune.mode.clone(),
        match prune.last_run.as_str() {
            "" => "never".to_owned(),
            ran => ago(ran, now),
        },
        images,
        bytes,
        why,
    ]
}

fn head(status: &StatusResponse, now: Timestamp) -> String {
    let mut lines = vec![("NODE", status.node.clone())];
    if let Some(api) = &status.api {
        if !api.fault.is_empty() {
            lines.push(("API", api.fault.clone()));
        } else if api.synced {
            lines.push(("API", "synced".to_owned()));
        }
        for watch in api.watches.iter().filter(|watch| watch.state != "Synced") {
            let message = match watch.message.as_str() {
                "" => String::new(),
                message => format!(": {message}"),
            };
            lines.push((
                "API",
                format!("{}: {}{message}", watch.resource, watch.state),
            ));
        }
    }
    if !status.manifests.is_empty() {
        lines.push(("MANIFESTS", status.manifests.clone()));
        for fault in &status.manifest_faults {
            let text = match fault.file.as_str() {
                "" => fault.message.clone(),
                file => format!("{file}: {}", fault.message),
            };
            lines.push(("", text));
        }
    }
    if let Some(emergency) = &status.emergency {
        let mut text = format!(
            "{}: {} removed, {} freed",
            ago(&emergency.began, now),
            count(emergency.removed_images, "image"),
            size(emergency.freed_bytes)
        );
        if emergency.short_bytes > 0 {
            text.push_str(&format!("; {} short", size(emergency.short_bytes)));
        }
        lines.push(("FULL DISK", text));
    }
    facts(&lines)
}

fn why(prepull: &PrepullStatus, now: Timestamp) -> String {
    let mut parts = Vec::new();
    if !prepull.reason.is_empty() {
        parts.push(prepull.reason.clone());
    }
    if !prepull.retained_until.is_empty() {
        parts.push(format!("ends {}", until(&prepull.retained_until, now)));
    } else if !prepull.message.is_empty() {
        parts.push(prepull.message.clone());
    }
    if !prepull.file.is_empty() {
        parts.push(format!("from {}", prepull.file));
    }
    if prepull.pinned {
        parts.push("pinned".to_owned());
    }
    parts.join(", ")
}

fn failure(image: &PrepullImage, now: Timestamp) -> String {
    let next = match image.next_try.as_str() {
        "" => "under way again".to_owned(),
        next => format!("next try {}", until(next, now)),
    };
    facts(&[
        ("FAILED", familiar(&image.image)),
        ("  REASON", image.reason.clone()),
        ("  CAUSE", image.message.clone()),
        (
            "  TRIED",
            format!("{}, {next}", count(image.attempts.into(), "time")),
        ),
    ])
}

/// A moment to come, in words.
fn until(time: &str, now: Timestamp) -> String {
    let Ok(then) = time.parse::<Timestamp>() else {
        return "N/A".to_owned();
    };
    let seconds = then.as_second().saturating_sub(now.as_second());
    match seconds {
        ..=0 => "now".to_owned(),
        1..=119 => format!("in {}", count(seconds.unsigned_abs(), "second")),
        120..=7199 => format!("in {}", count(seconds.unsigned_abs() / 60, "minute")),
        7200..=172_799 => format!("in {}", count(seconds.unsigned_abs() / 3600, "hour")),
        _ => format!("in {}", count(seconds.unsigned_abs() / 86_400, "day")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::proto::{ApiStatus, EmergencyStatus, ManifestFault, WatchStatus};

    #[test]
    fn for_people() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let digest = format!("sha256:{}", "ab".repeat(32));
        let status = StatusResponse {
            node: "n1".to_owned(),
            api: Some(ApiStatus {
                synced: false,
                fault: String::new(),
                watches: vec![
                    WatchStatus {
                        resource: "nodes".to_owned(),
                        state: "Synced".to_owned(),
                        message: String::new(),
                    },
                    WatchStatus {
                        resource: "imageprepulls".to_owned(),
                        state: "Forbidden".to_owned(),
                        message: "no".to_owned(),
                    },
                ],
            }),
            manifests: "/m".to_owned(),
            manifest_faults: vec![ManifestFault {
                file: "a.yaml".to_owned(),
                message: "line 1".to_owned(),
            }],
            prepulls: vec![
                PrepullStatus {
                    kind: "ClusterImagePrepull".to_owned(),
                    name: "base".to_owned(),
                    revision: "0123456789abcdef".to_owned(),
                    state: "Failed".to_owned(),
                    ready: 1,
                    total: 2,
                    reason: "NotFound".to_owned(),
                    pinned: true,
                    images: vec![
                        PrepullImage {
                            image: "docker.io/library/busybox:1".to_owned(),
                            digest: digest.clone(),
                            state: "Held".to_owned(),
                            ..PrepullImage::default()
                        },
                        PrepullImage {
                            image: "r.io/app:1".to_owned(),
                            digest,
                            state: "Failed".to_owned(),
                            reason: "NotFound".to_owned(),
                            message: "r.io/app:1: not there".to_owned(),
                            attempts: 2,
                            next_try: "2026-11-21T10:00:05Z".to_owned(),
                            ..PrepullImage::default()
                        },
                    ],
                    ..PrepullStatus::default()
                },
                PrepullStatus {
                    kind: "ImagePrepull".to_owned(),
                    namespace: "team-a".to_owned(),
                    name: "app".to_owned(),
                    state: "Ready".to_owned(),
                    reason: "Deleted".to_owned(),
                    retained_until: "2026-11-21T13:00:00Z".to_owned(),
                    ..PrepullStatus::default()
                },
            ],
            prunes: vec![
                PrunePolicyStatus {
                    policy: "all".to_owned(),
                    mode: "DryRun".to_owned(),
                    state: "Done".to_owned(),
                    reason: "DryRun".to_owned(),
                    last_run: "2026-11-21T09:58:30Z".to_owned(),
                    would_remove_images: 12,
                    would_free_bytes: 3_400_000_000,
                    ..PrunePolicyStatus::default()
                },
                PrunePolicyStatus {
                    policy: "ci".to_owned(),
                    mode: "Enforce".to_owned(),
                    state: "Done".to_owned(),
                    last_run: "2026-11-21T09:00:00Z".to_owned(),
                    next_run: "2026-11-21T13:00:00Z".to_owned(),
                    removed_images: 3,
                    freed_bytes: 120_000_000,
                    ..PrunePolicyStatus::default()
                },
                PrunePolicyStatus {
                    policy: "old".to_owned(),
                    mode: "Enforce".to_owned(),
                    state: "Failed".to_owned(),
                    reason: "RuntimeUnavailable".to_owned(),
                    message: "who uses images is not known, so none is removed: \
                              /run/containerd/containerd.sock: connection refused"
                        .to_owned(),
                    ..PrunePolicyStatus::default()
                },
            ],
            emergency: Some(EmergencyStatus {
                began: "2026-11-21T09:30:00Z".to_owned(),
                removed_images: 2,
                freed_bytes: 900_000_000,
                short_bytes: 70,
            }),
        };
        let printed = text(&status, now);
        let of_prunes = printed
            .lines()
            .skip_while(|line| !line.starts_with("PRUNE"));
        for line in of_prunes {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert_eq!(
            printed,
            "\
NODE       n1
API        imageprepulls: Forbidden: no
MANIFESTS  /m
           a.yaml: line 1
FULL DISK  30 minutes ago: 2 images removed, 900MB freed; 70B short

PREPULL                    REVISION           STATE    READY   WHY
clusterimageprepull/base   0123456789abcdef   Failed   1/2     NotFound, pinned
imageprepull/team-a/app                       Ready    0/0     Deleted, ends in 3 hours

IMAGE        DIGEST         STATE    FOR
busybox:1    abababababab   Held     clusterimageprepull/base
r.io/app:1   abababababab   Failed   clusterimageprepull/base

FAILED    r.io/app:1
  REASON  NotFound
  CAUSE   r.io/app:1: not there
  TRIED   2 times, next try in 5 seconds

PRUNE   MODE      RAN                  IMAGES        BYTES    WHY
all     DryRun    About a minute ago   12 would go   3.40GB   DryRun
ci      Enforce   About an hour ago    3 went        120MB    next in 3 hours
old     Enforce   never                none                   RuntimeUnavailable

  old: who uses images is not known, so none is removed:
  /run/containerd/containerd.sock: connection refused"
        );
    }
}
