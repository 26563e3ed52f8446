//! The walk through a kernel's memory for a summary. What says most is sent first.

use std::collections::VecDeque;

use base::addr::to_u64;
use processes::registers::Processors;
use processes::resident::Held;
use processes::system::{System, SystemError};
use processes::tasks::{self, Processes};
use symbols::kallsyms::Symbols;
use symbols::knowledge::{self, Answers, Knowledge};
use symbols::unwind::Unwinder;
use vmcore::kernel::dmesg::{Line, Ring};
use vmcore::kernel::{Kernel, uts};
use vmcore::source::Core;

use crate::artefacts::Clock;
use crate::cause::{Cause, Kind, Place, Search, Stuck};
use crate::findings::{About, Cpu, Findings, Frame, MAX_ROWS, Missing, ModuleRow, Mount, Piece};
use crate::known;
use crate::signature::{self, Called};
use crate::stacks::Stacks;
use crate::wanted::Wanted;
use crate::{mounts, numbers};

/// Records of the log that are looked at, and bytes of their text.
const RECORDS: u64 = 50_000;
const TEXT: u64 = 4 << 20;
/// Lines of the log that a summary has, and bytes of each.
const LOG_LINES: usize = 200;
const LOG_LINE: usize = 512;
/// Tasks that wait, and mounts, in a summary.
const BLOCKED: usize = 64;
const MOUNTS: usize = 256;

/// The kernel that is looked at.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "a core may be any")]
pub struct Subject<'a> {
    /// Its memory, with what CPUs had in their registers.
    pub core: &'a dyn Core,
    /// The same by its own addresses.
    pub kernel: &'a Kernel<'a>,
    /// What was written down while it lived.
    pub answers: Option<&'a Answers>,
    /// Whether nobody crashed: a planned switch.
    pub planned: bool,
}

/// Walks through the memory and makes the summary.
#[must_use]
pub fn of(subject: Subject<'_>) -> Findings {
    let mut findings = Findings::default();
    walk(subject, &mut |piece| findings.add(piece));
    findings
}

/// Walks through the memory, and sends what is found.
pub fn walk(subject: Subject<'_>, send: &mut dyn FnMut(Piece)) {
    send(Piece::About(about(subject.kernel)));
    let search = log(subject, send);
    let cause = cause(subject, &search, None);
    send(Piece::Cause(cause.clone()));
    // Kinds that have functions wait for the stack: a walk that is ended before it must not name the crash
    // otherwise than one that is not.
    let without = signature::of(cause.kind, &[]);
    if !signature::has_functions(cause.kind) {
        send(Piece::Signature(without.clone()));
    }
    let mut is_named = false;
    let watched = &mut |piece: Piece| {
        is_named |= matches!(piece, Piece::Signature(_));
        send(piece);
    };
    let walked = known::with(subject.kernel, subject.answers, |names, known, unnamed| {
        if let Some(error) = unnamed {
            miss(watched, "names of functions on stacks", error);
        }
        machine(subject, known, names, &search, watched);
    });
    if let Err(error) = walked {
        miss(send, "all that needs the kernel's symbols and types", &error);
    }
    // Each crash of this kernel comes to this end.
    if !is_named {
        send(Piece::Signature(without));
    }
    send(Piece::Done);
}

fn miss(send: &mut dyn FnMut(Piece), what: &str, error: &dyn core::error::Error) {
    send(Piece::Missing(Missing { what: what.to_owned(), why: base::log::chain(error) }));
}

/// What the kernel's clocks said in the end.
#[must_use]
pub fn clock(kernel: &Kernel<'_>, known: &dyn Knowledge) -> Clock {
    let machine = Wanted::ask(known).machine;
    let uptime = numbers::read(kernel, &machine, knowledge::hertz(kernel, known)).uptime;
    Clock { now: kernel.info().crash_time(), uptime }
}

fn about(kernel: &Kernel<'_>) -> About {
    let info = kernel.info();
    let names = uts::discover(kernel).unwrap_or_else(|_| uts::fallback(info, None));
    About {
        host: names.nodename,
        release: names.release,
        version: names.version,
        machine: names.machine,
        build_id: info.get("BUILD-ID").map(str::to_owned),
        time: info.crash_time(),
        cmdline: None,
    }
}

/// Sends the end of the log; what is to be known of its lines.
fn log(subject: Subject<'_>, send: &mut dyn FnMut(Piece)) -> Search {
    let mut search = Search::default();
    let ring = match Ring::discover(subject.kernel) {
        Ok(ring) => ring,
        Err(error) => {
            miss(send, "the log", &error);
            return search;
        }
    };
    let mut last = VecDeque::new();
    ring.newest(RECORDS, TEXT, &mut |line: Line| {
        search.line(&line);
        let text = line.text.chars().take(LOG_LINE).collect::<String>();
        let (seconds, micros) = (line.nanoseconds / 1_000_000_000, line.nanoseconds / 1000 % 1_000_000);
        last.push_back(format!("[{seconds:5}.{micros:06}] {text}"));
        if last.len() > LOG_LINES {
            last.pop_front();
        }
    });
    send(Piece::Log(last.into()));
    search
}

fn cause(subject: Subject<'_>, search: &Search, caller: Option<Place>) -> Cause {
    let found = search.cause(caller);
    if !subject.planned {
        return found;
    }
    let title = "the machine was handed to another kernel on purpose".to_owned();
    Cause { kind: Kind::Planned, title, evidence: Vec::new(), function: None, module: None, task: None }
}

/// All that needs symbols and types.
fn machine(
    subject: Subject<'_>,
    known: &dyn Knowledge,
    names: &dyn Symbols,
    search: &Search,
    send: &mut dyn FnMut(Piece),
) {
    let kernel = subject.kernel;
    let wanted = Wanted::ask(known);
    let cmdline = numbers::cmdline(kernel, &wanted.machine);
    send(Piece::About(About { cmdline, ..about(kernel) }));
    let mut totals = numbers::read(kernel, &wanted.machine, knowledge::hertz(kernel, known));
    let online = numbers::online(kernel, &wanted.cpus);
    totals.cpus = u32::try_from(online.len()).ok();
    send(Piece::Numbers(totals.clone()));

    let system = match System::new(kernel, known) {
        Ok(system) => system,
        Err(error) => return miss(send, "tasks", &error),
    };
    let held = Held::new(kernel.memory());
    let unwinder = Unwinder::new(kernel, names, known);
    let stacks = Stacks { system: &system, unwinder: &unwinder, sleeper: wanted.sleeper, held: &held };
    let mut ran = Vec::new();
    let processors = Processors::read(subject.core);
    stacks.cpus(&wanted.cpus, &online, &processors, &mut |cpu, _| {
        if cpu.crashed {
            cpu.task.iter().cloned().for_each(|task| send(Piece::Panicking(task)));
        }
        ran.push(cpu.clone());
        send(Piece::Cpu(cpu));
    });
    let processes = tasks::all(&system);
    let crash = Crash { stacks: &stacks, cpus: ran, search };
    crash.name(subject, processes.as_ref().ok(), send);
    match processes {
        Ok(processes) => of_tasks(&stacks, &processes, totals, send),
        Err(error) => miss(send, "tasks", &error),
    }
    of_modules(&unwinder, kernel, &wanted, send);
    of_mounts(&system, &wanted, send);
}

/// What is known of a crash.
struct Crash<'a> {
    stacks: &'a Stacks<'a>,
    cpus: Vec<Cpu>,
    search: &'a Search,
}

/// What does not get on, where another CPU may have noticed.
struct Other {
    stack: Vec<Frame>,
    /// The task that a CPU ran.
    task: Option<(u32, String)>,
}

/// What may be of an earlier call says nothing.
fn sure(stack: &[Frame]) -> Vec<Called<'_>> {
    let sure = stack.iter().take_while(|frame| frame.how != "scan");
    sure.map(|frame| (frame.function.as_str(), frame.module.is_some())).collect()
}

impl Crash<'_> {
    /// Sends the cause and what to call it, now that there is a stack.
    fn name(&self, subject: Subject<'_>, processes: Option<&Processes>, send: &mut dyn FnMut(Piece)) {
        let crashed = self.cpus.iter().find(|cpu| cpu.crashed);
        let stack = crashed.map(|cpu| cpu.stack.as_slice()).unwrap_or_default();
        let of_panic =
            |(name, _): &Called<'_>| matches!(signature::plain(name), "panic" | "vpanic" | "nmi_panic");
        let caller = sure(stack).iter().rposition(of_panic).and_then(|at| stack.get(at.checked_add(1)?));
        let mut cause = cause(subject, self.search, caller.map(place));
        let other = self.stuck(&cause, processes);
        if let Some(task) = other.as_ref().and_then(|other| other.task.clone()) {
            cause.task = Some(task);
        }
        let stack = other.as_ref().map_or(stack, |other| &other.stack);
        let functions = sure(stack);
        let first = signature::first(cause.kind, &functions).and_then(|at| stack.get(at)).map(place);
        // What memory holds is better than what the log says, which names the function of a delay, too.
        if let Some((function, module)) = first.filter(|_| cause.kind.has_function()) {
            (cause.function, cause.module) = (Some(function), module);
        }
        send(Piece::Signature(signature::of(cause.kind, &functions)));
        send(Piece::Cause(cause));
    }

    /// The stack, and the task, of what does not get on, where that is not the CPU that noticed.
    fn stuck(&self, cause: &Cause, processes: Option<&Processes>) -> Option<Other> {
        match self.search.stuck(cause)? {
            Stuck::Task(pid) => Some(Other { stack: self.stacks.of_sleeper(processes?, pid)?, task: None }),
            Stuck::Cpu(number) => {
                let cpu = self.cpus.iter().find(|cpu| cpu.number == number)?;
                let task = cpu.task.as_ref().map(|task| (task.pid, task.comm.clone()));
                Some(Other { stack: cpu.stack.clone(), task })
            }
        }
    }
}

fn place(frame: &Frame) -> Place {
    (frame.function.clone(), frame.module.clone())
}

fn of_tasks(
    stacks: &Stacks<'_>,
    processes: &Processes,
    totals: crate::findings::Numbers,
    send: &mut dyn FnMut(Piece),
) {
    let threads = processes.all.iter().map(|process| process.threads.len());
    let tasks = Some(threads.fold(0, |sum: u64, threads| sum.saturating_add(to_u64(threads))));
    send(Piece::Numbers(crate::findings::Numbers { tasks, ..totals }));
    for fault in processes.faults.iter().take(8) {
        send(Piece::Missing(Missing { what: "some tasks".to_owned(), why: fault.clone() }));
    }
    let more = stacks.blocked(processes, BLOCKED, &mut |task| send(Piece::Blocked(task)));
    if more > 0 {
        send(Piece::BlockedMore(more));
    }
}

fn of_modules(unwinder: &Unwinder<'_>, kernel: &Kernel<'_>, wanted: &Wanted, send: &mut dyn FnMut(Piece)) {
    for module in unwinder.modules().iter().take(MAX_ROWS) {
        let mask = wanted
            .module_taints
            .and_then(|offset| kernel.read_u64(module.address.checked_add(offset)?, "module.taints").ok());
        let taints = numbers::letters(mask.unwrap_or(0)).map(|(letter, _)| letter).collect();
        let address = format!("{:#x}", module.text.0);
        send(Piece::Module(ModuleRow { name: module.name.clone(), address, taints }));
    }
}

fn of_mounts(system: &System<'_>, wanted: &Wanted, send: &mut dyn FnMut(Piece)) {
    let mounts = match &wanted.mounts {
        Ok(mounts) => mounts,
        Err(missing) => return miss(send, "mounts", missing),
    };
    let Some(init) = system.variables.init_task else {
        return miss(send, "mounts", &SystemError::NoTasks);
    };
    if let Err(error) =
        mounts::walk(system, mounts, init, MOUNTS, &mut |found| send(Piece::Mount(mount(found))))
    {
        miss(send, "mounts", &error);
    }
}

fn mount(found: mounts::Found) -> Mount {
    let or_why = |value: Result<String, String>| value.unwrap_or_else(|error| format!("? ({error})"));
    Mount { source: or_why(found.source), path: or_why(found.path), kind: or_why(found.kind) }
}
