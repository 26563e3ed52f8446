//! `cpus.jsonl`: processors: model, microcode and features; what each of them runs, what waits to run there,
//! and calls that others have asked it to make.

mod features;

use std::collections::BTreeSet;

use base::addr::VirtAddr;
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::{layouts, list, tree};
use vmcore::kernel::KernelError;

use self::features::Features;
use super::tracing::function;
use super::{Artefact, Ground, Row, Rows, Stop};
use crate::numbers;
use crate::wanted::{Cpus, Wanted};

/// Tasks of one queue, and calls to one processor, that are believed.
const MAX_TASKS: usize = 100_000;
const MAX_CALLS: usize = 10_000;
/// Queues of tasks with real-time priorities (`MAX_RT_PRIO`), and bytes of the head of one.
const MAX_PRIORITIES: u64 = 100;
const HEAD: u64 = 16;
/// Bytes of `task_struct.comm` (`TASK_COMM_LEN`).
const NAME: usize = 16;
/// Kernel priorities are above those that user space sees (`MAX_RT_PRIO`, include/linux/sched/prio.h).
const NICE_0: i64 = 120;
/// What a call is, in bits of its flags (`CSD_TYPE_*`, include/linux/smp_types.h).
const CALL_KIND: u32 = 0x30;
const IRQ_WORK: u32 = 0x20;
const WAKE_UP: u32 = 0x30;

layouts! {
    QueueLayout of "rq" {
        running: "nr_running",
        current: "curr",
        clock: "clock",
        switches: "nr_switches",
    } [
        idle: "idle",
        io: "nr_iowait",
        fair: "cfs_tasks",
        real_time: "rt.active.queue",
        deadline: "dl.root",
        throttled: "rt.rt_throttled",
    ]
    TaskLayout of "task_struct" {
        pid: "pid",
        tgid: "tgid",
        name: "comm",
        priority: "prio",
    } [
        fair: "se.group_node",
        delayed: "se.sched_delayed",
        real_time: "rt.run_list",
        group: "rt.my_q",
        deadline: "dl.rb_node",
        queued: "sched_info.last_queued",
        arrived: "sched_info.last_arrival",
    ]
    CallLayout of "__call_single_data" {
        node: "llist" | "node.llist",
        flags: "flags" | "node.u_flags",
        function: "func",
    }
    WorkLayout of "irq_work" {
        node: "llnode" | "node.llist",
        function: "func",
    }
    HotplugLayout of "cpuhp_cpu_state" {
        state: "state",
    }
}

pub(super) struct Layout {
    cpus: Cpus,
    features: Result<Features, Missing>,
    queue: Result<QueueLayout, Missing>,
    /// `runqueues`, `call_single_queue` and `cpuhp_state`: each processor has its own.
    queues: Option<VirtAddr>,
    calls: Option<VirtAddr>,
    hotplug: Option<(VirtAddr, HotplugLayout)>,
    task: TaskLayout,
    call: Option<CallLayout>,
    work: Option<WorkLayout>,
    /// Queues of real-time priorities.
    priorities: u64,
}

impl Artefact for Layout {
    const NAME: &'static str = "cpus";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            cpus: Wanted::ask(known).cpus,
            features: Features::ask(known),
            queue: QueueLayout::ask(known),
            queues: known.symbol("runqueues"),
            calls: known.symbol("call_single_queue"),
            hotplug: known.symbol("cpuhp_state").zip(HotplugLayout::ask(known).ok()),
            task: TaskLayout::ask(known)?,
            call: CallLayout::ask(known).ok(),
            work: WorkLayout::ask(known).ok(),
            priorities: known.elements("rq", "rt.active.queue").unwrap_or(0).min(MAX_PRIORITIES),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let kernel = ground.system.kernel;
        let online = numbers::online(kernel, &self.cpus);
        let present = numbers::in_mask(kernel, &self.cpus, self.cpus.present);
        let mut possible = numbers::in_mask(kernel, &self.cpus, self.cpus.possible);
        if possible.is_empty() {
            possible.clone_from(&online);
        }
        for cpu in possible {
            rows.in_time()?;
            let is_online = online.contains(&cpu);
            let mut row = self.processor(ground, cpu, is_online);
            row.set("linux.cpu.present", present.contains(&cpu));
            rows.add(&row)?;
            if is_online {
                self.waiting(ground, rows, cpu)?;
                self.calls(ground, rows, cpu)?;
            }
        }
        Ok(())
    }
}

/// A row of a kind about a processor.
fn row_of(kind: &str, cpu: u32, at: Option<VirtAddr>) -> Row {
    let mut row = at.map_or_else(Row::default, Row::at);
    row.set("linux.cpu.what", kind);
    row.set("linux.cpu.number", cpu);
    row
}

impl Layout {
    /// The processor itself.
    fn processor(&self, ground: &Ground<'_>, cpu: u32, is_online: bool) -> Row {
        let (system, kernel) = (ground.system, ground.system.kernel);
        let queue = self.cpus.of(kernel, self.queues, cpu);
        let mut row = row_of("processor", cpu, queue);
        row.set("linux.cpu.online", is_online);
        if let Some((at, layout)) = self.hotplug.as_ref()
            && let Some(at) = self.cpus.of(kernel, Some(*at), cpu)
        {
            row.read("linux.cpu.hotplug_state", system.half(at, layout.state, "cpuhp_cpu_state.state"));
        }
        if !is_online {
            return row;
        }
        match &self.features {
            Ok(features) => features.of(ground, &self.cpus, cpu, &mut row),
            Err(missing) => row.error("linux.cpu.model", missing),
        }
        let (layout, queue) = match (&self.queue, queue) {
            (Ok(layout), Some(queue)) => (layout, queue),
            (Err(missing), _) => {
                row.error("linux.cpu.running", missing);
                return row;
            }
            (_, None) => {
                row.error("linux.cpu.running", &"the kernel has no symbol runqueues");
                return row;
            }
        };
        row.read("linux.cpu.running", system.half(queue, layout.running, "rq.nr_running"));
        row.read("linux.cpu.switches", system.word(queue, layout.switches, "rq.nr_switches"));
        if let Some(io) = layout.io {
            row.read("linux.cpu.waiting_for_io", system.half(queue, io, "rq.nr_iowait"));
        }
        if let Some(throttled) = layout.throttled {
            let throttled = system.half(queue, throttled, "rq.rt.rt_throttled");
            row.read("linux.cpu.real_time_throttled", throttled.map(|throttled| throttled != 0));
        }
        match system.follow(queue, layout.current, "rq.curr") {
            Ok(task) => {
                self.name(ground, task, &mut row);
                let idle = layout.idle.and_then(|idle| system.pointer(queue, idle, "rq.idle").ok().flatten());
                row.set("linux.cpu.idle", idle == Some(task));
                self.since(ground, &mut row, (queue, task), self.task.arrived, "linux.cpu.current_ms");
            }
            Err(error) => row.error("process.pid", &base::log::chain(&error)),
        }
        row
    }

    /// Who a task is.
    fn name(&self, ground: &Ground<'_>, task: VirtAddr, row: &mut Row) {
        let system = ground.system;
        row.read("process.pid", system.half(task, self.task.tgid, "task_struct.tgid"));
        row.read("process.thread.id", system.half(task, self.task.pid, "task_struct.pid"));
        let name = system.bytes(task, self.task.name, NAME, "task_struct.comm");
        row.read("process.name", name.map(|name| Fields(&name).text(0, NAME).unwrap_or_default()));
        let priority = system.half(task, self.task.priority, "task_struct.prio");
        // Below zero for tasks with a deadline.
        let nice = priority.map(|priority| i64::from(priority.cast_signed()).saturating_sub(NICE_0));
        row.read("linux.cpu.nice", nice);
    }

    /// How long something has been so by the clock of the queue, in milliseconds.
    fn since(
        &self,
        ground: &Ground<'_>,
        row: &mut Row,
        (queue, task): (VirtAddr, VirtAddr),
        from: Option<u64>,
        key: &str,
    ) {
        let system = ground.system;
        let (Some(from), Ok(layout)) = (from, &self.queue) else { return };
        let now = system.word(queue, layout.clock, "rq.clock");
        let from = system.word(task, from, "task_struct.sched_info");
        // Zero where it is not so.
        match (now, from) {
            (Ok(now), Ok(from @ 1..)) => row.set(key, now.saturating_sub(from) / 1_000_000),
            (Err(error), _) | (_, Err(error)) => row.error(key, &base::log::chain(&error)),
            (Ok(_), Ok(0)) => {}
        }
    }

    /// Tasks in the queue of a processor; the current one is in it, too.
    fn waiting(&self, ground: &Ground<'_>, rows: &mut Rows<'_>, cpu: u32) -> Result<(), Stop> {
        let kernel = ground.system.kernel;
        let (Ok(layout), Some(queue)) = (&self.queue, self.cpus.of(kernel, self.queues, cpu)) else {
            return Ok(());
        };
        let current = ground.system.pointer(queue, layout.current, "rq.curr").ok().flatten();
        let mut lost = false;
        let mut lists = Vec::new();
        if let Some((head, node)) = layout.fair.zip(self.task.fair) {
            lists.push(("fair", head, node));
        }
        if let Some((first, node)) = layout.real_time.zip(self.task.real_time) {
            let head = |number: u64| ("real time", first.saturating_add(number.saturating_mul(HEAD)), node);
            lists.extend((0..self.priorities).map(head));
        }
        let mut found = Vec::new();
        for (class, head, node) in lists {
            rows.in_time()?;
            // Of all lists together: they may lead into each other.
            let left = MAX_TASKS.saturating_sub(found.len());
            let (entries, whole) = list::all(kernel, VirtAddr(queue.0.wrapping_add(head)), left);
            lost |= !whole;
            found.extend(entries.into_iter().map(|entry| (class, VirtAddr(entry.0.wrapping_sub(node)))));
        }
        found.retain(|(class, task)| *class != "real time" || !self.is_group(ground, *task));
        if let Some((root, node)) = layout.deadline.zip(self.task.deadline) {
            let (nodes, whole) = tree::all(kernel, VirtAddr(queue.0.wrapping_add(root)), MAX_TASKS);
            lost |= !whole;
            let tasks = nodes.into_iter().map(|at| VirtAddr(at.0.wrapping_sub(node)));
            found.extend(known(ground, tasks).into_iter().map(|task| ("deadline", task)));
        }
        for (class, task) in found {
            let mut row = row_of("queued", cpu, Some(task));
            row.set("linux.cpu.class", class);
            self.name(ground, task, &mut row);
            row.set("linux.cpu.current", current == Some(task));
            self.since(ground, &mut row, (queue, task), self.task.queued, "linux.cpu.queued_ms");
            if let Some(delayed) = self.task.delayed {
                // It sleeps, and leaves the queue when its turn comes (since 6.12).
                let delayed = ground.system.byte(task, delayed, "sched_entity.sched_delayed");
                row.read("linux.cpu.sleeps", delayed.map(|delayed| delayed != 0));
            }
            rows.add(&row)?;
        }
        if lost { rows.miss("queued tasks", &format!("those of CPU {cpu} are not all")) } else { Ok(()) }
    }

    /// Whether an entry of a queue of real time is a group of tasks.
    fn is_group(&self, ground: &Ground<'_>, task: VirtAddr) -> bool {
        let owned = |group| ground.system.word(task, group, "sched_rt_entity.my_q");
        self.task.group.is_some_and(|group| owned(group).is_ok_and(|owned| owned != 0))
    }

    /// Calls that a processor has been asked to make, and has not made.
    fn calls(&self, ground: &Ground<'_>, rows: &mut Rows<'_>, cpu: u32) -> Result<(), Stop> {
        let (system, kernel) = (ground.system, ground.system.kernel);
        let (Some(layout), Some(queue)) = (&self.call, self.cpus.of(kernel, self.calls, cpu)) else {
            return Ok(());
        };
        let first = match system.pointer(queue, 0, "call_single_queue") {
            Ok(Some(first)) => first,
            Ok(None) => return Ok(()),
            Err(error) => return rows.miss("calls to a processor", &base::log::chain(&error)),
        };
        let (entries, whole) = list::chain(kernel, first, 0, MAX_CALLS);
        for entry in entries {
            let call = VirtAddr(entry.0.wrapping_sub(layout.node));
            let mut row = row_of("call", cpu, Some(call));
            match self.called(ground, layout, call, entry) {
                Ok(Some(target)) => function(ground, "linux.cpu.function", target, &mut row),
                Ok(None) => row.set("linux.cpu.function", "wake-up of a task"),
                Err(error) => row.error("linux.cpu.function", &base::log::chain(&error)),
            }
            rows.add(&row)?;
        }
        if whole {
            Ok(())
        } else {
            rows.miss("calls to a processor", &format!("those to CPU {cpu} are not all"))
        }
    }

    /// The function of a call; none where a task is to be woken.
    fn called(
        &self,
        ground: &Ground<'_>,
        layout: &CallLayout,
        call: VirtAddr,
        node: VirtAddr,
    ) -> Result<Option<u64>, KernelError> {
        let system = ground.system;
        let flags = system.half(call, layout.flags, "__call_single_data.flags")?;
        Ok(match (flags & CALL_KIND, &self.work) {
            (WAKE_UP, _) => None,
            (IRQ_WORK, Some(work)) => {
                Some(system.word(VirtAddr(node.0.wrapping_sub(work.node)), work.function, "irq_work.func")?)
            }
            _ => Some(system.word(call, layout.function, "__call_single_data.func")?),
        })
    }
}

/// Those that are tasks: a server of the kernel's has a deadline, too.
fn known(ground: &Ground<'_>, all: impl Iterator<Item = VirtAddr>) -> Vec<VirtAddr> {
    let mut all: BTreeSet<VirtAddr> = all.collect();
    if all.is_empty() {
        return Vec::new();
    }
    let threads = ground.processes.all.iter().flat_map(|process| &process.threads);
    let tasks = threads.map(|task| task.address).filter(|task| all.remove(task));
    tasks.collect()
}
