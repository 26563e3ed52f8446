//! A file system that a final action needs: found, what it stands on set up, mounted; let go of
//! when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::block::{self, NotFound};
use crate::stack::{self, Active, StackError};
use base::config::{DeviceId, FsType};
use base::facts::Stack;

/// Why it is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] NotFound),
    /// What it stands on cannot be set up.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// Something else is on it.
    #[error("{0} was set up for {1}, which is not on it")]
    OtherContent(PathBuf, DeviceId),
    /// No file system that we know.
    #[error("{0} holds no ext4, xfs, btrfs or vfat file system")]
    NoFilesystem(PathBuf),
    /// mount(2) refuses.
    #[error("mounting {device} ({fstype}) at {at}")]
    Mount {
        /// Node.
        device: PathBuf,
        /// As what.
        fstype: &'static str,
        /// Where.
        at: PathBuf,
        /// Cause.
        source: Errno,
    },
}

/// What is to be mounted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The device.
    pub device: &'a DeviceId,
    /// Its file system; not given: what its superblock says.
    pub fstype: Option<FsType>,
    /// btrfs: the path of the subvolume; not given: the default one.
    pub subvolume: Option<&'a str>,
    /// Whether it is only read.
    pub read_only: bool,
    /// Whether programs on it are run, and devices on it opened.
    pub is_root: bool,
}

/// A mounted file system.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
    active: Option<Active>,
}

impl Mounted {
    /// Waits up to `wait` for the device, mounts it at `at`, which is made if missing, and tells
    /// PID 1 meanwhile.
    pub fn open(wanted: Wanted<'_>, stacks: &[Stack], at: &Path, wait: Duration) -> Result<Self, MountError> {
        let name = wanted.device.to_string();
        let stack = stacks.iter().find(|stack| stack.target == name);
        let active = stack.map(|stack| stack::activate(stack, wait)).transpose()?;
        let device = match &active {
            None => block::find(wanted.device, wait)?,
            Some(active) => {
                let top = active.top().map(Path::to_owned).unwrap_or_default();
                let device = block::inspect(&top);
                if !device.matches(wanted.device) {
                    return Err(MountError::OtherContent(top, wanted.device.clone()));
                }
                device
            }
        };
        let fstype = wanted.fstype.or(device.filesystem.map(|fs| fs.kind));
        let fstype = fstype.ok_or_else(|| MountError::NoFilesystem(device.node.clone()))?;
        let _ = fs::create_dir_all(at);
        wanted.mount(&device.node, fstype, at)?;
        log::info!("{name} is {} ({})", device.node.display(), fstype.name());
        Ok(Self { at: at.to_owned(), active })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Leaves it mounted for who comes next.
    pub fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(errno) = umount2(&self.at, MntFlags::empty()) {
            log::warn!("{} stays mounted: {}", self.at.display(), errno.desc());
            core::mem::forget(self.active.take()); // it is in use
        }
    }
}

impl Wanted<'_> {
    fn mount(&self, device: &Path, fstype: FsType, at: &Path) -> Result<(), MountError> {
        let mut flags = MsFlags::MS_NOATIME;
        if !self.is_root {
            flags |= MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        }
        let options = options(fstype, self.subvolume);
        let call = |flags| mount(Some(device), at, Some(fstype.name()), flags, options.as_deref());
        let mounted = if self.read_only {
            // An attempt that was killed may have left it mounted for writing, and a device has one
            // mind about that (get_tree_bdev(), fs/super.c).
            call(flags | MsFlags::MS_RDONLY)
                .or_else(|errno| if errno == Errno::EBUSY { call(flags) } else { Err(errno) })
        } else {
            call(flags)
        };
        mounted.map_err(|source| MountError::Mount {
            device: device.to_owned(),
            fstype: fstype.name(),
            at: at.to_owned(),
            source,
        })
    }
}

/// Without an option btrfs mounts its default subvolume, which need not be the top that paths begin
/// at.
fn options(fstype: FsType, subvolume: Option<&str>) -> Option<String> {
    let subvolume = subvolume.filter(|_| fstype == FsType::Btrfs)?;
    Some(if subvolume == "/" { "subvolid=5".to_owned() } else { format!("subvol={subvolume}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subvolumes_are_named_where_there_are_any() {
        assert_eq!(options(FsType::Btrfs, Some("/")).as_deref(), Some("subvolid=5"));
        assert_eq!(options(FsType::Btrfs, Some("/@root")).as_deref(), Some("subvol=/@root"));
        assert_eq!(options(FsType::Btrfs, None), None);
        assert_eq!(options(FsType::Ext4, Some("/")), None);
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let device = DeviceId::Uuid("no-such".into());
        let wanted =
            Wanted { device: &device, fstype: None, subvolume: None, read_only: true, is_root: false };
        let at = tempfile::tempdir().unwrap();
        let error = Mounted::open(wanted, &[], at.path(), Duration::ZERO).unwrap_err();
        assert!(matches!(error, MountError::Device(_)), "{error}");
    }
}
