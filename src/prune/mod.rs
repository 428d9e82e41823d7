//! What may go from a node, and why everything else stays: the planner of removals.
//!
//! Values and functions of values, the time among them. The same planner serves policies, the command line and the
//! emergency of a full disk. It never looks at a disk, a clock or a runtime, and it removes nothing.

mod amount;
mod emergency;
mod ledger;
mod pattern;
mod plan;
mod selector;
mod wording;
mod words;

pub use amount::Amount;
pub use emergency::{EMERGENCY, emergency};
pub use pattern::Pattern;
pub use plan::{plan, reserve};
pub use selector::{Operator, Requirement, Selector};
pub use wording::size;
pub use words::{Candidate, Disk, Kept, Match, Part, Plan, Policy, Protection, Removal, Rule};
