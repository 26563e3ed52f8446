//! What targets need before they can be used: modules, block devices.

pub mod block;
pub mod metadata;
pub mod modules;
pub mod patience;
pub mod stack;
