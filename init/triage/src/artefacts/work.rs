//! `work.jsonl`: workqueues, and the pools of threads that do their work: what is being done, and what waits
//! for it.

use ::processes::xarray;
use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::{Missing, required};
use symbols::{layouts, list};
use vmcore::kernel::KernelError;

use super::tracing::function;
use super::{Artefact, Ground, Row, Rows, Stop};

/// Workqueues and pools that are believed; workers and works of all pools.
const MAX_QUEUES: usize = 10_000;
const MAX_POOLS: usize = 20_000;
const MAX_WORKERS: usize = 100_000;
const MAX_WORKS: usize = 100_000;
/// Bytes of a name (`WQ_NAME_LEN`: 24, since 6.10 32).
const MAX_NAME: u64 = 64;
/// A work that is queued leads to its queue's part of a pool (`WORK_STRUCT_PWQ`), which lies at a multiple of
/// 256 (`WORK_STRUCT_FLAG_BITS`); the bits below are others.
const QUEUED: u64 = 4;
const PART: u64 = !0xff;
/// `enum wq_flags`, include/linux/workqueue.h.
const FLAGS: [(u32, &str); 7] = [
    (1, "bottom-half"),
    (1 << 1, "unbound"),
    (1 << 2, "freezable"),
    (1 << 3, "memory-reclaim"),
    (1 << 4, "high-priority"),
    (1 << 5, "cpu-intensive"),
    (1 << 17, "ordered"),
];

layouts! {
    QueueLayout of "workqueue_struct" {
        list: "list",
        parts: "pwqs",
        name: "name",
        flags: "flags",
    }
    PartLayout of "pool_workqueue" {
        node: "pwqs_node",
        queue: "wq",
        active: "nr_active",
        inactive: "inactive_works" | "delayed_works",
    }
    PoolLayout of "worker_pool" {
        id: "id",
        cpu: "cpu",
        node: "node",
        works: "worklist",
        workers: "workers",
        count: "nr_workers",
        idle: "nr_idle",
        flags: "flags",
    }
    WorkerLayout of "worker" {
        node: "node",
        task: "task",
        work: "current_work",
        function: "current_func",
        part: "current_pwq",
    }
    WorkLayout of "work_struct" {
        entry: "entry",
        data: "data",
        function: "func",
    }
    TaskLayout of "task_struct" {
        pid: "pid",
    }
}

pub(super) struct Layout {
    queue: QueueLayout,
    part: PartLayout,
    pool: PoolLayout,
    worker: WorkerLayout,
    work: WorkLayout,
    task: TaskLayout,
    name: u64,
    root: u64,
    /// `POOL_BH`: the work is done in soft interrupts, not by threads (since 6.9).
    soft: Option<u64>,
    queues: Option<VirtAddr>,
    pools: Option<VirtAddr>,
}

impl Artefact for Layout {
    const NAME: &'static str = "work";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            queue: QueueLayout::ask(known)?,
            part: PartLayout::ask(known)?,
            pool: PoolLayout::ask(known)?,
            worker: WorkerLayout::ask(known)?,
            work: WorkLayout::ask(known)?,
            task: TaskLayout::ask(known)?,
            name: known.member_size("workqueue_struct", "name").unwrap_or(0).min(MAX_NAME),
            root: required(known, "idr", &["idr_rt.xa_head"])?,
            soft: known.value("worker_pool_flags", "POOL_BH"),
            queues: known.symbol("workqueues"),
            pools: known.symbol("worker_pool_idr"),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let mut left = MAX_WORKS;
        self.queues(ground, rows, &mut left)?;
        let idr = self.pools.ok_or_else(|| Stop::no_symbol("worker_pool_idr"))?;
        let pools = xarray::pointers(ground.system, idr, self.root, MAX_POOLS);
        let (pools, lost) = pools.map_err(|error| Stop::Start(base::log::chain(&error)))?;
        let mut workers = MAX_WORKERS;
        for (_, pool) in pools {
            rows.add(&self.pool(ground, pool))?;
            self.workers(ground, rows, pool, &mut workers)?;
            let works = VirtAddr(pool.0.wrapping_add(self.pool.works));
            self.works(ground, rows, (works, "queued"), &mut left)?;
        }
        if lost > 0 { rows.miss("pools", &format!("{lost} could not be read")) } else { Ok(()) }
    }
}

/// A row of a kind.
fn row_at(kind: &str, at: VirtAddr) -> Row {
    let mut row = Row::at(at);
    row.set("linux.work.what", kind);
    row
}

impl Layout {
    /// All workqueues, with works that may not begin: too many of the same queue are being done.
    fn queues(&self, ground: &Ground<'_>, rows: &mut Rows<'_>, left: &mut usize) -> Result<(), Stop> {
        let kernel = ground.system.kernel;
        let head = self.queues.ok_or_else(|| Stop::no_symbol("workqueues"))?;
        let (entries, whole) = list::all(kernel, head, MAX_QUEUES);
        for entry in entries {
            rows.in_time()?;
            let at = VirtAddr(entry.0.wrapping_sub(self.queue.list));
            let head = VirtAddr(at.0.wrapping_add(self.queue.parts));
            let (parts, whole) = list::all(kernel, head, MAX_POOLS);
            let parts: Vec<_> =
                parts.into_iter().map(|part| VirtAddr(part.0.wrapping_sub(self.part.node))).collect();
            let mut row = self.queue(ground, at, &parts);
            if !whole {
                row.error("linux.work.active", &"the list of its parts cannot be read to its end");
            }
            rows.add(&row)?;
            for part in parts {
                let inactive = VirtAddr(part.0.wrapping_add(self.part.inactive));
                self.works(ground, rows, (inactive, "inactive"), left)?;
            }
        }
        if whole { Ok(()) } else { rows.miss("workqueues", &"their list cannot be read to its end") }
    }

    fn queue(&self, ground: &Ground<'_>, at: VirtAddr, parts: &[VirtAddr]) -> Row {
        let (system, layout) = (ground.system, &self.queue);
        let mut row = row_at("queue", at);
        row.read("linux.work.queue", self.name(ground, at));
        let flags = system.half(at, layout.flags, "workqueue_struct.flags");
        let names = |flags: u32| {
            let set = FLAGS.iter().filter(|(flag, _)| flags & flag != 0);
            set.map(|(_, name)| (*name).to_owned()).collect::<Vec<_>>()
        };
        row.read("linux.work.flags", flags.map(names));
        let active: Result<u64, KernelError> = parts.iter().try_fold(0_u64, |sum, part| {
            let active = system.half(*part, self.part.active, "pool_workqueue.nr_active")?;
            Ok(sum.saturating_add(active.into()))
        });
        row.read("linux.work.active", active);
        row
    }

    fn name(&self, ground: &Ground<'_>, queue: VirtAddr) -> Result<String, KernelError> {
        let len = to_usize(self.name);
        let bytes = ground.system.bytes(queue, self.queue.name, len, "workqueue_struct.name")?;
        Ok(Fields(&bytes).text(0, len).unwrap_or_default())
    }

    fn pool(&self, ground: &Ground<'_>, at: VirtAddr) -> Row {
        let (system, layout) = (ground.system, &self.pool);
        let mut row = row_at("pool", at);
        // -1 where it is of no CPU or node.
        for (key, offset) in [
            ("linux.work.pool", layout.id),
            ("linux.work.cpu", layout.cpu),
            ("linux.work.node", layout.node),
            ("linux.work.workers", layout.count),
            ("linux.work.idle", layout.idle),
        ] {
            row.read(key, system.half(at, offset, "a member of worker_pool").map(u32::cast_signed));
        }
        if let Some(soft) = self.soft {
            let flags = system.half(at, layout.flags, "worker_pool.flags");
            row.read("linux.work.bottom_half", flags.map(|flags| u64::from(flags) & soft != 0));
        }
        row
    }

    /// Workers that do something.
    fn workers(
        &self,
        ground: &Ground<'_>,
        rows: &mut Rows<'_>,
        pool: VirtAddr,
        left: &mut usize,
    ) -> Result<(), Stop> {
        let (system, layout) = (ground.system, &self.worker);
        let head = VirtAddr(pool.0.wrapping_add(self.pool.workers));
        let (workers, whole) = list::all(system.kernel, head, *left);
        *left = left.saturating_sub(workers.len());
        for entry in workers {
            rows.in_time()?;
            let at = VirtAddr(entry.0.wrapping_sub(layout.node));
            let work = system.pointer(at, layout.work, "worker.current_work");
            if matches!(work, Ok(None)) {
                continue;
            }
            let mut row = row_at("worker", at);
            row.read("linux.work.pool", system.half(pool, self.pool.id, "worker_pool.id"));
            match system.pointer(at, layout.task, "worker.task") {
                Ok(Some(task)) => {
                    row.read("process.pid", system.half(task, self.task.pid, "task_struct.pid"));
                }
                // It is a soft interrupt.
                Ok(None) => {}
                Err(error) => row.error("process.pid", &base::log::chain(&error)),
            }
            if let Err(error) = work {
                row.error("linux.work.function", &base::log::chain(&error));
            }
            match system.word(at, layout.function, "worker.current_func") {
                Ok(target) => function(ground, "linux.work.function", target, &mut row),
                Err(error) => row.error("linux.work.function", &base::log::chain(&error)),
            }
            let part = system.follow(at, layout.part, "worker.current_pwq");
            row.read("linux.work.queue", part.and_then(|part| self.name_of_part(ground, part)));
            rows.add(&row)?;
        }
        if whole { Ok(()) } else { rows.miss("workers", &"those of a pool are not all") }
    }

    fn name_of_part(&self, ground: &Ground<'_>, part: VirtAddr) -> Result<String, KernelError> {
        let queue = ground.system.follow(part, self.part.queue, "pool_workqueue.wq")?;
        self.name(ground, queue)
    }

    /// Works in a list.
    fn works(
        &self,
        ground: &Ground<'_>,
        rows: &mut Rows<'_>,
        (head, state): (VirtAddr, &str),
        left: &mut usize,
    ) -> Result<(), Stop> {
        let system = ground.system;
        let (works, whole) = list::all(system.kernel, head, *left);
        *left = left.saturating_sub(works.len());
        for entry in works {
            let at = VirtAddr(entry.0.wrapping_sub(self.work.entry));
            let mut row = row_at("work", at);
            row.set("linux.work.state", state);
            match system.word(at, self.work.function, "work_struct.func") {
                Ok(target) => function(ground, "linux.work.function", target, &mut row),
                Err(error) => row.error("linux.work.function", &base::log::chain(&error)),
            }
            match system.word(at, self.work.data, "work_struct.data") {
                Ok(data) if data & QUEUED != 0 => {
                    row.read("linux.work.queue", self.name_of_part(ground, VirtAddr(data & PART)));
                }
                // A barrier of the kernel's own has no queue.
                Ok(_) => {}
                Err(error) => row.error("linux.work.queue", &base::log::chain(&error)),
            }
            rows.add(&row)?;
        }
        if whole { Ok(()) } else { rows.miss("works", &"those in a list are not all") }
    }
}
