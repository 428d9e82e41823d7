//! Fakes at the process edges, and builders.

/// Says why a test did not run. It never passes silently.
pub fn skip(name: &str, reason: &str) {
    eprintln!("skipped: {name}: {reason}");
}
