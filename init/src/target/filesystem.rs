//! A file system on a block device: found and mounted.

use std::time::Duration;

use nix::mount::mount;

use crate::config::{self, FsType};
use crate::setup::block;
use crate::target::mounted::{self, Mounted};
use crate::target::{Capture, TargetError};

/// FAT keeps the length of a file in 32 bits.
const VFAT_MOST: u64 = (4 << 30) - 1;

pub(super) fn open(config: &config::Target, capture: Capture<'_>) -> Result<Mounted, TargetError> {
    let device_id = config.device.as_ref().ok_or(TargetError::NoDevice)?;
    let found = block::find(device_id, Duration::from_secs(config.wait), capture.heartbeat)?;
    let device = found.node.display().to_string();
    if found.read_only {
        return Err(TargetError::ReadOnly(device));
    }
    let kind = config.fstype.or(found.filesystem.map(|fs| fs.kind));
    let fstype = kind.ok_or_else(|| TargetError::NoFilesystem(device.clone()))?;
    let at = mounted::place(capture);
    mount(Some(&found.node), &at, Some(fstype.name()), mounted::flags(), None::<&str>).map_err(|errno| {
        TargetError::Mount { device: device.clone(), fstype: fstype.name(), source: errno.into() }
    })?;
    log::info!("target {} is {device} ({})", device_id, fstype.name());
    let most = if fstype == FsType::Vfat { VFAT_MOST } else { u64::MAX };
    Mounted::open(at, config.path(), config, capture, format!("{device}:"), most)
}
