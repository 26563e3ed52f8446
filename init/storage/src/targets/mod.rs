//! The kinds of target on block devices, and what they share with other targets that are
//! directories.

pub mod captures;
mod device;
pub mod directory;
pub mod file;
mod filesystem;
pub mod mounted;
pub mod raw;
pub mod tried;

use std::time::Duration;

use base::config::{self, Place};
use vmcore::target::{Capture, Target, TargetError};

use device::TargetDevice;

/// Opens a target on a block device. What the device stands on is set up first, if the loader found
/// anything there. Fails for a kind of target that is not on a block device.
pub fn open(config: &config::Target, capture: Capture<'_>) -> Result<Box<dyn Target>, TargetError> {
    let wait = Duration::from_secs(config.wait);
    match &config.place {
        Place::Filesystem(wanted) => {
            let device = TargetDevice::find(&wanted.device, wait, capture)?;
            Ok(Box::new(filesystem::open(wanted, device, capture)?))
        }
        Place::Raw(wanted) => {
            let device = TargetDevice::find(&wanted.device, wait, capture)?;
            Ok(Box::new(raw::Raw::open(wanted, device, capture)?))
        }
        Place::Ssh(_) | Place::Nfs(_) | Place::Https(_) | Place::S3(_) => {
            Err(TargetError::not_built(config.kind()))
        }
    }
}
