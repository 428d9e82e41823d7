//! Who has proven what at a registry: pure. Every decision about access that is not the registry's own is here.
//!
//! A proof is the answer of a registry to somebody's credentials for one digest of a repository. For a short while it
//! stands for itself, so that two requests for a blob are one question; for longer where the registry does not answer at
//! all. That a manifest names a digest proves nothing: anybody writes manifests. It only tells the size, so that what is
//! not here can be fetched without asking for it first. Nothing is on disk: after a start everybody proves himself anew.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::image::Digest;

/// For so long the registry is not asked again.
const FRESH: Duration = Duration::from_secs(5 * 60);
/// For so long a proof holds while the registry is away.
const OUTAGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Repositories with an account each at most; the oldest goes.
const MAX_PROOFS: usize = 1024;
/// Digests of all together at most.
const MAX_CONTENTS: usize = 32 << 10;
/// Tags at most.
const MAX_TAGS: usize = 4096;

/// A repository (`domain/path`), and a fingerprint of the credentials shown for it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) repository: String,
    pub(super) who: [u8; 32],
}

/// How somebody stands to a digest; sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// He may have it.
    Proven(u64),
    /// He may have it if the registry does not answer.
    InOutage(u64),
    /// Nothing is proven, but a manifest names it.
    Named(u64),
    /// Never heard of.
    Unknown,
}

/// What a tag named when the registry was last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tagged {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) size: u64,
}

struct Proofs {
    /// When something was added last.
    at: Instant,
    contents: HashMap<Digest, Content>,
}

#[derive(Clone, Copy)]
struct Content {
    size: u64,
    /// When the registry let him have it.
    proven: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Ledger {
    proofs: HashMap<Key, Proofs>,
    contents: usize,
    tags: HashMap<String, (Instant, Tagged)>,
}

impl Ledger {
    /// The registry let somebody have a digest of a repository.
    pub(super) fn prove(&mut self, key: &Key, digest: &Digest, size: u64, now: Instant) {
        let proven = Some(now);
        self.put(key, digest, Content { size, proven }, now);
        self.bound(key);
    }

    /// A manifest that was given out names these.
    pub(super) fn name(
        &mut self,
        key: &Key,
        contents: impl IntoIterator<Item = (Digest, u64)>,
        now: Instant,
    ) {
        for (digest, size) in contents {
            let proven = None;
            self.put(key, &digest, Content { size, proven }, now);
        }
        self.bound(key);
    }

    fn put(&mut self, key: &Key, digest: &Digest, content: Content, now: Instant) {
        let proofs = self.proofs.entry(key.clone()).or_insert_with(|| Proofs {
            at: now,
            contents: HashMap::new(),
        });
        proofs.at = now;
        match proofs.contents.get_mut(digest) {
            Some(known) if content.proven.is_some() => *known = content,
            Some(_) => {}
            None => {
                // One alone may take the half: what he has more is asked for.
                let own = proofs.contents.len();
                if self.contents < MAX_CONTENTS || own * 2 < MAX_CONTENTS {
                    proofs.contents.insert(digest.clone(), content);
                    self.contents += 1;
                }
            }
        }
    }

    /// The registry refused somebody a repository.
    pub(super) fn revoke(&mut self, key: &Key) {
        if let Some(proofs) = self.proofs.remove(key) {
            self.contents = self.contents.saturating_sub(proofs.contents.len());
        }
    }

    pub(super) fn standing(&self, key: &Key, digest: &Digest, now: Instant) -> Standing {
        let proofs = self.proofs.get(key);
        let Some(content) = proofs.and_then(|proofs| proofs.contents.get(digest)) else {
            return Standing::Unknown;
        };
        let age = content
            .proven
            .map(|then| now.saturating_duration_since(then));
        match age {
            Some(age) if age < FRESH => Standing::Proven(content.size),
            Some(age) if age < OUTAGE => Standing::InOutage(content.size),
            _ => Standing::Named(content.size),
        }
    }

    /// Keeps what a tag (`domain/path:tag`) names.
    pub(super) fn tag(&mut self, name: String, tagged: Tagged, now: Instant) {
        self.tags.insert(name, (now, tagged));
        if self.tags.len() > MAX_TAGS {
            let oldest = self.tags.iter().min_by_key(|(_, (at, _))| *at);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.tags.remove(&name);
            }
        }
    }

    /// What a tag named, for whom the registry let have that.
    pub(super) fn tagged(&self, key: &Key, name: &str, now: Instant) -> Option<Tagged> {
        let (_, tagged) = self.tags.get(name)?;
        let standing = self.standing(key, &tagged.digest, now);
        let proven = matches!(standing, Standing::Proven(_) | Standing::InOutage(_));
        proven.then(|| tagged.clone())
    }

    /// Whether somebody has proven something about a repository that may count in an outage.
    pub(super) fn knows(&self, repository: &str, now: Instant) -> bool {
        let of_it = |(key, _): &(&Key, &Proofs)| key.repository == repository;
        let mut contents = self
            .proofs
            .iter()
            .filter(of_it)
            .flat_map(|(_, proofs)| proofs.contents.values());
        contents.any(|content| {
            let age = content
                .proven
                .map(|then| now.saturating_duration_since(then));
            age.is_some_and(|age| age < OUTAGE)
        })
    }

    /// Forgets the oldest, but not this one.
    fn bound(&mut self, key: &Key) {
        while self.proofs.len() > MAX_PROOFS || self.contents > MAX_CONTENTS {
            let others = self.proofs.iter().filter(|(other, _)| *other != key);
            let oldest = others.min_by_key(|(other, proofs)| (proofs.at, *other));
            match oldest.map(|(oldest, _)| oldest.clone()) {
                Some(oldest) => self.revoke(&oldest),
                None => return,
            }
        }
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("proofs", &self.proofs.len())
            .field("tags", &self.tags.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(repository: &str, who: u8) -> Key {
        Key {
            repository: repository.to_owned(),
            who: [who; 32],
        }
    }

    fn digest(n: usize) -> Digest {
        Digest::sha256(&n.to_le_bytes())
    }

    fn tagged(n: usize) -> Tagged {
        Tagged {
            digest: digest(n),
            media_type: "m".to_owned(),
            size: 10,
        }
    }

    #[test]
    fn a_proof_is_of_one_digest_in_one_repository_for_one_account() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let alice = key("r.io/app", 1);
        ledger.prove(&alice, &digest(1), 10, now);
        ledger.name(&alice, [(digest(1), 11), (digest(2), 20)], now);
        let standing = |key: &Key, n| ledger.standing(key, &digest(n), now);
        assert_eq!(standing(&alice, 1), Standing::Proven(10));
        assert_eq!(standing(&alice, 2), Standing::Named(20));
        assert_eq!(standing(&alice, 3), Standing::Unknown);
        for other in [key("r.io/app", 2), key("r.io/other", 1)] {
            assert_eq!(standing(&other, 1), Standing::Unknown);
        }
        ledger.prove(&alice, &digest(2), 20, now);
        assert_eq!(
            ledger.standing(&alice, &digest(2), now),
            Standing::Proven(20)
        );
        ledger.revoke(&alice);
        assert_eq!(ledger.standing(&alice, &digest(1), now), Standing::Unknown);
        assert_eq!(ledger.contents, 0);
    }

    #[test]
    fn a_proof_ages() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let (alice, bob) = (key("r.io/app", 1), key("r.io/app", 2));
        ledger.prove(&alice, &digest(1), 10, now);
        ledger.name(&bob, [(digest(1), 10)], now);
        ledger.tag("r.io/app:1".to_owned(), tagged(1), now);
        let later = now + FRESH;
        assert_eq!(
            ledger.standing(&alice, &digest(1), later),
            Standing::InOutage(10)
        );
        assert_eq!(ledger.tagged(&alice, "r.io/app:1", later), Some(tagged(1)));
        assert_eq!(ledger.tagged(&bob, "r.io/app:1", later), None);
        assert_eq!(ledger.tagged(&alice, "r.io/app:2", later), None);
        assert!(ledger.knows("r.io/app", later) && !ledger.knows("r.io/other", later));
        let much_later = now + OUTAGE;
        assert_eq!(
            ledger.standing(&alice, &digest(1), much_later),
            Standing::Named(10)
        );
        assert_eq!(ledger.tagged(&alice, "r.io/app:1", much_later), None);
        assert!(!ledger.knows("r.io/app", much_later));
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        for n in 0..2 * MAX_PROOFS {
            let at = now + Duration::from_millis(n as u64);
            let repository = format!("r.io/{n}");
            let contents = (0..100).map(|m| (digest(n * 100 + m), 1));
            ledger.name(&key(&repository, 1), contents, at);
            for m in 0..3 {
                ledger.tag(format!("{repository}:{m}"), tagged(n), at);
            }
        }
        assert!(ledger.proofs.len() <= MAX_PROOFS && ledger.contents <= MAX_CONTENTS);
        assert_eq!(ledger.tags.len(), MAX_TAGS);
        let counted: usize = ledger
            .proofs
            .values()
            .map(|proofs| proofs.contents.len())
            .sum();
        assert_eq!(counted, ledger.contents);
        let last = key(&format!("r.io/{}", 2 * MAX_PROOFS - 1), 1);
        assert!(ledger.proofs.contains_key(&last));
        // One alone is held, too.
        ledger.name(&last, (0..4 * MAX_CONTENTS).map(|n| (digest(n), 1)), now);
        assert!(ledger.contents <= MAX_CONTENTS, "{}", ledger.contents);
    }
}
