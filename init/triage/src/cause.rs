//! Why a kernel came to its end, by its own log.
//!
//! Only what the kernel itself has written counts: programs can write any text into the log, but the
//! kernel marks it as theirs. The message of the panic decides; where it only says that something
//! went wrong before ("Fatal exception"), or where the kernel did not get that far, the last headline
//! before it does.

mod rules;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use vmcore::kernel::dmesg::Line;

use rules::{CONSEQUENCES, EXCEPTIONS, HEADLINES, PANICS, Rule};

/// What stands before the message of a panic (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing: ";
/// Lines of evidence that are kept for each kind.
const EVIDENCE: usize = 4;
/// Bytes of a line that are kept.
const LINE: usize = 400;
/// Lines behind a headline in which the place of the fault is looked for.
const REPORT: usize = 200;

/// Lines between headlines of one report.
const CLOSE: usize = 12;
/// Letters behind the number of a CPU that RCU waits for (`....`).
const MARKS: usize = 6;

/// Kinds of ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A planned switch: nothing went wrong.
    Planned,
    /// Somebody asked for it by SysRq.
    Sysrq,
    /// BUG, or an exception in the kernel.
    Oops,
    /// A CPU was kept busy in the kernel.
    SoftLockup,
    /// A CPU did not take interrupts.
    HardLockup,
    /// A task waited for too long.
    HungTask,
    /// A CPU or a task held up RCU.
    RcuStall,
    /// A non-maskable interrupt: a button, a management controller, a hypervisor.
    Nmi,
    /// A watchdog was about to reset the machine.
    WatchdogPretimeout,
    /// The CPU reported an error of the hardware.
    MachineCheck,
    /// The firmware reported an error of the hardware.
    HardwareError,
    /// Memory ran out.
    OutOfMemory,
    /// A warning, which was to panic.
    Warning,
    /// A kernel stack was overwritten or too small.
    StackCorruption,
    /// Memory was overwritten, or used when it was not to be.
    MemoryCorruption,
    /// The first process of user space ended.
    InitDied,
    /// The kernel did not find what it was to start.
    BootFailure,
    /// A module called panic().
    Module,
    /// Another part of the kernel called panic().
    Panic,
    /// The log does not say.
    Unknown,
}

impl Kind {
    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Planned => "planned switch",
            Self::Sysrq => "crash by SysRq",
            Self::Oops => "BUG or exception in the kernel",
            Self::SoftLockup => "soft lockup",
            Self::HardLockup => "hard lockup",
            Self::HungTask => "hung task",
            Self::RcuStall => "RCU stall",
            Self::Nmi => "NMI by a button, a controller or a hypervisor",
            Self::WatchdogPretimeout => "watchdog pretimeout",
            Self::MachineCheck => "machine check",
            Self::HardwareError => "hardware error, told by the firmware",
            Self::OutOfMemory => "out of memory",
            Self::Warning => "warning with panic_on_warn",
            Self::StackCorruption => "kernel stack overwritten or overflown",
            Self::MemoryCorruption => "memory corruption",
            Self::InitDied => "the first process ended",
            Self::BootFailure => "nothing to start at boot",
            Self::Module => "panic by a module",
            Self::Panic => "panic",
            Self::Unknown => "not told by the log",
        }
    }

    /// Whether there is a function in which it happened.
    #[must_use]
    pub fn has_function(self) -> bool {
        let faults = [Self::Oops, Self::Warning, Self::MemoryCorruption, Self::StackCorruption];
        let lockups = [Self::SoftLockup, Self::HardLockup, Self::RcuStall];
        faults.contains(&self) || lockups.contains(&self)
    }
}

/// Why a kernel came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The kind.
    pub kind: Kind,
    /// The line that says most.
    pub title: String,
    /// Lines that led to it, the oldest first.
    pub evidence: Vec<String>,
    /// The function in which it happened, if it is told.
    pub function: Option<String>,
    /// The module that the function belongs to.
    pub module: Option<String>,
    /// The task that the kernel names: its number and its name. Of a hung task that which waited.
    pub task: Option<(u32, String)>,
}

/// A function with the module that it belongs to.
pub type Place = (String, Option<String>);

/// What does not get on, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// A CPU.
    Cpu(u32),
    /// A task that does not run.
    Task(u32),
}

/// A headline.
#[derive(Clone, Debug)]
struct Found {
    /// Counts lines.
    number: usize,
    kind: Kind,
    text: String,
}

/// Takes the lines of a log, and keeps little of them.
#[derive(Debug, Default)]
pub struct Search {
    number: usize,
    /// The last message of a panic.
    panic: Option<(usize, String)>,
    /// The last headlines of each kind.
    headlines: Vec<Found>,
    /// The last place at which an exception was (`RIP: 0010:function+0x1/0x2 [module]`).
    fault: Option<(usize, Place)>,
    /// The first caller of the panic in its trace.
    caller: Option<Place>,
    /// The last task that is said to hang.
    hung: Option<(u32, String)>,
    /// The last task that a report names.
    task: Option<(u32, String)>,
    /// The first one that the last report of a stall or a lockup names.
    stuck: Option<Stuck>,
}

fn cut(text: &str) -> String {
    text.chars().take(LINE).collect()
}

/// `function+0x1/0x2`, perhaps with ` [module]` behind it.
fn place(text: &str) -> Option<Place> {
    let (symbol, rest) = text.split_once(' ').unwrap_or((text, ""));
    let (name, offset) = symbol.split_once("+0x")?;
    let is_offset = offset.split('/').all(|part| !part.is_empty()) && offset.contains('/');
    let is_name =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte));
    let module = rest.trim().strip_prefix('[').and_then(|rest| rest.split([']', ' ']).next());
    (is_offset && is_name).then(|| (name.to_owned(), module.map(str::to_owned)))
}

impl Search {
    /// Takes the next line.
    pub fn line(&mut self, line: &Line) {
        if !line.by_kernel {
            return;
        }
        self.number = self.number.saturating_add(1);
        let text = line.text.as_str();
        if let Some((_, message)) = text.split_once(PANIC) {
            self.panic = Some((self.number, cut(message)));
            self.caller = None;
            // kernel/panic.c, __stack_chk_fail()
            let smashed = message.split_once("Kernel stack is corrupted in: ").and_then(|(_, at)| place(at));
            self.fault = smashed.map(|place| (self.number, place)).or(self.fault.take());
            return;
        }
        let trimmed = text.trim_start();
        let rip = trimmed.strip_prefix("RIP: ").and_then(|rest| rest.split_once(':'));
        if let Some(place) = rip.and_then(|(_, at)| place(at)) {
            // The first one of a report: behind its trace come those of outer exceptions.
            let headline = self.headlines.last().map_or(0, |found| found.number);
            if self.fault.as_ref().is_none_or(|(number, _)| *number < headline) {
                self.fault = Some((self.number, place));
            }
        }
        if self.panic.is_some() && self.caller.is_none() {
            self.caller = place(trimmed).filter(|(name, _)| !rules::is_panic(name));
        }
        self.task_of(trimmed);
        self.stuck_of(trimmed);
        if let Some(rule) = HEADLINES.iter().find(|rule| rule.fits(trimmed)) {
            self.headline(rule, trimmed);
        }
    }

    fn headline(&mut self, rule: &Rule, text: &str) {
        let of_kind = self.headlines.iter().filter(|found| found.kind == rule.kind).count();
        if of_kind >= EVIDENCE
            && let Some(oldest) = self.headlines.iter().position(|found| found.kind == rule.kind)
        {
            self.headlines.remove(oldest);
        }
        self.headlines.push(Found { number: self.number, kind: rule.kind, text: cut(text) });
    }

    /// `CPU: 0 PID: 1 Comm: name …` (dump_stack_print_info(), lib/dump_stack.c), and
    /// `INFO: task name:1 blocked for more than` (kernel/hung_task.c).
    fn task_of(&mut self, text: &str) {
        if let Some(named) = text.strip_prefix("INFO: task ").and_then(|rest| rest.split_once(" blocked ")) {
            let task = named.0.rsplit_once(':').and_then(|(comm, pid)| Some((pid.parse().ok()?, cut(comm))));
            self.hung = task.or(self.hung.take());
        }
        let Some((before, after)) = text.split_once(" Comm: ") else { return };
        let pid = before.split_once("PID: ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        let ends = [" Not tainted", " Tainted: ", " Kdump: "];
        let end = ends.iter().filter_map(|end| after.find(end)).min().unwrap_or(after.len());
        let comm = after.get(..end).unwrap_or(after);
        self.task = pid.map(|pid| (pid, cut(comm))).or(self.task.take());
    }

    /// `rcu: INFO: … stalls on CPUs/tasks:` with `rcu:  1-....: (…` and `rcu:  Tasks blocked on … P1/1:b..l`
    /// behind it (kernel/rcu/tree_stall.h), `Watchdog detected hard LOCKUP on cpu 1` (kernel/watchdog.c).
    fn stuck_of(&mut self, text: &str) {
        if let Some(rest) = text.strip_prefix("rcu: ") {
            if rest.starts_with("INFO: ") {
                self.stuck = None;
            }
            self.stuck = self.stuck.or_else(|| stalled(rest.trim_start()));
        } else if let Some((_, cpu)) = text.split_once("hard LOCKUP on cpu ") {
            self.stuck = leading_number(cpu).map(Stuck::Cpu);
        }
    }

    /// What does not get on, of a cause that is a report of another CPU.
    #[must_use]
    pub fn stuck(&self, cause: &Cause) -> Option<Stuck> {
        match cause.kind {
            Kind::RcuStall | Kind::HardLockup => self.stuck,
            Kind::HungTask => cause.task.as_ref().map(|(pid, _)| Stuck::Task(*pid)),
            _ => None,
        }
    }

    /// What the lines say. `caller` is the function that called panic(), as the stack in memory has
    /// it: better than the trace in the log, which may be missing.
    #[must_use]
    pub fn cause(&self, caller: Option<Place>) -> Cause {
        let caller = caller.or_else(|| self.caller.clone());
        let kind = match &self.panic {
            Some((number, message)) => self.of_panic(*number, message, caller.as_ref()),
            // An exception starts the capture kernel before it would panic.
            None if self.headlines.last().is_some_and(|last| last.kind == Kind::Planned) => Kind::Planned,
            None => self.reported(usize::MAX, EXCEPTIONS).unwrap_or(Kind::Unknown),
        };
        let mut evidence: Vec<&Found> = self.headlines.iter().filter(|found| found.kind == kind).collect();
        evidence.sort_by_key(|found| found.number);
        let message = self.panic.as_ref().map(|(_, message)| format!("{PANIC}{message}"));
        // The first headline says more than the panic that followed from it.
        let title = match (&message, headline(&evidence)) {
            (Some(message), None) => message.clone(),
            (Some(message), Some(_)) if !says_nothing(message) => message.clone(),
            (_, Some(headline)) => headline.to_owned(),
            (None, None) => String::new(),
        };
        let mut evidence: Vec<String> = evidence.into_iter().map(|found| found.text.clone()).collect();
        evidence.extend(message);
        let fault = self.fault.as_ref().map(|(_, place)| place.clone());
        let place = match kind {
            kind if kind.has_function() => fault,
            Kind::Panic | Kind::Module => caller,
            _ => None,
        };
        let task = if kind == Kind::HungTask { self.hung.clone() } else { self.task.clone() };
        let (function, module) = place.map_or((None, None), |(function, module)| (Some(function), module));
        Cause { kind, title, evidence, function, module, task }
    }

    fn of_panic(&self, number: usize, message: &str, caller: Option<&Place>) -> Kind {
        if CONSEQUENCES.iter().any(|start| message.starts_with(start)) {
            return self.reported(number, EXCEPTIONS).unwrap_or(Kind::Oops);
        }
        let Some(rule) = PANICS.iter().find(|rule| rule.fits(message)) else {
            // The CPU's and the firmware's reports come right before panics with words of their own.
            let hardware = [Kind::MachineCheck, Kind::HardwareError];
            let reported = self.near(number, &hardware);
            let is_module = caller.is_some_and(|(_, module)| module.is_some());
            return reported.unwrap_or(if is_module { Kind::Module } else { Kind::Panic });
        };
        match rule.kind {
            // A checker of memory reports by a warning.
            Kind::Warning => self.near(number, &[Kind::MemoryCorruption]).unwrap_or(Kind::Warning),
            kind => kind,
        }
    }

    /// The kind of the last report of one of these kinds before the line `number`. An exception that
    /// follows from a corruption of memory is a part of its report.
    fn reported(&self, number: usize, kinds: &[Kind]) -> Option<Kind> {
        let of_kinds = |found: &&Found| kinds.contains(&found.kind) && found.number < number;
        let last = self.headlines.iter().filter(of_kinds).max_by_key(|found| found.number)?;
        let of_report = self.headlines.iter().filter(of_kinds);
        let mut of_report = of_report.filter(|found| last.number.saturating_sub(found.number) < REPORT);
        let first_cause = of_report.find(|found| found.kind != Kind::Oops);
        Some(first_cause.map_or(last.kind, |found| found.kind))
    }

    /// The same for a report right before the line.
    fn near(&self, number: usize, kinds: &[Kind]) -> Option<Kind> {
        let near = |found: &&Found| number.saturating_sub(found.number) < REPORT && found.number < number;
        let mut near = self.headlines.iter().filter(near);
        near.find(|found| kinds.contains(&found.kind)).map(|found| found.kind)
    }
}

/// Of headlines that follow each other closely the first: `Oops: 0002 [#1]` stands a few lines behind what
/// happened.
fn headline<'a>(evidence: &[&'a Found]) -> Option<&'a str> {
    let mut last = *evidence.last()?;
    for found in evidence.iter().rev().skip(1) {
        if last.number.saturating_sub(found.number) > CLOSE {
            break;
        }
        last = found;
    }
    Some(&last.text)
}

fn leading_number(text: &str) -> Option<u32> {
    text.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

/// A CPU, or a task, of those that RCU waits for.
fn stalled(text: &str) -> Option<Stuck> {
    if let Some((_, tasks)) = text.strip_prefix("Tasks blocked on ").and_then(|rest| rest.split_once(": P")) {
        return leading_number(tasks).map(Stuck::Task);
    }
    let (cpu, marks) = text.split_once('-')?;
    let is_cpu = !cpu.is_empty() && cpu.bytes().all(|byte| byte.is_ascii_digit());
    let is_row = marks.split_once(": (").is_some_and(|(marks, _)| marks.len() <= MARKS);
    if is_cpu && is_row { leading_number(cpu).map(Stuck::Cpu) } else { None }
}

/// Messages that say less than the report before them.
fn says_nothing(message: &str) -> bool {
    let message = message.strip_prefix(PANIC).unwrap_or(message);
    let reported = ["softlockup: hung tasks", "hung_task: blocked tasks", "RCU Stall", "Hard LOCKUP"];
    let starts = |start: &&str| message.starts_with(*start);
    CONSEQUENCES.iter().any(starts) || reported.iter().any(starts) || message.contains("panic_on_warn set")
}
