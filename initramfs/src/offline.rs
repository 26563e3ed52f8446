//! `afterimage dump`: the capture's engine on a vmcore that is a file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use capture::config::Config;
use capture::dump::{self, DumpError, Written};
use capture::facts::Facts;
use capture::kernel::Kernel;
use capture::report::{Outcome, Summary, seconds};
use capture::run;
use capture::source::{Core, VmcoreError};
use capture::target::file::FileSink;

/// Why there is no dump, or none that is whole.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The input.
    #[error(transparent)]
    Vmcore(#[from] VmcoreError),
    /// The output is there already.
    #[error("{0} exists already: name another file, or use --force unless it is the input")]
    Exists(PathBuf),
    /// The output is a directory.
    #[error("{0} is a directory: name a file")]
    Directory(PathBuf),
    /// The output cannot be made or renamed.
    #[error("{what} {path}")]
    Output {
        /// What was being done.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// It ended early.
    #[error("{path} ends early and is marked so")]
    Dump {
        /// Where the rest of it is.
        path: PathBuf,
        /// Cause.
        source: DumpError,
    },
}

/// Dumps `core` to `out` with the level and compression of `config`. Until it is whole, the dump is called
/// `<out>-incomplete`.
pub fn dump(input: &Path, out: &Path, config: &Config, force: bool) -> Result<Summary, OfflineError> {
    if out.is_dir() {
        return Err(OfflineError::Directory(out.to_owned()));
    }
    if out.exists() && !force {
        return Err(OfflineError::Exists(out.to_owned()));
    }
    let start = Instant::now();
    let mut summary = Summary::new(config);
    let core = run::open_core(input, &mut summary)?;
    let kernel = Kernel::new(&core, core.info(), core.mappings());
    let utsname = run::describe(Some(&core), Some(&kernel), &Facts::default(), &mut summary);
    let request = run::request(utsname, config);
    summary.workers = request.budget.workers;

    let mut temporary = out.as_os_str().to_owned();
    temporary.push("-incomplete");
    let temporary = PathBuf::from(temporary);
    let mut sink = FileSink::new(create(input, &temporary, force)?);
    let mut written = Written::default();
    let result = dump::write(&core, &request, &mut sink, &|| (), &mut written);
    drop(sink);
    summary.record(&written.pages, written.bytes);
    result.map_err(|source| OfflineError::Dump { path: temporary.clone(), source })?;
    fs::rename(&temporary, out).map_err(failed("renaming to", out))?;
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("syncing", dir))?;
    summary.outcome = Outcome::Complete;
    summary.seconds.total = seconds(start.elapsed());
    summary.peak_memory_bytes = capture::budget::peak_memory();
    Ok(summary)
}

/// Makes the output under its temporary name. What is there under that name goes only with `force`, and never if
/// it is the input: `vmcore-incomplete` is what a copied vmcore is often called.
fn create(input: &Path, path: &Path, force: bool) -> Result<File, OfflineError> {
    let same = |path: &Path| match (fs::metadata(input), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    };
    if fs::symlink_metadata(path).is_ok() {
        if !force || same(path) {
            return Err(OfflineError::Exists(path.to_owned()));
        }
        fs::remove_file(path).map_err(failed("removing", path))?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(failed("creating", path))
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> OfflineError + 'a {
    move |source| OfflineError::Output { what, path: path.to_owned(), source }
}
