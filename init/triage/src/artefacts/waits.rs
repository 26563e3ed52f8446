//! `io.jsonl`: what hangs: tasks that wait and cannot be interrupted, with their stacks, and requests that
//! disks have not answered.

use std::collections::BTreeSet;

use ::processes::tables::Steps;
use ::processes::xarray;
use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::unwind::SleeperLayout;
use symbols::{layouts, list};
use vmcore::kernel::KernelError;

use super::{Artefact, Ground, Row, Rows, Stop};
use crate::stacks::Stacks;

/// Tasks that wait, functions of a stack, disks, and hardware queues of one.
const TASKS: usize = 10_000;
const FRAMES: usize = 32;
const MAX_DISKS: usize = 100_000;
const MAX_QUEUES: u64 = 4096;
/// Requests that a queue can have (`BLK_MQ_MAX_DEPTH`).
const MAX_TAGS: u32 = 10_240;
/// Bytes of a disk's name (`DISK_NAME_LEN`).
const NAME: usize = 32;
/// Bytes of a sector, as requests are counted.
const SECTOR: u64 = 512;
/// `MQ_RQ_IDLE` (include/linux/blk-mq.h)
const IDLE: u32 = 0;
/// Bits of `request.cmd_flags` that say what is asked (`REQ_OP_MASK`).
const OPERATION: u32 = 0xff;

layouts! {
    SuperLayout of "super_block" {
        inodes: "s_inodes",
    }
    InodeLayout of "inode" {
        in_superblock: "i_sb_list",
    }
    DeviceLayout of "bdev_inode" {
        inode: "vfs_inode",
        device: "bdev",
    }
    BlockLayout of "block_device" {
        disk: "bd_disk",
    }
    DiskLayout of "gendisk" {
        name: "disk_name",
        queue: "queue",
    }
    QueueLayout of "request_queue" {
        count: "nr_hw_queues",
    } [
        array: "queue_hw_ctx",
        table: "hctx_table.xa_head",
    ]
    ContextLayout of "blk_mq_hw_ctx" {
        tags: "tags",
    }
    TagsLayout of "blk_mq_tags" {
        count: "nr_tags",
        requests: "rqs",
    }
    RequestLayout of "request" {
        queue: "q",
        tag: "tag",
        state: "state",
        flags: "cmd_flags",
        sector: "__sector",
        bytes: "__data_len",
        start: "start_time_ns",
    }
}

/// Where disks are, and what they have been asked.
struct Disks {
    superblock: SuperLayout,
    inode: InodeLayout,
    device: DeviceLayout,
    block: BlockLayout,
    disk: DiskLayout,
    queue: QueueLayout,
    context: ContextLayout,
    tags: TagsLayout,
    request: RequestLayout,
}

impl Disks {
    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            superblock: SuperLayout::ask(known)?,
            inode: InodeLayout::ask(known)?,
            device: DeviceLayout::ask(known)?,
            block: BlockLayout::ask(known)?,
            disk: DiskLayout::ask(known)?,
            queue: QueueLayout::ask(known)?,
            context: ContextLayout::ask(known)?,
            tags: TagsLayout::ask(known)?,
            request: RequestLayout::ask(known)?,
        })
    }
}

pub(super) struct Layout {
    sleeper: Option<SleeperLayout>,
    disks: Result<Disks, Missing>,
    /// `blockdev_superblock`: of the file system that all block devices are in.
    all: Option<VirtAddr>,
    /// `tick_next_period`
    now: Option<VirtAddr>,
}

impl Artefact for Layout {
    const NAME: &'static str = "io";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            sleeper: SleeperLayout::ask(known),
            disks: Disks::ask(known),
            all: known.symbol("blockdev_superblock"),
            now: known.symbol("tick_next_period"),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        self.tasks(ground, rows)?;
        match (&self.disks, self.all) {
            (Ok(disks), Some(all)) => self.disks(ground, rows, disks, all),
            (Err(missing), _) => rows.miss("requests of disks", missing),
            (_, None) => rows.miss("requests of disks", &"there is no symbol blockdev_superblock"),
        }
    }
}

impl Layout {
    fn tasks(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let stacks =
            Stacks { system: ground.system, unwinder: ground.code, sleeper: self.sleeper, held: ground.held };
        let mut result = Ok(());
        let more = stacks.blocked(ground.processes, TASKS, &mut |blocked| {
            let mut row = Row::default();
            row.set("linux.address", blocked.task.address);
            row.set("linux.io.what", "task");
            row.set("process.pid", blocked.task.tgid);
            row.set("process.thread.id", blocked.task.pid);
            row.set("process.name", blocked.task.comm);
            row.set("linux.stack_depth", to_u64(blocked.stack.len()));
            if blocked.stack.is_empty() {
                row.error("linux.stack", &"it cannot be followed");
            }
            let frames = blocked.stack.into_iter().take(FRAMES);
            let frames = frames.map(|frame| format!("{}+{:#x}", frame.function, frame.offset));
            row.set("linux.stack", frames.collect::<Vec<_>>());
            if result.is_ok() {
                result = rows.add(&row);
            }
        });
        result?;
        if more > 0 { rows.miss("tasks that wait", &format!("{more} more are left out")) } else { Ok(()) }
    }

    fn disks(
        &self,
        ground: &Ground<'_>,
        rows: &mut Rows<'_>,
        disks: &Disks,
        all: VirtAddr,
    ) -> Result<(), Stop> {
        let system = ground.system;
        let head = system.follow(all, 0, "blockdev_superblock");
        let head = match head.map(|superblock| superblock.checked_add(disks.superblock.inodes)) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(error) => return rows.miss("requests of disks", &base::log::chain(&error)),
        };
        let (entries, whole) = list::all(system.kernel, head, MAX_DISKS);
        let (mut seen, mut lost) = (BTreeSet::new(), 0_u64);
        for entry in entries {
            rows.in_time()?;
            let inode = VirtAddr(entry.0.wrapping_sub(disks.inode.in_superblock));
            let device = VirtAddr(inode.0.wrapping_sub(disks.device.inode).wrapping_add(disks.device.device));
            match system.pointer(device, disks.block.disk, "block_device.bd_disk") {
                // A partition is of the disk that it is on; a device that is closed has none.
                Ok(Some(disk)) if seen.insert(disk) => {
                    self.disk(ground, rows, disks, disk)?;
                }
                Ok(_) => {}
                Err(_) => lost = lost.saturating_add(1),
            }
        }
        if lost > 0 {
            rows.miss("requests of disks", &format!("{lost} block devices cannot be read"))?;
        }
        if whole {
            Ok(())
        } else {
            rows.miss("requests of disks", &"the list of devices cannot be read to its end")
        }
    }

    fn disk(
        &self,
        ground: &Ground<'_>,
        rows: &mut Rows<'_>,
        disks: &Disks,
        at: VirtAddr,
    ) -> Result<(), Stop> {
        let system = ground.system;
        let name = system.bytes(at, disks.disk.name, NAME, "gendisk.disk_name");
        let name = name.map(|bytes| Fields(&bytes).text(0, NAME).unwrap_or_default());
        let mut row = Row::at(at);
        row.set("linux.io.what", "disk");
        let text = name.as_ref().ok().cloned().unwrap_or_default();
        row.read("linux.io.disk", name);
        let requests = system.follow(at, disks.disk.queue, "gendisk.queue").and_then(|queue| {
            let contexts = contexts(ground, disks, queue)?;
            let mut all = BTreeSet::new();
            for context in contexts {
                in_flight(ground, disks, queue, context, &mut all)?;
            }
            Ok(all)
        });
        match requests {
            Ok(requests) => {
                row.set("linux.io.in_flight", to_u64(requests.len()));
                rows.add(&row)?;
                requests
                    .into_iter()
                    .try_for_each(|request| rows.add(&self.request(ground, disks, &text, request)))
            }
            Err(error) => {
                row.error("linux.io.in_flight", &base::log::chain(&error));
                rows.add(&row)
            }
        }
    }

    fn request(&self, ground: &Ground<'_>, disks: &Disks, disk: &str, at: VirtAddr) -> Row {
        let (system, layout) = (ground.system, &disks.request);
        let mut row = Row::at(at);
        row.set("linux.io.what", "request");
        row.set("linux.io.disk", disk);
        let operation = system.half(at, layout.flags, "request.cmd_flags");
        row.read("linux.io.operation", operation.map(|flags| operation_name(flags & OPERATION)));
        let sector = system.word(at, layout.sector, "request.__sector");
        row.read("linux.io.offset", sector.map(|sector| sector.saturating_mul(SECTOR)));
        row.read("linux.io.bytes", system.half(at, layout.bytes, "request.__data_len"));
        let state = system.half(at, layout.state, "request.state");
        row.read("linux.io.state", state.map(|state| if state == 1 { "in flight" } else { "complete" }));
        let now = self.now.and_then(|at| system.word(at, 0, "tick_next_period").ok());
        let start = system.word(at, layout.start, "request.start_time_ns");
        // Zero where nobody asked for the time.
        if let (Some(now), Ok(start @ 1..)) = (now, &start) {
            row.set("linux.io.waiting_ms", now.saturating_sub(*start) / 1_000_000);
        }
        if let Err(error) = start {
            row.error("linux.io.waiting_ms", &base::log::chain(&error));
        }
        row
    }
}

/// The hardware queues of a disk: in an array, between 5.18 (4e5cc99e1e48) and 7.x in an xarray. A disk that
/// does without has none.
fn contexts(ground: &Ground<'_>, disks: &Disks, queue: VirtAddr) -> Result<Vec<VirtAddr>, KernelError> {
    let (system, layout) = (ground.system, &disks.queue);
    let count = u64::from(system.half(queue, layout.count, "request_queue.nr_hw_queues")?).min(MAX_QUEUES);
    if let Some(array) = layout.array {
        let Some(array) = system.pointer(queue, array, "request_queue.queue_hw_ctx")? else {
            return Ok(Vec::new());
        };
        let bytes =
            system.bytes(array, 0, to_usize(count.saturating_mul(8)), "request_queue.queue_hw_ctx")?;
        let words = bytes.chunks_exact(8).filter_map(|word| Fields(word).u64(0));
        return Ok(words.filter(|word| *word != 0).map(VirtAddr).collect());
    }
    let Some(table) = layout.table else { return Ok(Vec::new()) };
    let head = system.word(queue, table, "request_queue.hctx_table")?;
    let mut all = Vec::new();
    xarray::walk(system, head, (0, count), &Steps::at_most(MAX_QUEUES), &mut |piece| {
        all.extend(piece.entry.map(VirtAddr));
    });
    Ok(all)
}

/// Adds the requests of a hardware queue that are not done. What a tag had before may still stand there.
fn in_flight(
    ground: &Ground<'_>,
    disks: &Disks,
    queue: VirtAddr,
    context: VirtAddr,
    all: &mut BTreeSet<VirtAddr>,
) -> Result<(), KernelError> {
    let (system, layout) = (ground.system, &disks.request);
    let Some(tags) = system.pointer(context, disks.context.tags, "blk_mq_hw_ctx.tags")? else {
        return Ok(());
    };
    let count = system.half(tags, disks.tags.count, "blk_mq_tags.nr_tags")?.min(MAX_TAGS);
    let Some(array) = system.pointer(tags, disks.tags.requests, "blk_mq_tags.rqs")? else { return Ok(()) };
    let len = to_usize(u64::from(count).saturating_mul(8));
    let bytes = system.bytes(array, 0, len, "blk_mq_tags.rqs")?;
    for (tag, word) in (0_u32..).zip(bytes.chunks_exact(8)) {
        let at = VirtAddr(Fields(word).u64(0).unwrap_or(0));
        if at.0 == 0 {
            continue;
        }
        // Tags may be shared by several disks; a request that was freed cannot be read, or is another's.
        let is_ours = system.word(at, layout.queue, "request.q").is_ok_and(|of| of == queue.0)
            && system.half(at, layout.tag, "request.tag").is_ok_and(|of| of == tag);
        if is_ours && system.half(at, layout.state, "request.state").is_ok_and(|state| state != IDLE) {
            all.insert(at);
        }
    }
    Ok(())
}

/// `enum req_op`, include/linux/blk_types.h
fn operation_name(operation: u32) -> String {
    match operation {
        0 => "read".to_owned(),
        1 => "write".to_owned(),
        2 => "flush".to_owned(),
        3 => "discard".to_owned(),
        5 => "secure erase".to_owned(),
        9 => "write zeroes".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_have_names() {
        assert_eq!((operation_name(1), operation_name(77)), ("write".to_owned(), "77".to_owned()));
    }
}
