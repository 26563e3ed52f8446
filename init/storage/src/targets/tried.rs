//! The mark that a kexec was tried, in the directory of the captures: a machine whose next kernel
//! does not come up gets the firmware's road from then on. `afterimage load` in the system that the
//! kexec has started takes it away, and so does `afterimage reset`. Raw targets have no place for
//! it.

use std::io;
use std::path::Path;

use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::targets::directory::open_parent;
use crate::targets::ours::OpenDirectory;
use vmcore::target::TargetError;

/// Name of the file; it holds the boot id of the kernel that was captured.
pub const NAME: &str = "kexec-tried";

/// Why there is no mark of ours.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// There is one already.
    #[error(
        "{path}/{NAME} is there: the kexec after the capture of boot {boot_id} was the last that is known of"
    )]
    There {
        /// Directory of the captures.
        path: String,
        /// What the mark says, or that it is not ours.
        boot_id: String,
    },
    /// The directory.
    #[error(transparent)]
    Directory(#[from] TargetError),
    /// It cannot be made durable.
    #[error("writing {path}/{NAME}")]
    Write {
        /// Directory of the captures.
        path: String,
        /// Cause.
        source: io::Error,
    },
}

/// Makes the mark, durably, in the directory `path` of the file system mounted at `root`. One of
/// ours that is there stays; what others have put there under this name makes way.
pub fn set(root: &Path, path: &str, boot_id: &str) -> Result<(), MarkError> {
    let write = |source| MarkError::Write { path: path.to_owned(), source };
    let place = OpenDirectory::new(open_parent(root, path)?).map_err(write)?;
    place.make_way(NAME).map_err(write)?;
    match place.write_new(NAME, &format!("{boot_id}\n")) {
        Ok(()) => fsync(&place.fd).map_err(|errno| write(errno.into())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let boot_id = place.read(NAME).unwrap_or_else(|error| format!("unknown ({error})"));
            Err(MarkError::There { path: path.to_owned(), boot_id: boot_id.trim().to_owned() })
        }
        Err(source) => Err(write(source)),
    }
}

/// On the next kernel's command line, before the boot id of the kernel that was captured: by it a
/// booted system knows how it came up. No module has this name, so the kernel passes it over.
pub const WORD: &str = "afterimage.handoff=";

/// What has become of a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// There was none.
    None,
    /// It is gone: this system is the one that the kexec was to start.
    Cleared,
    /// It stays: the kexec after the capture of this boot did not bring up this system.
    Stays(String),
}

/// Takes the mark out of a directory of captures, durably, if the running system, which has this
/// command line, is what was tried. A mark that others have put there is an error, and never waited
/// for.
pub fn clear(directory: &Path, cmdline: &str) -> io::Result<Mark> {
    let place = match OpenDirectory::open_at(directory) {
        Ok(place) => place,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Mark::None),
        Err(error) => return Err(error),
    };
    let boot_id = match place.read(NAME) {
        Ok(boot_id) => boot_id.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Mark::None),
        Err(error) => return Err(error),
    };
    let from = cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix(WORD)).next_back();
    if from != Some(boot_id.as_str()) {
        return Ok(Mark::Stays(boot_id));
    }
    remove(directory)?;
    Ok(Mark::Cleared)
}

/// Takes a mark out of a directory of captures, durably, if there is one: an operator has seen to
/// it.
pub fn remove(directory: &Path) -> io::Result<()> {
    let place = OpenDirectory::open_at(directory)?;
    match unlinkat(&place.fd, NAME, UnlinkatFlags::NoRemoveDir) {
        Ok(()) => Ok(fsync(&place.fd)?),
        Err(nix::errno::Errno::ENOENT) => Ok(()),
        // A directory is none of ours.
        Err(nix::errno::Errno::EISDIR) => place.make_way(NAME),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn one_try_until_the_booted_system_says_that_it_came_up() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("var/crash");
        assert_eq!(clear(&directory, "").unwrap(), Mark::None, "no directory, no mark");
        set(root.path(), "/var/crash", "b-1").unwrap();
        let error = set(root.path(), "/var/crash", "b-2").unwrap_err();
        assert!(matches!(&error, MarkError::There { boot_id, .. } if boot_id == "b-1"), "{error}");
        for other in ["quiet", "afterimage.handoff=b-0", "afterimage.handoff=b-1 afterimage.handoff=b-2"] {
            assert_eq!(clear(&directory, other).unwrap(), Mark::Stays("b-1".into()), "{other}");
        }
        assert_eq!(clear(&directory, "ro afterimage.handoff=b-1 quiet").unwrap(), Mark::Cleared);
        assert_eq!(clear(&directory, "afterimage.handoff=b-1").unwrap(), Mark::None);
        set(root.path(), "/var/crash", "b-2").unwrap();
        remove(&directory).unwrap();
        remove(&directory).unwrap();
        set(root.path(), "/var/crash", "b-3").unwrap();
        assert_eq!(fs::read_to_string(directory.join(NAME)).unwrap(), "b-3\n");
    }

    #[test]
    fn what_cannot_be_marked_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("crash"), "a file").unwrap();
        assert!(matches!(set(root.path(), "/crash", "b"), Err(MarkError::Directory(_))));
    }
}
