//! The plan: which images go, by which rule and in which order, and why every other one stays.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use super::ledger::{Ledger, saturated};
use super::wording;
use super::words::{Candidate, Disk, Kept, Plan, Policy, Removal, Rule};
use crate::image::repository;

/// Rules that the reason of a kept image quotes.
const MOST_REASONS: usize = 4;

/// Plans. The answer depends on the order of neither images nor policies.
///
/// Rules that ask for no figure of the disk go first, and what they free counts for those that do: of these, each takes
/// the longest unused until it is satisfied, and what turns out to be more than needed is taken back. So no image goes
/// for the disk's sake whose removal the disk could do without.
pub fn plan(images: &[Candidate], policies: &[Policy], disk: &Disk, now: Timestamp) -> Plan {
    let images = in_order(images);
    let mut policies: Vec<&Policy> = policies.iter().collect();
    policies.sort_by_key(|policy| policy.name.as_str());
    let quotas: Vec<Option<u32>> = policies.iter().map(|policy| policy.max_removals).collect();
    let mut active = Vec::new();
    for (place, policy) in policies.iter().enumerate() {
        for rule in policy.rules.iter().filter(|rule| rule.selects()) {
            active.push(Active {
                policy: &policy.name,
                quota: place,
                rule,
                text: wording::rule(rule),
                wants: rule.follows_disk().then(|| rule.wants(disk)),
                verdicts: verdicts(rule, &images, now),
            });
        }
    }
    Selection::new(&images, &active, quotas).plan(disk, now)
}

/// The band of the disk that pulls never enter, in bytes: the widest of all rules.
pub fn reserve(policies: &[Policy], disk: &Disk) -> u64 {
    let rules = policies.iter().flat_map(|policy| &policy.rules);
    let bands = rules.filter_map(|rule| rule.reserved);
    bands.map(|band| band.of(disk.capacity)).max().unwrap_or(0)
}

/// A rule, with what it says of each image.
pub(super) struct Active<'a> {
    pub(super) policy: &'a str,
    /// Place of the policy's quota.
    pub(super) quota: usize,
    pub(super) rule: &'a Rule,
    pub(super) text: String,
    /// For a rule that follows the disk: bytes that must go.
    pub(super) wants: Option<u64>,
    /// One for each image.
    pub(super) verdicts: Vec<Verdict>,
}

/// What a rule says of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    NotAbout,
    /// It was used too recently.
    Used,
    /// It is among the newest of this repository.
    Newest(String),
    /// Something protects it.
    Protected,
    /// It may go.
    Eligible,
}

/// The order in which images are looked at: longest unused first.
pub(super) fn in_order(images: &[Candidate]) -> Vec<&Candidate> {
    let mut images: Vec<&Candidate> = images.iter().collect();
    images.sort_by(|a, b| a.order().cmp(&b.order()));
    images
}

/// The repositories that an image has names in.
fn repositories(image: &Candidate) -> BTreeSet<&str> {
    image.names.iter().map(|name| repository(name)).collect()
}

fn verdicts(rule: &Rule, images: &[&Candidate], now: Timestamp) -> Vec<Verdict> {
    let about: Vec<bool> = images
        .iter()
        .map(|image| rule.images.matches(image))
        .collect();
    let newest = newest(rule, images, &about);
    let verdict = |(place, image): (usize, &&Candidate)| {
        if !about.get(place).copied().unwrap_or_default() {
            return Verdict::NotAbout;
        }
        if image.protection().is_some() {
            return Verdict::Protected;
        }
        if let Some(repository) = newest.get(&place) {
            return Verdict::Newest((*repository).to_owned());
        }
        match rule.unused_for {
            Some(least) if image.unused(now) < least => Verdict::Used,
            _ => Verdict::Eligible,
        }
    };
    images.iter().enumerate().map(verdict).collect()
}

/// Images that `keepLast` protects from the rule, with the repository that does. Of the images that the rule is about,
/// protected ones included, the last pulled are the newest; an image in several repositories may be so in any of them.
fn newest<'a>(rule: &Rule, images: &[&'a Candidate], about: &[bool]) -> HashMap<usize, &'a str> {
    let mut newest = HashMap::new();
    let Some(keep) = rule.keep_last.and_then(|keep| usize::try_from(keep).ok()) else {
        return newest;
    };
    let mut by_pull: Vec<(usize, &&Candidate)> = images.iter().enumerate().collect();
    by_pull.retain(|(place, _)| about.get(*place).copied().unwrap_or_default());
    by_pull.sort_by(|(_, a), (_, b)| (b.pulled_at, &a.id).cmp(&(a.pulled_at, &b.id)));
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (place, image) in by_pull {
        for repository in repositories(image) {
            let before = seen.entry(repository).or_default();
            if *before < keep {
                newest.entry(place).or_insert(repository);
            }
            *before += 1;
        }
    }
    newest
}

/// A plan in the making. Images and rules are numbers: their places.
pub(super) struct Selection<'a> {
    images: &'a [&'a Candidate],
    active: &'a [Active<'a>],
    /// Removals left to each policy.
    quotas: Vec<Option<u32>>,
    ledger: Ledger,
    /// The rule by which each image goes.
    chosen: Vec<Option<usize>>,
    /// The limit that keeps an image which a rule selected.
    limited: HashMap<usize, u32>,
    limits: Vec<Option<u32>>,
}

impl<'a> Selection<'a> {
    pub(super) fn new(
        images: &'a [&'a Candidate],
        active: &'a [Active<'a>],
        quotas: Vec<Option<u32>>,
    ) -> Self {
        Selection {
            images,
            active,
            limits: quotas.clone(),
            quotas,
            ledger: Ledger::new(images),
            chosen: vec![None; images.len()],
            limited: HashMap::new(),
        }
    }

    pub(super) fn plan(mut self, disk: &Disk, now: Timestamp) -> Plan {
        self.unconditional();
        let picked = self.for_the_disk();
        self.settle(&picked);
        self.written(disk, now)
    }

    /// What goes whatever the disk says.
    fn unconditional(&mut self) {
        for (place, rule) in self.active.iter().enumerate() {
            if rule.wants.is_some() {
                continue;
            }
            for image in 0..self.images.len() {
                if rule.may_remove(image) && !self.ledger.removed(image) && self.admit(image, place)
                {
                    self.ledger.remove(image);
                }
            }
        }
    }

    /// What goes for the disk's sake, in the order in which it was picked; limits of policies apart.
    fn for_the_disk(&mut self) -> Vec<usize> {
        let mut picked: Vec<usize> = Vec::new();
        let mut needless: BTreeSet<usize> = BTreeSet::new();
        loop {
            let before = picked.len();
            for rule in self.active {
                let Some(wants) = rule.wants else { continue };
                for image in 0..self.images.len() {
                    if self.ledger.freed() >= u128::from(wants) {
                        break;
                    }
                    if rule.may_remove(image)
                        && !self.ledger.removed(image)
                        && !needless.contains(&image)
                    {
                        self.ledger.remove(image);
                        picked.push(image);
                    }
                }
            }
            // Nothing is picked twice, so this ends.
            if picked.len() == before {
                return picked;
            }
            // The last picked, which was used last, is the first to be spared. Sparing one may make another needless.
            loop {
                let all = picked.len();
                for place in (0..picked.len()).rev() {
                    if let Some(image) = picked.get(place).copied()
                        && !self.needing(image).any(|_| true)
                    {
                        self.ledger.restore(image);
                        picked.remove(place);
                        needless.insert(image);
                    }
                }
                if picked.len() == all {
                    break;
                }
            }
        }
    }

    /// Rules that would be further from what they want without this removal of theirs.
    fn needing(&self, image: usize) -> impl Iterator<Item = usize> {
        let (with, without) = (self.ledger.freed(), self.ledger.freed_without(image));
        let active = self.active.iter().enumerate();
        active.filter_map(move |(place, rule)| {
            let wants = u128::from(rule.wants?);
            let worse = wants.saturating_sub(without) > wants.saturating_sub(with);
            (worse && rule.may_remove(image)).then_some(place)
        })
    }

    /// Puts each image that goes for the disk's sake under a rule whose policy may remove one more.
    fn settle(&mut self, picked: &[usize]) {
        let needing: Vec<(usize, Vec<usize>)> = picked
            .iter()
            .map(|image| (*image, self.needing(*image).collect()))
            .collect();
        for (image, rules) in needing {
            if !rules.into_iter().any(|rule| self.admit(image, rule)) {
                self.ledger.restore(image);
            }
        }
    }

    fn admit(&mut self, image: usize, place: usize) -> bool {
        let Some(quota) = self.active.get(place).map(|rule| rule.quota) else {
            return false;
        };
        match self.quotas.get_mut(quota) {
            Some(Some(0)) => {
                if let Some(limit) = self.limits.get(quota).copied().flatten() {
                    self.limited.entry(image).or_insert(limit);
                }
                return false;
            }
            Some(Some(left)) => *left -= 1,
            Some(None) | None => {}
        }
        if let Some(chosen) = self.chosen.get_mut(image) {
            *chosen = Some(place);
        }
        true
    }

    fn written(self, disk: &Disk, now: Timestamp) -> Plan {
        let mut going: Vec<(usize, usize)> = Vec::new();
        let mut keep = Vec::new();
        for (image, (candidate, chosen)) in self.images.iter().zip(&self.chosen).enumerate() {
            match chosen {
                Some(rule) => going.push((*rule, image)),
                None => keep.push(Kept {
                    id: candidate.id.clone(),
                    names: candidate.names.clone(),
                    reason: self.kept(image, candidate, now),
                }),
            }
        }
        going.sort_unstable();
        keep.sort_by(|a, b| (&a.names, &a.id).cmp(&(&b.names, &b.id)));
        let mut ledger = Ledger::new(self.images);
        let mut remove = Vec::with_capacity(going.len());
        for (rule, image) in going {
            let (Some(rule), Some(candidate)) = (self.active.get(rule), self.images.get(image))
            else {
                continue;
            };
            let repositories: Vec<&str> = repositories(candidate).into_iter().collect();
            remove.push(Removal {
                id: candidate.id.clone(),
                names: candidate.names.clone(),
                policy: rule.policy.to_owned(),
                rule: rule.text.clone(),
                reason: wording::selected(rule.rule, candidate, &repositories, disk, now),
                bytes: ledger.remove(image),
            });
        }
        let short = self.active.iter().filter_map(|rule| rule.wants);
        let short = short.map(|wants| u128::from(wants).saturating_sub(ledger.freed()));
        Plan {
            remove,
            keep,
            free_bytes: saturated(ledger.freed()),
            short_bytes: saturated(short.max().unwrap_or(0)),
        }
    }

    fn kept(&self, image: usize, candidate: &Candidate, now: Timestamp) -> String {
        if let Some(protection) = candidate.protection() {
            return wording::protection(protection);
        }
        if let Some(limit) = self.limited.get(&image) {
            return format!("limit of {limit} removals in a run");
        }
        let mut reasons: Vec<String> = Vec::new();
        for rule in self.active {
            let reason = match rule.verdicts.get(image) {
                None | Some(Verdict::NotAbout | Verdict::Protected) => continue,
                Some(Verdict::Used) => {
                    format!("{}, less than {}", wording::idle(candidate, now), rule.text)
                }
                Some(Verdict::Newest(repository)) => {
                    let keep = rule.rule.keep_last.unwrap_or_default();
                    format!("among the newest {keep} of {repository}")
                }
                Some(Verdict::Eligible) => {
                    let wants = u128::from(rule.wants.unwrap_or_default());
                    if wants > self.ledger.freed() {
                        format!("{} would gain nothing by its removal", rule.text)
                    } else {
                        format!("{} is satisfied without its removal", rule.text)
                    }
                }
            };
            if !reasons.contains(&reason) && reasons.len() < MOST_REASONS {
                reasons.push(reason);
            }
        }
        if reasons.is_empty() {
            return "no rule is about it".to_owned();
        }
        reasons.join("; ")
    }
}

impl Active<'_> {
    fn may_remove(&self, image: usize) -> bool {
        self.verdicts.get(image) == Some(&Verdict::Eligible)
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
