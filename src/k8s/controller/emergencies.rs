//! Emergencies that nodes report, told once by events of the Nodes. Pure.

use std::collections::{HashMap, VecDeque};

use k8s_openapi::jiff::Timestamp;

use super::notes::Note;
use crate::k8s::api::{EmergencyReport, NodeImageCache, reason};
use crate::prune::size;

/// Older ones are no news, in seconds. So long the API server keeps events, unless it is told otherwise: one that another
/// replica made is still there then, and the same is not made twice.
const RECENT: i64 = 3600;
/// Emergencies that wait to be told, while nobody leads.
const MOST_WAITING: usize = 100;

/// What is known of each node's last emergency, and what nobody was told of yet.
#[derive(Debug, Default)]
pub(super) struct Emergencies {
    known: HashMap<Box<str>, Known>,
    waiting: VecDeque<(Timestamp, Note)>,
}

/// When it began, and whether it fell short: it is news in both cases.
type Known = (Timestamp, bool);

impl Emergencies {
    /// A node reports.
    pub(super) fn seen(&mut self, object: &NodeImageCache) {
        let meta = &object.metadata;
        let Some((name, emergency)) = meta.name.as_ref().zip(
            object
                .status
                .as_ref()
                .and_then(|status| status.emergency.as_ref()),
        ) else {
            return;
        };
        let Some(began) = emergency.time.as_ref().map(|time| time.0) else {
            return;
        };
        let now = (began, emergency.short_bytes > 0);
        if self.known.insert(name.as_str().into(), now) == Some(now) {
            return;
        }
        let mut owners = meta.owner_references.iter().flatten();
        let Some(node) = owners.find(|owner| owner.kind == "Node") else {
            return;
        };
        if self.waiting.len() >= MOST_WAITING {
            self.waiting.pop_front();
        }
        let note = note(name, &node.uid, emergency, began);
        self.waiting.push_back((began, note));
    }

    /// A node reports no more.
    pub(super) fn forget(&mut self, node: &str) {
        self.known.remove(node);
    }

    /// What is to be told now.
    pub(super) fn take(&mut self, wall: Timestamp) -> impl Iterator<Item = Note> + use<> {
        let recent = move |began: Timestamp| wall.as_second() - began.as_second() < RECENT;
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        waiting.filter_map(move |(began, note)| recent(began).then_some(note))
    }
}

fn note(name: &str, uid: &str, emergency: &EmergencyReport, began: Timestamp) -> Note {
    let bytes = |bytes: i64| size(u64::try_from(bytes).unwrap_or(0));
    let short = emergency.short_bytes > 0;
    let mut text = match emergency.removed_images {
        0 => "the disk of images is nearly full".to_owned(),
        images => format!(
            "the disk of images was nearly full: {images} {} removed, which freed {}",
            if images == 1 {
                "image was"
            } else {
                "images were"
            },
            bytes(emergency.freed_bytes)
        ),
    };
    if short {
        text.push_str(&format!(
            "; {} more are wanted, and no other image may go, so pulls are refused",
            bytes(emergency.short_bytes)
        ));
    }
    Note {
        kind: Note::NODE,
        namespace: String::new(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        version: String::new(),
        warning: true,
        reason: if short {
            reason::INSUFFICIENT_SPACE
        } else {
            "EmergencyPrune"
        },
        action: "Prune",
        text,
        at: Some(began),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(node: &str, time: &str, images: i64, short: i64) -> NodeImageCache {
        serde_json::from_value(json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "NodeImageCache",
            "metadata": {"name": node, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": node, "uid": "u"}]},
            "status": {"emergency": {"time": time, "removedImages": images, "freedBytes": 1_500_000_000_i64,
                "shortBytes": short}},
        }))
        .unwrap()
    }

    #[test]
    fn each_is_told_once_and_again_where_it_falls_short() {
        let mut emergencies = Emergencies::default();
        let wall: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let mut told = |object: &NodeImageCache| {
            emergencies.seen(object);
            let notes: Vec<Note> = emergencies.take(wall).collect();
            notes
        };
        let first = told(&report("a", "2026-11-21T11:58:00Z", 3, 0));
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].reason, "EmergencyPrune");
        assert!(
            first[0]
                .text
                .ends_with("3 images were removed, which freed 1.5 GB"),
            "{}",
            first[0].text
        );
        // It goes on.
        assert!(told(&report("a", "2026-11-21T11:58:00Z", 4, 0)).is_empty());
        let short = told(&report("a", "2026-11-21T11:58:00Z", 4, 70));
        assert_eq!(short[0].reason, "InsufficientSpace");
        assert!(short[0].text.contains("70 B more are wanted"));
        assert!(told(&report("a", "2026-11-21T11:58:00Z", 4, 70)).is_empty());
        assert_eq!(told(&report("a", "2026-11-21T11:59:00Z", 1, 0)).len(), 1);
        // History, to one who has just begun to look.
        assert!(told(&report("b", "2026-11-21T10:00:00Z", 1, 0)).is_empty());
        assert!(told(&NodeImageCache::default()).is_empty());
    }

    #[test]
    fn nodes_that_are_gone_and_waiting_that_is_long_are_forgotten() {
        let mut emergencies = Emergencies::default();
        let time = "2026-11-21T11:58:00Z";
        for number in 0..2 * MOST_WAITING {
            emergencies.seen(&report(&number.to_string(), time, 1, 0));
        }
        assert_eq!(emergencies.waiting.len(), MOST_WAITING);
        for number in 0..2 * MOST_WAITING {
            emergencies.forget(&number.to_string());
        }
        assert!(emergencies.known.is_empty());
    }
}
