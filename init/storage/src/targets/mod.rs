//! The kinds of target on block devices, and what they share with other targets that are
//! directories.

pub mod captures;
pub mod directory;
pub mod file;
pub mod mounted;
pub mod ours;
pub mod raw;
pub mod tried;

use std::time::Duration;

use base::config::{self, Place};
use vmcore::target::{Capture, Target, TargetError};

use crate::mount::{Mounted, Wanted};
use crate::prepared::PreparedDevice;
use mounted::MountedTarget;

/// Opens a target on a block device. What the device stands on is set up first, if the loader found
/// anything there. Fails for a kind of target that is not on a block device.
pub fn open(config: &config::Target, capture: Capture<'_>) -> Result<Box<dyn Target>, TargetError> {
    let wait = Duration::from_secs(config.wait);
    match &config.place {
        Place::Filesystem(target) => {
            let wanted = Wanted::of_target(&target.device, target.fstype);
            let at = mounted::place(capture);
            let filesystem =
                Mounted::open(wanted, capture.stacks, &at, wait).map_err(TargetError::because)?;
            Ok(Box::new(MountedTarget::open(filesystem, &target.path, target.share, capture)?))
        }
        Place::Raw(target) => {
            let found = PreparedDevice::find(&target.device, capture.stacks, wait);
            let found = found.and_then(PreparedDevice::writable).map_err(TargetError::because)?;
            Ok(Box::new(raw::Raw::open(target, found, capture)?))
        }
        Place::Ssh(_) | Place::Nfs(_) | Place::Https(_) | Place::S3(_) => {
            Err(TargetError::not_built(config.kind()))
        }
    }
}
