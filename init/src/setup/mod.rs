//! What targets need before they can be used: modules, block devices.

pub mod block;
pub mod modules;
pub mod patience;
