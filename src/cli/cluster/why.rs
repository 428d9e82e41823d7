//! `kubectl larder why`.

use jiff::Timestamp;
use serde::Serialize;

use super::Globals;
use super::agents::{Chosen, ask};
use super::objects::{Objects, Prepull, find_condition};
use crate::cli::Done;
use crate::cli::client::images_client;
use crate::cli::failure::Failure;
use crate::cli::output::{ago, facts, familiar, say, short_id, table};
use crate::control::proto::{Image, ListRequest};
use crate::image::Reference;
use crate::k8s::api::{
    HoldState, ImageFailure, NodeFacts, NodeImageCacheStatus, Taints, condition, slot,
};

pub(super) const AFTER: &str = "\
Says which prepulls name the image, which of them choose the node, and how far
the node is with each. Where the agent can be asked, also what it holds.

Examples:
  kubectl larder why node-7 registry.example/app:1.2
  kubectl larder why node-7 busybox -o json | jq -r .verdict";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of the node
    #[arg(value_name = "NODE")]
    node: String,
    /// Name of the image, with its tag or digest
    #[arg(value_name = "IMAGE")]
    image: Reference,
    /// Ask the objects only, not the node's agent
    #[arg(long)]
    offline: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    node: String,
    image: String,
    /// One sentence.
    verdict: String,
    /// As the node's agent says; absent where it was not asked or did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<Held>,
    prepulls: Vec<Claim>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Held {
    here: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pulled_at: String,
    pinned: bool,
    staged: bool,
}

/// A prepull that names the image.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Claim {
    prepull: String,
    chosen: bool,
    state: String,
    reason: String,
}

/// What the objects say of one node.
struct Subject<'a> {
    node: &'a NodeFacts,
    status: Option<&'a NodeImageCacheStatus>,
    image: &'a Reference,
}

pub(super) async fn run(args: &Args, globals: &Globals, objects: &Objects) -> Done {
    let (node, cache, prepulls) = tokio::try_join!(
        objects.node(&args.node),
        objects.cache(&args.node),
        objects.prepulls()
    )?;
    let Some(node) = node else {
        return Err(Failure::not_found(format!(
            "there is no node {}",
            args.node
        )));
    };
    let facts = NodeFacts::from(&node);
    let subject = Subject {
        node: &facts,
        status: cache.as_ref().and_then(|cache| cache.status.as_ref()),
        image: &args.image,
    };
    let claims = claims(&subject, &prepulls);
    let held = match args.offline {
        true => None,
        false => held(objects, globals, args).await,
    };
    let view = View {
        node: args.node.clone(),
        image: args.image.to_string(),
        verdict: verdict(&subject, &claims, held.as_ref()),
        held,
        prepulls: claims,
    };
    if !globals.output.print(&view)? {
        say(text(&view, &subject, Timestamp::now()))?;
    }
    Ok(())
}

/// What the agent has under that name; why it was not heard is said on standard error.
async fn held(objects: &Objects, globals: &Globals, args: &Args) -> Option<Held> {
    let chosen = Chosen {
        node: vec![args.node.clone()],
        selector: None,
        max_agents: 1,
    };
    let pattern = args.image.repository();
    let asked = ask(objects, globals, &chosen, move |channel| {
        let request = ListRequest {
            pattern: pattern.clone(),
        };
        async move { Ok(images_client(channel).list(request).await?.into_inner()) }
    })
    .await;
    let cause = match asked {
        Err(failure) => failure.to_string(),
        Ok(answers) => match answers.into_iter().next().map(|answer| answer.result) {
            Some(Ok(list)) => return Some(find(&list.images, &args.image)),
            Some(Err(cause)) => cause,
            None => "no answer".to_owned(),
        },
    };
    eprintln!(
        "kubectl larder: the agent of {} was not heard: {cause}",
        args.node
    );
    None
}

fn find(images: &[Image], reference: &Reference) -> Held {
    let named = |image: &&Image| {
        let tagged = reference.digest().is_none()
            && reference
                .tagged()
                .is_some_and(|tag| image.repo_tags.contains(&tag));
        let digested = reference
            .digest()
            .is_some_and(|digest| image.repo_digests.contains(&reference.digested(digest)));
        tagged || digested
    };
    match images.iter().find(named) {
        Some(image) => Held {
            here: true,
            id: image.id.clone(),
            pulled_at: image.pulled_at.clone(),
            pinned: image.pinned,
            staged: image.staged,
        },
        None => Held {
            here: false,
            id: String::new(),
            pulled_at: String::new(),
            pinned: false,
            staged: false,
        },
    }
}

/// Prepulls that name the image, those that choose the node first.
fn claims(subject: &Subject<'_>, prepulls: &[Prepull]) -> Vec<Claim> {
    let mut claims: Vec<_> = prepulls
        .iter()
        .filter(|prepull| names(prepull, subject.image))
        .map(|prepull| claim(subject, prepull))
        .collect();
    claims.sort_by(|a, b| {
        b.chosen
            .cmp(&a.chosen)
            .then_with(|| a.prepull.cmp(&b.prepull))
    });
    claims
}

/// By tag, by digest, or by a tag that was resolved to the digest.
fn names(prepull: &Prepull, image: &Reference) -> bool {
    let same = |text: &String| text.parse::<Reference>().is_ok_and(|named| named == *image);
    let resolved = prepull.status.resolved.iter().any(|resolved| {
        same(&resolved.image)
            || image.digest().is_some_and(|digest| {
                resolved.digest == digest.to_string()
                    && resolved
                        .image
                        .parse::<Reference>()
                        .is_ok_and(|named| named.repository() == image.repository())
            })
    });
    resolved || prepull.spec.images.iter().any(same)
}

fn claim(subject: &Subject<'_>, prepull: &Prepull) -> Claim {
    let of = |chosen, state: &str, reason: String| Claim {
        prepull: prepull.name.clone(),
        chosen,
        state: state.to_owned(),
        reason,
    };
    if !prepull.spec.selects(subject.node) {
        let reason = match prepull.spec.taints {
            Taints::Honor if subject.node.repels_pods() => {
                "the node has a taint, and taints are honoured"
            }
            _ => "its selector does not match the node",
        };
        return of(false, "NotChosen", reason.to_owned());
    }
    let held = subject
        .status
        .and_then(|status| status.prepulls.iter().find(|held| held.uid == prepull.uid));
    let rollout = prepull.status.rollout.as_ref();
    let current = rollout.map_or("", |rollout| rollout.revision.as_str());
    match (held, rollout) {
        (Some(held), _) if held.revision == current => {
            let reason = match (held.state, failure(subject, prepull)) {
                (HoldState::Failed, Some(failure)) => {
                    format!("{}: {}", failure.reason, failure.message)
                }
                _ => held.reason.clone(),
            };
            of(true, &format!("{:?}", held.state), reason)
        }
        (_, None) => {
            let unresolved =
                find_condition(&prepull.status.conditions, condition::RESOLVED, "False");
            let reason = unresolved.map_or_else(
                || "the controller has not looked up its digests yet".to_owned(),
                |condition| format!("{}: {}", condition.reason, condition.message),
            );
            of(true, "Unresolved", reason)
        }
        (held, Some(rollout)) => {
            let admitted =
                slot(&subject.node.uid, &prepull.uid, &rollout.revision) <= rollout.admitted;
            let mut reason = match admitted {
                true => "the node was let in and has not reported yet".to_owned(),
                false => "the rollout has not let this node in yet".to_owned(),
            };
            if let Some(held) = held.filter(|held| !held.revision.is_empty()) {
                reason += &format!("; it holds revision {}", held.revision);
            }
            of(true, "Waiting", reason)
        }
    }
}

fn failure<'a>(subject: &Subject<'a>, prepull: &Prepull) -> Option<&'a ImageFailure> {
    let same = |failure: &&ImageFailure| {
        failure
            .image
            .parse::<Reference>()
            .is_ok_and(|named| named == *subject.image)
    };
    let status = subject.status?;
    let mut of_image = status.failures.iter().filter(same);
    of_image.find(|failure| failure.prepull.is_empty() || failure.prepull == prepull.uid)
}

fn verdict(subject: &Subject<'_>, claims: &[Claim], held: Option<&Held>) -> String {
    let (node, image) = (&subject.node.name, familiar(&subject.image.to_string()));
    let chosen: Vec<_> = claims.iter().filter(|claim| claim.chosen).collect();
    let why = match chosen.as_slice() {
        [] => "no prepull that chooses the node names it".to_owned(),
        [one] => format!("{} declares it ({})", one.prepull, one.state),
        [one, more @ ..] => format!(
            "{} and {} more declare it ({})",
            one.prepull,
            more.len(),
            one.state
        ),
    };
    if subject.status.is_none() {
        return format!("{node} reports nothing: does an agent run there? {why}");
    }
    let ready = chosen.iter().any(|claim| claim.state == "Ready");
    match held {
        Some(held) if held.here => format!("{node} holds {image}: {why}"),
        Some(_) => format!("{node} does not hold {image}: {why}"),
        None if ready => format!("{node} should hold {image}: {why}"),
        None => format!("{node} may or may not hold {image}: {why}"),
    }
}

fn text(view: &View, subject: &Subject<'_>, now: Timestamp) -> String {
    let mut parts = vec![view.verdict.clone()];
    if let Some(held) = view.held.as_ref().filter(|held| held.here) {
        let mut lines = vec![
            ("IMAGE ID", short_id(&held.id).to_owned()),
            ("PULLED", ago(&held.pulled_at, now)),
        ];
        if held.pinned {
            lines.push(("PINNED", "yes".to_owned()));
        }
        if held.staged {
            lines.push((
                "STAGED",
                "pods see it once they show credentials that work".to_owned(),
            ));
        }
        parts.push(facts(&lines));
    }
    if !view.prepulls.is_empty() {
        parts.push(table(
            ["PREPULL", "STATE", "WHY"],
            view.prepulls.iter().map(|claim| {
                [
                    claim.prepull.clone(),
                    claim.state.clone(),
                    claim.reason.clone(),
                ]
            }),
            &[],
        ));
    }
    if let Some(time) = subject
        .status
        .and_then(|status| status.observed_time.as_ref())
    {
        parts.push(format!(
            "{} reported {}.",
            view.node,
            ago(&time.0.to_string(), now)
        ));
    }
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::api::{
        ALL, HeldPrepull, LabelSelector, NOBODY, PrepullStatus, ResolvedImage, RolloutStatus,
        SharedPrepullSpec,
    };

    const DIGEST: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn prepull(admitted: u64) -> Prepull {
        Prepull {
            name: "clusterimageprepull/base".to_owned(),
            uid: "p".to_owned(),
            generation: 1,
            spec: SharedPrepullSpec {
                images: vec!["registry.example/app:1".to_owned()],
                ..SharedPrepullSpec::default()
            },
            status: PrepullStatus {
                rollout: Some(RolloutStatus {
                    revision: "new".to_owned(),
                    observed_generation: 1,
                    admitted,
                    ..RolloutStatus::default()
                }),
                resolved: vec![ResolvedImage {
                    image: "registry.example/app:1".to_owned(),
                    digest: DIGEST.to_owned(),
                }],
                ..PrepullStatus::default()
            },
        }
    }

    fn status(revision: &str, state: HoldState) -> NodeImageCacheStatus {
        NodeImageCacheStatus {
            prepulls: vec![HeldPrepull {
                uid: "p".to_owned(),
                revision: revision.to_owned(),
                state,
                ..HeldPrepull::default()
            }],
            failures: vec![ImageFailure {
                image: "registry.example/app:1".to_owned(),
                reason: "NotFound".to_owned(),
                message: "no such tag".to_owned(),
                ..ImageFailure::default()
            }],
            ..NodeImageCacheStatus::default()
        }
    }

    #[test]
    fn a_claim_says_how_far_the_node_is() {
        let node = NodeFacts {
            name: "n".to_owned(),
            uid: "node".to_owned(),
            ..NodeFacts::default()
        };
        let image: Reference = "registry.example/app:1".parse().unwrap();
        let ready = status("new", HoldState::Ready);
        let failed = status("new", HoldState::Failed);
        let old = status("old", HoldState::Ready);
        let mut elsewhere = prepull(ALL);
        elsewhere.spec.node_selector = Some(LabelSelector {
            match_labels: [("pool".to_owned(), "gpu".to_owned())].into(),
            ..LabelSelector::default()
        });
        let table = [
            (&ready, prepull(ALL), ("Ready", "")),
            (&failed, prepull(ALL), ("Failed", "NotFound: no such tag")),
            (
                &old,
                prepull(NOBODY),
                (
                    "Waiting",
                    "the rollout has not let this node in yet; it holds revision old",
                ),
            ),
            (
                &old,
                prepull(ALL),
                (
                    "Waiting",
                    "the node was let in and has not reported yet; it holds revision old",
                ),
            ),
            (
                &ready,
                elsewhere,
                ("NotChosen", "its selector does not match the node"),
            ),
        ];
        for (status, prepull, want) in table {
            let subject = Subject {
                node: &node,
                status: Some(status),
                image: &image,
            };
            let claims = claims(&subject, &[prepull]);
            let got = (claims[0].state.as_str(), claims[0].reason.as_str());
            assert_eq!(got, want);
        }
    }

    #[test]
    fn an_image_is_named_by_tag_or_by_the_digest_it_had() {
        let prepull = prepull(ALL);
        for (image, want) in [
            ("registry.example/app:1".to_owned(), true),
            (format!("registry.example/app@{DIGEST}"), true),
            (format!("registry.example/other@{DIGEST}"), false),
            ("registry.example/app:2".to_owned(), false),
        ] {
            assert_eq!(names(&prepull, &image.parse().unwrap()), want, "{image}");
        }
    }
}
