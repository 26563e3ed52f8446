//! The host's part of evidence: its key, the arm record of each load, and what checks captures later.

mod armed;
mod checked;
pub mod custody;
mod inside;
mod key;

pub use armed::{ArmError, Parts, arm, publish};
pub use checked::{Checked, CheckedError, Wanted, check};
pub use key::{KeyError, PATH, public};
