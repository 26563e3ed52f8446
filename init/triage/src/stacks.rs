//! CPUs and tasks with their stacks.

use base::addr::{VirtAddr, to_usize};
use processes::mappings::Space;
use processes::registers::{NAMES, Processors, REGISTERS, crashed_cpu};
use processes::resident::{Held, Pages};
use processes::system::System;
use processes::tasks::{self, Processes};
use processes::user;
use symbols::pt_regs::CS;
use symbols::unwind::{How, Registers, SleeperLayout, Unwinder};

use crate::findings::{Blocked, Cpu, Frame, Task};
use crate::wanted::Cpus;

/// Bytes of arguments that are read.
const ARGUMENTS: u64 = 4096;
/// `TASK_UNINTERRUPTIBLE`, `TASK_NOLOAD` (include/linux/sched.h): the latter is set for threads that wait
/// for work.
const UNINTERRUPTIBLE: u32 = 2;
const NO_LOAD: u32 = 0x400;

/// Looks at tasks and their stacks.
pub(crate) struct Stacks<'a> {
    pub(crate) system: &'a System<'a>,
    pub(crate) unwinder: &'a Unwinder<'a>,
    pub(crate) sleeper: Option<SleeperLayout>,
    pub(crate) held: &'a Held,
}

impl Stacks<'_> {
    fn frames(&self, start: &Registers) -> Vec<Frame> {
        let frames = self.unwinder.stack(start);
        let frame = |frame: &symbols::unwind::Frame| {
            let place = self.unwinder.function(frame);
            let how = match frame.how {
                How::Registers => "registers",
                How::Orc => "orc",
                How::Prologue => "prologue",
                How::FramePointer => "frame-pointer",
                How::Scan => "scan",
            };
            let (function, offset, module) = place.map_or_else(
                || (format!("{:#x}", frame.address.0), 0, None),
                |place| (place.name.into_owned(), place.offset, place.module.map(str::to_owned)),
            );
            Frame { function, offset, module, how: how.to_owned() }
        };
        frames.iter().map(frame).collect()
    }

    /// The same with its arguments.
    pub(crate) fn with_arguments(&self, task: &tasks::Task) -> Task {
        let found = plain(task);
        match task.mm.map(|mm| self.arguments(mm)) {
            None => found,
            Some(Ok(argv)) => Task { argv: Some(argv), ..found },
            Some(Err(error)) => Task { argv_error: Some(error), ..found },
        }
    }

    fn arguments(&self, mm: VirtAddr) -> Result<Vec<String>, String> {
        let (system, layout) = (self.system, &self.system.layout.mm);
        let word = |offset: Option<u64>| {
            let offset = offset.ok_or_else(|| "the kernel's types do not say where they are".to_owned())?;
            system.word(mm, offset, "mm_struct.arg_start").map_err(|error| base::log::chain(&error))
        };
        let (start, end) = (word(layout.arg_start)?, word(layout.arg_end)?);
        let len = end.checked_sub(start).ok_or_else(|| format!("{start:#x} to {end:#x} cannot be"))?;
        let space = Space::read(system, mm).map_err(|error| base::log::chain(&error))?;
        let mut bytes = vec![0; to_usize(len.min(ARGUMENTS))];
        let pages = Pages::new(system, self.held);
        user::read(&pages, &space, start, &mut bytes).map_err(|error| error.to_string())?;
        let text = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
        let words = text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        Ok(words.collect())
    }

    /// CPUs with what they ran, the one that crashed first; of it the task.
    pub(crate) fn cpus(
        &self,
        cpus: &Cpus,
        online: &[u32],
        processors: &Processors,
        each: &mut dyn FnMut(Cpu, Option<&tasks::Task>),
    ) {
        let current: Vec<Option<tasks::Task>> = online.iter().map(|cpu| self.current(cpus, *cpu)).collect();
        let pids: Vec<Option<u32>> = current.iter().map(|task| task.as_ref().map(|task| task.pid)).collect();
        let registers = processors.of_cpus(&pids);
        let crashed = crashed_cpu(self.system).filter(|_| registers.iter().any(Option::is_some));
        let all = online.iter().zip(&current).zip(registers);
        let (first, others): (Vec<_>, Vec<_>) = all.partition(|((cpu, _), _)| Some(**cpu) == crashed);
        for ((&number, task), registers) in first.into_iter().chain(others) {
            let cpu = self.cpu(number, task.as_ref(), registers, Some(number) == crashed);
            each(cpu, task.as_ref());
        }
    }

    fn cpu(
        &self,
        number: u32,
        task: Option<&tasks::Task>,
        registers: Option<[u64; REGISTERS]>,
        crashed: bool,
    ) -> Cpu {
        let user = registers.is_some_and(|words| words.get(CS).is_some_and(|cs| cs & 3 == 3));
        let start = registers.filter(|_| !user).and_then(|words| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            Registers::of_pt_regs(&bytes)
        });
        let named = registers.iter().flat_map(|words| NAMES.iter().zip(words));
        Cpu {
            number,
            task: task.map(|task| if crashed { self.with_arguments(task) } else { plain(task) }),
            crashed,
            user,
            registers: named.map(|(name, word)| ((*name).to_owned(), format!("{word:#x}"))).collect(),
            stack: start.map(|start| self.frames(&start)).unwrap_or_default(),
        }
    }

    /// The task that a CPU ran.
    fn current(&self, cpus: &Cpus, cpu: u32) -> Option<tasks::Task> {
        let kernel = self.system.kernel;
        let place = cpus.of(kernel, cpus.current, cpu)?;
        let task = VirtAddr(kernel.read_u64(place, "the current task").ok()?);
        tasks::read(self.system, task).ok()
    }

    /// Tasks that wait and cannot be interrupted, `limit` of them; how many more there are.
    pub(crate) fn blocked(&self, processes: &Processes, limit: usize, each: &mut dyn FnMut(Blocked)) -> u64 {
        let threads = processes.all.iter().flat_map(|process| &process.threads);
        let mut more = 0_u64;
        for (number, task) in threads.filter(|task| self.is_blocked(task)).enumerate() {
            if number >= limit {
                more = more.saturating_add(1);
                continue;
            }
            let kernel = self.system.kernel;
            let start = self.sleeper.and_then(|layout| Registers::of_sleeper(kernel, &layout, task.address));
            let stack = start.map(|start| self.frames(&start)).unwrap_or_default();
            each(Blocked { task: plain(task), stack });
        }
        more
    }

    fn is_blocked(&self, task: &tasks::Task) -> bool {
        let state = self.system.layout.task.state;
        let state = state.and_then(|at| self.system.half(task.address, at, "task_struct.state").ok());
        state.is_some_and(|state| state & UNINTERRUPTIBLE != 0 && state & NO_LOAD == 0)
    }

    /// The stack of the task with this number, if it waits.
    pub(crate) fn of_sleeper(&self, processes: &Processes, pid: u32) -> Option<Vec<Frame>> {
        let mut threads = processes.all.iter().flat_map(|process| &process.threads);
        let task = threads.find(|task| task.pid == pid)?;
        let start = Registers::of_sleeper(self.system.kernel, &self.sleeper?, task.address)?;
        Some(self.frames(&start))
    }
}

/// The task without its arguments.
fn plain(task: &tasks::Task) -> Task {
    Task {
        pid: task.pid,
        tgid: task.tgid,
        comm: task.comm.clone(),
        argv: None,
        argv_error: None,
        address: format!("{:#x}", task.address.0),
    }
}
