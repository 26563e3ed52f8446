//! A file system on a block device: found and mounted.

use nix::mount::mount;

use super::device::TargetDevice;
use super::mounted::{self, Mounted, Source};
use base::config::{self, FsType};
use vmcore::target::{Capture, TargetError};

/// FAT keeps the length of a file in 32 bits.
const VFAT_MOST: u64 = (4 << 30) - 1;

pub(super) fn open(
    wanted: &config::Filesystem,
    on: TargetDevice,
    capture: Capture<'_>,
) -> Result<Mounted, TargetError> {
    let TargetDevice { device: found, layers } = on;
    let device = found.node.display().to_string();
    let kind = wanted.fstype.or(found.filesystem.map(|fs| fs.kind));
    let fstype = kind
        .ok_or_else(|| TargetError::new(format!("{device} holds no ext4, xfs, btrfs or vfat file system")))?;
    let at = mounted::place(capture);
    mount(Some(&found.node), &at, Some(fstype.name()), mounted::flags(), None::<&str>).map_err(|errno| {
        TargetError::doing(format!("mounting {device} as {}", fstype.name()), std::io::Error::from(errno))
    })?;
    log::info!("target {} is {device} ({})", wanted.device, fstype.name());
    let most = if fstype == FsType::Vfat { VFAT_MOST } else { u64::MAX };
    let source = Source { at, name: format!("{device}:"), longest_file: most, layers };
    Mounted::open(source, &wanted.path, wanted.share, capture)
}
