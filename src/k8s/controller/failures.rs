//! The ten most common reasons why nodes are not ready. Pure.

use std::collections::BTreeMap;

use super::lookups::ImageFault;
use crate::k8s::api::{MAX_FAILURES, PrepullFailure};

/// Counts failures by image and reason.
#[derive(Clone, Debug, Default)]
pub(super) struct Failures {
    groups: BTreeMap<(String, &'static str), Group>,
}

#[derive(Clone, Debug, Default)]
struct Group {
    nodes: i64,
    /// The first by name, so that the same failures give the same status.
    node: String,
    message: String,
}

impl Failures {
    /// One node reports an image.
    pub(super) fn add(&mut self, node: &str, image: &str, reason: &'static str, message: &str) {
        let group = self
            .groups
            .entry((image.to_owned(), reason))
            .or_insert_with(|| Group {
                nodes: 0,
                node: node.to_owned(),
                message: message.to_owned(),
            });
        group.nodes = group.nodes.saturating_add(1);
        if node < group.node.as_str() {
            node.clone_into(&mut group.node);
            message.clone_into(&mut group.message);
        }
    }

    /// An image without a digest: no chosen node can have it. `node` is one of them.
    pub(super) fn add_unresolved(&mut self, fault: &ImageFault, node: Option<&str>, nodes: u64) {
        self.groups.insert(
            (fault.image.clone(), fault.reason),
            Group {
                nodes: i64::try_from(nodes).unwrap_or(i64::MAX),
                node: node.unwrap_or_default().to_owned(),
                message: fault.message.clone(),
            },
        );
    }

    /// The most common first.
    pub(super) fn top(self) -> Vec<PrepullFailure> {
        let mut failures: Vec<PrepullFailure> = self
            .groups
            .into_iter()
            .map(|((image, reason), group)| PrepullFailure {
                image: image.chars().take(512).collect(),
                node: group.node,
                nodes: group.nodes,
                reason: reason.to_owned(),
                message: group.message.chars().take(256).collect(),
            })
            .collect();
        failures.sort_by(|a, b| b.nodes.cmp(&a.nodes).then_with(|| a.image.cmp(&b.image)));
        failures.truncate(MAX_FAILURES);
        failures
    }
}

#[cfg(test)]
mod tests {
    use crate::k8s::api::reason;

    use super::*;

    #[test]
    fn the_most_common_come_first_and_name_a_node() {
        let mut failures = Failures::default();
        for node in ["c", "a", "b"] {
            failures.add(node, "app:1", reason::TIMEOUT, node);
        }
        failures.add("a", "db:1", reason::NOT_FOUND, "gone");
        for image in 0..30 {
            failures.add("z", &format!("many:{image:02}"), reason::UNKNOWN, "");
        }
        let wrong = ImageFault {
            image: "typo:1".to_owned(),
            reason: reason::NOT_FOUND,
            message: "no such tag".to_owned(),
        };
        failures.add_unresolved(&wrong, Some("a"), 12);
        let top = failures.top();
        assert_eq!(top.len(), MAX_FAILURES);
        let first: Vec<_> = top
            .iter()
            .take(3)
            .map(|f| {
                (
                    f.image.as_str(),
                    f.node.as_str(),
                    f.nodes,
                    f.reason.as_str(),
                )
            })
            .collect();
        assert_eq!(
            first,
            [
                ("typo:1", "a", 12, "NotFound"),
                ("app:1", "a", 3, "Timeout"),
                ("db:1", "a", 1, "NotFound")
            ]
        );
    }
}
