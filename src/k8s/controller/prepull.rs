//! One prepull on the board: the object as last read, and what this process adds to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::board::Gathered;
use super::declared::Declared;
use super::lookups::Lookups;
use super::nodes::{Id, Nodes, id};
use super::seam::ResolveFailure;
use super::seats::Seats;
use super::status;
use super::status_writes::StatusWrites;
use super::steps::Steps;
use crate::image::Digest;
use crate::k8s::agent::WantCredentials;
use crate::k8s::api::{parse_duration, reason};

/// How often workloads are read again.
const WORKLOADS: Duration = Duration::from_secs(120);
/// After a workload or secret could not be read.
const WORKLOADS_AGAIN: Duration = Duration::from_secs(15);

/// A prepull.
#[derive(Debug)]
pub(super) struct Prepull {
    pub(super) declared: Declared,
    pub(super) id: Id,
    pub(super) seats: Seats,
    pub(super) lookups: Lookups,
    /// Generation that the images are listed for.
    pub(super) listed: Option<i64>,
    /// Workloads and secrets are being read.
    pub(super) gathering: bool,
    /// When to read workloads again.
    workloads_at: Option<Instant>,
    /// For the present round of questions only.
    pub(super) credentials: Option<Arc<[WantCredentials]>>,
    missing_secrets: Vec<String>,
    /// The object cannot be read any more: this is what it was.
    pub(super) unreadable: bool,
    pub(super) writes: StatusWrites,
    /// The revision that every node has answered at least once.
    pub(super) completed: Option<String>,
    pub(super) steps: Steps,
    /// Nodes whose gate was opened, by uid, until that is seen.
    pub(super) opened: HashMap<String, Instant>,
    pub(super) due: Option<Instant>,
    pub(super) reconciled: Option<Instant>,
}

impl Prepull {
    pub(super) fn new(declared: Declared, nodes: &Nodes, now: Instant) -> Self {
        let revision = declared.status.rollout.as_ref();
        let revision = revision.map_or("", |rollout| &rollout.revision);
        let seats = Seats::new(&declared.uid, revision, &declared.spec, nodes);
        let mut prepull = Prepull {
            id: id(&declared.uid),
            seats,
            lookups: Lookups::default(),
            listed: None,
            gathering: false,
            workloads_at: None,
            credentials: None,
            missing_secrets: Vec::new(),
            unreadable: false,
            writes: StatusWrites::default(),
            completed: None,
            steps: Steps::default(),
            opened: HashMap::new(),
            due: None,
            reconciled: None,
            declared,
        };
        prepull.observe(now);
        prepull
    }

    /// The object changed.
    pub(super) fn replace(&mut self, declared: Declared, nodes: &Nodes, now: Instant) {
        let revision = |declared: &Declared| {
            let rollout = declared.status.rollout.as_ref();
            rollout.map_or(String::new(), |rollout| rollout.revision.clone())
        };
        let (before, after) = (revision(&self.declared), revision(&declared));
        if before != after {
            self.steps.clear();
        }
        if self.declared.spec != declared.spec || self.seats.revision() != after {
            self.seats = Seats::new(&declared.uid, &after, &declared.spec, nodes);
        }
        if self.declared.generation != declared.generation {
            self.credentials = None;
        }
        self.declared = declared;
        self.unreadable = false;
        self.observe(now);
    }

    /// Remembers what the status says of the past.
    fn observe(&mut self, now: Instant) {
        let (status, generation) = (&self.declared.status, self.declared.generation);
        let Some(rollout) = &status.rollout else {
            return;
        };
        if status::is_complete(status, generation) {
            self.completed = Some(rollout.revision.clone());
        }
        self.steps.observe(rollout.admitted, now);
    }

    /// Whether workloads or secrets have to be read before images can be listed, or asked for.
    pub(super) fn must_gather(&self, now: Instant) -> bool {
        if self.gathering {
            return false;
        }
        let workloads = !self.declared.workloads.is_empty()
            && (self.listed != Some(self.declared.generation)
                || self.workloads_at.is_none_or(|at| at <= now));
        let secrets = !self.declared.secrets.is_empty()
            && self.credentials.is_none()
            && self.lookups.is_due(now);
        workloads || secrets
    }

    /// Lists the images of a spec without workloads.
    pub(super) fn list(&mut self, now: Instant) {
        if self.listed == Some(self.declared.generation) || !self.declared.workloads.is_empty() {
            return;
        }
        self.listed = Some(self.declared.generation);
        self.lookups.list(
            self.declared.spec.images.iter().cloned(),
            Vec::new(),
            &self.declared.status.resolved,
            now,
        );
    }

    /// Workloads and secrets were read.
    pub(super) fn gathered(
        &mut self,
        generation: i64,
        gathered: Gathered,
        now: Instant,
        jitter: f64,
    ) {
        self.gathering = false;
        if generation != self.declared.generation {
            return;
        }
        self.credentials = Some(gathered.credentials.into());
        self.missing_secrets = gathered.missing;
        if self.declared.workloads.is_empty() {
            return;
        }
        let pause = if gathered.again {
            WORKLOADS_AGAIN
        } else {
            WORKLOADS
        };
        self.workloads_at = Some(now + pause.mul_f64(0.75 + 0.5 * jitter));
        if gathered.again && self.listed.is_some() {
            // What is known of them stays.
            return;
        }
        self.listed = Some(generation);
        let images = self.declared.spec.images.iter().cloned();
        self.lookups.list(
            images.chain(gathered.images),
            gathered.faults,
            &self.declared.status.resolved,
            now,
        );
    }

    /// An answer for an image. One that wants credentials which could not be read says so.
    pub(super) fn answer(
        &mut self,
        image: &str,
        answer: &Result<Digest, ResolveFailure>,
        now: Instant,
        jitter: f64,
    ) {
        let missing = match answer {
            Err(failure) if failure.reason == reason::UNAUTHORIZED => self.missing_secrets.first(),
            _ => None,
        };
        match missing {
            Some(missing) => {
                let failure = ResolveFailure {
                    reason: reason::SECRET_MISSING,
                    message: missing.clone(),
                    retry_after: None,
                };
                self.lookups.answer(image, &Err(failure), now, jitter);
            }
            None => self.lookups.answer(image, answer, now, jitter),
        }
        if !self.lookups.is_asking() {
            // Secrets stay in memory for one round only.
            self.credentials = None;
        }
    }

    /// How often tags are looked up again; an interval that is none counts as absent, the spec's check tells.
    pub(super) fn refresh_interval(&self) -> Option<Duration> {
        let text = self.declared.spec.refresh_interval.as_deref()?;
        // The schema's own limit; less would be a load on the registry.
        Some(parse_duration(text).ok()?.max(Duration::from_secs(1)))
    }

    /// When workloads are to be read again.
    pub(super) fn workloads_at(&self) -> Option<Instant> {
        self.workloads_at
    }
}
