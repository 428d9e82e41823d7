//! A prune policy in the compact form that the agent keeps: whether it is about this node, whether it may act here, and
//! when. What the object says wrongly makes it a policy that removes nothing.

use std::time::Duration;

use jiff::Timestamp;

use super::prepull::later;
use crate::k8s::api::{
    ALL, ImagePrunePolicy, LabelSelector, NOBODY, NodeFacts, Opening, Slot, TimeWindow,
    parse_duration, slot,
};
use crate::prune;

/// A window that never closes is one run a day.
const ONE_DAY: Duration = Duration::from_secs(86_400);

/// A policy as the agent keeps it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PrunePolicy {
    /// `metadata.uid`; of files, something like it.
    pub(super) uid: String,
    /// `metadata.name`.
    pub(super) name: String,
    /// The file it is from; empty for the API server.
    pub(super) file: String,
    /// Which nodes.
    selector: Option<LabelSelector>,
    /// Whether anything is removed.
    pub(super) enforce: bool,
    /// Made from the spec as this agent reads it: what it cannot read, it does not act on.
    pub(super) revision: String,
    /// Nodes whose slot is at most this may act.
    admitted: Slot,
    /// The rules, or what is wrong with them.
    pub(super) rules: Result<prune::Policy, String>,
    /// When to look.
    pub(super) schedule: Schedule,
    /// Nodes chosen, as the controller counts them: what writes are spread by.
    pub(super) desired: u64,
}

/// When to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Schedule {
    interval: Option<Duration>,
    window: Option<TimeWindow>,
}

/// Whether it is time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Now. In a window: the one that closes then.
    Now(Option<Timestamp>),
    /// Not before; `None` for never.
    At(Option<Timestamp>),
}

impl PrunePolicy {
    /// Of the API server's object. The controller's word counts as far as it is about this very spec.
    pub(super) fn of_api(object: &ImagePrunePolicy) -> Self {
        let mut out = PrunePolicy::new(object);
        out.uid = object.metadata.uid.clone().unwrap_or_default();
        if let Some(status) = &object.status {
            out.desired = u64::try_from(status.nodes.desired).unwrap_or(0);
            if let Some(rollout) = &status.rollout
                && object.metadata.generation == Some(rollout.observed_generation)
                && rollout.revision == out.revision
            {
                out.admitted = rollout.admitted;
            }
        }
        out
    }

    /// Of a file: everybody is admitted.
    pub(super) fn of_file(file: &str, object: &ImagePrunePolicy) -> Self {
        let mut out = PrunePolicy::new(object);
        let name: String = blake3::hash(out.name.as_bytes()).to_hex().to_string();
        out.uid = format!("file-{}", name.get(..32).unwrap_or_default());
        out.file = file.to_owned();
        // The API server may have one of the same name.
        if let Ok(rules) = &mut out.rules {
            rules.name = format!("{} ({file})", rules.name);
        }
        out.admitted = ALL;
        out.desired = 1;
        out
    }

    fn new(object: &ImagePrunePolicy) -> Self {
        let spec = &object.spec;
        let name = object.metadata.name.clone().unwrap_or_default();
        let mut rules = spec.policy(&name).map_err(|fault| fault.to_string());
        let schedule = match schedule(object) {
            Ok(schedule) => schedule,
            Err(fault) => {
                rules = Err(fault);
                Schedule::default()
            }
        };
        PrunePolicy {
            uid: String::new(),
            file: String::new(),
            selector: spec.node_selector.clone(),
            enforce: spec.enforces(),
            revision: spec.revision(),
            admitted: NOBODY,
            rules,
            schedule,
            desired: 0,
            name,
        }
    }

    /// Whether the spec chooses a node.
    pub(super) fn selects(&self, node: &NodeFacts) -> bool {
        let selector = self.selector.as_ref();
        selector.is_none_or(|selector| selector.matches(&node.labels))
    }

    /// Whether it removes images of a node, being admitted there.
    pub(super) fn acts(&self, node_uid: &str) -> bool {
        self.enforce
            && self.rules.is_ok()
            && slot(node_uid, &self.uid, &self.revision) <= self.admitted
    }
}

fn schedule(object: &ImagePrunePolicy) -> Result<Schedule, String> {
    let Some(spec) = &object.spec.schedule else {
        return Ok(Schedule::default());
    };
    let interval = spec.interval.as_deref().map(parse_duration).transpose();
    let interval = interval.map_err(|error| format!("schedule.interval: {error}"))?;
    let window = spec.window.as_ref().map(TimeWindow::new).transpose();
    let window = window.map_err(|error| format!("schedule.{error}"))?;
    if interval.is_none() && window.is_none() {
        return Err("schedule: give interval, window, or both".to_owned());
    }
    Ok(Schedule { interval, window })
}

impl Schedule {
    /// Whether the policy looks whenever something changes.
    pub(super) fn is_continuous(&self) -> bool {
        self.interval.is_none() && self.window.is_none()
    }

    /// Whether a run is due: `last` is when the last one of this revision ended, `window` the end of the window that it
    /// was in. A clock that was set back makes nobody wait for years.
    pub(super) fn due(
        &self,
        last: Option<Timestamp>,
        window: Option<Timestamp>,
        now: Timestamp,
    ) -> Due {
        let last = last.filter(|last| *last <= now);
        let rested = |interval: Duration| last.map(|last| later(last, interval));
        let rest = match self.interval {
            Some(interval) => rested(interval),
            None => None,
        };
        if let Some(rest) = rest.filter(|rest| *rest > now) {
            return Due::At(Some(rest));
        }
        match self.window.map(|window| window.opening(now)) {
            None => Due::Now(None),
            Some(Opening::Closed(opens)) => Due::At(opens),
            Some(Opening::Open(None)) => match rested(self.interval.unwrap_or(ONE_DAY)) {
                Some(rest) if rest > now => Due::At(Some(rest)),
                _ => Due::Now(None),
            },
            Some(Opening::Open(Some(closes))) => {
                if self.interval.is_none() && last.is_some() && window == Some(closes) {
                    Due::At(Some(closes))
                } else {
                    Due::Now(Some(closes))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> PrunePolicy {
        let object: ImagePrunePolicy = serde_saphyr::from_str(&format!(
            "apiVersion: larder.dev/v1alpha1\nkind: ImagePrunePolicy\n{text}"
        ))
        .unwrap();
        PrunePolicy::of_api(&object)
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn acts_only_where_it_enforces_and_the_controller_admits_this_very_revision() {
        let spec = "spec: {mode: Enforce, rules: [{minFree: 15%}]}";
        let revision = policy(&format!("metadata: {{name: p, uid: u}}\n{spec}")).revision;
        let with = |generation: i64, revision: &str, admitted: u64, spec: &str| {
            let status = format!(
                "status: {{rollout: {{revision: '{revision}', observedGeneration: 3, admitted: {admitted}}}}}"
            );
            policy(&format!(
                "metadata: {{name: p, uid: u, generation: {generation}}}\n{spec}\n{status}"
            ))
            .acts("node")
        };
        assert!(with(3, &revision, ALL, spec));
        assert!(!with(3, &revision, NOBODY, spec));
        assert!(!with(4, &revision, ALL, spec));
        assert!(!with(3, "0123456789abcdef", ALL, spec));
        assert!(
            !policy(&format!(
                "metadata: {{name: p, uid: u, generation: 3}}\n{spec}"
            ))
            .acts("node")
        );
        let dry = "spec: {rules: [{minFree: 15%}]}";
        let dry_revision = policy(&format!("metadata: {{name: p, uid: u}}\n{dry}")).revision;
        assert!(!with(3, &dry_revision, ALL, dry));
        let wrong = "spec: {mode: Enforce, rules: [{minFree: 0%}]}";
        let wrong_revision = policy(&format!("metadata: {{name: p, uid: u}}\n{wrong}")).revision;
        assert!(!with(3, &wrong_revision, ALL, wrong));
    }

    #[test]
    fn a_file_needs_no_controller() {
        let object: ImagePrunePolicy = serde_saphyr::from_str(
            "apiVersion: larder.dev/v1alpha1\nkind: ImagePrunePolicy\nmetadata: {name: p}\nspec: {mode: Enforce, rules: \
             [{keepLast: 1}]}",
        )
        .unwrap();
        let policy = PrunePolicy::of_file("a.yaml", &object);
        assert!(policy.acts("any"));
        assert!(policy.selects(&NodeFacts::default()));
        assert_eq!(policy.uid.len(), "file-".len() + 32);
    }

    #[test]
    fn schedules() {
        let schedule = |text: &str| {
            let policy = policy(&format!(
                "metadata: {{name: p}}\nspec: {{rules: [{{keepLast: 1}}], schedule: {text}}}"
            ));
            assert!(policy.rules.is_ok(), "{:?}", policy.rules);
            policy.schedule
        };
        let now = at("2026-11-21T12:00:00Z");
        let hourly = schedule("{interval: 1h}");
        assert_eq!(hourly.due(None, None, now), Due::Now(None));
        assert_eq!(
            hourly.due(Some(at("2026-11-21T11:30:00Z")), None, now),
            Due::At(Some(at("2026-11-21T12:30:00Z")))
        );
        assert_eq!(
            hourly.due(Some(at("2026-11-21T11:00:00Z")), None, now),
            Due::Now(None)
        );
        // Set back by years.
        assert_eq!(
            hourly.due(Some(at("2036-11-21T11:00:00Z")), None, now),
            Due::Now(None)
        );
        let noon = schedule("{window: {start: '11:00', duration: 2h}}");
        let closes = at("2026-11-21T13:00:00Z");
        assert_eq!(noon.due(None, None, now), Due::Now(Some(closes)));
        assert_eq!(
            noon.due(Some(now), Some(closes), now),
            Due::At(Some(closes))
        );
        let yesterday = at("2026-11-20T11:30:00Z");
        assert_eq!(
            noon.due(Some(yesterday), Some(at("2026-11-20T13:00:00Z")), now),
            Due::Now(Some(closes))
        );
        let evening = schedule("{window: {start: '20:00', duration: 2h}, interval: 10m}");
        assert_eq!(
            evening.due(None, None, now),
            Due::At(Some(at("2026-11-21T20:00:00Z")))
        );
        let always = schedule("{window: {start: '00:00', duration: 24h}}");
        assert_eq!(always.due(None, None, now), Due::Now(None));
        assert_eq!(
            always.due(Some(now), None, now),
            Due::At(Some(at("2026-11-22T12:00:00Z")))
        );
        let wrong = policy(
            "metadata: {name: p}\nspec: {mode: Enforce, rules: [{keepLast: 1}], schedule: {interval: often}}",
        );
        assert!(wrong.rules.unwrap_err().contains("schedule.interval"));
    }
}
