//! Targets on block devices: directories in file systems, and raw devices, both also on LVM and
//! LUKS.
//!
//! ## Start here
//! - [`open`]: opens a target of these kinds.
//! - [`block`]: finds a block device by what is on it; [`identity`]: tells it from a copy.
//! - [`stack`]: sets up the LVM volumes and LUKS devices under a target.
//! - [`mount`]: mounts a file system that a final action needs.
//! - [`targets`]: a directory of captures, its files, and raw devices.
//! - [`mod@format`]: parsers of superblocks, partition tables, LVM and LUKS metadata, and of our
//!   raw format.
//!
//! What is on a device is hostile input: every parser is total, every loop is bounded by the
//! format.
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

pub mod block;
pub mod format;
pub mod identity;
pub mod metadata;
pub mod mount;
mod patience;
pub mod prepared;
pub mod stack;
pub mod sys;
pub mod targets;

pub use targets::open;
