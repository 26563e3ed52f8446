//! `swap.jsonl`: swap areas, as /proc/swaps shows them.

use ::processes::names;
use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;

use super::{Artefact, Ground, Row, Rows, Stop};

/// `MAX_SWAPFILES` is below.
const MAX: u32 = 32;
/// `SWP_USED`, `SWP_WRITEOK` (include/linux/swap.h)
const USED: u64 = 1;
const WRITABLE: u64 = 2;
/// KiB of a page.
const PAGE_KIB: u64 = 4;
/// The counter of pages in use has a mark above it since 6.13 (`SWAP_USAGE_OFFLIST_BIT`).
const COUNTER: u64 = (1 << 30) - 1;

layouts! {
    AreaLayout of "swap_info_struct" {
        flags: "flags",
        priority: "prio",
        pages: "pages",
        used: "inuse_pages",
        file: "swap_file",
    }
}

pub(super) struct Layout {
    area: AreaLayout,
    areas: Option<VirtAddr>,
    count: Option<VirtAddr>,
}

impl Artefact for Layout {
    const NAME: &'static str = "swap";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let (areas, count) = (known.symbol("swap_info"), known.symbol("nr_swapfiles"));
        Ok(Self { area: AreaLayout::ask(known)?, areas, count })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let system = ground.system;
        let areas = self.areas.ok_or_else(|| Stop::no_symbol("swap_info"))?;
        let count = self.count.ok_or_else(|| Stop::no_symbol("nr_swapfiles"))?;
        let count = system.half(count, 0, "nr_swapfiles");
        let count = count.map_err(|error| Stop::Start(base::log::chain(&error)))?;
        for number in 0..count.min(MAX) {
            let area = system.pointer(areas, u64::from(number).saturating_mul(8), "swap_info");
            match area {
                Ok(Some(area)) => {
                    // What was swapped off leaves its place.
                    let flags = system.word(area, self.area.flags, "swap_info_struct.flags");
                    if flags.as_ref().is_ok_and(|flags| flags & USED == 0) {
                        continue;
                    }
                    let mut row = self.row(ground, area);
                    row.read("linux.swap.writable", flags.map(|flags| flags & WRITABLE != 0));
                    rows.add(&row)?;
                }
                Ok(None) => {}
                Err(error) => rows.miss("swap_info", &base::log::chain(&error))?,
            }
        }
        Ok(())
    }
}

impl Layout {
    fn row(&self, ground: &Ground<'_>, area: VirtAddr) -> Row {
        let (system, layout) = (ground.system, &self.area);
        let mut row = Row::at(area);
        let path = system.follow(area, layout.file, "swap_info_struct.swap_file");
        let path = path.and_then(|file| names::path(system, file));
        row.read("file.path", path.map(|path| String::from_utf8_lossy(&path).into_owned()));
        let kib = |pages: u64| pages.saturating_mul(PAGE_KIB);
        let pages = system.half(area, layout.pages, "swap_info_struct.pages");
        row.read("linux.swap.kib", pages.map(|pages| kib(pages.into())));
        // Of 32 bits, and of 64 since 6.13: the lower half is what counts.
        let used = system.half(area, layout.used, "swap_info_struct.inuse_pages");
        row.read("linux.swap.used_kib", used.map(|pages| kib(u64::from(pages) & COUNTER)));
        let priority = system.short(area, layout.priority, "swap_info_struct.prio");
        row.read("linux.swap.priority", priority.map(u16::cast_signed));
        row
    }
}
