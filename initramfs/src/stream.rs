//! `afterimage recover` of a dump that was cut: a stream that ended early, its parts, a file of a
//! full disk. What there is of it becomes one plain dump that says what is missing.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use storage::targets::file::FileSink;
use vmcore::source::{CopyError, faults_with};

use crate::input::{Input, InputError};

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The parts.
    #[error(transparent)]
    Input(#[from] InputError),
    /// They are no dump.
    #[error("{0} is no kdump-compressed or flattened dump: `afterimage dump` converts it")]
    NotADump(PathBuf),
    /// Each file of it has pages of its own.
    #[error(
        "{0} is a part of a split dump: `afterimage dump PART... OUT` puts together the parts that there are"
    )]
    Split(PathBuf),
    /// The output is there already, or cannot be made.
    #[error("making {path}")]
    Create {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The copy ended early.
    #[error("{path} is not whole")]
    Copy {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: CopyError,
    },
}

/// What became of the dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Pages that the dump was to have.
    pub kept: u64,
    /// Of these, pages that are not there.
    pub lost: u64,
    /// Why it is not whole, a sentence for each reason; none if it is.
    pub faults: Vec<String>,
}

/// Copies what there is of the dump in `parts`, in their order, to `out`, which must not be there
/// yet.
pub fn recover(parts: &[PathBuf], out: &Path) -> Result<Recovered, StreamError> {
    let input = Input::open(parts)?;
    let first = || parts.first().cloned().unwrap_or_default();
    let dump = input.kdump().ok_or_else(|| StreamError::NotADump(first()))?;
    if dump.is_split() {
        return Err(StreamError::Split(first()));
    }
    let created = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(out);
    let file = created.map_err(|source| StreamError::Create { path: out.to_owned(), source })?;
    let copied = dump.copy_to(&mut FileSink::new(file));
    let lost = copied.map_err(|source| StreamError::Copy { path: out.to_owned(), source })?;
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| StreamError::Create { path: dir.to_owned(), source })?;
    Ok(Recovered { kept: dump.kept(), lost, faults: faults_with(dump, lost) })
}

impl Recovered {
    /// For people.
    #[must_use]
    pub fn text(&self, out: &Path) -> String {
        let there = self.kept.saturating_sub(self.lost);
        let pages = format!("{}: {there} of {} pages", out.display(), self.kept);
        match self.faults.as_slice() {
            [] => format!("{pages}, complete\n"),
            faults => format!("{pages}, INCOMPLETE: {}\n", faults.join("; ")),
        }
    }
}
