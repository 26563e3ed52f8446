//! A core with damaged pages over it, of which nothing is copied but those.

use crate::healthy::Region;
use anyhow::{Context, Result};
use base::addr::{PageSize, PfnRange, PhysAddr, VirtAddr};
use qemu_tests::damage::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use vmcore::kernel::Kernel;
use vmcore::source::{PageReader, PhysicalMemory, ReadError, Vmcore};

const PAGE: u64 = 4096;

/// A kind of damage, and where.
pub(crate) struct What {
    pub(crate) kind: &'static str,
    at: Vec<u64>,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:x?}", self.kind, self.at)
    }
}

/// A core under damage.
pub(crate) struct Torn<'c> {
    core: &'c Vmcore,
    /// Pages by physical address.
    pages: BTreeMap<u64, Vec<u8>>,
    absent: BTreeSet<u64>,
    /// Virtual addresses of bytes that are others, or absent.
    changed: Vec<Range<u64>>,
}

impl<'c> Torn<'c> {
    pub(crate) fn new(core: &'c Vmcore) -> Self {
        Self { core, pages: BTreeMap::new(), absent: BTreeSet::new(), changed: Vec::new() }
    }

    /// Whether a damaged byte lies in one of these ranges.
    pub(crate) fn touches(&self, ranges: &[Range<u64>]) -> bool {
        ranges.iter().any(|range| {
            self.changed.iter().any(|changed| changed.start < range.end && range.start < changed.end)
        })
    }
}

/// Damages a core, whose addresses are those of a healthy kernel.
pub(crate) struct Tearing<'t, 'c, 'k> {
    pub(crate) torn: &'t mut Torn<'c>,
    pub(crate) kernel: &'t Kernel<'k>,
}

impl Tearing<'_, '_, '_> {
    /// The page of an address, as it is now.
    fn page(&self, page: u64) -> Result<(u64, Vec<u8>)> {
        let at = self.kernel.translate(VirtAddr(page))?.0;
        let mut bytes = vec![0; 4096];
        match self.torn.pages.get(&at) {
            Some(known) => bytes.clone_from(known),
            None => self.torn.core.read_exact_at(PhysAddr(at), &mut bytes)?,
        }
        Ok((at, bytes))
    }

    /// Puts bytes at an address of one page.
    fn put(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        let (at, mut page) = self.page(address & !(PAGE - 1))?;
        let start = (address % PAGE) as usize;
        for ((place, old), new) in (address..).zip(&mut page[start..]).zip(bytes) {
            if old != new {
                *old = *new;
                match self.torn.changed.last_mut() {
                    Some(last) if last.end == place => last.end += 1,
                    _ => self.torn.changed.push(place..place + 1),
                }
            }
        }
        self.torn.pages.insert(at, page);
        Ok(())
    }

    fn lose(&mut self, page: u64) -> Result<()> {
        self.torn.absent.insert(self.kernel.translate(VirtAddr(page))?.0);
        self.torn.changed.push(page..page + PAGE);
        Ok(())
    }

    /// Damages a region.
    pub(crate) fn damage(&mut self, region: &Region, random: &mut Random) -> Result<What> {
        let address = |random: &mut Random| {
            let part = &region.parts[random.below(region.parts.len() as u64) as usize];
            part.start + random.below(part.end - part.start)
        };
        let page_of = |address: u64| address & !(PAGE - 1);
        let at = address(random);
        let kinds =
            ["bit", "bits", "word", "torn word", "zeroed page", "swapped pages", "cut", "absent page"];
        // Small damage is what is hard to see.
        let kind = kinds[[0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7][random.below(14) as usize]];
        let mut places = vec![at];
        let word = at & !7;
        match kind {
            "bit" => self.flip(at, random)?,
            "bits" => {
                places = (0..random.below(7) + 2).map(|_| address(random)).collect();
                for place in &places {
                    self.flip(*place, random)?;
                }
            }
            "word" => self.put(word, &random.word().to_le_bytes())?,
            "torn word" => {
                let half = word + 4 * random.below(2);
                self.put(half, &[[0; 4], [0xff; 4]][random.below(2) as usize])?;
            }
            "zeroed page" => self.put(page_of(at), &[0; 4096])?,
            "swapped pages" => {
                let other = page_of(address(random));
                let [(_, one), (_, two)] = [self.page(page_of(at))?, self.page(other)?];
                self.put(page_of(at), &two)?;
                self.put(other, &one)?;
                places.push(other);
            }
            "cut" => {
                let part = region.parts.iter().find(|part| part.contains(&at)).context("its part")?;
                for page in (page_of(at)..part.end).step_by(4096) {
                    self.put(page, &[0; 4096])?;
                }
            }
            _ => self.lose(page_of(at))?,
        }
        Ok(What { kind, at: places })
    }

    fn flip(&mut self, at: u64, random: &mut Random) -> Result<()> {
        let (_, page) = self.page(at & !(PAGE - 1))?;
        self.put(at, &[page[(at % PAGE) as usize] ^ 1 << random.below(8)])
    }
}

impl PhysicalMemory for Torn<'_> {
    fn page_size(&self) -> PageSize {
        self.core.page_size()
    }

    fn ranges(&self) -> &[PfnRange] {
        self.core.ranges()
    }

    fn read_exact_at(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        self.core.read_exact_at(addr, out)?;
        let end = addr.0 + out.len() as u64;
        let first = addr.0 & !(PAGE - 1);
        if let Some(page) = self.absent.range(first..end).next() {
            return Err(ReadError::Excluded(PhysAddr(*page)));
        }
        for (page, bytes) in self.pages.range(first..end) {
            let (from, to) = (addr.0.max(*page), end.min(page + PAGE));
            let damaged = &bytes[(from - page) as usize..(to - page) as usize];
            out[(from - addr.0) as usize..(to - addr.0) as usize].copy_from_slice(damaged);
        }
        Ok(())
    }

    fn page_reader(&self) -> Box<dyn PageReader + '_> {
        self.core.page_reader()
    }
}
