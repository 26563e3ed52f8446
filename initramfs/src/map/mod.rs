//! Physical memory by page class, as a picture: cells of equal size over the address space, in
//! rows, with what the pages of each cell are and what became of them. [`svg`], [`png`] and
//! [`text`] draw it.
//!
//! The number of rows and cells is bounded, whatever the size of the memory or what its headers
//! claim. Nothing here reads memory.

mod paint;
pub mod png;
pub mod svg;
mod tally;
pub mod text;

use std::collections::BTreeMap;

use base::addr::{Pfn, PfnRange};
use vmcore::filter::PageClass;

pub use paint::{LOST, LOST_ANSI, PAINTS, Paint, Shade};
pub use tally::{Fate, Part, Tally};

/// Cells of a row. A power of two, so that rows begin at round addresses.
pub const COLUMNS: u64 = 128;
/// Most rows that have memory.
pub const MAX_ROWS: usize = 36;
/// The map of a memory.
#[derive(Clone, Debug)]
pub struct Map {
    page_bytes: u64,
    cell_pages: u64,
    /// By the number of the cell; cells without memory have none.
    cells: BTreeMap<u64, Tally>,
    /// Whether this is memory in a dump, of which pages may be left out.
    is_dump: bool,
}

/// A line of the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Cells from an address on, [`COLUMNS`] of them; `None` where there is no memory.
    Row {
        /// First address.
        start: u64,
        /// The cells.
        cells: Vec<Option<Tally>>,
    },
    /// Addresses without memory, as many rows as there are.
    Gap {
        /// First address.
        start: u64,
        /// First address that has a row again.
        end: u64,
    },
}

impl Map {
    /// An empty map of `memory`, whose ranges are sorted. A cell is as many pages as it takes to
    /// have few rows.
    #[must_use]
    pub fn new(memory: &[PfnRange], page_bytes: u64, is_dump: bool) -> Self {
        let rows = |cell_pages: u64| {
            let row = cell_pages.saturating_mul(COLUMNS);
            let (mut rows, mut next) = (0_u64, 0_u64);
            for range in memory {
                let first = (range.start().0.checked_div(row).unwrap_or(0)).max(next);
                next = range.end().0.div_ceil(row.max(1));
                rows = rows.saturating_add(next.saturating_sub(first));
            }
            rows
        };
        let limit = u64::try_from(MAX_ROWS).unwrap_or(u64::MAX);
        let mut cell_pages = 1_u64;
        while rows(cell_pages) > limit && cell_pages < 1 << 56 {
            cell_pages = cell_pages.saturating_mul(2);
        }
        Self { page_bytes, cell_pages, cells: BTreeMap::new(), is_dump }
    }

    /// Counts a run of pages.
    pub fn add(&mut self, run: PfnRange, class: PageClass, fate: Fate) {
        let mut at = run.start();
        while at < run.end() {
            let number = at.0.checked_div(self.cell_pages).unwrap_or(0);
            let end = Pfn(number.saturating_add(1).saturating_mul(self.cell_pages)).min(run.end());
            let pages = end.0.saturating_sub(at.0);
            self.cells.entry(number).or_default().add(class, fate, pages);
            at = end;
        }
    }

    /// Bytes of a cell.
    #[must_use]
    pub fn cell_bytes(&self) -> u64 {
        self.cell_pages.saturating_mul(self.page_bytes)
    }

    /// Bytes of a row.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.cell_bytes().saturating_mul(COLUMNS)
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// Whether pages may have another fate than [`Fate::Stored`].
    #[must_use]
    pub fn is_dump(&self) -> bool {
        self.is_dump
    }

    /// All pages.
    #[must_use]
    pub fn total(&self) -> Tally {
        let mut total = Tally::default();
        self.cells.values().for_each(|cell| total.merge(cell));
        total
    }

    /// The picture from low addresses to high ones.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let address = |row: u64| row.saturating_mul(self.row_bytes());
        let mut rows: BTreeMap<u64, Vec<Option<Tally>>> = BTreeMap::new();
        for (number, tally) in &self.cells {
            let row = rows.entry(number / COLUMNS).or_insert_with(|| (0..COLUMNS).map(|_| None).collect());
            let column = base::addr::to_usize(number % COLUMNS);
            row.get_mut(column).into_iter().for_each(|cell| *cell = Some(*tally));
        }
        let (mut lines, mut next) = (Vec::new(), 0);
        for (row, cells) in rows {
            if row > next {
                lines.push(Line::Gap { start: address(next), end: address(row) });
            }
            lines.push(Line::Row { start: address(row), cells });
            next = row.saturating_add(1);
        }
        lines
    }
}

/// A number of bytes for people: in the largest unit that it is a whole number of.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes;
    for unit in UNITS {
        if value == 0 || !value.is_multiple_of(1024) {
            return format!("{value} {unit}");
        }
        value /= 1024;
    }
    format!("{bytes} B")
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) fn range(start: u64, end: u64) -> PfnRange {
        PfnRange::new(Pfn(start), Pfn(end)).unwrap()
    }

    /// Two rows and a gap: some of each.
    pub(crate) fn small() -> Map {
        let mut map = Map::new(&[range(0, 6), range(0x200, 0x204)], 4096, true);
        for (pages, class, fate) in [
            (range(0, 2), PageClass::Kernel, Fate::Stored),
            (range(2, 4), PageClass::User, Fate::LeftOut),
            (range(4, 5), PageClass::Free, Fate::Zero),
            (range(5, 6), PageClass::Cache, Fate::Lost),
            (range(0x200, 0x204), PageClass::Slab, Fate::Stored),
        ] {
            map.add(pages, class, fate);
        }
        map
    }

    /// A row of kernel memory with one poisoned page (cell 20), one lost (cell 23), and one that is offline
    /// (cell 40) in cells of 4096 pages. Where rounding would draw it nowhere: reserved pages stand behind it
    /// in the legend.
    pub(crate) fn damaged() -> Map {
        let cell = 4096;
        let pages = cell * COLUMNS * u64::try_from(MAX_ROWS).unwrap();
        let mut map = Map::new(&[range(0, pages)], 4096, true);
        let at = |number: u64| range(number * cell, (number + 1) * cell - 1);
        let last = |number: u64| range((number + 1) * cell - 1, (number + 1) * cell);
        for number in 0..124 {
            map.add(at(number), PageClass::Kernel, Fate::Stored);
            let (class, fate) = match number {
                20 => (PageClass::Poisoned, Fate::LeftOut),
                23 => (PageClass::Cache, Fate::Lost),
                40 => (PageClass::Offline, Fate::LeftOut),
                _ => (PageClass::Kernel, Fate::Stored),
            };
            map.add(last(number), class, fate);
        }
        map.add(range(20 * cell, 20 * cell + 117), PageClass::Reserved, Fate::Stored);
        map
    }

    /// Every cell has as many parts as can be, and no two neighbours are alike.
    pub(crate) fn worst() -> Map {
        let pages = 64 * COLUMNS * u64::try_from(MAX_ROWS).unwrap();
        let mut map = Map::new(&[range(0, pages)], 4096, true);
        for pfn in 0..pages {
            let (cell, odd) = (pfn / 64, u64::from(pfn % 3 == 0));
            let class = PAINTS[usize::try_from((cell * 3 + pfn % 4) % 10).unwrap()].class;
            map.add(range(pfn, pfn + 1), class, Fate::ALL[usize::try_from(odd * 2).unwrap()]);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{range, small};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_and_gaps() {
        let map = small();
        assert_eq!((map.cell_bytes(), map.row_bytes()), (4096, 0x8_0000));
        let lines = map.lines();
        let [Line::Row { start: 0, cells }, gap, Line::Row { start: 0x20_0000, .. }] = &lines[..] else {
            panic!("{lines:?}")
        };
        assert_eq!(*gap, Line::Gap { start: 0x8_0000, end: 0x20_0000 });
        assert_eq!(cells.len(), 128);
        assert_eq!(cells.iter().flatten().count(), 6);
        assert_eq!(cells[2].unwrap().main_shade(), Some(Shade::LeftOut(4)));
        assert_eq!(cells[5].unwrap().main_shade(), Some(Shade::Lost));
        assert_eq!((map.total().pages(), map.total().of_fate(Fate::LeftOut)), (10, 2));
        assert!(Map::new(&[], 4096, false).lines().is_empty());
    }

    #[test]
    fn sizes_are_whole_numbers() {
        for (bytes, text) in
            [(0, "0 B"), (4096, "4 KiB"), (3 << 20, "3 MiB"), (1 << 63, "8 EiB"), (1025, "1025 B")]
        {
            assert_eq!(bytes_text(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn rows_are_few_and_no_page_is_lost(
            cuts in prop::collection::btree_set(0_u64..1 << 52, 2..40),
        ) {
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let memory: Vec<_> = cuts.chunks_exact(2).map(|pair| range(pair[0], pair[1])).collect();
            let mut map = Map::new(&memory, 4096, false);
            for run in &memory {
                map.add(*run, PageClass::Free, Fate::Stored);
            }
            let rows = map.lines().iter().filter(|line| matches!(line, Line::Row { .. })).count();
            prop_assert!(rows <= MAX_ROWS);
            let pages = memory.iter().fold(0, |sum, run| sum + run.pages());
            prop_assert_eq!(map.total().pages(), pages);
        }

    }
}
