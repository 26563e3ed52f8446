//! A directory in a file system that is mounted for the capture, and unmounted when it is over.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, umount2};

use crate::targets::directory::Directory;
use crate::targets::file::FileSink;
use base::config;
use vmcore::sink::Sink;
use vmcore::target::{Artifact, Capture, Ledger, Target, TargetError};

/// Below it the targets' file systems are mounted, each in a directory of its own: one that hangs
/// is not in the way of the next.
const MOUNT_POINT: &str = "/target";
/// Room that no dump takes: metadata of the file system, and `result.json`.
const SPARE: u64 = 1 << 20;

/// How often, and how fast one after the other, the calls of a server that is gone are ended: for
/// five seconds.
const ABANDON_TRIES: u32 = 50;
const ABANDON_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// How they are mounted: nothing in them is a device, or is run.
#[must_use]
pub fn flags() -> MsFlags {
    MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME
}

/// Where the file system of a target goes. Nothing is mounted there.
#[must_use]
pub fn place(capture: Capture<'_>) -> PathBuf {
    let at = Path::new(MOUNT_POINT).join(capture.index.to_string());
    // An attempt that was killed leaves it mounted; unmounting makes durable what it has saved.
    let _ = umount2(&at, MntFlags::empty());
    let _ = fs::create_dir_all(&at);
    at
}

/// A mounted file system with the capture's directory in it.
#[derive(Debug)]
pub struct Mounted {
    directory: Directory,
    at: PathBuf,
    /// What a location begins with; a path in the file system follows.
    source: String,
    ledger: Ledger,
    keep: Option<u32>,
    reserve: u64,
    /// Longest file.
    most: u64,
}

impl Mounted {
    /// Makes the capture's directory in `path` of what was mounted `at` its [`place`], which is
    /// undone if that fails.
    pub fn open(
        at: PathBuf,
        path: &str,
        config: &config::Target,
        capture: Capture<'_>,
        source: String,
        most: u64,
    ) -> Result<Self, TargetError> {
        let count = |ledger: &mut Ledger| ledger.count(capture.name, capture.time, capture.crash_loop);
        match Directory::create_counted(&at, path, capture.name, count) {
            Ok((directory, ledger)) => {
                let (keep, reserve) = (config.keep, config.reserve.0);
                Ok(Self { directory, at, source, ledger, keep, reserve, most })
            }
            Err(error) => {
                unmount(&at)?;
                Err(error)
            }
        }
    }

    /// Makes the file of an artifact under its temporary name.
    pub fn create_file(&self, artifact: Artifact) -> Result<FileSink, TargetError> {
        // The dump stays out of what is reserved; the log and the result are small and may use it.
        let limit = if artifact == Artifact::Vmcore { self.room().unwrap_or(u64::MAX) } else { u64::MAX };
        self.directory.create_file(artifact, limit)
    }

    /// Opens a published file, to be read.
    pub fn open_file(&self, artifact: Artifact) -> nix::Result<fs::File> {
        self.directory.open_file(artifact)
    }

    /// Lets go of a server that is gone: unmounting by force ends the calls that wait for it
    /// (`nfs_umount_begin`), among them those of files that are being closed in other threads,
    /// which send others.
    pub fn abandon(self) {
        let Self { directory, at, .. } = self;
        drop(directory);
        for _ in 0..ABANDON_TRIES {
            match umount2(&at, MntFlags::MNT_FORCE) {
                Ok(()) => return,
                Err(_) => std::thread::sleep(ABANDON_PAUSE),
            }
        }
        log::warn!("{} stays mounted", at.display());
    }
}

impl Target for Mounted {
    fn location(&self) -> String {
        format!("{}{}", self.source, self.directory.path().display())
    }

    fn directory(&self) -> Option<PathBuf> {
        let path = self.directory.path();
        Some(self.at.join(path.strip_prefix("/").unwrap_or(path)))
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn room(&self) -> Option<u64> {
        let free = self.directory.free();
        let free = free.inspect_err(|error| log::warn!("{}", base::log::chain(error))).ok()?;
        Some(free.saturating_sub(self.reserve.saturating_add(SPARE)).min(self.most))
    }

    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError> {
        Ok(Box::new(self.create_file(artifact)?))
    }

    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError> {
        self.directory.publish(artifact)
    }

    fn retire(&mut self, heartbeat: &dyn Fn()) -> Result<(), TargetError> {
        self.keep.map_or(Ok(()), |keep| self.directory.retire(keep, self.ledger.sequence, heartbeat))
    }

    fn close(self: Box<Self>) -> Result<(), TargetError> {
        drop(self.directory); // its descriptors would keep the file system busy
        unmount(&self.at)
    }
}

fn unmount(at: &Path) -> Result<(), TargetError> {
    umount2(at, MntFlags::empty())
        .map_err(|errno| TargetError::file("unmounting", at.display(), errno.into()))
}
