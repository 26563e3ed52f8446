//! The dump engine in this process, measured: what `bench-pipeline` is made of.

pub mod args;
pub mod bare;
pub mod content;
pub mod device;
pub mod job;
pub mod machine;
pub mod meter;
