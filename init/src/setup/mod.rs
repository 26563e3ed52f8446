//! What targets and final actions need before they can be used: modules, block devices, mounted file systems.

pub mod block;
pub mod metadata;
pub mod modules;
pub mod mounted;
#[cfg(feature = "net")]
pub mod net;
pub mod patience;
pub mod stack;
