//! The one place that mounts: a file system on a block device is found, what the device stands on is
//! set up, and it is mounted; it is let go of when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::prepared::{DeviceError, PreparedDevice};
use crate::stack::Active;
use base::config::{DeviceId, FsType};
use base::facts::Stack;

/// Why it is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
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
    /// umount2(2) refuses.
    #[error("unmounting {0}")]
    Unmount(PathBuf, #[source] Errno),
}

/// What is to be mounted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What it is for, in the log: `target`.
    pub what: &'static str,
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
    prefix: String,
    fstype: Option<FsType>,
    layers: Option<Active>,
}

impl Mounted {
    /// Waits up to `wait` for the device, mounts it at `at`, which is made if missing, and tells
    /// PID 1 meanwhile.
    pub fn open(wanted: Wanted<'_>, stacks: &[Stack], at: &Path, wait: Duration) -> Result<Self, MountError> {
        let mut found = PreparedDevice::find(wanted.device, stacks, wait)?;
        if !wanted.read_only {
            found = found.writable()?;
        }
        let PreparedDevice { device, layers } = found;
        let fstype = wanted.fstype.or(device.filesystem.map(|fs| fs.kind));
        let fstype = fstype.ok_or_else(|| MountError::NoFilesystem(device.node.clone()))?;
        let _ = fs::create_dir_all(at);
        wanted.mount(&device.node, fstype, at)?;
        let node = device.node.display();
        log::info!("{} {} is {node} ({})", wanted.what, wanted.device, fstype.name());
        Ok(Self { at: at.to_owned(), prefix: format!("{node}:"), fstype: Some(fstype), layers })
    }

    /// Takes over a file system that was mounted at `at` from somewhere else than a block device. A
    /// place in it is written as `prefix`, and the path behind it.
    #[must_use]
    pub fn adopt(at: PathBuf, prefix: String) -> Self {
        Self { at, prefix, fstype: None, layers: None }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// What stands before the path where a place in it is written: `/dev/vda1:`, `filer:/export`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Its type; `None` if it is not on a block device.
    #[must_use]
    pub fn fstype(&self) -> Option<FsType> {
        self.fstype
    }

    /// Unmounts it, which makes durable what was written. What its device stands on stays set up if
    /// that fails.
    pub fn unmount(mut self) -> Result<(), MountError> {
        let unmounted = self.let_go();
        core::mem::forget(self);
        unmounted
    }

    fn let_go(&mut self) -> Result<(), MountError> {
        let layers = self.layers.take();
        umount2(&self.at, MntFlags::empty()).map_err(|errno| {
            core::mem::forget(layers); // it is in use
            MountError::Unmount(self.at.clone(), errno)
        })
    }

    /// Leaves it mounted for who comes next.
    pub fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            log::warn!("{}", base::log::chain(&error));
        }
    }
}

/// How a file system is mounted that only holds data: nothing in it is a device, or is run.
#[must_use]
pub fn data_flags() -> MsFlags {
    MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME
}

impl<'a> Wanted<'a> {
    /// The file system of a target.
    #[must_use]
    pub fn of_target(device: &'a DeviceId, fstype: Option<FsType>) -> Self {
        Self { what: "target", device, fstype, subvolume: None, read_only: false, is_root: false }
    }
}

impl Wanted<'_> {
    fn mount(&self, device: &Path, fstype: FsType, at: &Path) -> Result<(), MountError> {
        let flags = if self.is_root { MsFlags::MS_NOATIME } else { data_flags() };
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
        let wanted = Wanted {
            what: "test",
            device: &device,
            fstype: None,
            subvolume: None,
            read_only: true,
            is_root: false,
        };
        let at = tempfile::tempdir().unwrap();
        let error = Mounted::open(wanted, &[], at.path(), Duration::ZERO).unwrap_err();
        assert!(matches!(error, MountError::Device(_)), "{error}");
    }
}
