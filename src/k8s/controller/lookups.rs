//! What is known of one prepull's images, and what has to be asked next. Pure: instants and answers in, questions out.
//!
//! A tag is resolved once, and again at the prepull's refresh interval. An image that has a digest keeps it when a
//! later question fails. A wrong image is asked for again with growing pauses and holds nobody up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::seam::ResolveFailure;
use crate::image::{Digest, Reference};
use crate::k8s::api::{MAX_IMAGES, ResolvedImage, reason};
use crate::k8s::backoff::backoff;

/// A first round of answers is waited for so long before nodes get what there is.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// Pauses between questions for an image that cannot be had, where the cause may pass by itself.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// Pauses where somebody has to do something first.
const FIRST_RETRY_DEFINITE: Duration = Duration::from_secs(30);
/// The longest pause.
const LAST_RETRY: Duration = Duration::from_secs(600);
/// Longest wish of a registry that is granted.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Why an image has no digest, or no fresh one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageFault {
    pub(super) image: String,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// One image.
#[derive(Clone, Debug)]
struct Image {
    /// `None`: not a reference.
    reference: Option<Reference>,
    digest: Option<String>,
    fault: Option<(&'static str, String)>,
    failures: u32,
    /// When to ask next.
    next: Option<Instant>,
    asking: bool,
}

/// The images of one prepull.
#[derive(Clone, Debug, Default)]
pub(super) struct Lookups {
    images: BTreeMap<String, Image>,
    /// As the spec orders them.
    order: Vec<String>,
    /// Workloads that could not be read.
    workload_faults: Vec<ImageFault>,
    refresh: Option<Duration>,
    refresh_at: Option<Instant>,
    since: Option<Instant>,
}

/// Everything that is known just now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) resolved: Vec<ResolvedImage>,
    /// Images without a digest.
    pub(super) missing: Vec<ImageFault>,
    /// Images whose digest could not be refreshed.
    pub(super) stale: Vec<ImageFault>,
    /// Images that were never answered for.
    pub(super) waiting: usize,
    /// Questions under way.
    pub(super) asking: usize,
    pub(super) total: usize,
    /// Workloads have not been read for the present spec: there may be more.
    pub(super) unlisted: bool,
}

impl Known {
    /// Whether nodes may be told: everything was answered for, or waited for long enough, and there is anything to tell.
    pub(super) fn is_usable(&self, waited: Duration) -> bool {
        let answered = self.waiting + self.asking == 0 || waited >= PATIENCE;
        answered && (self.total == 0 || !self.resolved.is_empty())
    }
}

impl Lookups {
    /// The images changed, or are known for the first time. Digests that a status has are taken over.
    pub(super) fn list(
        &mut self,
        wanted: impl IntoIterator<Item = String>,
        workload_faults: Vec<ImageFault>,
        status: &[ResolvedImage],
        now: Instant,
    ) {
        let mut old = std::mem::take(&mut self.images);
        self.order.clear();
        for image in wanted {
            if self.order.len() >= MAX_IMAGES {
                break;
            }
            if self.images.contains_key(&image) {
                continue;
            }
            let entry = old
                .remove(&image)
                .unwrap_or_else(|| Image::new(&image, status, now));
            self.images.insert(image.clone(), entry);
            self.order.push(image);
        }
        self.workload_faults = workload_faults;
        self.since = Some(now);
    }

    /// How often tags are asked for again.
    pub(super) fn refresh_every(&mut self, interval: Option<Duration>, now: Instant, jitter: f64) {
        if self.refresh != interval {
            self.refresh = interval;
            // After a start, the refreshes of all prepulls are spread over their intervals.
            self.refresh_at = interval.map(|interval| now + interval.mul_f64(0.1 + 0.9 * jitter));
        }
    }

    /// Images to ask for now; each counts as asked for until [`Lookups::answer`].
    pub(super) fn due(&mut self, now: Instant, jitter: f64) -> Vec<(String, Reference)> {
        if let Some(interval) = self.refresh
            && self.refresh_at.is_some_and(|at| at <= now)
        {
            self.refresh_at = Some(now + interval.mul_f64(0.95 + 0.1 * jitter));
            for image in self.images.values_mut() {
                let tag = image
                    .reference
                    .as_ref()
                    .is_some_and(|r| r.digest().is_none());
                if tag {
                    image.next = Some(now);
                }
            }
        }
        let mut due = Vec::new();
        if !self.is_asking() {
            self.since = Some(now);
        }
        for (name, image) in &mut self.images {
            let Some(reference) = &image.reference else {
                continue;
            };
            if !image.asking && image.next.is_some_and(|next| next <= now) {
                image.asking = true;
                due.push((name.clone(), reference.clone()));
            }
        }
        due
    }

    /// Whether anything is to be asked now; changes nothing.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let refresh = self.refresh.is_some() && self.refresh_at.is_some_and(|at| at <= now);
        refresh
            || self.images.values().any(|image| {
                image.reference.is_some()
                    && !image.asking
                    && image.next.is_some_and(|next| next <= now)
            })
    }

    /// A question could not be put now.
    pub(super) fn postpone(&mut self, image: &str, until: Instant) {
        if let Some(image) = self.images.get_mut(image) {
            image.asking = false;
            image.next = Some(until);
        }
    }

    /// The answer to a question.
    pub(super) fn answer(
        &mut self,
        image: &str,
        answer: &Result<Digest, ResolveFailure>,
        now: Instant,
        jitter: f64,
    ) {
        let Some(image) = self.images.get_mut(image) else {
            return;
        };
        image.asking = false;
        match answer {
            Ok(digest) => {
                image.digest = Some(digest.to_string());
                image.fault = None;
                image.failures = 0;
                image.next = None;
            }
            Err(failure) => {
                image.failures = image.failures.saturating_add(1);
                let definite = is_definite(failure.reason);
                let first = if definite {
                    FIRST_RETRY_DEFINITE
                } else {
                    FIRST_RETRY
                };
                let asked = failure.retry_after.unwrap_or_default().min(MAX_RETRY_AFTER);
                let pause = backoff(image.failures, first, LAST_RETRY, jitter).max(asked);
                image.next = Some(now + pause);
                image.fault = Some((failure.reason, failure.message.clone()));
                // A digest needs no registry to be known; only that it is not there is news.
                let own = image.reference.as_ref().and_then(Reference::digest);
                if let Some(digest) = own
                    && !definite
                {
                    image.digest = Some(digest.to_string());
                }
            }
        }
    }

    /// When something is to be asked next.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.images
            .values()
            .filter(|image| !image.asking)
            .filter_map(|image| image.next)
            .chain(self.refresh_at)
            .min()
    }

    /// Since when the present round of questions goes on.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Whether any question is open.
    pub(super) fn is_asking(&self) -> bool {
        self.images.values().any(|image| image.asking)
    }

    /// Everything that is known just now.
    pub(super) fn known(&self) -> Known {
        let mut known = Known {
            total: self.order.len() + self.workload_faults.len(),
            missing: self.workload_faults.clone(),
            ..Known::default()
        };
        for name in &self.order {
            let Some(image) = self.images.get(name) else {
                continue;
            };
            known.asking += usize::from(image.asking);
            let fault = image.fault.as_ref().map(|(reason, message)| ImageFault {
                image: name.clone(),
                reason,
                message: message.clone(),
            });
            match (&image.digest, fault) {
                (Some(digest), fault) => {
                    known.resolved.push(ResolvedImage {
                        image: name.clone(),
                        digest: digest.clone(),
                    });
                    known.stale.extend(fault);
                }
                (None, Some(fault)) => known.missing.push(fault),
                (None, None) => known.waiting += 1,
            }
        }
        known
    }
}

impl Image {
    fn new(name: &str, status: &[ResolvedImage], now: Instant) -> Self {
        let held = status.iter().find(|resolved| resolved.image == name);
        // What a status says is checked as everything that comes from outside.
        let digest = held
            .filter(|held| held.digest.parse::<Digest>().is_ok())
            .map(|held| held.digest.clone());
        let mut image = Image {
            reference: None,
            next: digest.is_none().then_some(now),
            digest,
            fault: None,
            failures: 0,
            asking: false,
        };
        match name.parse::<Reference>() {
            Ok(reference) => image.reference = Some(reference),
            Err(error) => {
                image.digest = None;
                image.next = None;
                image.fault = Some((reason::INVALID_REFERENCE, error.to_string()));
            }
        }
        image
    }
}

/// Whether a person has to do something before another answer can be expected.
fn is_definite(reason: &str) -> bool {
    [
        reason::NOT_FOUND,
        reason::UNAUTHORIZED,
        reason::INVALID_REFERENCE,
        reason::INVALID_IMAGE,
        reason::SECRET_MISSING,
    ]
    .contains(&reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn failure(reason: &'static str) -> Result<Digest, ResolveFailure> {
        Err(ResolveFailure {
            reason,
            message: "no".to_owned(),
            retry_after: None,
        })
    }

    fn digest() -> Result<Digest, ResolveFailure> {
        Ok(DIGEST.parse().unwrap())
    }

    fn names(due: Vec<(String, Reference)>) -> Vec<String> {
        due.into_iter().map(|(name, _)| name).collect()
    }

    fn listed(images: &[&str], status: &[ResolvedImage], now: Instant) -> Lookups {
        let mut lookups = Lookups::default();
        lookups.list(
            images.iter().map(|i| (*i).to_owned()),
            Vec::new(),
            status,
            now,
        );
        lookups
    }

    #[test]
    fn a_wrong_image_holds_nobody_up() {
        let now = Instant::now();
        let mut lookups = listed(&["app:1", "typo:1", "Not A Name", "app:1"], &[], now);
        assert_eq!(names(lookups.due(now, 0.5)), ["app:1", "typo:1"]);
        assert!(lookups.due(now, 0.5).is_empty(), "asked already");
        assert!(!lookups.known().is_usable(Duration::ZERO));
        lookups.answer("app:1", &digest(), now, 0.5);
        lookups.answer("typo:1", &failure(reason::NOT_FOUND), now, 0.5);
        let known = lookups.known();
        assert!(known.is_usable(Duration::ZERO));
        assert_eq!(known.resolved.len(), 1);
        let missing: Vec<_> = known
            .missing
            .iter()
            .map(|f| (f.image.as_str(), f.reason))
            .collect();
        assert_eq!(
            missing,
            [
                ("typo:1", reason::NOT_FOUND),
                ("Not A Name", reason::INVALID_REFERENCE)
            ]
        );
        let wake = lookups.wake().unwrap();
        assert!(wake > now && wake <= now + FIRST_RETRY_DEFINITE);
        assert_eq!(names(lookups.due(wake, 0.5)), ["typo:1"]);
    }

    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for_for_ever() {
        let now = Instant::now();
        let mut lookups = listed(&["a:1", "b:1"], &[], now);
        lookups.due(now, 0.5);
        assert!(!lookups.known().is_usable(PATIENCE), "nothing to tell");
        lookups.answer("a:1", &digest(), now, 0.5);
        assert!(!lookups.known().is_usable(Duration::ZERO));
        assert!(lookups.known().is_usable(PATIENCE));
    }

    #[test]
    fn tags_are_refreshed_and_digests_are_not() {
        let now = Instant::now();
        let fixed = format!("app@{DIGEST}");
        let mut lookups = listed(&["app:1", &fixed], &[], now);
        let hour = Duration::from_secs(3600);
        lookups.refresh_every(Some(hour), now, 1.0);
        for name in names(lookups.due(now, 0.5)) {
            lookups.answer(&name, &digest(), now, 0.5);
        }
        assert!(!lookups.is_due(now));
        let at = lookups.wake().unwrap();
        assert_eq!(at, now + hour);
        assert!(lookups.is_due(at));
        assert_eq!(names(lookups.due(at, 0.5)), ["app:1"]);
        // A failed refresh keeps what there is, and says so.
        lookups.answer("app:1", &failure(reason::REGISTRY_UNAVAILABLE), at, 0.5);
        let known = lookups.known();
        assert_eq!(
            (known.resolved.len(), known.missing.len(), known.stale.len()),
            (2, 0, 1)
        );
    }

    #[test]
    fn a_digest_is_known_without_its_registry_unless_that_denies_it() {
        let now = Instant::now();
        let fixed = format!("app@{DIGEST}");
        let mut lookups = listed(&[&fixed], &[], now);
        lookups.due(now, 0.5);
        lookups.answer(&fixed, &failure(reason::REGISTRY_UNAVAILABLE), now, 0.5);
        assert_eq!(lookups.known().resolved[0].digest, DIGEST);
        let mut lookups = listed(&[&fixed], &[], now);
        lookups.due(now, 0.5);
        lookups.answer(&fixed, &failure(reason::NOT_FOUND), now, 0.5);
        assert_eq!(lookups.known().missing.len(), 1);
    }

    #[test]
    fn what_a_status_has_is_taken_over_and_checked() {
        let now = Instant::now();
        let status =
            [("app:1", DIGEST), ("db:1", "rubbish")].map(|(image, digest)| ResolvedImage {
                image: image.to_owned(),
                digest: digest.to_owned(),
            });
        let mut lookups = listed(&["app:1", "db:1", "new:1"], &status, now);
        assert_eq!(names(lookups.due(now, 0.5)), ["db:1", "new:1"]);
        // An edit keeps what is known, and asks for what is new.
        lookups.answer("db:1", &digest(), now, 0.5);
        lookups.list(
            ["db:1".to_owned(), "other:1".to_owned()],
            Vec::new(),
            &[],
            now,
        );
        assert_eq!(names(lookups.due(now, 0.5)), ["other:1"]);
        assert_eq!(lookups.known().resolved.len(), 1);
    }
}
