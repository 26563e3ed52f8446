//! Files of ours in a directory where others may write: a `/var/crash` with the sticky bit, or the
//! export of a file server. Nothing there is followed, waited for or believed that others can have
//! put there.
//!
//! Ours is what belongs to the user that a new file of ours gets: root, or, on an export with
//! `root_squash` (exports(5), the default), the user that the server makes of root.

use core::hash::{BuildHasher, Hasher};
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::libc::{S_IFDIR, S_IFMT, S_IFREG};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

/// Longest marker, ledger or mark that is read, bytes.
const LONGEST: u64 = 64 << 10;
/// Random names that are tried until one is free. Nobody can guess one of them.
const RANDOM_NAMES: u32 = 16;
/// Bits of a mode that let others write.
const OTHERS_WRITE: u32 = 0o022;

/// A directory on a target, and whose files in it are ours.
#[derive(Debug)]
pub struct OpenDirectory {
    pub(super) fd: OwnedFd,
    owner: u32,
}

impl OpenDirectory {
    /// The directory that is open as `fd`. Files of this program's user are ours, and where nobody
    /// else may write also those of the directory's own user: `reset` on the file server sees what
    /// its clients have made.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let (stat, user) = (fstat(&fd)?, geteuid().as_raw());
        let is_alone = stat.st_mode & OTHERS_WRITE == 0;
        Ok(Self { fd, owner: if is_alone { stat.st_uid } else { user } })
    }

    /// The directory at `path`. Anything else that has this name is an error, and not waited for.
    pub fn open_at(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        Self::new(nix::fcntl::open(path, flags, Mode::empty())?)
    }

    /// The same; `made` is a directory that was just made in it. Whose it is, we are there.
    pub(super) fn of_maker(fd: OwnedFd, made: &OwnedFd) -> io::Result<Self> {
        Ok(Self { fd, owner: fstat(made)?.st_uid })
    }

    /// A way to list it, whatever has become of its name.
    pub(super) fn proc_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd()).into()
    }

    fn is_ours(&self, uid: u32) -> bool {
        uid == self.owner || uid == geteuid().as_raw()
    }

    /// Opens a file of ours. Anything else is `PermissionDenied`: of others, or no regular file.
    /// Never waits: a FIFO would hold up an open(2) without `O_NONBLOCK` for ever.
    pub(super) fn open(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = File::from(openat(&self.fd, name, flags, Mode::empty())?);
        let meta = file.metadata()?;
        if meta.is_file() && self.is_ours(meta.uid()) {
            Ok(file)
        } else {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not a file of afterimage's"))
        }
    }

    /// Reads a file of ours, at most [`LONGEST`] bytes.
    pub(super) fn read(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        self.open(name)?.take(LONGEST).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Opens a directory in it that is ours. Nothing of others is opened, only looked at: there may
    /// be many.
    pub(super) fn open_directory(&self, name: &str) -> Option<Self> {
        let stat = self.stat(name).ok()?;
        if stat.st_mode & S_IFMT != S_IFDIR || !self.is_ours(stat.st_uid) {
            return None;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(self.fd.as_fd(), name, flags, Mode::empty()).ok()?;
        let is_ours = fstat(&fd).is_ok_and(|stat| self.is_ours(stat.st_uid));
        is_ours.then_some(Self { fd, owner: self.owner })
    }

    /// Makes a file that must not be there, mode 0600, durably, for whom the others are.
    pub(super) fn write_new(&self, name: &str, text: &str) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.fd, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        if file.metadata()?.uid() != self.owner {
            // `reset` by root on the file server: the next capture must be able to read it.
            std::os::unix::fs::fchown(&file, Some(self.owner), None)?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }

    /// Puts a new file in the place of what is called `name`, durably: there is always an old one
    /// or a new one. What others have put there makes way.
    pub(super) fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let temporary = at_random_name(name, |new| self.write_new(new, text))?;
        self.make_way(name)
            .and_then(|()| Ok(renameat(&self.fd, temporary.as_str(), &self.fd, name)?))
            .inspect_err(|_| {
                let _ = unlinkat(&self.fd, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
            })?;
        Ok(nix::unistd::fsync(&self.fd)?)
    }

    /// Frees a name that is ours if what bears it is not: it gets another name beside it.
    pub(super) fn make_way(&self, name: &str) -> io::Result<()> {
        let stat = match self.stat(name) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if stat.st_mode & S_IFMT == S_IFREG && self.is_ours(stat.st_uid) {
            return Ok(());
        }
        let aside = at_random_name(name, |aside| match self.stat(aside) {
            Err(Errno::ENOENT) => Ok(renameat(&self.fd, name, &self.fd, aside)?),
            _ => Err(io::ErrorKind::AlreadyExists.into()),
        })?;
        log::warn!(
            "{name} in the directory of the captures is of user {}, not of afterimage: it is called {aside} \
             now; nobody but root should write there (chmod 0755)",
            stat.st_uid
        );
        Ok(())
    }

    fn stat(&self, name: &str) -> nix::Result<FileStat> {
        fstatat(self.fd.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }
}

/// Does something with names that begin with `stem` until one is free; gives that one.
fn at_random_name(stem: &str, mut doing: impl FnMut(&str) -> io::Result<()>) -> io::Result<String> {
    let mut last = io::ErrorKind::AlreadyExists.into();
    for _ in 0..RANDOM_NAMES {
        let name = random_name(stem);
        match doing(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            result => return result.map(|()| name),
        }
    }
    Err(last)
}

/// A name that begins with `stem` and that nobody can have guessed. The hasher's keys are random
/// numbers of the kernel, for which std never waits (`GRND_INSECURE`).
pub(super) fn random_name(stem: &str) -> String {
    format!("{stem}-{:016x}", RandomState::new().build_hasher().finish())
}

#[cfg(test)]
mod tests;
