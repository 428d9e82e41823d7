//! Start and stop of a process: signals, tracked tasks, readiness, bounded connections, the service manager's socket.
//!
//! A leaf: knows no other room. Never decides what runs; it only knows what does.

mod connection;
mod listener;
mod notify;
mod readiness;
mod shutdown;
mod tasks;

pub use connection::{ConnectionLimits, Guarded};
pub use listener::{BindError, Listener};
pub use notify::{NotifyError, notify, watchdog};
pub use readiness::{Check, Readiness};
pub use shutdown::Shutdown;
pub use tasks::Tasks;
