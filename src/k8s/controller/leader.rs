//! Carries out what [`super::lease`] decides, and tells who leads.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::timeout;

use super::lease::{DURATION, Decision, GIVE_UP_AFTER, LOOK, Record, decide};
use crate::k8s::api::CONTROLLER_NAME;
use crate::lifecycle::Shutdown;

/// Of one request; several fit into [`GIVE_UP_AFTER`].
const REQUEST: Duration = Duration::from_secs(3);
/// Pause between two complaints about the same trouble.
const QUIET: Duration = Duration::from_secs(60);

/// One replica's share in the election.
pub(super) struct Election {
    leases: Api<Lease>,
    namespaces: Api<Namespace>,
    namespace: String,
    me: String,
    /// The lease as last read or written, with the time at which its record was first seen.
    seen: Option<(Lease, Record, Instant)>,
    /// When the last successful write of ours was begun.
    renewed: Option<Instant>,
    complained: Option<Instant>,
}

impl Election {
    pub(super) fn new(client: &Client, namespace: &str, me: String) -> Self {
        Election {
            leases: Api::namespaced(client.clone(), namespace),
            namespaces: Api::all(client.clone()),
            namespace: namespace.to_owned(),
            me,
            seen: None,
            renewed: None,
            complained: None,
        }
    }

    /// Takes part until `stop`, then gives the lease back. `leading` is true while this replica holds it.
    pub(super) async fn run(mut self, leading: watch::Sender<bool>, stop: Shutdown) {
        loop {
            let stopped = tokio::select! {
                () = stop.wait() => true,
                () = self.turn(&leading) => false,
            };
            if stopped {
                break;
            }
            tokio::select! {
                () = stop.wait() => break,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        let led = leading.send_replace(false);
        if led && let Err(error) = self.release().await {
            tracing::warn!(err = %error, "Lease was not released; another replica takes it when it runs out");
        }
    }

    async fn turn(&mut self, leading: &watch::Sender<bool>) {
        // A holder knows its lease; others look.
        if !*leading.borrow() {
            self.read().await;
        }
        let begun = Instant::now();
        let decision = match &self.seen {
            Some((_, record, since)) => decide(
                Some(record),
                begun.saturating_duration_since(*since),
                &self.me,
            ),
            // Nothing was read: absent, or out of reach.
            None => Decision::Wait,
        };
        match decision {
            Decision::Hold => {}
            Decision::Wait => self.lead(leading, false),
            Decision::Take | Decision::Renew => match self.write(decision, begun).await {
                Ok(()) => {
                    self.renewed = Some(begun);
                    self.lead(leading, true);
                }
                Err(error) => {
                    self.complain("Lease was not written", &error);
                    // Somebody else may have been quicker.
                    self.read().await;
                }
            },
        }
        let fresh = self
            .renewed
            .is_some_and(|renewed| renewed.elapsed() < GIVE_UP_AFTER);
        let mine = matches!(&self.seen, Some((_, record, _)) if record.holder == self.me);
        if !(fresh && mine) {
            self.lead(leading, false);
        }
    }

    fn lead(&mut self, leading: &watch::Sender<bool>, lead: bool) {
        if leading.send_replace(lead) != lead {
            if lead {
                tracing::info!(identity = %self.me, "Leading");
            } else {
                tracing::warn!(identity = %self.me, "Not leading any more");
            }
        }
    }

    async fn read(&mut self) {
        match timeout(REQUEST, self.leases.get_opt(CONTROLLER_NAME)).await {
            Ok(Ok(Some(lease))) => self.see(lease),
            Ok(Ok(None)) => {
                if let Err(error) = self.create().await {
                    self.complain("Lease was not created", &error);
                }
            }
            Ok(Err(error)) => self.complain("Lease was not read", &error.to_string()),
            Err(_) => self.complain(
                "Lease was not read",
                "the API server did not answer in time",
            ),
        }
    }

    fn see(&mut self, lease: Lease) {
        let record = record(&lease);
        let since = match &self.seen {
            Some((_, seen, since)) if *seen == record => *since,
            _ => Instant::now(),
        };
        self.seen = Some((lease, record, since));
    }

    /// The first replica of all makes the Lease, held by nobody.
    async fn create(&mut self) -> Result<(), String> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(CONTROLLER_NAME.to_owned()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec::default()),
        };
        let parameters = PostParams::default();
        let request = timeout(REQUEST, self.leases.create(&parameters, &lease));
        match request.await {
            Ok(Ok(lease)) => {
                self.see(lease);
                Ok(())
            }
            Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => {
                self.create_namespace().await
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the API server did not answer in time".to_owned()),
        }
    }

    /// Outside a cluster nobody may have installed anything but the kinds.
    async fn create_namespace(&self) -> Result<(), String> {
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let parameters = PostParams::default();
        match timeout(REQUEST, self.namespaces.create(&parameters, &namespace)).await {
            Ok(Ok(_)) => {
                tracing::info!(namespace = %self.namespace, "Namespace was created, for the controller's lease");
                Ok(())
            }
            Ok(Err(error)) => Err(format!(
                "namespace {} does not exist and could not be created: {error}; create it, or name another with --namespace",
                self.namespace
            )),
            Err(_) => Err("the API server did not answer in time".to_owned()),
        }
    }

    /// Writes the version that was seen and no other: of two replicas that take a lease one is refused.
    async fn write(&mut self, decision: Decision, begun: Instant) -> Result<(), String> {
        let Some((lease, _, _)) = &self.seen else {
            return Ok(());
        };
        let mut lease = lease.clone();
        let spec = lease.spec.get_or_insert_default();
        let now = Some(MicroTime(Timestamp::now()));
        if decision == Decision::Take {
            spec.holder_identity = Some(self.me.clone());
            spec.acquire_time.clone_from(&now);
            let transitions = spec.lease_transitions.unwrap_or_default();
            spec.lease_transitions = Some(transitions.saturating_add(1).max(0));
        }
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        spec.renew_time = now;
        let lease = self.replace(&lease).await?;
        // From the start of the request: what others see is not older.
        self.seen = Some((lease.clone(), record(&lease), begun));
        Ok(())
    }

    async fn release(&mut self) -> Result<(), String> {
        let Some((lease, record, _)) = self.seen.take() else {
            return Ok(());
        };
        if record.holder != self.me {
            return Ok(());
        }
        let mut lease = lease;
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.replace(&lease).await?;
        tracing::info!(identity = %self.me, "Lease was released");
        Ok(())
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, String> {
        let parameters = PostParams::default();
        let request = self.leases.replace(CONTROLLER_NAME, &parameters, lease);
        match timeout(REQUEST, request).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the API server did not answer in time".to_owned()),
        }
    }

    /// Trouble that lasts is told once a minute.
    fn complain(&mut self, what: &'static str, error: &str) {
        if self.complained.is_none_or(|at| at.elapsed() >= QUIET) {
            self.complained = Some(Instant::now());
            tracing::warn!(namespace = %self.namespace, err = error, "{what}");
        }
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
        version: format!(
            "{:?} {}",
            spec.renew_time,
            spec.lease_transitions.unwrap_or_default()
        ),
    }
}
