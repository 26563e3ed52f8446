//! Looks at the host. Nothing here says whether what it sees is good.

pub mod host;
pub mod memory;
pub mod modules;
pub mod network;
pub mod panics;
pub mod storage;
