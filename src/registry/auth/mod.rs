//! Who a caller is, and what that buys at a registry.

pub(super) mod challenge;
pub(super) mod credentials;
pub(super) mod token;
