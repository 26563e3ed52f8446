//! `memory.jsonl`: what memory is used for: the counters of /proc/meminfo, and the caches of objects as
//! /proc/slabinfo shows them.

use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::{Missing, optional};
use symbols::{layouts, list};
use vmcore::kernel::KernelError;

use super::{Artefact, Ground, Row, Rows, Stop};
use crate::mounts;
use crate::numbers;
use crate::wanted::{Machine, Wanted};

/// Caches that are believed, and slabs of one that are not full.
const MAX: usize = 10_000;
const MAX_PARTIAL: usize = 200_000;
/// NUMA nodes (`MAX_NUMNODES`).
const MAX_NODES: u32 = 1024;
/// A number of objects and the order of pages that they are in share a word: `OO_SHIFT`, mm/slub.c.
const ORDER_SHIFT: u32 = 16;
/// No slab is larger.
const MAX_ORDER: u32 = 10;
const PAGE: u64 = 4096;
/// How many objects a slab has is told in 15 bits, behind how many are in use.
const OBJECTS: u16 = 0x7fff;

layouts! {
    CacheLayout of "kmem_cache" {
        list: "list",
        name: "name",
        size: "size",
        object: "object_size",
        order: "oo.x",
        nodes: "node" | "per_node",
    }
    NodeLayout of "kmem_cache_node" {
        partial: "partial",
    } [
        slabs: "nr_slabs",
        objects: "total_objects",
    ]
}

/// Where a slab says that it is in the list of those that are not full, and how many objects it has in
/// use: in `struct slab`, before 5.17 in `struct page`.
#[derive(Clone, Copy)]
struct Slab {
    list: u64,
    used: u64,
}

impl Slab {
    fn ask(known: &dyn Knowledge) -> Option<Self> {
        let structure = if known.size_of("slab").is_some() { "slab" } else { "page" };
        let list = optional(known, structure, &["slab_list"])?;
        Some(Self { list, used: optional(known, structure, &["inuse"])? })
    }
}

pub(super) struct Layout {
    cache: CacheLayout,
    node: NodeLayout,
    slab: Option<Slab>,
    /// Where the pointer to the first NUMA node's part is, and bytes from there to the next one's.
    first: u64,
    step: u64,
    caches: Option<VirtAddr>,
    nodes: Option<VirtAddr>,
    machine: Machine,
}

impl Artefact for Layout {
    const NAME: &'static str = "memory";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let cache = CacheLayout::ask(known)?;
        // Two pointers for each node, in 7.x.
        let pair = known.offset("kmem_cache_per_node_ptrs", "node");
        Ok(Self {
            first: cache.nodes.saturating_add(pair.unwrap_or(0)),
            cache,
            node: NodeLayout::ask(known)?,
            slab: Slab::ask(known),
            step: known.size_of("kmem_cache_per_node_ptrs").unwrap_or(8),
            caches: known.symbol("slab_caches"),
            nodes: known.symbol("nr_node_ids"),
            machine: Wanted::ask(known).machine,
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let kernel = ground.system.kernel;
        for (name, kib) in numbers::read(kernel, &self.machine, None).memory {
            let mut row = Row::default();
            row.set("linux.memory.counter", name);
            row.set("linux.memory.kib", kib);
            rows.add(&row)?;
        }
        let head = self.caches.ok_or_else(|| Stop::no_symbol("slab_caches"))?;
        let (caches, whole) = list::all(kernel, head, MAX);
        for entry in caches {
            rows.add(&self.row(ground, VirtAddr(entry.0.wrapping_sub(self.cache.list))))?;
        }
        if whole { Ok(()) } else { rows.miss("caches of objects", &"their list cannot be read to its end") }
    }
}

/// Objects and slabs of a cache.
#[derive(Default)]
struct Counts {
    slabs: u64,
    objects: u64,
    free: u64,
}

impl Layout {
    fn row(&self, ground: &Ground<'_>, at: VirtAddr) -> Row {
        let (system, cache) = (ground.system, &self.cache);
        let mut row = Row::at(at);
        row.read("linux.slab.name", mounts::text(system, at, cache.name));
        row.read("linux.slab.object_bytes", system.half(at, cache.object, "kmem_cache.object_size"));
        row.read("linux.slab.slot_bytes", system.half(at, cache.size, "kmem_cache.size"));
        let order = system.half(at, cache.order, "kmem_cache.oo").map(|word| word >> ORDER_SHIFT);
        let mut counts = Counts::default();
        let nodes = self.nodes.and_then(|at| system.half(at, 0, "nr_node_ids").ok());
        for number in 0..nodes.unwrap_or(1).clamp(1, MAX_NODES) {
            let offset = u64::from(number).saturating_mul(self.step).saturating_add(self.first);
            let node = system.pointer(at, offset, "kmem_cache.node");
            let counted =
                node.and_then(|node| node.map(|node| self.node(ground, node, &mut counts)).transpose());
            if let Err(error) = counted {
                row.error("linux.slab.objects", &base::log::chain(&error));
            }
        }
        if self.node.slabs.is_none() || self.node.objects.is_none() {
            row.error("linux.slab.objects", &"the kernel does not count them (CONFIG_SLUB_DEBUG is off)");
            return row;
        }
        row.set("linux.slab.slabs", counts.slabs);
        row.set("linux.slab.objects", counts.objects);
        if self.slab.is_some() {
            row.set("linux.slab.objects_used", counts.objects.saturating_sub(counts.free));
        }
        // The order that slabs have; where memory was short they may be smaller.
        let bytes = |order: u32| counts.slabs.saturating_mul(PAGE.wrapping_shl(order.min(MAX_ORDER)));
        row.read("linux.slab.bytes", order.map(bytes));
        row
    }

    fn node(&self, ground: &Ground<'_>, at: VirtAddr, counts: &mut Counts) -> Result<(), KernelError> {
        let system = ground.system;
        let word = |offset: Option<u64>| {
            offset.map_or(Ok(0), |offset| system.word(at, offset, "a counter of kmem_cache_node"))
        };
        counts.slabs = counts.slabs.saturating_add(word(self.node.slabs)?);
        counts.objects = counts.objects.saturating_add(word(self.node.objects)?);
        let Some(slab) = self.slab else { return Ok(()) };
        let what = "the list of slabs that are not full";
        let head = at.checked_add(self.node.partial).ok_or(KernelError::Absurd { what, value: at.0 })?;
        let (entries, whole) = list::all(system.kernel, head, MAX_PARTIAL);
        for entry in entries {
            let at = VirtAddr(entry.0.wrapping_sub(slab.list));
            let used = system.short(at, slab.used, "slab.inuse")?;
            let all = system.short(at, slab.used.saturating_add(2), "slab.objects")? & OBJECTS;
            counts.free = counts.free.saturating_add(all.saturating_sub(used).into());
        }
        if whole { Ok(()) } else { Err(KernelError::Absurd { what, value: head.0 }) }
    }
}
