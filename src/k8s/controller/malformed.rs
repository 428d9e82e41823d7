//! Prepulls that cannot be read: what slipped through a schema is told in the object's own status, once. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use super::declared::Key;
use super::notes::Note;
use crate::k8s::api::{condition, reason};

/// Objects that are remembered; more are only logged.
const MOST: usize = 1000;
/// Statuses sent at once.
const AT_ONCE: usize = 8;
/// Pause after a status that was not written.
const AGAIN: Duration = Duration::from_secs(60);
/// Of what the parser said.
const MAX_ERROR: usize = 512;

/// What is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) key: Key,
    pub(super) uid: String,
    pub(super) generation: i64,
    pub(super) error: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Due(Instant),
    Sending,
    Told,
}

/// All that are known.
#[derive(Debug, Default)]
pub(super) struct Malformed {
    faults: BTreeMap<Key, (Fault, State)>,
}

impl Fault {
    /// Of an object and the parser's words.
    pub(super) fn new(key: Key, metadata: &ObjectMeta, error: &str) -> Self {
        Fault {
            key,
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            error: error.chars().take(MAX_ERROR).collect(),
        }
    }

    fn message(&self) -> String {
        format!(
            "the object cannot be read: {}; nodes keep what they hold",
            self.error
        )
    }

    /// What people are told.
    pub(super) fn note(&self) -> Note {
        Note {
            kind: self.key.kind.name(),
            namespace: self.key.namespace.clone(),
            name: self.key.name.clone(),
            uid: self.uid.clone(),
            version: String::new(),
            warning: true,
            reason: reason::INVALID_SPEC,
            action: "Read",
            text: self.message(),
            at: None,
        }
    }

    /// The conditions that say so; `None` where `before` says it already. What was known of its images stays.
    pub(super) fn conditions(
        &self,
        before: &[Condition],
        now: Timestamp,
    ) -> Option<Vec<Condition>> {
        let find = |type_: &str| before.iter().find(|condition| condition.type_ == type_);
        let of = |type_: &str, status: &str| {
            let since = find(type_).filter(|before| before.status == status);
            Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: reason::INVALID_SPEC.to_owned(),
                message: self.message(),
                last_transition_time: since
                    .map_or(Time(now), |before| before.last_transition_time.clone()),
                observed_generation: Some(self.generation),
            }
        };
        let mut conditions = vec![
            of(condition::READY, "False"),
            of(condition::PROGRESSING, "False"),
            of(condition::STALLED, "True"),
        ];
        conditions.push(
            find(condition::RESOLVED)
                .cloned()
                .unwrap_or_else(|| of(condition::RESOLVED, "Unknown")),
        );
        (conditions != before).then_some(conditions)
    }
}

impl Malformed {
    /// One was seen.
    pub(super) fn found(&mut self, fault: Fault, now: Instant) {
        let known = self.faults.get(&fault.key);
        if known.is_some_and(|(known, _)| *known == fault) {
            return;
        }
        if known.is_some() || self.faults.len() < MOST {
            self.faults
                .insert(fault.key.clone(), (fault, State::Due(now)));
        }
    }

    /// It can be read, or is gone.
    pub(super) fn forget(&mut self, key: &Key) {
        self.faults.remove(key);
    }

    /// Another one led; what it told is not known.
    pub(super) fn again(&mut self, now: Instant) {
        for (_, state) in self.faults.values_mut() {
            *state = State::Due(now);
        }
    }

    /// Faults to tell now; each is under way until [`Malformed::sent`].
    pub(super) fn due(&mut self, now: Instant) -> Vec<Fault> {
        let sending = |(_, state): &&(Fault, State)| *state == State::Sending;
        let places = AT_ONCE.saturating_sub(self.faults.values().filter(sending).count());
        let is_due = |state: &State| matches!(state, State::Due(at) if *at <= now);
        self.faults
            .values_mut()
            .filter(|(_, state)| is_due(state))
            .take(places)
            .map(|(fault, state)| {
                *state = State::Sending;
                fault.clone()
            })
            .collect()
    }

    /// How telling ended.
    pub(super) fn sent(&mut self, fault: &Fault, told: bool, now: Instant) {
        if let Some((known, state)) = self.faults.get_mut(&fault.key)
            && known == fault
        {
            *state = if told {
                State::Told
            } else {
                State::Due(now + AGAIN)
            };
        }
    }

    /// When there is something to tell.
    pub(super) fn wake(&self) -> Option<Instant> {
        let due = self.faults.values().filter_map(|(_, state)| match state {
            State::Due(at) => Some(*at),
            State::Sending | State::Told => None,
        });
        due.min()
    }
}

#[cfg(test)]
mod tests {
    use super::super::declared::Kind;
    use super::*;

    fn fault(name: &str, generation: i64) -> Fault {
        let key = Key {
            kind: Kind::Cluster,
            namespace: String::new(),
            name: name.to_owned(),
        };
        let metadata = ObjectMeta {
            uid: Some("u".to_owned()),
            generation: Some(generation),
            ..ObjectMeta::default()
        };
        Fault::new(key, &metadata, &"x".repeat(2000))
    }

    #[test]
    fn each_is_told_once_and_again_after_an_edit() {
        let now = Instant::now();
        let mut malformed = Malformed::default();
        let one = fault("a", 1);
        malformed.found(one.clone(), now);
        assert_eq!(malformed.wake(), Some(now));
        assert_eq!(malformed.due(now).first(), Some(&one));
        // What was written comes back by the watch.
        malformed.found(one.clone(), now);
        assert!(malformed.due(now).is_empty());
        malformed.sent(&one, false, now);
        assert!(malformed.due(now).is_empty());
        assert_eq!(malformed.due(now + AGAIN).len(), 1);
        malformed.sent(&one, true, now);
        assert_eq!(malformed.wake(), None);
        let two = fault("a", 2);
        malformed.found(two.clone(), now);
        malformed.sent(&one, true, now);
        assert_eq!(malformed.due(now).first(), Some(&two));
        malformed.forget(&one.key);
        assert!(malformed.due(now + AGAIN * 2).is_empty());
    }

    #[test]
    fn a_status_that_says_so_already_is_not_written_again() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let fault = fault("a", 3);
        let first = fault.conditions(&[], at(10)).unwrap();
        assert_eq!(first.len(), 4);
        assert!(first.iter().all(|c| c.message.chars().count() <= 1024));
        assert_eq!(fault.conditions(&first, at(20)), None);
    }
}
