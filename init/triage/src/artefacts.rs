//! What triage brings out of a kernel's memory: an artefact is a kind of rows with a walk that yields
//! them. One driver runs all of them, limits them, and records how each one did.
//!
//! To add one: a file here with a type that is an `Artefact`, and its line in `ALL`.

mod audit;
mod blocks;
mod body;
mod bpf;
mod cached;
mod content;
mod cpus;
mod files;
mod groups;
mod interrupts;
mod ipc;
mod kernel;
mod keyrings;
mod limits;
mod links;
mod logins;
mod memory;
mod modules;
mod mounted;
mod namespaces;
mod netns;
mod network;
mod processes;
mod row;
mod sockets;
mod swap;
#[cfg(test)]
mod tests;
mod timeline;
mod timers;
mod tracing;
mod waits;
mod work;
mod zones;

use std::io;
use std::time::{Duration, Instant};

use ::processes::resident::Held;
use ::processes::system::{System, SystemError};
use ::processes::tasks::{self, Processes};
use serde::Serialize;
use symbols::kallsyms::Symbols;
use symbols::knowledge::layout::Missing;
use symbols::knowledge::{Answers, Knowledge};
use symbols::unwind::Unwinder;
use vmcore::kernel::Kernel;

use crate::known::{self, TablesError};
use crate::summary;

pub use limits::Limits;
pub use row::Row;
pub use timeline::Clock;

/// Rows of one artefact.
const MAX_ROWS: u64 = 500_000;

/// Where rows and files go.
pub trait Output {
    /// Takes a line, with its end, of a text file that stands beside the recovered files.
    fn line(&mut self, file: &str, line: &str) -> io::Result<()>;

    /// Says that a text file has no more lines; there may have been none.
    fn done(&mut self, file: &str) -> io::Result<()>;

    /// Begins a file that was recovered. Returns the name that it has in the output.
    fn begin(&mut self, file: &Recovered<'_>) -> io::Result<String>;

    /// Writes the next bytes of its ranges, one range behind the other.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Ends it.
    fn end(&mut self) -> io::Result<()>;
}

/// A file that is recovered.
#[derive(Clone, Copy, Debug)]
pub struct Recovered<'a> {
    /// Its path on the machine.
    pub path: &'a str,
    /// Its length in bytes.
    pub bytes: u64,
    /// Where its contents are known, ascending: the first byte, and the one behind the last. All else is a
    /// hole.
    pub ranges: &'a [(u64, u64)],
    /// Its mode (`inode.i_mode`).
    pub mode: u16,
    /// When its contents were changed, in seconds since 1970.
    pub modified: Option<u64>,
}

/// What walks stand on.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "knowledge may be any")]
pub struct Ground<'a> {
    /// The kernel.
    pub system: &'a System<'a>,
    /// What is known of it.
    pub known: &'a dyn Knowledge,
    /// Its processes.
    pub processes: &'a Processes,
    /// Pages that are there.
    pub held: &'a Held,
    /// Its code: functions by their addresses, and stacks.
    pub code: &'a Unwinder<'a>,
    /// What its clocks say.
    pub clock: Clock,
    /// Bounds of what is recovered.
    pub limits: &'a Limits,
}

/// A kind of rows.
trait Artefact: Sized {
    /// Rows are in NAME.jsonl.
    const NAME: &'static str;

    /// Looks up where the members of structures are that the walk needs.
    fn ask(known: &dyn Knowledge) -> Result<Self, Missing>;

    /// Yields rows.
    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop>;
}

/// Why a walk stops.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The output takes no more.
    #[error("writing")]
    Output(#[from] io::Error),
    /// There are more rows than are believed.
    #[error("there are more than {MAX_ROWS} rows")]
    TooMany,
    /// It takes too long.
    #[error("it took longer than {} s", .0.as_secs())]
    TooLong(Duration),
    /// The place to start from cannot be found.
    #[error("{0}")]
    Start(String),
}

impl Stop {
    fn no_symbol(name: &str) -> Self {
        Self::Start(format!("the kernel has no symbol {name}"))
    }
}

/// Takes rows.
struct Rows<'a> {
    /// Name of their file.
    file: String,
    output: &'a mut dyn Output,
    timeline: &'a mut u64,
    count: u64,
    errors: u64,
    start: Instant,
    time: Duration,
}

impl Rows<'_> {
    /// Fails if the walk has taken too long.
    fn in_time(&self) -> Result<(), Stop> {
        if self.start.elapsed() > self.time { Err(Stop::TooLong(self.time)) } else { Ok(()) }
    }

    /// Takes a row that says only what could not be read.
    fn miss(&mut self, what: &str, why: &dyn core::fmt::Display) -> Result<(), Stop> {
        let mut row = Row::default();
        row.error(what, why);
        self.add(&row)
    }

    /// Takes a row, and what it says of times.
    fn add(&mut self, row: &Row) -> Result<(), Stop> {
        if self.count >= MAX_ROWS {
            return Err(Stop::TooMany);
        }
        self.in_time()?;
        self.count = self.count.saturating_add(1);
        if row.has_errors() {
            self.errors = self.errors.saturating_add(1);
        }
        self.output.line(&self.file, &row.to_line())?;
        for event in row.events() {
            *self.timeline = self.timeline.saturating_add(1);
            self.output.line(timeline::FILE, &event.to_line())?;
        }
        Ok(())
    }
}

/// How an artefact did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Done {
    /// Its name.
    pub artefact: &'static str,
    /// Rows.
    pub rows: u64,
    /// Rows that say that something could not be read.
    pub with_errors: u64,
    /// Why there are no more, or none.
    pub stopped: Option<String>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// An artefact in the list.
struct Entry {
    ask: fn(&dyn Knowledge),
    run: fn(&Ground<'_>, &mut dyn Output, &mut u64) -> Done,
}

const fn entry<A: Artefact>() -> Entry {
    Entry { ask: ask::<A>, run: run::<A> }
}

/// All of them, in the order in which they are walked: small ones that say most first.
const ALL: &[Entry] = &[
    entry::<processes::Layout>(),
    entry::<mounted::Layout>(),
    entry::<modules::Layout>(),
    entry::<kernel::Layout>(),
    entry::<namespaces::Layout>(),
    entry::<bpf::Layout>(),
    entry::<keyrings::Layout>(),
    entry::<ipc::Layout>(),
    entry::<swap::Layout>(),
    entry::<audit::Layout>(),
    entry::<tracing::Layout>(),
    entry::<timers::Layout>(),
    entry::<waits::Layout>(),
    entry::<cpus::Layout>(),
    entry::<interrupts::Layout>(),
    entry::<work::Layout>(),
    entry::<blocks::Layout>(),
    entry::<memory::Layout>(),
    entry::<zones::Layout>(),
    entry::<sockets::Layout>(),
    entry::<network::Layout>(),
    entry::<logins::Layout>(),
    entry::<files::Layout>(),
    entry::<cached::Layout>(),
];

fn ask<A: Artefact>(known: &dyn Knowledge) {
    let _ = A::ask(known);
}

fn run<A: Artefact>(ground: &Ground<'_>, output: &mut dyn Output, timeline: &mut u64) -> Done {
    let start = Instant::now();
    let time = ground.limits.time;
    let file = format!("{}.jsonl", A::NAME);
    let mut rows = Rows { file, output, timeline, count: 0, errors: 0, start, time };
    let stopped = match A::ask(ground.known) {
        Ok(layout) => layout.walk(ground, &mut rows).err().map(|stop| base::log::chain(&stop)),
        Err(missing) => Some(missing.to_string()),
    };
    let Rows { count, errors, file, .. } = rows;
    let done = output.done(&file).err().map(|error| base::log::chain(&Stop::Output(error)));
    Done {
        artefact: A::NAME,
        rows: count,
        with_errors: errors,
        stopped: stopped.or(done),
        seconds: base::time::seconds(start.elapsed()),
    }
}

/// Asks what all of them ask, so that the answers can be written down.
pub fn ask_all(known: &dyn Knowledge) {
    for entry in ALL {
        (entry.ask)(known);
    }
}

/// Why nothing can be brought out.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// Nothing is known of the kernel.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// What is known is not enough.
    #[error("finding the processes")]
    System(#[from] SystemError),
}

/// Walks through a kernel's memory, with answers that were written down or by its own tables; how each
/// artefact did.
pub fn walk(
    kernel: &Kernel<'_>,
    answers: Option<&Answers>,
    limits: &Limits,
    output: &mut dyn Output,
) -> Result<Vec<Done>, WalkError> {
    let walked =
        known::with(kernel, answers, |names, known, _| walk_with(kernel, names, known, limits, output));
    Ok(walked??)
}

/// The same with names of functions and with something that answers questions.
pub fn walk_with(
    kernel: &Kernel<'_>,
    names: &dyn Symbols,
    known: &dyn Knowledge,
    limits: &Limits,
    output: &mut dyn Output,
) -> Result<Vec<Done>, SystemError> {
    let system = System::new(kernel, known)?;
    let processes = tasks::all(&system)?;
    let held = Held::new(kernel.memory());
    let clock = summary::clock(kernel, known);
    let code = &Unwinder::new(kernel, names, known);
    let ground = Ground { system: &system, known, processes: &processes, held: &held, code, clock, limits };
    Ok(run_all(&ground, output))
}

/// `index.json`: how each artefact did, and the most memory in bytes that all of it took.
#[must_use]
pub fn index(done: &[Done], version: &str, peak: Option<u64>) -> String {
    let index = serde_json::json!({
        "format": 1,
        "afterimage": version,
        "peak_memory_bytes": peak,
        "artefacts": done,
    });
    format!("{index:#}\n")
}

/// Runs all of them, one after the other.
fn run_all(ground: &Ground<'_>, output: &mut dyn Output) -> Vec<Done> {
    let mut events = 0_u64;
    let mut done: Vec<Done> = ALL.iter().map(|entry| (entry.run)(ground, output, &mut events)).collect();
    let artefact = timeline::NAME;
    let ended = output.done(timeline::FILE).and_then(|()| output.done(body::FILE));
    let stopped = ended.err().map(|error| base::log::chain(&Stop::Output(error)));
    done.push(Done { artefact, rows: events, with_errors: 0, stopped, seconds: 0.0 });
    done
}
