//! Fakes at the process edges, and builders.
