//! `afterimage debuginfo`: the debug file of the kernel in a dump, made of the dump alone.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufWriter, Seek, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use liblzma::write::XzEncoder;
use symbols::debuginfo::{self, DebuginfoError, Report, Split};
use tempfile::NamedTempFile;
use vmcore::target::DEBUG_FILE;

use crate::beside;
use crate::input::{Input, InputError};
use crate::unreadable::Unreadable;

/// The debug file beside a dump, and what is in the directory of a capture.
const BESIDE: &str = DEBUG_FILE;
const DUMP: &str = "vmcore";
const RESULT: &str = "result.json";
/// Entries of a directory that are looked at: others may write there.
const MAX_CAPTURES: usize = 100_000;
/// A file of 38 MiB takes 3.5 MB and a second; more takes ten times as long.
const XZ_LEVEL: u32 = 3;

/// Why there is no debug file.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The dump.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The directory of captures.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// What is needed is not in it.
    #[error("making {path}")]
    Make {
        /// The debug file.
        path: PathBuf,
        /// Cause.
        source: Unreadable,
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
    of_input(&Input::open_x86_64(files)?, files, out)
}

/// The same of a dump that is open.
pub(crate) fn of_input(input: &Input, files: &[PathBuf], out: &Path) -> Result<Report, MakeError> {
    let failed = |source| MakeError::Write { path: out.to_owned(), source };
    input.ensure_x86_64()?;
    let file = beside::begin(out, files).map_err(failed)?;
    let mut writer = BufWriter::with_capacity(1 << 18, file);
    let report = debuginfo::write(&input.kernel(), &mut writer);
    let report = report.map_err(|error| match error {
        DebuginfoError::Write(source) => failed(source),
        cause => MakeError::Make { path: out.to_owned(), source: Unreadable::new(&cause, input.info()) },
    })?;
    writer.flush().map_err(failed)?;
    let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    let is_xz = out.extension().is_some_and(|extension| extension == "xz");
    let file = if is_xz { compressed(file, out) } else { Ok(file) }.map_err(failed)?;
    // Not synced: it can be made again at any time.
    beside::publish(file, out).map_err(failed)?;
    Ok(report)
}

/// A copy of a file by xz, which crash opens as it is.
fn compressed(mut plain: NamedTempFile, out: &Path) -> io::Result<NamedTempFile> {
    let mut encoder = XzEncoder::new(beside::again(out)?, XZ_LEVEL);
    plain.rewind()?;
    io::copy(&mut plain, &mut encoder)?;
    encoder.finish()
}

/// Makes `NAME.ko.debug` of each module that was loaded in the dump in `files`, in a directory that is made
/// if it is not there. Each appears under its name when it is whole.
pub fn make_modules(files: &[PathBuf], dir: &Path) -> Result<Split, MakeError> {
    let input = Input::open_x86_64(files)?;
    let mut last = dir.to_owned();
    let mut write = |name: &str, bytes: &[u8]| {
        fs::create_dir_all(dir)?;
        last = dir.join(format!("{name}.ko.debug"));
        let mut file = beside::begin(&last, files)?;
        file.write_all(bytes)?;
        beside::publish(file, &last)
    };
    let split = debuginfo::write_modules(&input.kernel(), &mut write);
    split.map_err(|source| match source {
        DebuginfoError::Write(source) => MakeError::Write { path: last, source },
        cause => MakeError::Make { path: dir.to_owned(), source: Unreadable::new(&cause, input.info()) },
    })
}

/// A debug file, and what came of it.
pub type Made = (PathBuf, Result<Report, MakeError>);

/// Makes the debug file of each capture in `dir` that has a dump and no such file yet. Directories of other
/// users are passed over: many systems let everybody write there.
pub fn of_captures(dir: &Path) -> Result<Vec<Made>, MakeError> {
    let failed = |source| MakeError::Read { path: dir.to_owned(), source };
    let mut captures = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)?.take(MAX_CAPTURES) {
        let capture = entry.map_err(failed)?.path();
        let is_ours = fs::symlink_metadata(&capture)
            .is_ok_and(|meta| meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw());
        let is_there = |name: &str| fs::symlink_metadata(capture.join(name)).is_ok_and(|meta| meta.is_file());
        if is_ours && is_there(DUMP) && is_there(RESULT) && !is_there(BESIDE) {
            captures.push(capture);
        }
    }
    captures.sort();
    let make = |capture: PathBuf| {
        let out = capture.join(BESIDE);
        let made = make(&[capture.join(DUMP)], &out);
        (out, made)
    };
    Ok(captures.into_iter().map(make).collect())
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
    for line in warnings(report).into_iter().chain(limit_of_crash(report)) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// What is in the files of modules, for people.
#[must_use]
pub fn text_of_modules(split: &Split, dir: &Path) -> String {
    let mut text = String::new();
    for made in &split.modules {
        let path = dir.join(format!("{}.ko.debug", made.name));
        let _ = writeln!(
            text,
            "{}: {} symbols, {} types, {} functions",
            path.display(),
            made.symbols,
            made.types,
            made.functions
        );
    }
    if split.modules.is_empty() && split.missing.is_empty() {
        text.push_str("no module was loaded\n");
    }
    for what in &split.missing {
        let _ = writeln!(text, "missing: {what}");
    }
    text
}

/// What crash, the newest that was tried, cannot do with this kernel whatever the debug file, and the remedy.
#[must_use]
pub fn limit_of_crash(report: &Report) -> Option<String> {
    let gone = report.gone.join(", ");
    (!gone.is_empty()).then(|| {
        format!(
            "note: crash 9.0.2 ends with \"invalid structure member offset\", since this kernel has no {gone}; with the \
             option --no_modules it reads all but the modules"
        )
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_crash_cannot_read_is_said() {
        let mut report = Report::default();
        assert_eq!(limit_of_crash(&report), None);
        report.gone = vec!["module.num_gpl_syms"];
        let said = text(&report, Path::new("vmlinux"));
        assert!(said.contains("no module.num_gpl_syms; with the option --no_modules"), "{said}");
        assert!(warnings(&report).is_empty(), "drgn reads it");
    }
}
