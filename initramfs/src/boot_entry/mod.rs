//! What the machine goes on to after a capture, found while it runs: the next kernel with its
//! initrd and command line, and the root file system. Found once, when the image is loaded, and
//! recorded in the facts; only read, nothing is mounted.

pub mod bls;
pub mod files;
pub mod foresee;
pub mod grub;
pub mod mounts;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::config::{Config, DeviceId, FinalAction, FsType, NextKernel, Place};
use base::facts::{Boot, Root};
use base::fields::Fields;
use kexec::BzImage;
use kexec::bzimage::BzImageError;
use storage::block::{self, Device};
use storage::targets::tried::{self, Mark};

use crate::host;
use crate::place;
use crate::stack;

pub use files::{Files, Host};
pub use mounts::{Mount, Mounts};

/// Why there is nothing to go on to.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The running kernel's file.
    #[error("no file below /boot is the running kernel {0}: name it with boot.kernel")]
    NoRunning(String),
    /// Its initrd.
    #[error("{0} was booted with an initrd, and none beside it belongs to it: name it with boot.initrd")]
    NoInitrd(PathBuf),
    /// No boot loader that we know.
    #[error(
        "no entry of a boot loader is found (Boot Loader Specification, grub.cfg): name a kernel with \
         boot.kernel"
    )]
    NoEntry,
    /// An entry that leads nowhere.
    #[error("the default entry names {0}, which is not there")]
    Missing(String),
    /// A file cannot be read.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// It cannot be started.
    #[error("{path} cannot be started")]
    Kernel {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: BzImageError,
    },
    /// `boot.device` with paths that are none.
    #[error("boot.device holds files by their paths on it: name boot.kernel by such a path, too")]
    NoPathOnDevice,
    /// The files are in several places.
    #[error("{kernel} and {initrd} are in different file systems")]
    TwoPlaces {
        /// The kernel.
        kernel: PathBuf,
        /// An initrd.
        initrd: PathBuf,
    },
    /// No disk under it.
    #[error("{path} is in a {fstype} file system, which is on no disk of this host")]
    NoDisk {
        /// The file.
        path: PathBuf,
        /// What it is on.
        fstype: String,
    },
    /// A file system that the capture kernel cannot mount by what is on it.
    #[error("{0} holds no ext4, xfs, btrfs or vfat file system")]
    NoFilesystem(PathBuf),
    /// A part of a file system that cannot be mounted by itself.
    #[error("the root file system is the directory {0} of another one")]
    BoundRoot(PathBuf),
    /// A configured device.
    #[error(transparent)]
    Device(#[from] block::NotFound),
}

/// What the final actions of a configuration need of this host; what none needs is not looked for.
/// The errors are texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// The next kernel.
    pub boot: Option<Result<Boot, String>>,
    /// The root file system.
    pub root: Option<Result<Root, String>>,
}

impl Next {
    /// Looks for it.
    #[must_use]
    pub fn find(config: &Config) -> Self {
        let host = Host::this();
        let may = |action| config.finish.may(action);
        let boot = may(FinalAction::Kexec).then(|| boot_of(config, &host, &on_disk));
        let wants_root = may(FinalAction::SwitchRoot) || may(FinalAction::Shell);
        let root = wants_root.then(|| root_of(config, &host, &on_disk));
        let text = |error: BootError| base::log::chain(&error);
        Self { boot: boot.map(|found| found.map_err(text)), root: root.map(|found| found.map_err(text)) }
    }

    /// The devices that must be reached in the capture kernel, each once.
    #[must_use]
    pub fn devices(&self) -> Vec<(&DeviceId, FsType)> {
        let boot = self.boot.iter().flatten().map(|boot| (&boot.device, boot.fstype));
        let root = self.root.iter().flatten().map(|root| (&root.device, root.fstype));
        let mut devices: Vec<_> = boot.chain(root).collect();
        devices.dedup();
        devices
    }
}

/// What the capture kernel's command line gets for the final actions. Watchdog drivers stop their
/// device on the way to a reboot or a kexec, and would not guard the next kernel ("watchdog: Add
/// stop_on_reboot parameter to control reboot policy", v5.7).
#[must_use]
pub fn capture_parameters(config: &Config) -> &'static str {
    let guarded = config.finish.may(FinalAction::Kexec) && config.finish.guard > 0;
    if guarded { "watchdog.stop_on_reboot=0" } else { "" }
}

/// Takes the mark of an earlier kexec out of the directories of captures that are mounted on this
/// host, if this is what it has brought up. A raw target has none.
pub fn clear_marks(config: &Config) {
    let mounts = Mounts::parse(&host::read("/proc/self/mountinfo"));
    for target in &config.target {
        let Place::Filesystem(wanted) = &target.place else { continue };
        let Ok(device) = block::find(&wanted.device, Duration::ZERO) else { continue };
        let Some(seen) = place::seen(wanted, &target.to_string(), &device, &mounts) else { continue };
        // If the directory could not be made, the mark is where it was made instead.
        let places = [&seen.view.host, &seen.at].map(PathBuf::from);
        for directory in places {
            let mark = directory.join(tried::NAME);
            match tried::clear(&directory, &host::read("/proc/cmdline")) {
                Ok(Mark::Cleared) => {
                    log::info!("this system was started by the capture: {} is gone", mark.display());
                }
                Ok(Mark::Stays(boot)) => log::warn!(
                    "the kexec after the capture of boot {boot} did not bring up this system; captures end \
                     in a reboot until `afterimage reset {}` takes the mark away",
                    directory.display()
                ),
                Ok(Mark::None) => (),
                Err(error) => log::warn!("{}: {error}", mark.display()),
            }
        }
    }
}

impl Host {
    /// The host that this runs on.
    #[must_use]
    pub fn this() -> Self {
        // ramdisk_image and ramdisk_size (arch/x86/include/uapi/asm/bootparam.h).
        let params = fs::read("/sys/kernel/boot_params/data").unwrap_or_default();
        let has_initrd = Fields(&params).u32(0x21c).is_some_and(|size| size > 0);
        Self {
            root: "/".into(),
            release: host::read("/proc/sys/kernel/osrelease"),
            cmdline: host::read("/proc/cmdline"),
            mounts: Mounts::parse(&host::read("/proc/self/mountinfo")),
            has_initrd,
        }
    }
}

/// A device as it is named for the capture kernel; the error is what it lacks.
type Identify<'a> = &'a dyn Fn(&Mount, &Path) -> Result<Device, BootError>;

fn boot_of(config: &Config, host: &Host, identify: Identify<'_>) -> Result<Boot, BootError> {
    let wanted = &config.boot;
    if let Some(device) = &wanted.device {
        let NextKernel::Path(kernel) = &wanted.kernel else { return Err(BootError::NoPathOnDevice) };
        let found = block::find(device, Duration::ZERO)?;
        let fstype = wanted.fstype.or(found.filesystem.map(|fs| fs.kind));
        return Ok(Boot {
            device: device.clone(),
            fstype: fstype.ok_or(BootError::NoFilesystem(found.node))?,
            kernel: kernel.clone(),
            initrd: wanted.initrd.iter().cloned().collect(),
            cmdline: wanted.cmdline.clone().unwrap_or_else(|| host.own_cmdline()),
        });
    }
    let mut files = match &wanted.kernel {
        NextKernel::Running => host.running()?,
        NextKernel::Default => host.default_entry()?,
        NextKernel::Path(path) => {
            let kernel = PathBuf::from(path);
            Files { initrd: host.initrd_of(&kernel), kernel, cmdline: host.own_cmdline() }
        }
    };
    files.initrd = wanted.initrd.as_ref().map_or(files.initrd, |path| vec![path.into()]);
    files.cmdline = wanted.cmdline.clone().unwrap_or(files.cmdline);
    locate(&files, host, identify)
}

/// Where the files are for who has not mounted what this host has.
fn locate(files: &Files, host: &Host, identify: Identify<'_>) -> Result<Boot, BootError> {
    let bytes = fs::read(host.real(&files.kernel));
    let bytes = bytes.map_err(|source| BootError::Read { path: files.kernel.clone(), source })?;
    BzImage::parse_whole(&bytes)
        .map_err(|source| BootError::Kernel { path: files.kernel.clone(), source })?;
    let (mount, kernel) = place(host, &files.kernel)?;
    let mut initrd = Vec::new();
    for path in &files.initrd {
        let (other, inner) = place(host, path)?;
        if (&other.numbers, &other.source) != (&mount.numbers, &mount.source) {
            return Err(BootError::TwoPlaces { kernel: files.kernel.clone(), initrd: path.clone() });
        }
        initrd.push(inner);
    }
    let device = identify(mount, &files.kernel)?;
    let (device, fstype) = name(device)?;
    Ok(Boot { device, fstype, kernel, initrd, cmdline: files.cmdline.clone() })
}

/// The mount that holds a file, and the file's path in it; links are followed.
fn place<'a>(host: &'a Host, path: &Path) -> Result<(&'a Mount, String), BootError> {
    let failed = |source| BootError::Read { path: path.to_owned(), source };
    let real = fs::canonicalize(host.real(path)).map_err(failed)?;
    let root = fs::canonicalize(&host.root).map_err(failed)?;
    let real = Path::new("/").join(real.strip_prefix(&root).unwrap_or(&real));
    let no_disk = || BootError::NoDisk { path: path.to_owned(), fstype: "unknown".into() };
    let mount = host.mounts.holding(&real).ok_or_else(no_disk)?;
    let inner = mount.inner(&real).ok_or_else(no_disk)?;
    Ok((mount, inner.to_string_lossy().into_owned()))
}

fn root_of(config: &Config, host: &Host, identify: Identify<'_>) -> Result<Root, BootError> {
    if let Some(device) = &config.boot.root {
        let found = block::find(device, Duration::ZERO)?;
        let fstype = config.boot.root_fstype.or(found.filesystem.map(|fs| fs.kind));
        let fstype = fstype.ok_or(BootError::NoFilesystem(found.node))?;
        return Ok(Root { device: device.clone(), fstype, subvolume: None });
    }
    let no_root = || BootError::NoDisk { path: "/".into(), fstype: "unknown".into() };
    let mount = host.mounts.holding(Path::new("/")).ok_or_else(no_root)?;
    let (device, fstype) = name(identify(mount, Path::new("/"))?)?;
    let subvolume = match fstype {
        FsType::Btrfs => Some(mount.root.to_string_lossy().into_owned()),
        _ if mount.root != Path::new("/") => return Err(BootError::BoundRoot(mount.root.clone())),
        _ => None,
    };
    Ok(Root { device, fstype, subvolume })
}

/// The device under a mount.
pub(crate) fn on_disk(mount: &Mount, path: &Path) -> Result<Device, BootError> {
    let no_disk = || BootError::NoDisk { path: path.to_owned(), fstype: mount.fstype.clone() };
    Ok(block::inspect(&node_of(mount).ok_or_else(no_disk)?))
}

/// Its node. btrfs has numbers of its own, so it goes by what was mounted.
pub(crate) fn node_of(mount: &Mount) -> Option<PathBuf> {
    let node = match fs::canonicalize(format!("/sys/dev/block/{}", mount.numbers)) {
        Ok(sysfs) => Path::new("/dev").join(sysfs.file_name()?),
        Err(_) => fs::canonicalize(&mount.source).ok()?,
    };
    node.starts_with("/dev").then_some(node)
}

/// The name that lasts longest, and the file system.
pub(crate) fn name(device: Device) -> Result<(DeviceId, FsType), BootError> {
    let Some(filesystem) = device.filesystem else { return Err(BootError::NoFilesystem(device.node)) };
    let partition = device.partition.map(|partition| partition.uuid);
    let is_stacked = device.node.file_name().is_some_and(|name| stack::is_stacked(&name.to_string_lossy()));
    let id = match partition.filter(|uuid| !uuid.is_empty()) {
        _ if !filesystem.uuid.is_empty() => DeviceId::Uuid(filesystem.uuid),
        Some(uuid) => DeviceId::PartUuid(uuid),
        None if !filesystem.label.is_empty() || is_stacked => DeviceId::Label(filesystem.label),
        None => DeviceId::Path(device.node.to_string_lossy().into_owned()),
    };
    Ok((id, filesystem.kind))
}
