//! Tracked tasks, signals, readiness.
