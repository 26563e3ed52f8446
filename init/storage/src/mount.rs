//! The one place that mounts: a file system on a block device is found, what the device stands on is
//! set up, and it is mounted; it is let go of when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::block::{self, Device, NotFound};
use crate::prepared::{DeviceError, PreparedDevice};
use crate::stack::Active;
use base::config::{DeviceId, FsType};
use base::facts::Recorded;

/// Why it is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A further device, such as that of the journal, cannot be found.
    #[error("a further device of the file system")]
    Further(#[source] NotFound),
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
    remarks: Vec<String>,
    layers: Option<Active>,
}

impl Mounted {
    /// Waits up to `wait` for the device, mounts it at `at`, which is made if missing, and tells
    /// PID 1 meanwhile.
    pub fn open(
        wanted: Wanted<'_>,
        recorded: Recorded<'_>,
        at: &Path,
        wait: Duration,
    ) -> Result<Self, MountError> {
        let mut found = PreparedDevice::find(wanted.device, recorded, wait)?;
        if !wanted.read_only {
            found = found.writable()?;
        }
        let PreparedDevice { device, layers } = found;
        let fstype = wanted.fstype.or(device.filesystem.as_ref().map(|fs| fs.kind));
        let fstype = fstype.ok_or_else(|| MountError::NoFilesystem(device.node.clone()))?;
        let _ = fs::create_dir_all(at);
        let mut remarks: Vec<String> = device.remark.iter().cloned().collect();
        let further = Further::find(&device, fstype, recorded, wait, &mut remarks)?;
        let whole = Wanted { subvolume: None, ..wanted };
        match wanted.mount(&device.node, fstype, &further, at) {
            Err(error) if fstype == FsType::Btrfs && wanted.subvolume.is_some() && !wanted.is_root => {
                let (cause, name) = (base::log::chain(&error), wanted.subvolume.unwrap_or_default());
                log::warn!("subvolume {name}: {cause}; the default one instead");
                remarks.push(format!("the subvolume {name} cannot be mounted ({cause})"));
                whole.mount(&device.node, fstype, &further, at)?;
            }
            mounted => mounted?,
        }
        if fstype == FsType::Xfs {
            end_retries(&device.node);
        }
        let node = device.node.display();
        log::info!("{} {} is {node} ({})", wanted.what, wanted.device, fstype.name());
        Ok(Self { at: at.to_owned(), prefix: format!("{node}:"), fstype: Some(fstype), remarks, layers })
    }

    /// Takes over a file system that was mounted at `at` from somewhere else than a block device. A
    /// place in it is written as `prefix`, and the path behind it.
    #[must_use]
    pub fn adopt(at: PathBuf, prefix: String) -> Self {
        Self { at, prefix, fstype: None, remarks: Vec::new(), layers: None }
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

    /// What was not plain about it: a copy of the device, a device that is missing.
    #[must_use]
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Adds to [`Self::remarks`].
    pub fn remark(&mut self, remark: String) {
        self.remarks.push(remark);
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
    fn mount(&self, device: &Path, fstype: FsType, further: &Further, at: &Path) -> Result<(), MountError> {
        let flags = if self.is_root { MsFlags::MS_NOATIME } else { data_flags() };
        let options = options(fstype, self, further);
        let options = Some(options.as_str()).filter(|options| !options.is_empty());
        if fstype == FsType::Xfs {
            // Bits of errors that are a panic. Only what the production kernel's command line says can
            // have set it; where there is no such file, nothing has.
            let _ = fs::write("/proc/sys/fs/xfs/panic_mask", "0");
        }
        let call = |flags| mount(Some(device), at, Some(fstype.name()), flags, options);
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

/// Devices of a file system beside the one that names it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Further {
    /// All devices of a btrfs that is on several: the kernel knows only those that it was told of.
    members: Vec<PathBuf>,
    /// Whether one of them is missing.
    is_degraded: bool,
    /// ext4: the journal. The superblock has a device number, which the next kernel gives to another.
    journal: Option<PathBuf>,
}

impl Further {
    fn find(
        device: &Device,
        fstype: FsType,
        recorded: Recorded<'_>,
        wait: Duration,
        remarks: &mut Vec<String>,
    ) -> Result<Self, MountError> {
        let mut further = Self::default();
        let count = device.needs.member.as_ref().map_or(1, |member| member.count);
        if fstype == FsType::Btrfs && count > 1 {
            let members = block::members(device, recorded, wait);
            let own = members.iter().filter(|member| member.filesystem == device.filesystem).count();
            further.is_degraded = u64::try_from(own).is_ok_and(|own| own < count);
            if further.is_degraded {
                let node = device.node.display();
                remarks.push(format!("{node}: only {own} of {count} devices of the btrfs are there"));
            }
            further.members = members.into_iter().map(|member| member.node).collect();
        }
        if let (FsType::Ext4, Some(uuid)) = (fstype, &device.needs.journal) {
            further.journal = Some(block::journal(uuid, wait).map_err(MountError::Further)?.node);
        }
        Ok(further)
    }
}

/// Options with which no target's own settings end the capture (a superblock may say that an error is a
/// panic), and its further devices. What is mounted to become the root keeps its own settings.
///
/// Without an option btrfs mounts its default subvolume, which need not be the top that paths begin at.
fn options(fstype: FsType, wanted: &Wanted<'_>, further: &Further) -> String {
    let mut options = Vec::new();
    match fstype {
        FsType::Ext4 | FsType::Vfat if !wanted.is_root => options.push("errors=remount-ro".to_owned()),
        FsType::Btrfs => options.extend(wanted.subvolume.map(|path| match path {
            "/" => "subvolid=5".to_owned(),
            path => format!("subvol={path}"),
        })),
        FsType::Ext4 | FsType::Vfat | FsType::Xfs => {}
    }
    options.extend(further.members.iter().map(|node| format!("device={}", node.display())));
    options.extend(further.is_degraded.then(|| "degraded".to_owned()));
    options.extend(further.journal.as_ref().map(|node| format!("journal_path={}", node.display())));
    options.join(",")
}

/// XFS tries a write of metadata that fails again, without an end unless it is told of one
/// (Documentation/admin-guide/xfs.rst, "Error handling"): the capture would hang at a bad block. What
/// cannot be set stays; the supervisor's patience has an end, too.
fn end_retries(device: &Path) {
    let errors = Path::new("/sys/fs/xfs").join(device.file_name().unwrap_or_default()).join("error/metadata");
    for class in ["default", "EIO", "ENOSPC", "ENODEV"] {
        let _ = fs::write(errors.join(class).join("max_retries"), "3");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(fstype: FsType, subvolume: Option<&str>, is_root: bool, further: &Further) -> String {
        let device = DeviceId::Uuid("u".into());
        let wanted = Wanted { subvolume, is_root, ..Wanted::of_target(&device, None) };
        options(fstype, &wanted, further)
    }

    #[test]
    fn subvolumes_are_named_where_there_are_any() {
        let option = |fstype, subvolume| with(fstype, subvolume, false, &Further::default());
        assert_eq!(option(FsType::Btrfs, Some("/")), "subvolid=5");
        assert_eq!(option(FsType::Btrfs, Some("/@root")), "subvol=/@root");
        assert_eq!(option(FsType::Btrfs, None), "");
        assert_eq!(option(FsType::Xfs, Some("/")), "");
    }

    #[test]
    fn no_setting_of_a_target_makes_an_error_a_panic() {
        for fstype in [FsType::Ext4, FsType::Vfat] {
            assert_eq!(with(fstype, None, false, &Further::default()), "errors=remount-ro");
            assert_eq!(with(fstype, None, true, &Further::default()), "", "the next system's own root");
        }
    }

    #[test]
    fn further_devices_are_told_to_the_kernel() {
        let members = ["/dev/vdb", "/dev/vdc"].map(PathBuf::from).into();
        let further = Further { members, is_degraded: true, journal: None };
        let expected = "subvolid=5,device=/dev/vdb,device=/dev/vdc,degraded";
        assert_eq!(with(FsType::Btrfs, Some("/"), false, &further), expected);
        let further = Further { journal: Some("/dev/vdd".into()), ..Further::default() };
        assert_eq!(with(FsType::Ext4, None, false, &further), "errors=remount-ro,journal_path=/dev/vdd");
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
        let error = Mounted::open(wanted, Recorded::default(), at.path(), Duration::ZERO).unwrap_err();
        assert!(matches!(error, MountError::Device(_)), "{error}");
    }
}
