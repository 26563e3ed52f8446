//! What a summary holds, and how it comes together piece by piece: whoever walks through hostile
//! memory may be ended at any time, and what it has sent by then is kept.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::signature::Signature;

/// The version of the format.
const FORMAT: u32 = 1;
/// Of each kind of row, those that are kept.
pub(crate) const MAX_ROWS: usize = 512;

/// The kernel that ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Host name.
    pub host: String,
    /// `uname -r`
    pub release: String,
    /// `uname -v`
    pub version: String,
    /// `uname -m`
    pub machine: String,
    /// Build id, hex.
    pub build_id: Option<String>,
    /// When it ended, seconds since 1970.
    pub time: Option<u64>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
}

/// Numbers of the whole machine. What could not be read is not there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    /// Seconds since the boot.
    pub uptime: Option<u64>,
    /// Load of the last 1, 5 and 15 minutes.
    pub load: Option<[f64; 3]>,
    /// CPUs that were online.
    pub cpus: Option<u32>,
    /// Tasks: processes and threads.
    pub tasks: Option<u64>,
    /// What has tainted the kernel, a letter and its meaning.
    pub taints: Vec<String>,
    /// As in /proc/meminfo, KiB.
    pub memory: Vec<(String, u64)>,
    /// Errors of the hardware from which the kernel has recovered: kind, how many, when the last one
    /// was (seconds since 1970).
    pub hardware_errors: Vec<(String, u64, u64)>,
    /// How good the clock was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
}

/// What the kernel thought of its own clock, as adjtimex(2) tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Whether something kept it in step with the world (`STA_UNSYNC` is not set).
    pub synchronised: bool,
    /// Estimated error, microseconds.
    pub estimated_error_us: u64,
    /// Largest error, microseconds.
    pub largest_error_us: u64,
}

/// A function on a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Its name; its address where there is none.
    pub function: String,
    /// Bytes from its start.
    pub offset: u64,
    /// The module that it belongs to.
    pub module: Option<String>,
    /// How it was found: `registers`, `orc`, `prologue`, `frame-pointer`, or `scan`, which may be one of an
    /// earlier call.
    pub how: String,
}

/// A task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its number.
    pub pid: u32,
    /// The number of its process.
    pub tgid: u32,
    /// Its name.
    pub comm: String,
    /// Its arguments, if they could be read.
    pub argv: Option<Vec<String>>,
    /// Why not.
    pub argv_error: Option<String>,
    /// Where its `task_struct` is.
    pub address: String,
}

/// A CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Its number.
    pub number: u32,
    /// What ran on it.
    pub task: Option<Task>,
    /// Whether the kernel panicked on it.
    pub crashed: bool,
    /// Whether it ran in user space.
    pub user: bool,
    /// Its registers, if it has saved some: name and value.
    pub registers: Vec<(String, String)>,
    /// Its stack, the innermost function first.
    pub stack: Vec<Frame>,
}

/// A task that waits and cannot be interrupted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// The task.
    pub task: Task,
    /// Its stack.
    pub stack: Vec<Frame>,
}

/// A loaded module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRow {
    /// Its name.
    pub name: String,
    /// Where its code is.
    pub address: String,
    /// Letters by which it taints the kernel.
    pub taints: String,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted: a device, or a name.
    pub source: String,
    /// Where.
    pub path: String,
    /// The type of its file system.
    pub kind: String,
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// A part of a summary, as a walker sends it. A later one of a kind that there is once takes the
/// place of the earlier one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Piece {
    /// The kernel.
    About(About),
    /// Why it came to its end.
    Cause(Cause),
    /// What to call that.
    Signature(Signature),
    /// The task that ran there.
    Panicking(Task),
    /// The machine.
    Numbers(Numbers),
    /// A CPU.
    Cpu(Cpu),
    /// A task that waits.
    Blocked(Blocked),
    /// Tasks that wait and were left out.
    BlockedMore(u64),
    /// A module.
    Module(ModuleRow),
    /// A mount.
    Mount(Mount),
    /// The end of the log.
    Log(Vec<String>),
    /// Something is missing.
    Missing(Missing),
    /// There is nothing more.
    Done,
}

/// A summary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// The version of this format.
    pub format: u32,
    /// The kernel.
    pub about: Option<About>,
    /// Why it came to its end.
    pub cause: Option<Cause>,
    /// What to call that.
    pub signature: Option<Signature>,
    /// The task that ran there.
    pub panicking: Option<Task>,
    /// The machine.
    pub numbers: Option<Numbers>,
    /// CPUs, the one that crashed first.
    pub cpus: Vec<Cpu>,
    /// Tasks that wait.
    pub blocked: Vec<Blocked>,
    /// Tasks that wait and were left out.
    pub blocked_more: u64,
    /// Modules.
    pub modules: Vec<ModuleRow>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// The end of the log.
    pub log: Vec<String>,
    /// What could not be read.
    pub missing: Vec<Missing>,
    /// Whether the walk came to its end.
    pub complete: bool,
}

impl Default for Findings {
    fn default() -> Self {
        Self {
            format: FORMAT,
            about: None,
            cause: None,
            signature: None,
            panicking: None,
            numbers: None,
            cpus: Vec::new(),
            blocked: Vec::new(),
            blocked_more: 0,
            modules: Vec::new(),
            mounts: Vec::new(),
            log: Vec::new(),
            missing: Vec::new(),
            complete: false,
        }
    }
}

/// Adds a row, as long as there are not too many.
fn push<T>(rows: &mut Vec<T>, row: T) {
    if rows.len() < MAX_ROWS {
        rows.push(row);
    }
}

impl Findings {
    /// Takes a piece.
    pub fn add(&mut self, piece: Piece) {
        match piece {
            Piece::About(about) => self.about = Some(about),
            Piece::Cause(cause) => self.cause = Some(cause),
            Piece::Signature(signature) => self.signature = Some(signature),
            Piece::Panicking(task) => self.panicking = Some(task),
            Piece::Numbers(numbers) => self.numbers = Some(numbers),
            Piece::Cpu(cpu) => push(&mut self.cpus, cpu),
            Piece::Blocked(task) => push(&mut self.blocked, task),
            Piece::BlockedMore(more) => self.blocked_more = more,
            Piece::Module(module) => push(&mut self.modules, module),
            Piece::Mount(mount) => push(&mut self.mounts, mount),
            Piece::Log(lines) => self.log = lines,
            Piece::Missing(missing) => push(&mut self.missing, missing),
            Piece::Done => self.complete = true,
        }
    }

    /// Says that something is missing.
    pub fn miss(&mut self, what: &str, why: &str) {
        self.add(Piece::Missing(Missing { what: what.to_owned(), why: why.to_owned() }));
    }

    /// As JSON, of no more than `limit` bytes: what there is most of and says least is left out until
    /// it fits, and it is said.
    #[must_use]
    pub fn to_json(&self, limit: usize) -> String {
        self.fitting(limit, |findings| {
            base::text::json(&serde_json::to_string_pretty(findings).unwrap_or_default())
        })
    }

    /// As text for people, of no more than `limit` bytes.
    #[must_use]
    pub fn to_text(&self, limit: usize) -> String {
        self.fitting(limit, crate::text::of)
    }

    fn fitting(&self, limit: usize, form: impl Fn(&Self) -> String) -> String {
        let mut smaller = self.clone();
        for step in Smaller::ALL {
            let text = form(&smaller);
            if text.len() <= limit {
                return text;
            }
            step.take_from(&mut smaller);
        }
        let text = form(&smaller);
        text.get(..text.floor_char_boundary(limit)).unwrap_or_default().to_owned()
    }
}

/// What is given up, in this order, where there is no room.
#[derive(Clone, Copy)]
enum Smaller {
    Log,
    OtherCpus,
    Blocked,
    Modules,
    Mounts,
    Rest,
}

impl Smaller {
    const ALL: [Self; 6] =
        [Self::Log, Self::OtherCpus, Self::Blocked, Self::Modules, Self::Mounts, Self::Rest];

    fn take_from(self, findings: &mut Findings) {
        let what = match self {
            Self::Log => {
                let surplus = findings.log.len().saturating_sub(50);
                findings.log.drain(..surplus);
                "older lines of the log"
            }
            Self::OtherCpus => {
                let others = findings.cpus.iter_mut().filter(|cpu| !cpu.crashed);
                others.for_each(|cpu| (cpu.registers, cpu.stack) = (Vec::new(), Vec::new()));
                "stacks of other CPUs"
            }
            Self::Blocked => {
                let kept = findings.blocked.len().min(10);
                let left_out = findings.blocked.len().saturating_sub(kept);
                findings.blocked_more = findings.blocked_more.saturating_add(base::addr::to_u64(left_out));
                findings.blocked.truncate(kept);
                "tasks that wait"
            }
            Self::Modules => {
                findings.modules.clear();
                "modules"
            }
            Self::Mounts => {
                findings.mounts.clear();
                "mounts"
            }
            Self::Rest => {
                findings.log.clear();
                findings.blocked.clear();
                findings.cpus.truncate(1);
                findings.missing.truncate(8);
                "all but the first CPU"
            }
        };
        findings.miss(what, "no room in a summary");
    }
}
