//! The process that walks through the old kernel's memory for the summary and for triage. It can do
//! nothing but read the memory and write to its pipe: whatever the memory makes of it, the capture goes
//! on.

use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::time::Duration;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, UsageWho, getrusage, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};

use base::addr::PhysAddr;
use symbols::knowledge::Answers;
use triage::archive::{Archive, Chunk, Head};
use triage::artefacts::{self, Limits};
use triage::findings::{Missing, Piece};
use triage::summary::{self, Subject};
use vmcore::format::vmcoreinfo::VmcoreInfo;
use vmcore::kernel::Kernel;
use vmcore::source::{Access, Core, Remembered, Vmcore};

/// First argument of the process.
pub(crate) const ARGUMENT: &str = "walker";
/// Bytes of address space: the program itself, and what the walk takes, which is 25 MiB where the
/// kernel's own tables have to be read.
const MEMORY: u64 = 96 << 20;
/// Seconds of a processor beyond its time, after which it is killed even if nobody looks.
const SECONDS: u64 = 10;
/// `nobody`
const NOBODY: u32 = 65_534;

/// What the process is to do; it comes by its standard input.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The vmcore.
    pub(crate) vmcore: String,
    /// The first address behind the memory map, if it is known.
    pub(crate) memory_end: Option<u64>,
    /// VMCOREINFO that is to be believed, as text.
    pub(crate) info: String,
    /// What was written down of the kernel, as text.
    pub(crate) knowledge: String,
    /// Whether nobody crashed.
    pub(crate) planned: bool,
    /// What is wanted.
    pub(crate) task: Task,
}

/// What a walker does.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Pieces of the summary, a line of JSON each.
    #[default]
    Summary,
    /// An archive, part by part.
    Triage(Wanted),
}

/// What of triage is wanted.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// Bytes of one recovered file.
    pub(crate) file_limit: u64,
    /// Bytes of all recovered files.
    pub(crate) limit: u64,
    /// Seconds that all of it may take.
    pub(crate) seconds: u64,
    /// Whether contents of files and the environment are.
    pub(crate) contents: bool,
    /// Paths of files that are.
    pub(crate) only: Vec<String>,
    /// Paths of files that are not.
    pub(crate) except: Vec<String>,
    /// When the capture's kernel came to its end, in seconds since 1970.
    pub(crate) time: u64,
}

/// Whether this process was started to walk.
#[must_use]
pub(crate) fn is_wanted() -> bool {
    std::env::args_os().nth(1).is_some_and(|word| word == ARGUMENT)
}

/// The process's main function. Says whether all was sent.
#[must_use]
pub(crate) fn child() -> bool {
    // It ends with the attempt that started it, and before that attempt when memory runs out.
    let _ = set_pdeathsig(Signal::SIGKILL);
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let mut text = String::new();
    let order: Order = match io::stdin().read_to_string(&mut text) {
        Ok(_) => serde_json::from_str(&text).unwrap_or_default(),
        Err(_) => return false,
    };
    let end = order.memory_end.map(PhysAddr);
    let core = Vmcore::open_memory(Path::new(&order.vmcore), Access::Pread, end);
    let seconds = match &order.task {
        Task::Summary => SECONDS,
        Task::Triage(wanted) => wanted.seconds.saturating_add(SECONDS),
    };
    let ready = core.map_err(|error| base::log::chain(&error)).and_then(|core| {
        give_up_rights(seconds).map_err(|errno| format!("giving up rights: {}", errno.desc()))?;
        Ok(core)
    });
    let mut out = BufWriter::new(io::stdout());
    if let Task::Triage(wanted) = &order.task {
        return ready.is_ok_and(|core| triage(&core, &order, wanted, &mut out).is_ok());
    }
    let mut send = |piece: Piece| {
        // A line each, at once: what was sent counts when this process is killed.
        let line = serde_json::to_string(&piece).unwrap_or_default();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    };
    match ready {
        Ok(core) => walk(&core, &order, &mut send),
        Err(why) => send(Piece::Missing(Missing { what: "all that is in memory".to_owned(), why })),
    }
    true
}

/// From here on no file can be opened, and none grows.
fn give_up_rights(seconds: u64) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
    setrlimit(Resource::RLIMIT_CPU, seconds, seconds)?;
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, 0)?;
    setrlimit(Resource::RLIMIT_NPROC, 0, 0)?;
    setgroups(&[])?;
    setgid(Gid::from_raw(NOBODY))?;
    setuid(Uid::from_raw(NOBODY))
}

fn walk(core: &Vmcore, order: &Order, send: &mut dyn FnMut(Piece)) {
    let info = VmcoreInfo::parse(order.info.as_bytes());
    let memory = Remembered::new(core);
    let kernel = Kernel::new(&memory, &info, core.mappings());
    let answers = Answers::parse(&order.knowledge);
    let answers = Some(&answers).filter(|answers| !answers.is_empty());
    summary::walk(Subject { core, kernel: &kernel, answers, planned: order.planned }, send);
}

/// Sends an archive. What cannot be found out is in it, so that only a pipe that breaks is a failure.
fn triage(core: &Vmcore, order: &Order, wanted: &Wanted, out: &mut impl Write) -> io::Result<()> {
    let info = VmcoreInfo::parse(order.info.as_bytes());
    let memory = Remembered::new(core);
    let kernel = Kernel::new(&memory, &info, core.mappings());
    let limits = Limits {
        file: wanted.file_limit,
        files: wanted.limit,
        // One that goes on for ever leaves time to the others.
        time: Duration::from_secs(wanted.seconds.div_euclid(3).max(1)),
        contents: wanted.contents,
        only: wanted.only.clone(),
        except: wanted.except.clone(),
    };
    let mut send = |chunk: Chunk| {
        out.write_all(&Head::of(&chunk).to_bytes())?;
        out.write_all(&chunk.frame)?;
        out.flush()
    };
    let mut archive = Archive::new(wanted.time, &mut send)?;
    let answers = Answers::parse(&order.knowledge);
    let done = artefacts::walk(&kernel, Some(&answers), &limits, &mut archive);
    match done {
        Ok(done) => {
            archive.text("index.json", &artefacts::index(&done, env!("CARGO_PKG_VERSION"), peak_memory()))?;
        }
        Err(error) => archive.text("ERROR.txt", &format!("{}\n", base::log::chain(&error)))?,
    }
    archive.finish()?;
    out.write_all(&Head::END.to_bytes())?;
    out.flush()
}

/// Peak resident memory of this process in bytes; /proc cannot be asked, since no file can be opened.
fn peak_memory() -> Option<u64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    u64::try_from(usage.max_rss()).ok()?.checked_mul(1024)
}
