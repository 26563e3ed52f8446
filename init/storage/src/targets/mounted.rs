//! A directory in a file system that is mounted for the capture, and unmounted when it is over.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::mount::Mounted;
use crate::targets::directory::Directory;
use crate::targets::file::FileSink;
use base::config::{FsType, Share};
use vmcore::sink::Sink;
use vmcore::target::{Artifact, Capture, Ledger, Target, TargetError};

/// Below it the targets' file systems are mounted, each in a directory of its own: one that hangs
/// is not in the way of the next.
const MOUNT_POINT: &str = "/target";
/// Room that no dump takes: metadata of the file system, and `result.json`.
const SPARE: u64 = 1 << 20;
/// FAT keeps the length of a file in 32 bits.
const VFAT_LONGEST_FILE: u64 = (4 << 30) - 1;

/// How often, and how fast one after the other, the calls of a server that is gone are ended: for
/// five seconds.
const ABANDON_TRIES: u32 = 50;
const ABANDON_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

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
pub struct MountedTarget {
    directory: Directory,
    filesystem: Mounted,
    ledger: Ledger,
    share: Share,
    /// The longest file that the file system can hold, in bytes.
    longest_file: u64,
    /// In what it is another place than the one that was asked for.
    detours: Vec<String>,
    /// The file that was read last.
    back: Option<(Artifact, fs::File)>,
}

impl MountedTarget {
    /// Makes the capture's directory in the first of `paths` where it can be made, of what was mounted
    /// at its [`place`].
    pub fn open(
        filesystem: Mounted,
        paths: &[&str],
        share: Share,
        capture: Capture<'_>,
    ) -> Result<Self, TargetError> {
        let mut detours = filesystem.remarks().to_vec();
        let mut made = None;
        for path in paths {
            let count = |ledger: &mut Ledger| ledger.count(capture.name, capture.time, capture.crash_loop);
            match Directory::create_counted(filesystem.at(), path, capture.name, count) {
                Ok(done) => {
                    made = Some(Ok(done));
                    break;
                }
                Err(error) => {
                    let cause = base::log::chain(&error);
                    log::warn!("{}{cause}", filesystem.prefix());
                    detours.push(cause);
                    let ends = ends_all(&error);
                    made.get_or_insert(Err(error)); // what was wrong with the place that was asked for
                    if ends {
                        break;
                    }
                }
            }
        }
        let (directory, ledger) = made.unwrap_or_else(|| Err(TargetError::new("there is no directory")))?;
        let is_fat = filesystem.fstype() == Some(FsType::Vfat);
        let longest_file = if is_fat { VFAT_LONGEST_FILE } else { u64::MAX };
        Ok(Self { directory, filesystem, ledger, share, longest_file, detours, back: None })
    }

    /// Makes the file of an artifact under its temporary name.
    pub fn create_file(&self, artifact: Artifact) -> Result<FileSink, TargetError> {
        // The dump stays out of what is reserved; the log and the result are small and may use it.
        let limit = if artifact == Artifact::Vmcore { self.room().unwrap_or(u64::MAX) } else { u64::MAX };
        self.directory.create_file(artifact, limit)
    }

    /// Lets go of a server that is gone: unmounting by force ends the calls that wait for it
    /// (`nfs_umount_begin`), among them those of files that are being closed in other threads,
    /// which send others.
    pub fn abandon(self) {
        let Self { directory, filesystem, back, .. } = self;
        drop((directory, back));
        for _ in 0..ABANDON_TRIES {
            match umount2(filesystem.at(), MntFlags::MNT_FORCE) {
                Ok(()) => return filesystem.keep(), // it is not mounted any more
                Err(_) => std::thread::sleep(ABANDON_PAUSE),
            }
        }
        log::warn!("{} stays mounted", filesystem.at().display());
        filesystem.keep();
    }
}

/// Whether no other directory of the file system can be better: it takes no writes, or its server or
/// device is gone.
fn ends_all(error: &TargetError) -> bool {
    let errno = error.find::<io::Error>().and_then(io::Error::raw_os_error).map(Errno::from_raw);
    matches!(errno, Some(Errno::EROFS | Errno::ETIMEDOUT | Errno::ENODEV | Errno::ESHUTDOWN))
}

impl Target for MountedTarget {
    fn location(&self) -> String {
        let real = self.directory.real();
        let inner = real.as_deref().and_then(|real| real.strip_prefix(self.filesystem.at()).ok());
        let inner =
            inner.map_or_else(|| self.directory.path().to_owned(), |inner| Path::new("/").join(inner));
        format!("{}{}", self.filesystem.prefix(), inner.display())
    }

    fn directory(&self) -> Option<PathBuf> {
        // Links on the way would begin at another root for a hook.
        self.directory.real()
    }

    fn detours(&self) -> Vec<String> {
        let instead = |detour: &String| format!("{detour}; the dump is in {}", self.location());
        self.detours.iter().map(instead).collect()
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn room(&self) -> Option<u64> {
        let free = self.directory.free();
        let free = free.inspect_err(|error| log::warn!("{}", base::log::chain(error))).ok()?;
        Some(free.saturating_sub(self.share.reserve.0.saturating_add(SPARE)).min(self.longest_file))
    }

    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError> {
        Ok(Box::new(self.create_file(artifact)?))
    }

    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError> {
        self.directory.publish(artifact)
    }

    fn read_back(&mut self, artifact: Artifact, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if !self.back.as_ref().is_some_and(|(other, _)| *other == artifact) {
            self.back = Some((artifact, self.directory.open_file(artifact)?));
        }
        self.back.as_ref().map_or(Ok(()), |(_, file)| file.read_exact_at(buffer, offset))
    }

    fn retire(&mut self) -> Result<(), TargetError> {
        self.share.keep.map_or(Ok(()), |keep| self.directory.retire(keep, self.ledger.sequence))
    }

    fn close(self: Box<Self>) -> Result<(), TargetError> {
        let Self { directory, filesystem, back, .. } = *self;
        drop((directory, back)); // their descriptors would keep the file system busy
        filesystem.unmount().map_err(|error| TargetError::doing("letting go of the file system", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use vmcore::sink::Sink;

    const NO_LOOP: base::config::CrashLoop = base::config::CrashLoop { crashes: 0, within: 0 };

    /// Saves to a directory that is said to be a mounted file system.
    fn open(root: &Path, paths: &[&str]) -> Result<MountedTarget, TargetError> {
        let filesystem = Mounted::adopt(root.to_owned(), "disk:".to_owned());
        MountedTarget::open(filesystem, paths, Share::default(), Capture::new("x", 7, NO_LOOP))
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_another_one_and_that_is_told() {
        // What stands where the directory should be: a link to nowhere, one in a circle, a file, a link
        // below it.
        let obstacles: [fn(&Path); 4] = [
            |at| symlink("/data/crash", at.join("var/crash")).unwrap(),
            |at| symlink("crash", at.join("var/crash")).unwrap(),
            |at| fs::write(at.join("var/crash"), "file").unwrap(),
            |at| {
                fs::remove_dir(at.join("var")).unwrap();
                symlink("nowhere", at.join("var")).unwrap();
            },
        ];
        for (number, obstacle) in (0..).zip(obstacles) {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join("var")).unwrap();
            obstacle(root.path());
            let target = open(root.path(), &["/var/crash", "/"]).unwrap();
            assert_eq!(target.location(), "disk:/x", "{number}");
            assert_eq!(target.directory(), Some(root.path().join("x")), "for hooks: it is there");
            let detours = target.detours();
            assert!(detours[0].contains("/var/crash") && detours[0].contains("disk:/x"), "{detours:?}");
            target.create_file(Artifact::Dmesg).unwrap().sync().unwrap();
            assert!(root.path().join("x/dmesg.txt-incomplete").exists());
            assert!(open(root.path(), &["/var/crash"]).is_err(), "{number}: nothing else was allowed");
        }
    }

    #[test]
    fn a_link_within_the_file_system_is_followed_and_hooks_get_where_it_leads() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("data/real")).unwrap();
        symlink("/data/real", root.path().join("crash")).unwrap();
        let target = open(root.path(), &["/crash", "/"]).unwrap();
        assert_eq!(target.location(), "disk:/data/real/x");
        assert_eq!(target.directory(), Some(root.path().join("data/real/x")));
        assert_eq!(target.detours(), Vec::<String>::new());
    }
}
