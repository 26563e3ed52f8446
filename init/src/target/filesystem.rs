//! A directory in a file system on a block device: found, mounted, and unmounted again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::config::{self, FsType};
use crate::setup::block;
use crate::sink::Sink;
use crate::target::directory::Directory;
use crate::target::{Artifact, Capture, Ledger, Target, TargetError};

/// Below it the targets' file systems are mounted, each in a directory of its own: one that hangs is not in the way of the next.
const MOUNT_POINT: &str = "/target";
/// Room that no dump takes: metadata of the file system, and `result.json`.
const SPARE: u64 = 1 << 20;
/// FAT keeps the length of a file in 32 bits.
const VFAT_MOST: u64 = (4 << 30) - 1;

/// A mounted file system with the capture's directory in it.
#[derive(Debug)]
pub(super) struct Filesystem {
    directory: Directory,
    mounted: PathBuf,
    device: String,
    fstype: FsType,
    ledger: Ledger,
    keep: Option<u32>,
    reserve: u64,
}

impl Filesystem {
    pub(super) fn open(config: &config::Target, capture: Capture<'_>) -> Result<Self, TargetError> {
        let device_id = config.device.as_ref().ok_or(TargetError::NoDevice)?;
        let found = block::find(device_id, Duration::from_secs(config.wait), capture.heartbeat)?;
        let device = found.node.display().to_string();
        if found.read_only {
            return Err(TargetError::ReadOnly(device));
        }
        let kind = config.fstype.or(found.filesystem.map(|fs| fs.kind));
        let fstype = kind.ok_or_else(|| TargetError::NoFilesystem(device.clone()))?;
        let mounted = Path::new(MOUNT_POINT).join(capture.index.to_string());
        // An attempt that was killed leaves it mounted; unmounting makes durable what it has saved.
        let _ = umount2(&mounted, MntFlags::empty());
        let _ = fs::create_dir_all(&mounted);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
        mount(Some(&found.node), &mounted, Some(fstype.name()), flags, None::<&str>).map_err(|errno| {
            TargetError::Mount { device: device.clone(), fstype: fstype.name(), source: errno.into() }
        })?;
        log::info!("target {} is {device} ({})", device_id, fstype.name());
        let count = |ledger: &mut Ledger| ledger.count(capture.name, capture.time, capture.crash_loop);
        match Directory::create_counted(&mounted, config.path(), capture.name, count) {
            Ok((directory, ledger)) => {
                let (keep, reserve) = (config.keep, config.reserve.0);
                Ok(Self { directory, mounted, device, fstype, ledger, keep, reserve })
            }
            Err(error) => {
                unmount(&mounted)?;
                Err(error)
            }
        }
    }

    /// Room for one file.
    fn room(&self) -> Option<u64> {
        let free = self.directory.free();
        let free = free.inspect_err(|error| log::warn!("{}", crate::log::chain(error))).ok()?;
        let free = free.saturating_sub(self.reserve.saturating_add(SPARE));
        Some(if self.fstype == FsType::Vfat { free.min(VFAT_MOST) } else { free })
    }
}

impl Target for Filesystem {
    fn location(&self) -> String {
        format!("{}:{}", self.device, self.directory.path().display())
    }

    fn directory(&self) -> Option<PathBuf> {
        let path = self.directory.path();
        Some(self.mounted.join(path.strip_prefix("/").unwrap_or(path)))
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn room(&self) -> Option<u64> {
        self.room()
    }

    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError> {
        // The dump stays out of what is reserved; the log and the result are small and may use it.
        let limit = if artifact == Artifact::Vmcore { self.room().unwrap_or(u64::MAX) } else { u64::MAX };
        self.directory.create_file(artifact, limit)
    }

    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError> {
        self.directory.publish(artifact)
    }

    fn retire(&mut self, heartbeat: &dyn Fn()) -> Result<(), TargetError> {
        self.keep.map_or(Ok(()), |keep| self.directory.retire(keep, self.ledger.sequence, heartbeat))
    }

    fn close(self: Box<Self>) -> Result<(), TargetError> {
        drop(self.directory); // its descriptors would keep the file system busy
        unmount(&self.mounted)
    }
}

fn unmount(at: &Path) -> Result<(), TargetError> {
    umount2(at, MntFlags::empty()).map_err(|errno| TargetError::File {
        what: "unmounting",
        name: at.display().to_string(),
        source: errno.into(),
    })
}
