//! The mark that a kexec was tried, in the directory of the captures: a machine whose next kernel does not come up gets the firmware's
//! road the next time. `afterimage load` in the booted system takes it away. Raw targets have no place for it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::unistd::fsync;

use crate::target::TargetError;
use crate::target::captures::{read, write_new};
use crate::target::directory::open_parent;

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

/// Makes the mark, durably, in the directory `path` of the file system mounted at `root`. One that is there stays.
pub fn set(root: &Path, path: &str, boot_id: &str) -> Result<(), MarkError> {
    let directory = open_parent(root, path)?;
    match write_new(&directory, NAME, &format!("{boot_id}\n")) {
        Ok(()) => fsync(&directory)
            .map_err(|errno| MarkError::Write { path: path.to_owned(), source: errno.into() }),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let said = read(&directory, NAME).unwrap_or_else(|error| format!("unknown ({error})"));
            Err(MarkError::There { path: path.to_owned(), boot_id: said.trim().to_owned() })
        }
        Err(source) => Err(MarkError::Write { path: path.to_owned(), source }),
    }
}

/// Takes the mark out of a directory of captures of the running system, durably. Says whether there was one.
pub fn clear(directory: &Path) -> io::Result<bool> {
    match fs::remove_file(directory.join(NAME)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    fsync(OwnedFd::from(File::open(directory)?))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_try_until_the_booted_system_says_that_it_came_up() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("var/crash");
        assert!(!clear(&directory).unwrap(), "no directory, no mark");
        set(root.path(), "/var/crash", "b-1").unwrap();
        let error = set(root.path(), "/var/crash", "b-2").unwrap_err();
        assert!(matches!(&error, MarkError::There { boot_id, .. } if boot_id == "b-1"), "{error}");
        assert!(clear(&directory).unwrap());
        assert!(!clear(&directory).unwrap());
        set(root.path(), "/var/crash", "b-3").unwrap();
        assert_eq!(fs::read_to_string(directory.join(NAME)).unwrap(), "b-3\n");
    }

    #[test]
    fn what_cannot_be_marked_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("crash"), "a file").unwrap();
        assert!(matches!(set(root.path(), "/crash", "b"), Err(MarkError::Directory(_))));
        fs::create_dir_all(root.path().join("c").join(NAME)).unwrap();
        assert!(matches!(set(root.path(), "/c", "b"), Err(MarkError::There { .. })));
    }
}
