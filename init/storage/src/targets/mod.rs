//! The kinds of target on block devices, and what they share with other targets that are
//! directories.

pub mod captures;
pub mod directory;
pub mod file;
mod filesystem;
pub mod mounted;
pub mod raw;
mod stacked;
pub mod tried;

use base::config::{self, TargetKind};
use vmcore::target::{Capture, Target, TargetError};

/// Opens a target on a block device. What the device stands on is set up first, if the loader found
/// anything there. Fails for a kind of target that is not on a block device.
pub fn open(config: &config::Target, capture: Capture<'_>) -> Result<Box<dyn Target>, TargetError> {
    let device = config.device.as_ref().map(config::DeviceId::to_string);
    match capture.stacks.iter().find(|stack| Some(&stack.target) == device.as_ref()) {
        Some(stack) => Ok(Box::new(stacked::Stacked::open(config, capture, stack)?)),
        None => open_plain(config, capture),
    }
}

fn open_plain(config: &config::Target, capture: Capture<'_>) -> Result<Box<dyn Target>, TargetError> {
    match config.kind {
        TargetKind::Filesystem => Ok(Box::new(filesystem::open(config, capture)?)),
        TargetKind::Raw => Ok(Box::new(raw::Raw::open(config, capture)?)),
        kind => Err(TargetError::not_built(kind)),
    }
}

/// The error for a target whose configuration names no device; the parser of the configuration
/// refuses it before.
fn no_device() -> TargetError {
    TargetError::new("no device is given")
}
