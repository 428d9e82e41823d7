//! What the agent was told: prepulls, policies, its Node, and how far the API server can be believed.
//!
//! Owns the difference between absent and deleted. Decides nothing about images.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Message;
use super::assign::Hold;
use super::files::Folder;
use super::prepull::{Identity, Kind, Origin, Prepull};
use super::prune_policy::PrunePolicy;
use super::report::Synced;
use super::watch::{Delta, Link, MAX_OBJECTS, Told, Trouble, Watched};
use super::work::Verdict;
use crate::k8s::api::NodeFacts;

/// An object that is not there any more is looked for again after this: when a kind is uninstalled, its objects are
/// deleted first, and that is nobody's wish to release images.
const CONFIRM: Duration = Duration::from_secs(5);
/// A connection that is lost for less is no news: when an API server restarts, every node loses it.
const HICCUP: Duration = Duration::from_secs(180);
/// Pause when there was no answer.
const CONFIRM_AGAIN: Duration = Duration::from_secs(30);

/// An object that was not there.
#[derive(Debug)]
struct Suspect {
    identity: Identity,
    since: Timestamp,
    check: Instant,
    asked: bool,
}

/// Everything that was told.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Of the API server, by uid.
    pub(super) declared: BTreeMap<String, Prepull>,
    /// Of files.
    pub(super) filed: BTreeMap<String, Prepull>,
    /// Prepulls that are known to be gone, and since when.
    pub(super) gone: BTreeMap<String, Timestamp>,
    /// This machine's Node; `None` until it was seen, and when it is gone.
    pub(super) node: Option<NodeFacts>,
    /// What is wrong with the credentials.
    pub(super) identity_fault: Option<String>,
    /// Why reports are refused.
    pub(super) refusal: Option<String>,
    /// Nodes of the cluster, as counted at the start.
    pub(super) nodes: u64,
    /// The folder of manifests.
    pub(super) folder: Option<Folder>,
    policies: BTreeMap<String, PrunePolicy>,
    links: BTreeMap<Watched, Link>,
    /// Since when links are lost that were good before.
    lost: BTreeMap<Watched, Instant>,
    suspects: BTreeMap<String, Suspect>,
}

impl Known {
    /// Takes in a message; `holds` is what is held.
    pub(super) fn take(&mut self, message: Message, holds: &[Hold]) {
        match message {
            Message::Cluster(told) => {
                self.prepulls(
                    Watched::ClusterImagePrepulls,
                    Kind::ClusterImagePrepull,
                    told,
                    holds,
                );
            }
            Message::Namespaced(told) => {
                self.prepulls(Watched::ImagePrepulls, Kind::ImagePrepull, told, holds);
            }
            Message::Policy(told) => self.policy(told),
            Message::Node(told) => self.node(told),
            Message::Folder(folder) => self.folder(folder, holds),
            Message::Identity(fault) => self.identity_fault = fault,
            Message::Refused(refusal) => self.refusal = refusal,
            Message::Nodes(nodes) => self.nodes = nodes,
            Message::Reported(_) | Message::Pruned(_) => {}
        }
    }

    fn prepulls(&mut self, watched: Watched, kind: Kind, told: Told<Prepull>, holds: &[Hold]) {
        match told {
            Told::Link(link) => {
                if let Link::Lost {
                    trouble: Trouble::KindMissing,
                    ..
                } = link
                {
                    // Its objects went with it: that releases nothing.
                    self.suspects
                        .retain(|_, suspect| suspect.identity.kind != kind);
                }
                self.set_link(watched, link);
            }
            Told::Objects(Delta::One(prepull)) => {
                let uid = prepull.identity.uid.clone();
                self.suspects.remove(&uid);
                let known = self.declared.contains_key(&uid);
                if known || self.declared.len() < MAX_OBJECTS {
                    self.declared.insert(uid, prepull);
                }
            }
            Told::Objects(Delta::Gone { uid }) => {
                if let Some(prepull) = self.declared.remove(&uid) {
                    self.suspect(prepull.identity, holds);
                } else if let Some(hold) = hold(holds, &uid) {
                    self.suspect(hold.identity.clone(), holds);
                }
            }
            Told::Objects(Delta::All {
                objects,
                unreadable,
            }) => {
                let of_kind =
                    |identity: &Identity| identity.kind == kind && identity.origin == Origin::Api;
                // One that was readable before keeps its last words.
                let unreadable: BTreeSet<String> = unreadable.into_iter().collect();
                let mut before: BTreeMap<String, Prepull> = BTreeMap::new();
                self.declared.retain(|uid, prepull| {
                    let old = of_kind(&prepull.identity);
                    if old {
                        before.insert(uid.clone(), prepull.clone());
                    }
                    !old
                });
                for prepull in objects {
                    let uid = prepull.identity.uid.clone();
                    before.remove(&uid);
                    self.suspects.remove(&uid);
                    self.declared.insert(uid, prepull);
                }
                for (uid, prepull) in before {
                    if unreadable.contains(&uid) {
                        self.declared.insert(uid, prepull);
                    }
                }
                let absent: Vec<Identity> = holds
                    .iter()
                    .map(|hold| &hold.identity)
                    .filter(|identity| {
                        of_kind(identity)
                            && !self.declared.contains_key(&identity.uid)
                            && !unreadable.contains(&identity.uid)
                    })
                    .cloned()
                    .collect();
                for identity in absent {
                    self.suspect(identity, holds);
                }
            }
        }
    }

    fn suspect(&mut self, identity: Identity, holds: &[Hold]) {
        if hold(holds, &identity.uid).is_none() || self.gone.contains_key(&identity.uid) {
            return;
        }
        self.suspects
            .entry(identity.uid.clone())
            .or_insert_with(|| Suspect {
                identity,
                since: Timestamp::now(),
                check: Instant::now() + CONFIRM,
                asked: false,
            });
    }

    /// A policy that cannot be read any more removes nothing any more.
    fn policy(&mut self, told: Told<PrunePolicy>) {
        match told {
            Told::Link(link) => {
                self.set_link(Watched::ImagePrunePolicies, link);
            }
            Told::Objects(Delta::All { objects, .. }) => {
                self.policies = objects
                    .into_iter()
                    .map(|policy| (policy.uid.clone(), policy))
                    .collect();
            }
            Told::Objects(Delta::One(policy)) => {
                let known = self.policies.contains_key(&policy.uid);
                if known || self.policies.len() < MAX_OBJECTS {
                    self.policies.insert(policy.uid.clone(), policy);
                }
            }
            Told::Objects(Delta::Gone { uid }) => {
                self.policies.remove(&uid);
            }
        }
    }

    fn node(&mut self, told: Told<NodeFacts>) {
        match told {
            Told::Link(link) => {
                self.set_link(Watched::Node, link);
            }
            Told::Objects(Delta::All {
                objects,
                unreadable,
            }) => {
                if unreadable.is_empty() {
                    self.node = objects.into_iter().next();
                }
            }
            Told::Objects(Delta::One(node)) => self.node = Some(node),
            Told::Objects(Delta::Gone { uid }) => {
                self.node.take_if(|node| node.uid == uid);
            }
        }
    }

    fn folder(&mut self, folder: Folder, holds: &[Hold]) {
        let declarations = folder.files.values().flatten();
        self.filed = declarations
            .flat_map(|declaration| &declaration.prepulls)
            .map(|prepull| (prepull.identity.uid.clone(), prepull.clone()))
            .collect();
        let now = Timestamp::now();
        for hold in holds {
            let identity = &hold.identity;
            if let Origin::File(file) = &identity.origin {
                if self.filed.contains_key(&identity.uid) {
                    self.gone.remove(&identity.uid);
                } else if folder.lost(file, &identity.uid) {
                    self.gone.entry(identity.uid.clone()).or_insert(now);
                }
            }
        }
        self.folder = Some(folder);
    }

    /// Takes in whether an object is gone.
    pub(super) fn checked(&mut self, uid: String, verdict: Verdict) {
        match verdict {
            Verdict::Present | Verdict::KindMissing => {
                self.suspects.remove(&uid);
            }
            Verdict::Gone => {
                if let Some(suspect) = self.suspects.remove(&uid) {
                    self.gone.insert(uid, suspect.since);
                }
            }
            Verdict::Unsure => {
                if let Some(suspect) = self.suspects.get_mut(&uid) {
                    suspect.asked = false;
                    suspect.check = Instant::now() + CONFIRM_AGAIN;
                }
            }
        }
    }

    /// Objects to ask about now. Each is to be answered by [`Known::checked`].
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Identity> {
        let due = |suspect: &&mut Suspect| !suspect.asked && suspect.check <= now;
        self.suspects
            .values_mut()
            .filter(due)
            .map(|suspect| {
                suspect.asked = true;
                suspect.identity.clone()
            })
            .collect()
    }

    /// When there is something to ask about.
    pub(super) fn next_check(&self) -> Option<Instant> {
        let waiting = self.suspects.values().filter(|suspect| !suspect.asked);
        waiting.map(|suspect| suspect.check).min()
    }

    /// Forgets what was said about prepulls that are not held any more.
    pub(super) fn forget(&mut self, holds: &[Hold]) {
        let held: BTreeSet<&str> = holds
            .iter()
            .map(|hold| hold.identity.uid.as_str())
            .collect();
        self.gone.retain(|uid, _| held.contains(uid.as_str()));
        self.suspects.retain(|uid, _| held.contains(uid.as_str()));
    }

    /// Policies that choose a node: those of the API server, once it is known what that says of this machine, and those
    /// of files. By name.
    pub(super) fn policies(&self, local: &NodeFacts) -> Vec<PrunePolicy> {
        let node = self.node.as_ref();
        let api = self.policies.values();
        let api = api.filter(|policy| node.is_some_and(|node| policy.selects(node)));
        let files = self.folder.iter().flat_map(|folder| folder.files.values());
        let files = files
            .flatten()
            .flat_map(|declaration| &declaration.policies);
        let files = files.filter(|policy| policy.selects(node.unwrap_or(local)));
        let mut policies: Vec<PrunePolicy> = api.chain(files).cloned().collect();
        policies.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        // Two files with the same policy would act against each other.
        policies.dedup_by(|a, b| a.uid == b.uid);
        policies
    }

    fn set_link(&mut self, watched: Watched, link: Link) {
        match link {
            Link::Synced => {
                self.lost.remove(&watched);
            }
            Link::Lost { .. } if self.link(watched) == Link::Synced => {
                self.lost.insert(watched, Instant::now());
            }
            Link::Lost { .. } | Link::Starting => {}
        }
        self.links.insert(watched, link);
    }

    /// How the connection for a kind is.
    pub(super) fn link(&self, watched: Watched) -> Link {
        let link = self.links.get(&watched);
        link.cloned().unwrap_or(Link::Starting)
    }

    /// What is wrong with a prepull's object.
    pub(super) fn faults(&self, uid: &str) -> &[String] {
        let prepull = self.declared.get(uid).or_else(|| self.filed.get(uid));
        prepull.map_or(&[], |prepull| &prepull.faults)
    }

    /// What a person has to mend before this agent and the API server get along.
    pub(super) fn fault(&self) -> Option<String> {
        self.identity_fault.clone().or_else(|| self.refusal.clone())
    }

    /// Whether the API server's objects are all known.
    pub(super) fn synced(&self) -> Synced {
        self.synced_unless(|_, _| false)
    }

    /// The same, worth a report: what passes by itself in a moment is not.
    pub(super) fn lately_synced(&self, now: Instant) -> Synced {
        self.synced_unless(|watched, trouble| {
            let since = self.lost.get(&watched);
            !trouble.is_refusal()
                && since.is_some_and(|since| now.saturating_duration_since(*since) < HICCUP)
        })
    }

    fn synced_unless(&self, forgiven: impl Fn(Watched, Trouble) -> bool) -> Synced {
        if let Some(fault) = &self.identity_fault {
            return Synced {
                synced: false,
                reason: "WrongCredentials",
                message: fault.clone(),
            };
        }
        for watched in Watched::ALL {
            match self.link(watched) {
                Link::Synced => {}
                Link::Lost { trouble, .. } if forgiven(watched, trouble) => {}
                Link::Lost { trouble, message } => {
                    return Synced {
                        synced: false,
                        reason: trouble.as_str(),
                        message: format!("{}: {message}", watched.as_str()),
                    };
                }
                Link::Starting => {
                    return Synced {
                        synced: false,
                        reason: "Starting",
                        message: format!("{} are not listed yet", watched.as_str()),
                    };
                }
            }
        }
        Synced {
            synced: true,
            reason: "Synced",
            message: String::new(),
        }
    }
}

fn hold<'a>(holds: &'a [Hold], uid: &str) -> Option<&'a Hold> {
    holds.iter().find(|hold| hold.identity.uid == uid)
}

#[cfg(test)]
#[path = "known_tests.rs"]
mod tests;
