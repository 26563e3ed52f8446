//! `afterimage dump`: the capture's engine on a vmcore that is a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use base::config::{Config, Format};
use base::facts::{Facts, Trigger};
use base::time::seconds;
use storage::targets::file::FileSink;
use vmcore::dump::estimate::{Estimate, estimate};
use vmcore::dump::{self, DumpError, Request, Written};
use vmcore::filter::PageFilter;
use vmcore::kernel::Kernel;
use vmcore::report::{Degradation, Outcome, Summary};
use vmcore::session;
use vmcore::sink::{Sink, SinkError};
use vmcore::source::Core;

use crate::input::{Input, InputError, is_input};
use crate::output::check_replaceable;

/// Why there is no dump, or none that is whole.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The input.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The output is there already.
    #[error("{0} exists already: name another file, or use --force unless it is the input")]
    Exists(PathBuf),
    /// Its pages cannot be counted.
    #[error("counting the pages of the input")]
    Count(#[source] io::Error),
    /// The output is a directory.
    #[error("{0} is a directory: name a file")]
    Directory(PathBuf),
    /// Only a stream format can go to standard output.
    #[error(
        "a {0} dump cannot go to standard output: use --format flattened, elf, lime or raw, or name a file"
    )]
    Stream(Format),
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
    /// Standard output took no more.
    #[error("the dump on standard output ends early")]
    Ended(#[source] DumpError),
    /// It ended early.
    #[error("{path} ends early and is marked so")]
    Dump {
        /// Where the rest of it is.
        path: PathBuf,
        /// Cause.
        source: DumpError,
    },
}

/// Dumps `input` to `out` as `config` says. Until it is whole, the dump is called
/// `<out>-incomplete`. With `-` for `out` it goes to standard output, flattened.
pub fn dump(input: &[PathBuf], out: &Path, config: &Config, force: bool) -> Result<Summary, OfflineError> {
    let start = Instant::now();
    let mut summary = Summary::new(config);
    let input_faults;
    if out == Path::new("-") {
        if config.dump.format == Format::Kdump {
            return Err(OfflineError::Stream(config.dump.format));
        }
        let mut stdout = Stream::new(io::stdout().lock());
        let input = Input::open(input)?;
        input_faults = input.faults().map_err(OfflineError::Count)?;
        write(&input, config, &mut summary, &mut stdout).map_err(OfflineError::Ended)?;
    } else {
        input_faults = dump_to_file(input, out, config, force, &mut summary)?;
    }
    let is_whole = input_faults.is_empty() && summary.pages.unreadable == 0;
    summary.outcome = if is_whole { Outcome::Complete } else { Outcome::Incomplete };
    summary.seconds.total = seconds(start.elapsed());
    summary.peak_memory_bytes = vmcore::budget::peak_memory();
    Ok(summary)
}

fn dump_to_file(
    input: &[PathBuf],
    out: &Path,
    config: &Config,
    force: bool,
    summary: &mut Summary,
) -> Result<Vec<String>, OfflineError> {
    if out.is_dir() {
        return Err(OfflineError::Directory(out.to_owned()));
    }
    if out.exists() && !force {
        return Err(OfflineError::Exists(out.to_owned()));
    }
    check_replaceable(out).map_err(failed("replacing", out))?;
    let core = Input::open(input)?; // what is wrong with it is told before there is an output
    let faults = core.faults().map_err(OfflineError::Count)?;
    let mut temporary = out.as_os_str().to_owned();
    temporary.push("-incomplete");
    let temporary = PathBuf::from(temporary);
    let mut sink = FileSink::new(create(input, &temporary, force)?);
    let result = write(&core, config, summary, &mut sink);
    drop(sink);
    result.map_err(|source| OfflineError::Dump { path: temporary.clone(), source })?;
    fs::rename(&temporary, out).map_err(failed("renaming to", out))?;
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("syncing", dir))?;
    Ok(faults)
}

/// Writes the dump to `sink`.
fn write(
    input: &Input,
    config: &Config,
    summary: &mut Summary,
    sink: &mut dyn Sink,
) -> Result<(), DumpError> {
    with_request(input, config, summary, |core, filter, request, summary| {
        summary.workers = request.budget.workers;
        let mut written = Written::default();
        let result = dump::write(core, filter, request, sink, &mut written);
        session::record(&written, summary);
        result
    })
}

/// What a dump would hold.
#[derive(Debug)]
pub struct DryRun {
    /// By class, and how large it would be.
    pub estimate: Estimate,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Why it would not be whole.
    pub faults: Vec<String>,
}

/// What a dump would hold.
pub fn dry_run(input: &[PathBuf], config: &Config) -> Result<DryRun, OfflineError> {
    let input = Input::open(input)?;
    let mut summary = Summary::new(config);
    let faults = input.faults().map_err(OfflineError::Count)?;
    Ok(with_request(&input, config, &mut summary, |core, filter, request, _| DryRun {
        estimate: estimate(core, filter, request),
        page_bytes: core.page_size().bytes(),
        faults,
    }))
}

/// Finds out what a dump of `input` takes, and hands it to `work`.
pub(crate) fn with_request<T>(
    input: &Input,
    config: &Config,
    summary: &mut Summary,
    work: impl FnOnce(&dyn Core, Option<&PageFilter<'_>>, &Request, &mut Summary) -> T,
) -> T {
    let core = input.core();
    session::record_anomalies(core, summary);
    if core.left_out().incomplete {
        let faults = vec!["its header says that it ends early".to_owned()];
        summary.degrade(Degradation::IncompleteInput { faults });
    }
    session::record_origin(input.origin(), &Facts::default(), summary);
    let info = input.info();
    let kernel = Kernel::new(core, info, core.mappings());
    summary.trigger = info.crash_time().map(|_| Trigger::Panic);
    let utsname = session::describe(Some(core), Some(&kernel), &Facts::default(), summary);
    let filter = session::page_filter(core, info, summary);
    let request = session::request(utsname, info.clone(), config);
    work(core, filter.as_ref(), &request, summary)
}

/// Standard output as a sink: bytes at the offset that is next.
struct Stream<W> {
    out: W,
}

impl<W: Write> Stream<W> {
    fn new(out: W) -> Self {
        Self { out }
    }
}

impl<W: Write> Sink for Stream<W> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.out.write_all(bytes).map_err(|source| SinkError::Write { offset, len: bytes.len(), source })
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.out.flush().map_err(SinkError::Sync)
    }

    fn is_rewritable(&self) -> bool {
        false
    }
}

/// Makes the output under its temporary name. What is there under that name goes only with `force`,
/// and never if it is the input: `vmcore-incomplete` is what a copied vmcore is often called.
fn create(input: &[PathBuf], path: &Path, force: bool) -> Result<File, OfflineError> {
    if fs::symlink_metadata(path).is_ok() {
        if !force || is_input(path, input) {
            return Err(OfflineError::Exists(path.to_owned()));
        }
        check_replaceable(path).map_err(failed("replacing", path))?;
        fs::remove_file(path).map_err(failed("removing", path))?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(failed("creating", path))
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> OfflineError + 'a {
    move |source| OfflineError::Output { what, path: path.to_owned(), source }
}
