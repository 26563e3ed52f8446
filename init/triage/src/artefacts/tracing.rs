//! `tracing.jsonl`: what looks into the kernel while it runs: kprobes, functions that ftrace calls,
//! probes of tracepoints, and uprobes.

use base::addr::VirtAddr;
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::{layouts, list, tree};

use super::{Artefact, Ground, Row, Rows, Stop};
use crate::mounts;

/// Buckets of `kprobe_table` (`KPROBE_TABLE_SIZE`).
const BUCKETS: u64 = 64;
/// Probes of a kind that are believed.
const MAX: usize = 100_000;
/// Tracepoints of the kernel, and probes of one, that are believed.
const MAX_POINTS: u64 = 65_536;
const MAX_PROBES: u64 = 1024;
/// `KPROBE_FLAG_*` (include/linux/kprobes.h)
const KPROBE: [(u32, &str); 5] =
    [(0, "gone"), (1, "disabled"), (2, "optimized"), (3, "by ftrace"), (4, "on the entry of a function")];

layouts! {
    KprobeLayout of "kprobe" {
        node: "hlist",
        at: "addr",
        symbol: "symbol_name",
        offset: "offset",
        before: "pre_handler",
        after: "post_handler",
        flags: "flags",
        missed: "nmissed",
    }
    OpsLayout of "ftrace_ops" {
        function: "func",
        next: "next",
        flags: "flags",
    } [
        saved: "saved_func",
        trampoline: "trampoline",
    ]
    PointLayout of "tracepoint" {
        name: "name",
        functions: "funcs",
    }
    UprobeLayout of "uprobe" {
        node: "rb_node",
        inode: "inode",
        offset: "offset",
    }
    InodeLayout of "inode" {
        number: "i_ino",
        superblock: "i_sb",
    }
    SuperLayout of "super_block" {
        device: "s_dev",
    }
}

/// Where the kernel has them.
struct Symbols {
    kprobes: Option<VirtAddr>,
    ops: Option<VirtAddr>,
    last: Option<VirtAddr>,
    points: Option<(u64, u64)>,
    uprobes: Option<VirtAddr>,
}

pub(super) struct Layout {
    symbols: Symbols,
    kprobe: Result<KprobeLayout, Missing>,
    ops: Result<OpsLayout, Missing>,
    point: Result<PointLayout, Missing>,
    /// Bytes of a `struct tracepoint_func`.
    size: Option<u64>,
    uprobe: Result<(UprobeLayout, InodeLayout, SuperLayout), Missing>,
}

impl Artefact for Layout {
    const NAME: &'static str = "tracing";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let uprobe = || Ok((UprobeLayout::ask(known)?, InodeLayout::ask(known)?, SuperLayout::ask(known)?));
        Ok(Self {
            symbols: Symbols {
                kprobes: known.symbol("kprobe_table"),
                ops: known.symbol("ftrace_ops_list"),
                last: known.symbol("ftrace_list_end"),
                points: known.part(&["__start___tracepoints_ptrs"], &["__stop___tracepoints_ptrs"]),
                uprobes: known.symbol("uprobes_tree"),
            },
            kprobe: KprobeLayout::ask(known),
            ops: OpsLayout::ask(known),
            point: PointLayout::ask(known),
            size: known.size_of("tracepoint_func").filter(|size| (16..=64).contains(size)),
            uprobe: uprobe(),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let built_without = "the kernel was built without them: it has no symbol of their table";
        match (&self.kprobe, self.symbols.kprobes) {
            (Ok(layout), Some(table)) => kprobes(ground, rows, layout, table)?,
            (Err(missing), _) => rows.miss("kprobes", missing)?,
            (_, None) => rows.miss("kprobes", &built_without)?,
        }
        match (&self.ops, self.symbols.ops) {
            (Ok(layout), Some(first)) => self.functions(ground, rows, layout, first)?,
            (Err(missing), _) => rows.miss("functions that ftrace calls", missing)?,
            (_, None) => rows.miss("functions that ftrace calls", &built_without)?,
        }
        match (&self.point, self.symbols.points, self.size) {
            (Ok(layout), Some(table), Some(size)) => points(ground, rows, layout, table, size)?,
            (Err(missing), ..) => rows.miss("tracepoints", missing)?,
            _ => rows.miss("tracepoints", &built_without)?,
        }
        match (&self.uprobe, self.symbols.uprobes) {
            (Ok(layout), Some(root)) => uprobes(ground, rows, layout, root),
            (Err(missing), _) => rows.miss("uprobes", missing),
            (_, None) => rows.miss("uprobes", &built_without),
        }
    }
}

/// Names a function, and the module that it is of.
pub(super) fn function(ground: &Ground<'_>, key: &str, at: u64, row: &mut Row) {
    if let Some(module) = ground.code.place(VirtAddr(at)).and_then(|place| place.module) {
        row.set(&format!("{key}_module"), module);
    }
    row.set(key, named(ground, at));
}

/// The name of a function; its address where it has none.
pub(super) fn named(ground: &Ground<'_>, at: u64) -> String {
    match ground.code.place(VirtAddr(at)) {
        Some(place) if place.offset == 0 => place.name.into_owned(),
        Some(place) => format!("{}+{:#x}", place.name, place.offset),
        None => format!("{at:#x}"),
    }
}

fn kprobes(
    ground: &Ground<'_>,
    rows: &mut Rows<'_>,
    layout: &KprobeLayout,
    table: VirtAddr,
) -> Result<(), Stop> {
    let system = ground.system;
    for bucket in 0..BUCKETS {
        let first = match system.pointer(table, bucket.saturating_mul(8), "kprobe_table") {
            Ok(Some(first)) => first,
            Ok(None) => continue,
            Err(error) => {
                rows.miss("kprobes", &base::log::chain(&error))?;
                continue;
            }
        };
        let (nodes, whole) = list::chain(system.kernel, first, 0, MAX);
        for node in nodes {
            let at = VirtAddr(node.0.wrapping_sub(layout.node));
            let mut row = Row::at(at);
            row.set("linux.tracing.kind", "kprobe");
            match system.word(at, layout.at, "kprobe.addr") {
                Ok(place) => function(ground, "linux.tracing.target", place, &mut row),
                Err(error) => row.error("linux.tracing.target", &base::log::chain(&error)),
            }
            if let Ok(Some(_)) = system.pointer(at, layout.symbol, "kprobe.symbol_name") {
                row.read("linux.tracing.symbol", mounts::text(system, at, layout.symbol));
                row.read("linux.tracing.offset", system.half(at, layout.offset, "kprobe.offset"));
            }
            for (key, offset) in
                [("linux.tracing.function", layout.before), ("linux.tracing.after", layout.after)]
            {
                match system.pointer(at, offset, "a function of a kprobe") {
                    Ok(Some(handler)) => function(ground, key, handler.0, &mut row),
                    Ok(None) => {}
                    Err(error) => row.error(key, &base::log::chain(&error)),
                }
            }
            row.read("linux.tracing.missed", system.word(at, layout.missed, "kprobe.nmissed"));
            let words = |flags: u32| {
                let set = KPROBE.into_iter().filter(|(bit, _)| flags >> bit & 1 == 1);
                set.map(|(_, word)| word).collect::<Vec<_>>()
            };
            row.read("linux.tracing.flags", system.half(at, layout.flags, "kprobe.flags").map(words));
            rows.add(&row)?;
        }
        if !whole {
            rows.miss("kprobes", &format!("list {bucket} of them cannot be read to its end"))?;
        }
    }
    Ok(())
}

impl Layout {
    fn functions(
        &self,
        ground: &Ground<'_>,
        rows: &mut Rows<'_>,
        layout: &OpsLayout,
        first: VirtAddr,
    ) -> Result<(), Stop> {
        let system = ground.system;
        let Some(last) = self.symbols.last else {
            return rows.miss("functions that ftrace calls", &"there is no symbol ftrace_list_end");
        };
        let first = match system.follow(first, 0, "ftrace_ops_list") {
            Ok(first) => first,
            Err(error) => return rows.miss("functions that ftrace calls", &base::log::chain(&error)),
        };
        let (all, whole) = list::chain(system.kernel, first, layout.next, MAX);
        let reaches_end = all.contains(&last);
        for at in all.into_iter().take_while(|at| *at != last) {
            let mut row = Row::at(at);
            row.set("linux.tracing.kind", "ftrace");
            // The function itself, where another one is called in its place to protect it.
            let saved = layout.saved.and_then(|saved| system.pointer(at, saved, "ftrace_ops").ok().flatten());
            let target =
                saved.map_or_else(|| system.word(at, layout.function, "ftrace_ops.func"), |at| Ok(at.0));
            match target {
                Ok(target) => function(ground, "linux.tracing.function", target, &mut row),
                Err(error) => row.error("linux.tracing.function", &base::log::chain(&error)),
            }
            let flags = system.word(at, layout.flags, "ftrace_ops.flags");
            row.read("linux.tracing.flags", flags.map(|flags| format!("{flags:#x}")));
            if let Some(trampoline) = layout.trampoline {
                let at = system.word(at, trampoline, "ftrace_ops.trampoline");
                row.read("linux.tracing.trampoline", at.map(|at| format!("{at:#x}")));
            }
            rows.add(&row)?;
        }
        if whole || reaches_end {
            Ok(())
        } else {
            rows.miss("functions that ftrace calls", &"their list cannot be read to its end")
        }
    }
}

/// The table has distances of 32 bits from each entry to its tracepoint (`tracepoint_ptr_t` with
/// `CONFIG_HAVE_ARCH_PREL32_RELOCATIONS`, as on x86).
fn points(
    ground: &Ground<'_>,
    rows: &mut Rows<'_>,
    layout: &PointLayout,
    (start, end): (u64, u64),
    size: u64,
) -> Result<(), Stop> {
    let system = ground.system;
    let count = (end.saturating_sub(start) / 4).min(MAX_POINTS);
    let mut lost = 0_u64;
    for number in 0..count {
        let place = start.saturating_add(number.saturating_mul(4));
        let Ok(distance) = system.half(VirtAddr(place), 0, "a tracepoint") else {
            lost = lost.saturating_add(1);
            continue;
        };
        let at = VirtAddr(place.wrapping_add_signed(i64::from(distance.cast_signed())));
        let functions = match system.pointer(at, layout.functions, "tracepoint.funcs") {
            Ok(Some(functions)) => functions,
            Ok(None) => continue,
            Err(_) => {
                lost = lost.saturating_add(1);
                continue;
            }
        };
        // They end with one that is null.
        for number in 0..MAX_PROBES {
            let offset = number.saturating_mul(size);
            let mut row = Row::at(at);
            row.set("linux.tracing.kind", "tracepoint");
            row.read("linux.tracing.target", mounts::text(system, at, layout.name));
            match system.bytes(functions, offset, 16, "tracepoint.funcs") {
                Ok(bytes) => {
                    let (target, data) = (Fields(&bytes).u64(0).unwrap_or(0), Fields(&bytes).u64(8));
                    if target == 0 {
                        break;
                    }
                    function(ground, "linux.tracing.function", target, &mut row);
                    row.set("linux.tracing.data", format!("{:#x}", data.unwrap_or(0)));
                }
                Err(error) => {
                    row.error("linux.tracing.function", &base::log::chain(&error));
                    rows.add(&row)?;
                    break;
                }
            }
            rows.add(&row)?;
        }
    }
    if lost > 0 { rows.miss("tracepoints", &format!("{lost} of {count} cannot be read")) } else { Ok(()) }
}

fn uprobes(
    ground: &Ground<'_>,
    rows: &mut Rows<'_>,
    (layout, inode, superblock): &(UprobeLayout, InodeLayout, SuperLayout),
    root: VirtAddr,
) -> Result<(), Stop> {
    let system = ground.system;
    let (nodes, whole) = tree::all(system.kernel, root, MAX);
    for node in nodes {
        let at = VirtAddr(node.0.wrapping_sub(layout.node));
        let mut row = Row::at(at);
        row.set("linux.tracing.kind", "uprobe");
        row.read("linux.tracing.offset", system.word(at, layout.offset, "uprobe.offset"));
        match system.follow(at, layout.inode, "uprobe.inode") {
            Ok(of) => {
                let number = system.word(of, inode.number, "inode.i_ino");
                row.read("file.inode", number.map(|number| number.to_string()));
                let device = system.follow(of, inode.superblock, "inode.i_sb");
                let device = device.and_then(|at| system.half(at, superblock.device, "super_block.s_dev"));
                row.read("file.device", device.map(super::files::device_name));
            }
            Err(error) => row.error("file.inode", &base::log::chain(&error)),
        }
        rows.add(&row)?;
    }
    if whole { Ok(()) } else { rows.miss("uprobes", &"parts of their tree cannot be read") }
}
