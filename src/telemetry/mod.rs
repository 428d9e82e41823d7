//! What the process tells about itself: logs, trace context, metrics.
//!
//! A leaf: knows no other room. Each room owns its metrics; here they only get a registry and a text form.

mod log;
mod metrics;
mod process;
mod seldom;
mod trace;

pub use log::{LogConfig, LogError, LogFormat, init};
pub use metrics::{TextForm, encode, registry};
pub use seldom::Seldom;
pub use trace::{TraceContext, TraceContextError};
