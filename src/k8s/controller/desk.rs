//! Questions to registries: shared by all prepulls, bounded at once and per registry. Pure: says what may be asked
//! now, the shell asks.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::seam::ResolveFailure;
use crate::image::{Digest, Reference};
use crate::k8s::agent::WantCredentials;
use crate::k8s::api::reason;

/// Questions at once to one registry.
const PER_REGISTRY: usize = 4;
/// Questions at once.
const AT_ONCE: usize = 32;
/// Questions that wait. More have to come again.
const MOST_WAITING: usize = 20_000;
/// An answer serves everybody who asks the same so soon.
const FRESH: Duration = Duration::from_secs(20);
/// Answers that are kept.
const MOST_ANSWERS: usize = 4096;
/// Pause after a registry asked for patience without saying how long.
const RATE_LIMITED: Duration = Duration::from_secs(30);
/// Longest wish that is granted.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// What is asked with what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) reference: Reference,
    /// Tells credentials apart.
    fingerprint: [u8; 32],
}

/// An answer.
pub(super) type Answer = Result<Digest, ResolveFailure>;

/// What becomes of a question.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    /// Somebody asked a moment ago.
    Answered(Answer),
    /// The answer will come.
    Waiting,
    /// Too many wait already.
    Full,
}

/// A question to ask now.
#[derive(Clone, Debug)]
pub(super) struct Errand {
    pub(super) question: Question,
    pub(super) credentials: Arc<[WantCredentials]>,
}

#[derive(Debug, Default)]
struct Registry {
    running: usize,
    waiting: VecDeque<Question>,
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    credentials: Arc<[WantCredentials]>,
    /// Who wants to know: prepull and image.
    waiters: Vec<(u32, String)>,
}

/// The desk.
#[derive(Debug, Default)]
pub(super) struct Desk {
    registries: HashMap<String, Registry>,
    open: HashMap<Question, Open>,
    answers: HashMap<Question, (Instant, Answer)>,
    running: usize,
}

impl Desk {
    /// Puts a question for a prepull's image.
    pub(super) fn ask(
        &mut self,
        reference: Reference,
        credentials: Arc<[WantCredentials]>,
        waiter: (u32, String),
        now: Instant,
    ) -> Asked {
        let question = Question {
            fingerprint: fingerprint(&credentials),
            reference,
        };
        if let Some((at, answer)) = self.answers.get(&question)
            && now.saturating_duration_since(*at) < FRESH
        {
            return Asked::Answered(answer.clone());
        }
        if let Some(open) = self.open.get_mut(&question) {
            open.waiters.push(waiter);
            return Asked::Waiting;
        }
        if self.open.len() >= MOST_WAITING {
            return Asked::Full;
        }
        self.registries
            .entry(question.reference.domain().to_owned())
            .or_default()
            .waiting
            .push_back(question.clone());
        self.open.insert(
            question,
            Open {
                credentials,
                waiters: vec![waiter],
            },
        );
        Asked::Waiting
    }

    /// Questions that may be asked now; each is under way until [`Desk::done`].
    pub(super) fn start(&mut self, now: Instant) -> Vec<Errand> {
        let mut errands = Vec::new();
        loop {
            let before = errands.len();
            // One of each registry in turn, so that a slow one holds up nobody else.
            for registry in self.registries.values_mut() {
                let wait = registry.not_before.is_some_and(|at| at > now);
                if self.running >= AT_ONCE || wait || registry.running >= PER_REGISTRY {
                    continue;
                }
                let Some(question) = registry.waiting.pop_front() else {
                    continue;
                };
                let Some(open) = self.open.get(&question) else {
                    continue;
                };
                registry.running += 1;
                self.running += 1;
                errands.push(Errand {
                    credentials: Arc::clone(&open.credentials),
                    question,
                });
            }
            if errands.len() == before {
                return errands;
            }
        }
    }

    /// An answer came: who waits for it.
    pub(super) fn done(
        &mut self,
        question: &Question,
        answer: &Answer,
        now: Instant,
    ) -> Vec<(u32, String)> {
        let Some(open) = self.open.remove(question) else {
            return Vec::new();
        };
        self.running = self.running.saturating_sub(1);
        let domain = question.reference.domain();
        if let Some(registry) = self.registries.get_mut(domain) {
            registry.running = registry.running.saturating_sub(1);
            if let Err(failure) = answer
                && failure.reason == reason::RATE_LIMITED
            {
                let pause = failure
                    .retry_after
                    .unwrap_or(RATE_LIMITED)
                    .min(MAX_RETRY_AFTER);
                registry.not_before = Some(now + pause);
            }
            let idle = registry.running == 0 && registry.waiting.is_empty();
            if idle && registry.not_before.is_none_or(|at| at <= now) {
                self.registries.remove(domain);
            }
        }
        if self.answers.len() >= MOST_ANSWERS {
            self.answers
                .retain(|_, (at, _)| now.saturating_duration_since(*at) < FRESH);
        }
        if self.answers.len() < MOST_ANSWERS {
            self.answers.insert(question.clone(), (now, answer.clone()));
        }
        open.waiters
    }

    /// When a registry that asked for patience may be asked again.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.registries
            .values()
            .filter(|registry| !registry.waiting.is_empty())
            .filter_map(|registry| registry.not_before)
            .min()
    }

    /// Questions that wait or are under way.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

/// Tells credentials apart; stays in memory.
fn fingerprint(credentials: &[WantCredentials]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for one in credentials {
        hasher.update(&(one.docker_config.len() as u64).to_le_bytes());
        hasher.update(&one.docker_config);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    fn nobody() -> Arc<[WantCredentials]> {
        Arc::from([])
    }

    fn secret(text: &str) -> Arc<[WantCredentials]> {
        Arc::from([WantCredentials {
            source: "a/b".to_owned(),
            docker_config: text.as_bytes().into(),
        }])
    }

    fn answer() -> Answer {
        Ok(Digest::sha256(b""))
    }

    #[test]
    fn one_question_serves_all_who_ask_it() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        for prepull in 0..500 {
            let asked = desk.ask(
                reference("r.io/app:1"),
                nobody(),
                (prepull, String::new()),
                now,
            );
            assert!(matches!(asked, Asked::Waiting));
        }
        let errands = desk.start(now);
        assert_eq!(errands.len(), 1);
        assert!(desk.start(now).is_empty());
        assert_eq!(desk.done(&errands[0].question, &answer(), now).len(), 500);
        let again = desk.ask(reference("r.io/app:1"), nobody(), (7, String::new()), now);
        assert!(matches!(again, Asked::Answered(Ok(_))));
        // Other credentials see other things.
        let other = desk.ask(
            reference("r.io/app:1"),
            secret("{}"),
            (7, String::new()),
            now,
        );
        assert!(matches!(other, Asked::Waiting));
        let later = desk.ask(
            reference("r.io/app:1"),
            nobody(),
            (7, String::new()),
            now + FRESH,
        );
        assert!(matches!(later, Asked::Waiting));
    }

    #[test]
    fn a_registry_gets_a_few_at_once_and_holds_up_no_other() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        for number in 0..100 {
            desk.ask(
                reference(&format!("slow.io/app:{number}")),
                nobody(),
                (0, String::new()),
                now,
            );
        }
        desk.ask(
            reference("quick.io/app:1"),
            nobody(),
            (0, String::new()),
            now,
        );
        let errands = desk.start(now);
        assert_eq!(errands.len(), PER_REGISTRY + 1);
        let slow = errands
            .iter()
            .find(|e| e.question.reference.domain() == "slow.io")
            .unwrap();
        desk.done(&slow.question, &answer(), now);
        assert_eq!(desk.start(now).len(), 1);
    }

    #[test]
    fn a_registry_that_wants_patience_gets_it() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        for number in 0..9 {
            desk.ask(
                reference(&format!("r.io/app:{number}")),
                nobody(),
                (0, String::new()),
                now,
            );
        }
        let errands = desk.start(now);
        let refused = Err(ResolveFailure {
            reason: reason::RATE_LIMITED,
            message: String::new(),
            retry_after: Some(Duration::from_secs(60)),
        });
        desk.done(&errands[0].question, &refused, now);
        assert!(desk.start(now).is_empty());
        let wake = desk.wake().unwrap();
        assert_eq!(wake, now + Duration::from_secs(60));
        assert_eq!(desk.start(wake).len(), 1);
    }
}
