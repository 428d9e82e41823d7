//! Absent is not deleted.

use super::super::prepull::Terms;
use super::*;

fn identity(uid: &str) -> Identity {
    Identity {
        uid: uid.to_owned(),
        name: uid.to_owned(),
        ..Identity::default()
    }
}

fn prepull(uid: &str) -> Prepull {
    Prepull {
        identity: identity(uid),
        terms: Terms::default(),
        ..Prepull::default()
    }
}

fn held(uids: &[&str]) -> Vec<Hold> {
    uids.iter()
        .map(|uid| Hold {
            identity: identity(uid),
            ..Hold::default()
        })
        .collect()
}

fn all(uids: &[&str], unreadable: &[&str]) -> Message {
    Message::Cluster(Told::Objects(Delta::All {
        objects: uids.iter().map(|uid| prepull(uid)).collect(),
        unreadable: unreadable.iter().map(|uid| (*uid).to_owned()).collect(),
    }))
}

fn gone(uid: &str) -> Message {
    Message::Cluster(Told::Objects(Delta::Gone {
        uid: uid.to_owned(),
    }))
}

fn lost(trouble: Trouble) -> Message {
    Message::Cluster(Told::Link(Link::Lost {
        trouble,
        message: String::new(),
    }))
}

/// Uids that would be asked about after any time.
fn suspects(known: &mut Known) -> Vec<String> {
    let later = Instant::now() + CONFIRM_AGAIN * 2;
    let due = known.take_due(later).into_iter();
    due.map(|identity| identity.uid).collect()
}

#[test]
fn a_deletion_counts_when_it_was_confirmed() {
    let holds = held(&["a", "b"]);
    let mut known = Known::default();
    known.take(all(&["a", "b"], &[]), &holds);
    assert!(known.next_check().is_none());
    known.take(gone("a"), &holds);
    assert!(known.gone.is_empty());
    assert!(known.take_due(Instant::now()).is_empty(), "not at once");
    assert_eq!(suspects(&mut known), ["a"]);
    assert!(known.next_check().is_none(), "asked once");
    known.checked("a".to_owned(), Verdict::Unsure);
    assert!(known.next_check().is_some(), "asked again");
    known.checked("a".to_owned(), Verdict::Gone);
    assert!(known.gone.contains_key("a"));
    known.forget(&held(&["b"]));
    assert!(known.gone.is_empty());
}

#[test]
fn a_kind_that_goes_takes_nothing_with_it() {
    let holds = held(&["a", "b"]);
    let mut known = Known::default();
    known.take(all(&["a", "b"], &[]), &holds);
    known.take(gone("a"), &holds);
    known.take(lost(Trouble::KindMissing), &holds);
    assert!(suspects(&mut known).is_empty());
    known.take(gone("b"), &holds);
    known.checked("b".to_owned(), Verdict::KindMissing);
    assert!(known.gone.is_empty() && known.next_check().is_none());
}

#[test]
fn a_whole_list_tells_what_is_missing_and_what_only_cannot_be_read() {
    let holds = held(&["a", "b", "c"]);
    let mut known = Known::default();
    // After a start: nothing was seen, and that says nothing.
    known.take(lost(Trouble::Forbidden), &holds);
    assert!(suspects(&mut known).is_empty());
    known.take(all(&["a", "b"], &["c"]), &holds);
    assert!(suspects(&mut known).is_empty());
    known.take(all(&["a"], &["b"]), &holds);
    assert!(known.declared.contains_key("b"), "its last words");
    assert_eq!(suspects(&mut known), ["c"]);
    known.take(all(&["a"], &[]), &holds);
    assert_eq!(suspects(&mut known), ["b"]);
    // It is there again before anybody answered.
    known.take(all(&["a", "b"], &[]), &holds);
    known.checked("b".to_owned(), Verdict::Gone);
    assert!(!known.gone.contains_key("b"));
}

#[test]
fn a_missing_kind_or_wrong_credentials_are_said() {
    let mut known = Known::default();
    assert_eq!(known.synced().reason, "Starting");
    for watched in Watched::ALL {
        known.links.insert(watched, Link::Synced);
    }
    assert!(known.synced().synced);
    known.take(lost(Trouble::KindMissing), &[]);
    assert_eq!(known.synced().reason, "KindMissing");
    known.take(Message::Identity(Some("no".to_owned())), &[]);
    assert_eq!(known.synced().reason, "WrongCredentials");
}
