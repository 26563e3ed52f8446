//! The process that walks through the old kernel's memory for the summary. It can do nothing but
//! read the memory and write to its pipe: whatever the memory makes of it, the capture goes on.

use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};

use base::addr::PhysAddr;
use symbols::knowledge::Answers;
use triage::findings::{Missing, Piece};
use triage::summary::{self, Subject};
use vmcore::format::vmcoreinfo::VmcoreInfo;
use vmcore::kernel::Kernel;
use vmcore::source::{Access, Core, Vmcore};

/// First argument of the process.
pub(crate) const ARGUMENT: &str = "walker";
/// Bytes of address space: the program itself, and what the walk takes, which is 25 MiB where the
/// kernel's own tables have to be read.
const MEMORY: u64 = 96 << 20;
/// Seconds of a processor, beyond which it is killed even if nobody looks.
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
    let mut out = BufWriter::new(io::stdout());
    let mut send = |piece: Piece| {
        // A line each, at once: what was sent counts when this process is killed.
        let line = serde_json::to_string(&piece).unwrap_or_default();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    };
    let ready = core.map_err(|error| base::log::chain(&error)).and_then(|core| {
        give_up_rights().map_err(|errno| format!("giving up rights: {}", errno.desc()))?;
        Ok(core)
    });
    match ready {
        Ok(core) => walk(&core, &order, &mut send),
        Err(why) => send(Piece::Missing(Missing { what: "all that is in memory".to_owned(), why })),
    }
    true
}

/// From here on no file can be opened, and none grows.
fn give_up_rights() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
    setrlimit(Resource::RLIMIT_CPU, SECONDS, SECONDS)?;
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
    let kernel = Kernel::new(core, &info, core.mappings());
    let answers = Answers::parse(&order.knowledge);
    let answers = Some(&answers).filter(|answers| !answers.is_empty());
    summary::walk(Subject { core, kernel: &kernel, answers, planned: order.planned }, send);
}
