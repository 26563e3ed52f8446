//! Reading pages one after the other: what the next page most likely needs too is kept.

use core::fmt;
use std::io;

use crate::format::kdump::{Compression, DESC_LEN, PageDesc};
use crate::source::kdump::Kdump;
use crate::source::kdump::bitmap::{self, WORD};
use crate::source::kdump::set::Part;
use crate::source::kdump::unpack::Unpacker;
use crate::source::{PageReader, ReadError};
use base::addr::{Pfn, PhysAddr, to_u64, to_usize};
use base::read_at::ReadAt;

/// Descriptors that are read at a time.
const DESCS: u64 = 256;

/// The last block of bitmap 2, the last descriptors and the last page. 20 KiB with 4 KiB pages.
#[derive(Default)]
pub(super) struct Cursor {
    /// Block of bitmap 2 that `words` and `before` are of.
    block: Option<u64>,
    words: Vec<u64>,
    /// Set bits in the block before each word.
    before: Vec<u32>,
    /// Part and rank in it of the first of `descs`.
    descs_at: Option<(Pfn, u64)>,
    descs: Vec<u8>,
    packed: Vec<u8>,
    unpacker: Unpacker,
    /// What `page` holds.
    pfn: Option<Pfn>,
    page: Vec<u8>,
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("block", &self.block).field("pfn", &self.pfn).finish_non_exhaustive()
    }
}

impl Cursor {
    /// Number of kept pages before `pfn`, and whether `pfn` is one itself.
    pub(super) fn rank(&mut self, dump: &Kdump, pfn: Pfn) -> io::Result<(u64, bool)> {
        let bits = bitmap::pages_per_block(dump.layout.page_size);
        let index = pfn.0.checked_div(bits).unwrap_or(0);
        let Some(&before_block) = dump.bitmaps.ranks.get(to_usize(index)) else {
            return Ok((dump.bitmaps.kept, false));
        };
        if self.block != Some(index) {
            self.load_block(dump, index)?;
        }
        let bit = pfn.0.checked_rem(bits).unwrap_or(0);
        let at = to_usize(bit >> 6); // 64 pages to the word
        let (word, before) = match (self.words.get(at), self.before.get(at)) {
            (Some(word), Some(before)) => (*word, *before),
            _ => (0, 0),
        };
        let bit = 1_u64.wrapping_shl(u32::try_from(bit & WORD.saturating_sub(1)).unwrap_or(0));
        let below = u64::from((word & bit.wrapping_sub(1)).count_ones());
        Ok((before_block.saturating_add(u64::from(before)).saturating_add(below), word & bit != 0))
    }

    fn load_block(&mut self, dump: &Kdump, index: u64) -> io::Result<()> {
        self.block = None;
        let mut block = vec![0; dump.layout.page_size.in_memory()];
        bitmap::read_block(dump.file()?, &dump.layout, dump.layout.bitmap2_offset(), index, &mut block)?;
        self.words.clear();
        self.before.clear();
        let mut ones = 0_u32;
        for word in bitmap::words(&block) {
            self.words.push(word);
            self.before.push(ones);
            ones = ones.saturating_add(word.count_ones());
        }
        self.block = Some(index);
        Ok(())
    }

    /// The part that has `pfn`, and the descriptor; `None` for a page that the dump leaves out.
    pub(super) fn desc<'a>(&mut self, dump: &'a Kdump, pfn: Pfn) -> io::Result<Option<(&'a Part, PageDesc)>> {
        let (rank, true) = self.rank(dump, pfn)? else { return Ok(None) };
        let part = dump.part_of(pfn)?;
        let rank = rank.saturating_sub(part.first_rank);
        let ahead = rank.checked_rem(DESCS).unwrap_or(0);
        let first = rank.saturating_sub(ahead);
        if self.descs_at != Some((part.start, first)) {
            self.descs_at = None;
            let offset = part.layout.desc_offset(first).ok_or(io::ErrorKind::InvalidData)?;
            self.descs.resize(to_usize(DESCS).saturating_mul(DESC_LEN), 0);
            part.read_descs(&mut self.descs, offset)?;
            self.descs_at = Some((part.start, first));
        }
        let at = to_usize(ahead).saturating_mul(DESC_LEN);
        Ok(self.descs.get(at..).and_then(PageDesc::parse).map(|desc| (part, desc)))
    }

    /// Fills `page`, which is one page long.
    pub(super) fn read_page(&mut self, dump: &Kdump, pfn: Pfn, page: &mut [u8]) -> Result<(), ReadError> {
        let addr = dump.layout.page_size.addr_of(pfn).unwrap_or(PhysAddr(u64::MAX));
        let len = page.len();
        let fail = |source| ReadError::Io { addr, len, source };
        let (part, desc) = self.desc(dump, pfn).map_err(fail)?.ok_or(ReadError::Excluded(addr))?;
        if desc.offset == 0 {
            return Err(ReadError::Excluded(addr));
        }
        self.unpack(part, desc, page).map_err(fail)
    }

    fn unpack(&mut self, part: &Part, desc: PageDesc, page: &mut [u8]) -> io::Result<()> {
        let compression = Compression::from_flags(desc.flags).ok_or_else(|| {
            io::Error::other(format!("compression flag {:#x} is not supported", desc.flags))
        })?;
        let size = to_usize(u64::from(desc.size));
        if size > page.len() || (compression == Compression::Raw && size != page.len()) {
            return Err(io::Error::other(format!("descriptor with {size} bytes of data")));
        }
        if compression == Compression::Raw {
            return part.file.read_whole(page, desc.offset);
        }
        self.packed.resize(size, 0);
        part.file.read_whole(&mut self.packed, desc.offset)?;
        self.unpacker.unpack(compression, &self.packed, page)
    }

    /// Fills `out` with bytes from `addr` on.
    pub(super) fn read_bytes(
        &mut self,
        dump: &Kdump,
        addr: PhysAddr,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let size = dump.layout.page_size;
        let mut at = addr;
        let mut rest = out;
        while !rest.is_empty() {
            let pfn = size.pfn_of(at);
            if self.pfn != Some(pfn) {
                self.pfn = None;
                let mut page = core::mem::take(&mut self.page);
                page.resize(size.in_memory(), 0);
                let result = self.read_page(dump, pfn, &mut page);
                self.page = page;
                result?;
                self.pfn = Some(pfn);
            }
            let skip = size.addr_of(pfn).map_or(0, |base| to_usize(at.0.saturating_sub(base.0)));
            let from = self.page.get(skip..).unwrap_or_default();
            let (head, tail) = rest.split_at_mut(from.len().min(rest.len()));
            head.copy_from_slice(from.get(..head.len()).unwrap_or_default());
            at = at.checked_add(to_u64(head.len())).ok_or(ReadError::Hole(at))?;
            rest = tail;
        }
        Ok(())
    }
}

/// Reads the pages of a dump.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    dump: &'a Kdump,
    cursor: Cursor,
}

impl<'a> Reader<'a> {
    pub(super) fn new(dump: &'a Kdump) -> Self {
        Self { dump, cursor: Cursor::default() }
    }
}

impl PageReader for Reader<'_> {
    fn read_exact_at(&mut self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        self.cursor.read_bytes(self.dump, addr, out)
    }

    fn read_page(&mut self, pfn: Pfn, page: &mut [u8]) -> Result<(), ReadError> {
        self.cursor.read_page(self.dump, pfn, page)
    }
}
