//! `zones.jsonl`: memory by its nodes and zones: what each is used for, and free blocks by their order, as
//! /proc/buddyinfo, /proc/zoneinfo and the files of each node show them.

use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;

use super::{Artefact, Ground, Row, Rows, Stop};
use crate::mounts;
use crate::wanted::OF_NODES;

/// Nodes (`MAX_NUMNODES`), zones of one (`MAX_NR_ZONES`), orders of a zone, and counters of a node that are
/// believed.
const MAX_NODES: u32 = 1024;
const MAX_ZONES: u64 = 8;
const MAX_ORDERS: u64 = 64;
const MAX_COUNTERS: u64 = 256;
/// Bytes of a `struct free_area`: a list for each type of pages, and a counter.
const MAX_AREA: u64 = 1024;
/// KiB of a page.
const PAGE_KIB: u64 = 4;
/// Watermarks by their number (`enum zone_watermarks`).
const MARKS: [&str; 3] = ["min", "low", "high"];
/// Counters of a node that are pages, with the names that they have in /sys/devices/system/node/nodeN/meminfo
/// (`enum node_stat_item`, include/linux/mmzone.h).
/// Those of [`OF_NODES`] come after them.
const OF_NODE: [(&str, &str); 5] = [
    ("ActiveAnon", "NR_ACTIVE_ANON"),
    ("InactiveAnon", "NR_INACTIVE_ANON"),
    ("ActiveFile", "NR_ACTIVE_FILE"),
    ("InactiveFile", "NR_INACTIVE_FILE"),
    ("Unevictable", "NR_UNEVICTABLE"),
];

layouts! {
    NodeLayout of "pglist_data" {
        zones: "node_zones",
        count: "nr_zones",
        first: "node_start_pfn",
        present: "node_present_pages",
        spanned: "node_spanned_pages",
        counters: "vm_stat",
    }
    ZoneLayout of "zone" {
        name: "name",
        first: "zone_start_pfn",
        managed: "managed_pages",
        present: "present_pages",
        spanned: "spanned_pages",
        areas: "free_area",
        counters: "vm_stat",
    } [
        marks: "_watermark" | "watermark",
    ]
    AreaLayout of "free_area" {
        count: "nr_free",
    }
}

pub(super) struct Layout {
    node: NodeLayout,
    zone: ZoneLayout,
    area: AreaLayout,
    /// Bytes of a zone and of an area; orders of a zone.
    zone_size: u64,
    area_size: u64,
    orders: u64,
    /// Counters of a node: name and number. Of a zone: free pages.
    counters: Vec<(&'static str, u64)>,
    free: Option<u64>,
    /// `node_data`: pointers to the nodes; `contig_page_data`: the one node of a kernel without them.
    nodes: Option<VirtAddr>,
    only: Option<VirtAddr>,
    number: Option<VirtAddr>,
}

impl Artefact for Layout {
    const NAME: &'static str = "zones";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let size =
            |structure: &'static str| known.size_of(structure).ok_or(Missing { structure, member: "size" });
        let counter = |&(name, item): &(&'static str, &str)| {
            let number = known.value("node_stat_item", item).filter(|number| *number < MAX_COUNTERS);
            Some((name, number?))
        };
        Ok(Self {
            node: NodeLayout::ask(known)?,
            zone: ZoneLayout::ask(known)?,
            area: AreaLayout::ask(known)?,
            zone_size: size("zone")?,
            area_size: size("free_area")?.min(MAX_AREA),
            orders: known.elements("zone", "free_area").unwrap_or(0).min(MAX_ORDERS),
            counters: OF_NODE.iter().chain(&OF_NODES).filter_map(counter).collect(),
            free: known.value("zone_stat_item", "NR_FREE_PAGES").filter(|number| *number < MAX_COUNTERS),
            nodes: known.symbol("node_data"),
            only: known.symbol("contig_page_data"),
            number: known.symbol("nr_node_ids"),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let system = ground.system;
        let Some(nodes) = self.nodes else {
            let only = self.only.ok_or_else(|| Stop::no_symbol("node_data"))?;
            return self.node(ground, rows, 0, only);
        };
        // Not there where the kernel is for one node.
        let number = self.number.and_then(|at| system.half(at, 0, "nr_node_ids").ok());
        for number in 0..number.unwrap_or(1).clamp(1, MAX_NODES) {
            match system.pointer(nodes, u64::from(number).saturating_mul(8), "node_data") {
                Ok(Some(node)) => self.node(ground, rows, number, node)?,
                Ok(None) => {}
                Err(error) => rows.miss("a node of memory", &base::log::chain(&error))?,
            }
        }
        Ok(())
    }
}

/// Pages in KiB. A counter may be some below zero for a moment.
fn kib(pages: u64) -> u64 {
    pages.cast_signed().max(0).cast_unsigned().saturating_mul(PAGE_KIB)
}

impl Layout {
    fn node(&self, ground: &Ground<'_>, rows: &mut Rows<'_>, number: u32, at: VirtAddr) -> Result<(), Stop> {
        let (system, layout) = (ground.system, &self.node);
        let mut row = Row::at(at);
        row.set("linux.zone.node", number);
        row.read("linux.zone.first_page", system.word(at, layout.first, "pglist_data.node_start_pfn"));
        for (key, offset) in
            [("linux.zone.present_kib", layout.present), ("linux.zone.spanned_kib", layout.spanned)]
        {
            row.read(key, system.word(at, offset, "pages of pglist_data").map(kib));
        }
        for (name, number) in &self.counters {
            let offset = layout.counters.saturating_add(number.saturating_mul(8));
            let pages = system.word(at, offset, "pglist_data.vm_stat");
            row.read(&format!("linux.zone.counters_kib.{name}"), pages.map(kib));
        }
        let count = system.half(at, layout.count, "pglist_data.nr_zones");
        rows.add(&row)?;
        let count = match count {
            Ok(count) => u64::from(count).min(MAX_ZONES),
            Err(error) => return rows.miss("zones", &base::log::chain(&error)),
        };
        for zone in 0..count {
            let offset = layout.zones.saturating_add(zone.saturating_mul(self.zone_size));
            let at = VirtAddr(at.0.wrapping_add(offset));
            // One that has no memory is not shown by /proc/buddyinfo.
            let present = system.word(at, self.zone.present, "zone.present_pages");
            if !present.is_ok_and(|pages| pages == 0) {
                rows.add(&self.zone(ground, number, at))?;
            }
        }
        Ok(())
    }

    fn zone(&self, ground: &Ground<'_>, node: u32, at: VirtAddr) -> Row {
        let (system, layout) = (ground.system, &self.zone);
        let mut row = Row::at(at);
        row.set("linux.zone.node", node);
        row.read("linux.zone.name", mounts::text(system, at, layout.name));
        row.read("linux.zone.first_page", system.word(at, layout.first, "zone.zone_start_pfn"));
        for (key, offset) in [
            ("linux.zone.managed_kib", layout.managed),
            ("linux.zone.present_kib", layout.present),
            ("linux.zone.spanned_kib", layout.spanned),
        ] {
            row.read(key, system.word(at, offset, "pages of a zone").map(kib));
        }
        if let Some(free) = self.free {
            let offset = layout.counters.saturating_add(free.saturating_mul(8));
            row.read("linux.zone.free_kib", system.word(at, offset, "zone.vm_stat").map(kib));
        }
        if let Some(marks) = layout.marks {
            for (number, name) in (0_u64..).zip(MARKS) {
                let pages = system.word(at, marks.saturating_add(number.saturating_mul(8)), "zone.watermark");
                row.read(&format!("linux.zone.{name}_kib"), pages.map(kib));
            }
        }
        let len = to_usize(self.orders.saturating_mul(self.area_size));
        let areas = system.bytes(at, layout.areas, len, "zone.free_area");
        let blocks = areas.map(|areas| {
            let size = to_usize(self.area_size).max(1);
            let count = |area: &[u8]| Fields(area).u64(to_usize(self.area.count)).unwrap_or(0);
            areas.chunks(size).map(count).collect::<Vec<u64>>()
        });
        row.read("linux.zone.free_blocks", blocks);
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_below_zero_is_none() {
        assert_eq!((kib(3), kib(u64::MAX)), (12, 0));
    }
}
