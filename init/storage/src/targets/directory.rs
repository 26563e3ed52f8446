//! A capture's directory: made by descriptor, never through a link, readable for root only.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::targets::captures;
use crate::targets::file::FileSink;
use crate::targets::ours::{self, OpenDirectory};
use vmcore::target::{Artifact, Ledger, TargetError};

/// Directories with the same name that are tried with `-2`, `-3` … behind it: attempts at a capture.
const NUMBERED_TRIES: u32 = 100;
/// Names that are tried after them with random numbers behind them: who knows when a host crashes,
/// and its name, may have made all that can be guessed.
const RANDOM_TRIES: u32 = 20;

/// The directory that holds one capture's files.
#[derive(Debug)]
pub struct Directory {
    /// The directory of all captures, and its place below the root.
    parent: OpenDirectory,
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Makes `path` under `root` where it is missing, and in it a new directory called `name`, mode
    /// 0700. Links on the way are followed, but as if `root` were `/`.
    pub fn create(root: &Path, path: &str, name: &str) -> Result<Self, TargetError> {
        Self::create_in(open_parent(root, path)?, path, name)
    }

    /// The same for a capture on a target: `count` takes it into the books before there is a file
    /// of it, and the directory is marked as one that may go when there are too many.
    pub fn create_counted(
        root: &Path,
        path: &str,
        name: &str,
        count: impl FnOnce(&mut Ledger),
    ) -> Result<(Self, Ledger), TargetError> {
        // First of all the directory: it tells who we are there, and so whose ledger is believed.
        let made = Self::create_in(open_parent(root, path)?, path, name)?;
        let mut ledger = captures::read_ledger(&made.parent);
        count(&mut ledger);
        if let Err(error) = captures::write_ledger(&made.parent, &ledger) {
            // A full disk, most likely: the log may still fit.
            log::warn!(
                "{path}: the ledger is not written, so `keep` and `crash_loop` do not see this capture: {error}"
            );
        }
        let fd = made.fd.try_clone().map_err(failed(&made.path))?;
        if let Err(error) = OpenDirectory::new(fd).and_then(|place| captures::mark(&place, ledger.sequence)) {
            log::warn!("{}: not marked as ours: {error}", made.path.display());
        }
        Ok((made, ledger))
    }

    fn create_in(parent: OwnedFd, path: &str, name: &str) -> Result<Self, TargetError> {
        let numbered = (2..=NUMBERED_TRIES).map(|turn| format!("{name}-{turn}"));
        let random = (0..RANDOM_TRIES).map(|_| ours::random_name(name));
        for name in core::iter::once(name.to_owned()).chain(numbered).chain(random) {
            let full = Path::new(path).join(&name);
            match mkdirat(&parent, name.as_str(), Mode::S_IRWXU) {
                Ok(()) => {
                    let fd = openat(&parent, name.as_str(), dir_flags() | OFlag::O_NOFOLLOW, Mode::empty())
                        .and_then(|fd| fsync(&parent).map(|()| fd));
                    let fd = fd.map_err(|errno| failed(&full)(errno.into()))?;
                    let parent = OpenDirectory::of_maker(parent, &fd).map_err(failed(&full))?;
                    return Ok(Self { parent, fd, path: full });
                }
                Err(Errno::EEXIST) => (),
                Err(errno) => return Err(failed(&full)(errno.into())),
            }
        }
        Err(failed(&Path::new(path).join(name))(Errno::EEXIST.into()))
    }

    /// Path on the target's file system.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory's path without links, as this process sees it.
    #[must_use]
    pub fn real(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/self/fd/{}", self.fd.as_raw_fd())).ok()
    }

    /// Removes captures beyond the `keep` newest complete ones. This one is number `sequence`, and
    /// safe.
    pub fn retire(&self, keep: u32, sequence: u64) -> Result<(), TargetError> {
        let retired = captures::retire(&self.parent, keep, sequence);
        retired.map_err(failed(self.path.parent().unwrap_or(&self.path)))
    }

    /// Bytes that may still be written in the file system, without what it keeps back for root.
    pub fn free(&self) -> Result<u64, TargetError> {
        let space = fstatvfs(&self.fd).map_err(|errno| failed(&self.path)(errno.into()))?;
        Ok(space.blocks_available().saturating_mul(space.fragment_size()))
    }

    /// Makes the file of an artifact under its temporary name, mode 0600. What would lie behind
    /// byte `limit` does not fit. What there is of an artifact that is begun again goes: the directory
    /// was made for this capture, so it is ours, and it may have taken all the room.
    pub fn create_file(&self, artifact: Artifact, limit: u64) -> Result<FileSink, TargetError> {
        let name = artifact.temporary();
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(&self.fd, name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let fd = open().or_else(|errno| match errno {
            Errno::EEXIST => {
                unlinkat(&self.fd, name.as_str(), UnlinkatFlags::NoRemoveDir)?;
                open()
            }
            errno => Err(errno),
        });
        let fd = fd.map_err(|errno| TargetError::file("creating", name, errno.into()))?;
        Ok(FileSink::new(File::from(fd)).limited(limit))
    }

    /// Opens the file of an artifact, published or not, to be read.
    pub fn open_file(&self, artifact: Artifact) -> nix::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let open = |name: &str| openat(&self.fd, name, flags, Mode::empty());
        open(artifact.name()).or_else(|_| open(&artifact.temporary())).map(File::from)
    }

    /// Gives an artifact its final name and makes that durable. From then on nobody is to write to it: where
    /// the file system has modes, the file has 0400.
    pub fn publish(&self, artifact: Artifact) -> Result<(), TargetError> {
        let (temporary, name) = (artifact.temporary(), artifact.name());
        let renamed = renameat(self.fd.as_fd(), temporary.as_str(), self.fd.as_fd(), name);
        renamed
            .inspect(|()| {
                let _ = fchmodat(&self.fd, name, Mode::S_IRUSR, FchmodatFlags::FollowSymlink);
            })
            .and_then(|()| fsync(&self.fd))
            .map_err(|errno| TargetError::file("publishing", artifact.name(), errno.into()))
    }
}

fn dir_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC
}

pub(super) fn open_parent(root: &Path, path: &str) -> Result<OwnedFd, TargetError> {
    let root_fd = File::open(root).map(OwnedFd::from).map_err(failed(root))?;
    make_path(&root_fd, path)
}

/// Opens `path` below `root`, making what is missing.
fn make_path(root: &OwnedFd, path: &str) -> Result<OwnedFd, TargetError> {
    let mut so_far = PathBuf::from(".");
    let mut current = root.try_clone().map_err(failed(Path::new(path)))?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        so_far.push(part);
        let open = || {
            let how = OpenHow::new().flags(dir_flags()).resolve(ResolveFlag::RESOLVE_IN_ROOT);
            openat2(root, &so_far, how)
        };
        let opened = open().or_else(|errno| {
            if errno != Errno::ENOENT {
                return Err(errno);
            }
            mkdirat(&current, part, Mode::S_IRWXU)?;
            fsync(&current)?;
            open()
        });
        current = opened.map_err(|errno| match errno {
            // There is something by that name, and yet it leads nowhere.
            Errno::EEXIST => {
                let cause = format!("{part} is a link that leads nowhere in this file system");
                failed(Path::new(path))(io::Error::new(io::ErrorKind::NotFound, cause))
            }
            errno => failed(Path::new(path))(errno.into()),
        })?;
    }
    Ok(current)
}

fn failed(path: &Path) -> impl Fn(io::Error) -> TargetError + '_ {
    move |source| TargetError::directory(path.display(), source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use vmcore::sink::Sink;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn files_appear_under_their_name_only_when_published() {
        let root = tempfile::tempdir().unwrap();
        let dir = Directory::create(root.path(), "/var/crash", "x").unwrap();
        let at = root.path().join("var/crash/x");
        assert_eq!((mode(&at), mode(&root.path().join("var"))), (0o700, 0o700));
        let mut sink = dir.create_file(Artifact::Vmcore, u64::MAX).unwrap();
        sink.reserve(4096).unwrap();
        sink.write_at(5, b"hello").unwrap();
        sink.sync().unwrap();
        assert!(!at.join("vmcore").exists());
        assert_eq!(mode(&at.join("vmcore-incomplete")), 0o600);
        dir.publish(Artifact::Vmcore).unwrap();
        assert_eq!(&fs::read(at.join("vmcore")).unwrap()[..10], b"\0\0\0\0\0hello");
        assert!(!at.join("vmcore-incomplete").exists());
        // A log that has filled the disk is begun again; what is published stays.
        let mut all = dir.create_file(Artifact::Dmesg, 5).unwrap();
        all.write_at(0, b"a log").unwrap();
        assert!(all.write_at(5, b"!").unwrap_err().is_full());
        let mut end = dir.create_file(Artifact::Dmesg, 5).unwrap();
        end.write_at(0, b"end").unwrap();
        dir.publish(Artifact::Dmesg).unwrap();
        assert_eq!(fs::read(at.join("dmesg.txt")).unwrap(), b"end");
        drop((all, dir.create_file(Artifact::Dmesg, 5).unwrap()));
        assert_eq!(fs::read(at.join("dmesg.txt")).unwrap(), b"end");
    }

    #[test]
    fn a_name_in_use_gets_a_number() {
        let root = tempfile::tempdir().unwrap();
        for expected in ["/c/x", "/c/x-2", "/c/x-3"] {
            let made = Directory::create(root.path(), "/c", "x").unwrap();
            assert_eq!(made.path(), Path::new(expected));
        }
    }

    #[test]
    fn links_do_not_leave_the_target() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("crash")).unwrap();
        let _ = Directory::create(root.path(), "/crash", "x");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        fs::create_dir(root.path().join("real")).unwrap();
        symlink("/real", root.path().join("inside")).unwrap();
        Directory::create(root.path(), "/inside", "x").unwrap();
        assert!(root.path().join("real/x").is_dir());
    }

    #[test]
    fn captures_are_counted_on_the_target_and_the_oldest_leave() {
        let root = tempfile::tempdir().unwrap();
        let limit = base::config::CrashLoop { crashes: 2, within: 10 };
        for turn in 1..=4_u64 {
            let name = format!("capture-{turn}");
            let count = |ledger: &mut Ledger| ledger.count(&name, turn, limit);
            let (dir, ledger) = Directory::create_counted(root.path(), "/c", &name, count).unwrap();
            assert_eq!((ledger.sequence, ledger.looping), (turn, turn > 2));
            let mut sink = dir.create_file(Artifact::Vmcore, 5).unwrap();
            sink.write_at(0, b"hello").unwrap();
            let error = sink.write_at(5, b"!").unwrap_err();
            assert!(error.is_full(), "{error:?}");
            drop(sink);
            dir.publish(Artifact::Vmcore).unwrap();
            dir.retire(2, ledger.sequence).unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(root.path().join("c")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".afterimage-ledger", "capture-3", "capture-4"]);
    }
}
