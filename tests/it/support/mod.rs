//! Fakes at the process edges, and builders.

pub(crate) mod build;
pub(crate) mod hub;

/// Says why a test did not run. It never passes silently.
pub(crate) fn skip(name: &str, reason: &str) {
    eprintln!("skipped: {name}: {reason}");
}
