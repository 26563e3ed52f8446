//! Files that are made of a dump, and that appear under their names when they are whole.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use crate::input::is_input;
use crate::output::check_replaceable;

/// The directory that a file is in.
fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file beside `out`, without a name that lasts, for what is made of the dump in `files`. Fails if no
/// file may take the name `out`.
pub(crate) fn begin(out: &Path, files: &[PathBuf]) -> io::Result<NamedTempFile> {
    check_replaceable(out)?;
    if is_input(out, files) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is the dump itself"));
    }
    again(out)
}

/// One more file beside `out`.
pub(crate) fn again(out: &Path) -> io::Result<NamedTempFile> {
    Builder::new().prefix(".afterimage-").tempfile_in(directory(out))
}

/// Gives the file its name.
pub(crate) fn publish(file: NamedTempFile, out: &Path) -> io::Result<()> {
    file.persist(out).map_err(|error| error.error)?;
    Ok(())
}

/// The same, and sees to it that a power cut after it leaves the file as it is.
pub(crate) fn publish_synced(file: NamedTempFile, out: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    publish(file, out)?;
    File::open(directory(out))?.sync_all()
}
