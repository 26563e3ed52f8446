//! A file system on a block device: found and mounted.

use std::time::Duration;

use nix::mount::mount;

use crate::block;
use crate::targets::mounted::{self, Mounted};
use base::config::{self, FsType};
use vmcore::target::{Capture, TargetError};

/// FAT keeps the length of a file in 32 bits.
const VFAT_MOST: u64 = (4 << 30) - 1;

pub(super) fn open(config: &config::Target, capture: Capture<'_>) -> Result<Mounted, TargetError> {
    let device_id = config.device.as_ref().ok_or_else(super::no_device)?;
    let found = block::find(device_id, Duration::from_secs(config.wait), capture.heartbeat)?;
    let device = found.node.display().to_string();
    if found.read_only {
        return Err(TargetError::new(format!("{device} is read-only")));
    }
    let kind = config.fstype.or(found.filesystem.map(|fs| fs.kind));
    let fstype = kind
        .ok_or_else(|| TargetError::new(format!("{device} holds no ext4, xfs, btrfs or vfat file system")))?;
    let at = mounted::place(capture);
    mount(Some(&found.node), &at, Some(fstype.name()), mounted::flags(), None::<&str>).map_err(|errno| {
        TargetError::doing(format!("mounting {device} as {}", fstype.name()), std::io::Error::from(errno))
    })?;
    log::info!("target {} is {device} ({})", device_id, fstype.name());
    let most = if fstype == FsType::Vfat { VFAT_MOST } else { u64::MAX };
    Mounted::open(at, config.path(), config, capture, format!("{device}:"), most)
}
