//! Which nodes may let pods in: those that hold a gated prepull's images, and those that had their time. Pure.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use super::board::Effect;
use super::declared::Key;
use super::nodes::{NodeInfo, Nodes};
use super::notes::Note;
use super::prepull::Prepull;
use super::wave::Progress;
use crate::k8s::api::{Gate, parse_duration};

/// How long a node is kept waiting when nobody says.
const DEADLINE: Duration = Duration::from_secs(600);
/// Before the same node is opened again: the change has to come back through the watch.
const AGAIN: Duration = Duration::from_secs(30);
/// Nodes opened by one look.
const AT_ONCE: usize = 20;

/// A node to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) prepull: Key,
    pub(super) prepull_uid: String,
    pub(super) node: String,
    pub(super) node_uid: String,
    /// Set to `true`.
    pub(super) label: Option<String>,
    /// Removed, with any effect.
    pub(super) taint: Option<String>,
    /// The node is not ready; its time is up.
    pub(super) late: bool,
}

impl Opening {
    /// What people are told.
    pub(super) fn note(&self) -> Note {
        let text = if self.late {
            format!(
                "node {} was opened without the images: its time was up",
                self.node
            )
        } else {
            // The same for all nodes, so that it is told once for many.
            "nodes that hold the images are opened".to_owned()
        };
        Note {
            kind: self.prepull.kind.name(),
            namespace: self.prepull.namespace.clone(),
            name: self.prepull.name.clone(),
            uid: self.prepull_uid.clone(),
            version: String::new(),
            warning: self.late,
            reason: "GateOpened",
            action: "Gate",
            text,
            at: None,
        }
    }
}

/// What is left to do on a node.
fn missing(gate: &Gate, node: &NodeInfo) -> (Option<String>, Option<String>) {
    let label = gate
        .node_label
        .as_ref()
        .filter(|label| node.facts.labels.get(*label).map(String::as_str) != Some("true"));
    let taint = gate
        .startup_taint
        .as_ref()
        .filter(|key| node.facts.taints.iter().any(|taint| taint.key == **key));
    (label.cloned(), taint.cloned())
}

/// Adds the nodes that may be opened now, a few at a time.
pub(super) fn openings(
    prepull: &mut Prepull,
    nodes: &Nodes,
    now: Instant,
    wall: Timestamp,
    effects: &mut Vec<Effect>,
    wake: &mut dyn FnMut(Instant),
) {
    let Some(gate) = &prepull.declared.gate else {
        return;
    };
    let deadline = gate
        .deadline
        .as_deref()
        .map_or(Ok(DEADLINE), parse_duration);
    let deadline = deadline.unwrap_or(DEADLINE);
    prepull
        .opened
        .retain(|_, at| now.saturating_duration_since(*at) < AGAIN);
    let mut added = 0;
    for (number, _, progress) in prepull.seats.nodes() {
        let Some(node) = nodes.get(number).and_then(|entry| entry.node.as_ref()) else {
            continue;
        };
        let (label, taint) = missing(gate, node);
        if label.is_none() && taint.is_none() {
            continue;
        }
        let ready = progress == Progress::Ready;
        if !ready {
            let age = node.created.map_or(Duration::ZERO, |created| {
                wall.duration_since(created)
                    .max(Default::default())
                    .unsigned_abs()
            });
            if age < deadline {
                wake(now + (deadline - age));
                continue;
            }
            // The label promises the images; only the taint goes when the time is up.
            if taint.is_none() {
                continue;
            }
        }
        if let Some(at) = prepull.opened.get(&node.facts.uid) {
            wake(*at + AGAIN);
            continue;
        }
        if added >= AT_ONCE {
            wake(now + Duration::from_secs(1));
            break;
        }
        added += 1;
        prepull.opened.insert(node.facts.uid.clone(), now);
        wake(now + AGAIN);
        effects.push(Effect::Open(Opening {
            prepull: prepull.declared.key.clone(),
            prepull_uid: prepull.declared.uid.clone(),
            node: node.facts.name.clone(),
            node_uid: node.facts.uid.clone(),
            label: label.filter(|_| ready),
            taint,
            late: !ready,
        }));
    }
}
