//! `afterimage gcore`: the core file of a process in a dump.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use base::text;
use processes::core_file::{self, CoreError, Report};
use processes::mappings::Space;
use processes::registers::Origin;
use processes::resident::{Held, Pages, Why};
use processes::system::{System, SystemError};
use processes::tasks::{self, Process, Processes};
use processes::{Counts, notes};
use symbols::model::Model;

use crate::beside;
use crate::input::{Input, InputError};
use crate::unreadable::Unreadable;

/// Faults that are told one by one.
const FAULTS: usize = 8;
/// Numbers of threads in a list.
const THREADS: usize = 8;
/// Bytes of the first argument.
const ARGUMENT: usize = 64;

/// Why there is no core file, or no list.
#[derive(Debug, thiserror::Error)]
pub enum GcoreError {
    /// The dump.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The kernel's own symbols and types.
    #[error(transparent)]
    Model(Unreadable),
    /// What is known of the kernel is not enough.
    #[error("finding the processes")]
    System(#[from] SystemError),
    /// The process.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The file.
    #[error("writing {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// A core file that was made.
#[derive(Debug)]
pub struct Made {
    /// What is in it.
    pub report: Report,
    /// The level of the dump.
    level: u32,
    /// What is wrong with the list of processes.
    faults: Vec<String>,
}

/// Reads the dump in `files` and hands it on.
fn with<T>(
    files: &[PathBuf],
    run: impl FnOnce(&Input, &System<'_>, &Processes) -> Result<T, GcoreError>,
) -> Result<T, GcoreError> {
    let input = Input::open_x86_64(files)?;
    let kernel = input.kernel();
    let model =
        Model::read(&kernel).map_err(|cause| GcoreError::Model(Unreadable::new(&cause, input.info())))?;
    let system = System::new(&kernel, &model.known())?;
    let processes = tasks::all(&system)?;
    run(&input, &system, &processes)
}

/// Makes the core file `out` of the process that has the thread `pid`. It appears under its name when
/// it is whole.
pub fn make(files: &[PathBuf], pid: u32, out: &Path) -> Result<Made, GcoreError> {
    let failed = |source| GcoreError::Write { path: out.to_owned(), source };
    let file = beside::begin(out, files).map_err(failed)?;
    with(files, |input, system, processes| {
        let report = core_file::write(system, input.core(), processes, pid, file.as_file());
        let report = report.map_err(|error| match error {
            CoreError::Write(source) => failed(source),
            other => other.into(),
        })?;
        beside::publish_synced(file, out).map_err(failed)?;
        let level = input.core().left_out().level;
        Ok(Made { report, level, faults: processes.faults.clone() })
    })
}

impl Made {
    /// For people. Names are of the old kernel's memory.
    #[must_use]
    pub fn text(&self, out: &Path) -> String {
        let Report { process, threads, counts, .. } = &self.report;
        let mut text = format!(
            "{}: PID {} ({}), {} threads, {} mappings, {} pages in {} segments\n",
            out.display(),
            process.leader.pid,
            text::line(&process.leader.comm),
            threads.len(),
            self.report.mappings,
            counts.here,
            self.report.segments,
        );
        if let Some((first, _)) = threads.first() {
            let why = if self.report.crashed { ", in which the kernel panicked" } else { "" };
            let _ = writeln!(text, "first thread: {} ({}){why}", first.pid, text::line(&first.comm));
        }
        self.absent(&mut text);
        for (origin, what) in [
            (
                Origin::Stale,
                "ran when the machine stopped, and the dump does not have the CPU's registers: \
                             theirs are those of the last entry into the kernel",
            ),
            (Origin::Nowhere, "have no registers of user space: zeros"),
        ] {
            let pids: Vec<String> = threads
                .iter()
                .filter(|(_, of)| *of == origin)
                .map(|(task, _)| task.pid.to_string())
                .collect();
            if !pids.is_empty() {
                let _ = writeln!(text, "threads {} {what}", pids.join(", "));
            }
        }
        faults(&mut text, self.report.faults.iter().chain(&self.faults));
        text
    }

    fn absent(&self, text: &mut String) {
        let counts = &self.report.counts;
        let lost = counts.lost();
        let all = counts.here.saturating_add(lost);
        if lost == 0 {
            let _ = writeln!(text, "all {all} pages that it had in memory are there");
        } else {
            let _ = writeln!(text, "{lost} of {all} pages that it had are absent:");
        }
        for why in Why::ALL {
            let Some(pages) = counts.absent.get(&why) else { continue };
            let mut line = format!("{pages} pages: {}", why.text());
            if why == Why::NotInDump && self.level & 8 != 0 {
                let _ = write!(line, " (its level {} leaves out memory of processes)", self.level);
            }
            let _ = writeln!(text, "  {line}{}", if why.is_loss() { "" } else { "; no loss" });
        }
        if counts.absent.values().any(|pages| *pages > 0) {
            text.push_str("debuggers cannot access what is absent; a list: readelf -p .afterimage\n");
        }
    }
}

fn faults<'a>(text: &mut String, faults: impl Iterator<Item = &'a String>) {
    let mut more = 0_usize;
    for (index, fault) in faults.enumerate() {
        if index < FAULTS {
            let _ = writeln!(text, "damaged: {}", text::line(fault));
        } else {
            more = more.saturating_add(1);
        }
    }
    if more > 0 {
        let _ = writeln!(text, "damaged: {more} more faults");
    }
}

/// Lists the processes of a dump.
pub fn list(files: &[PathBuf]) -> Result<String, GcoreError> {
    with(files, |input, system, processes| {
        let held = Held::new(input.core());
        let mut text =
            format!("{:>7} {:>9} {:>9}  {:<16} {}\n", "PID", "PAGES", "THERE", "COMMAND", "ARGV[0]");
        let mut kernel = 0_usize;
        for process in &processes.all {
            if process.leader.is_kernel {
                kernel = kernel.saturating_add(1);
            } else {
                row(&mut text, system, &held, process);
            }
        }
        let _ = writeln!(text, "and {kernel} threads of the kernel");
        faults(&mut text, processes.faults.iter());
        Ok(text)
    })
}

/// A line for a process, and one with the numbers of its other threads.
fn row(text: &mut String, system: &System<'_>, held: &Held, process: &Process) {
    let Process { leader, threads } = process;
    let comm = text::line(&leader.comm);
    let space = process.mm().map(|mm| Space::read(system, mm));
    let (numbers, argument) = match &space {
        Some(Ok(space)) => {
            let pages = Pages::new(system, held);
            let mut counts = Counts::default();
            for mapping in &space.mappings {
                pages.each_mapped(space, mapping, &mut |run| counts.add(&run));
            }
            let all = counts.here.saturating_add(counts.lost());
            let arguments = notes::arguments(&pages, space, ARGUMENT);
            let first = arguments.split(|&byte| byte == 0).next().unwrap_or_default();
            (format!("{all:>9} {:>9}", counts.here), text::line(&String::from_utf8_lossy(first)))
        }
        Some(Err(error)) => (format!("{:>9} {:>9}", "?", "?"), base::log::chain(error)),
        None => (format!("{:>9} {:>9}", 0, 0), "(has exited)".to_owned()),
    };
    let _ = writeln!(text, "{:>7} {numbers}  {comm:<16} {argument}", leader.pid);
    let others = threads.iter().filter(|thread| thread.pid != leader.pid);
    let mut names: Vec<String> =
        others.map(|thread| format!("{} ({})", thread.pid, text::line(&thread.comm))).collect();
    if names.len() > THREADS {
        let more = names.len().saturating_sub(THREADS);
        names.truncate(THREADS);
        names.push(format!("{more} more"));
    }
    if !names.is_empty() {
        let _ = writeln!(text, "{:>29}threads {}", "", names.join(", "));
    }
}
