//! `afterimage debuginfo`: the debug file of the kernel in a dump, made of the dump alone.

use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use symbols::debuginfo::{self, DebuginfoError, Report};

use crate::input::{Input, InputError, is_input};
use crate::output::check_replaceable;

/// Why there is no debug file.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The dump.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A kernel of another machine.
    #[error("it is a dump of {0}: debug files are made of x86_64 kernels only")]
    Machine(String),
    /// What is needed is not in it.
    #[error("making {path}")]
    Make {
        /// The debug file.
        path: PathBuf,
        /// Cause.
        source: DebuginfoError,
    },
    /// The file.
    #[error("writing {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// Makes the debug file `out` of the dump in `files`. It appears under its name when it is whole.
pub fn make(files: &[PathBuf], out: &Path) -> Result<Report, MakeError> {
    let failed = |source| MakeError::Write { path: out.to_owned(), source };
    let input = Input::open(files)?;
    if input.machine() != "x86_64" {
        return Err(MakeError::Machine(input.machine().to_owned()));
    }
    check_replaceable(out).map_err(failed)?;
    if is_input(out, files) {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is the dump itself")));
    }
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".afterimage-").tempfile_in(dir).map_err(failed)?;
    let mut writer = BufWriter::with_capacity(1 << 18, file);
    let report = debuginfo::write(&input.kernel(), &mut writer);
    let report = report.map_err(|source| MakeError::Make { path: out.to_owned(), source })?;
    writer.flush().map_err(failed)?;
    let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    // Not synced: it can be made again at any time.
    file.persist(out).map_err(|error| failed(error.error))?;
    Ok(report)
}

/// What is in the file, for people.
#[must_use]
pub fn text(report: &Report, out: &Path) -> String {
    let mut text = format!(
        "{}: {} symbols, {} types ({} modules), {} functions, {} variables\n",
        out.display(),
        report.symbols,
        report.types,
        report.modules,
        report.functions,
        report.variables,
    );
    for line in warnings(report) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// What is not in the file, a line each.
#[must_use]
pub fn warnings(report: &Report) -> Vec<String> {
    let missing = report.missing.iter().chain(&report.without_types).map(|what| format!("missing: {what}"));
    let names = report.unresolved.join(", ");
    let unresolved = (!names.is_empty()).then(|| {
        format!(
            "the types of these variables are not known, and debuggers may print nonsense of them: {names}"
        )
    });
    missing.chain(unresolved).collect()
}
