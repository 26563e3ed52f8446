//! A kdump-compressed dump as physical memory again: for `inspect`, `dmesg` and tests of our own writer.
//!
//! Only the prefix counts of the second bitmap stay in memory (8 bytes per 128 MiB of the old machine).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::addr::{PageSize, Pfn, PfnRange, PhysAddr, to_u64, to_usize};
use crate::format::kdump::{self, Compression, Header, KdumpError, Layout, PageDesc};
use crate::format::vmcoreinfo::{self, VmcoreInfo};
use crate::source::{PageReader, PhysicalMemory, ReadError};

/// Most memory ranges that are believed; real machines have tens.
const MAX_RANGES: usize = 1 << 20;

/// Why a file cannot be read as a dump.
#[derive(Debug, thiserror::Error)]
pub enum KdumpOpenError {
    /// A part cannot be read.
    #[error("reading {what} of the dump")]
    Read {
        /// Which part.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// Its headers make no sense.
    #[error("the dump is not usable")]
    Format(#[from] KdumpError),
}

/// An open dump.
#[derive(Debug)]
pub struct Kdump {
    file: File,
    layout: Layout,
    header: Header,
    info: VmcoreInfo,
    ranges: Vec<PfnRange>,
    /// Kept pages before each block of bitmap 2.
    ranks: Vec<u64>,
    kept: u64,
}

impl Kdump {
    /// Whether the file at `path` has a dump's signature.
    pub fn is_dump(path: &Path) -> io::Result<bool> {
        let mut head = Vec::new();
        File::open(path)?.take(8).read_to_end(&mut head)?;
        Ok(kdump::has_signature(&head))
    }

    /// Opens a dump and reads its headers and bitmaps.
    pub fn open(path: &Path) -> Result<Self, KdumpOpenError> {
        let read = |what| move |source| KdumpOpenError::Read { what, source };
        let file = File::open(path).map_err(read("file"))?;
        let file_len = file.metadata().map_err(read("length"))?.len();
        let mut block0 = Vec::new();
        (&file).take(65536).read_to_end(&mut block0).map_err(read("header"))?;
        if !kdump::has_signature(&block0) {
            return Err(KdumpError::Signature.into());
        }
        let page_size = kdump::block_size(&block0)?;
        let mut sub = vec![0; kdump::SUB_HEADER_LEN];
        file.read_exact_at(&mut sub, page_size.bytes()).map_err(read("sub header"))?;
        let (layout, header) = kdump::parse_headers(&block0, &sub)?;
        let (info_at, info_len) = header.vmcoreinfo;
        let mut text = vec![0; to_usize(info_len.min(to_u64(vmcoreinfo::MAX_LEN)))];
        file.read_exact_at(&mut text, info_at).map_err(read("VMCOREINFO"))?;
        if layout.descs_offset() > file_len {
            return Err(KdumpError::Truncated.into());
        }
        let mut dump = Self {
            file,
            layout,
            header,
            info: VmcoreInfo::parse(&text),
            ranges: Vec::new(),
            ranks: Vec::new(),
            kept: 0,
        };
        dump.read_bitmaps().map_err(read("bitmaps"))?;
        Ok(dump)
    }

    /// What the header says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where the parts lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// VMCOREINFO; empty if the dump has none.
    #[must_use]
    pub fn info(&self) -> &VmcoreInfo {
        &self.info
    }

    /// Pages that have a descriptor.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// The ELF notes, up to 16 MiB of them.
    pub fn notes(&self) -> io::Result<Vec<u8>> {
        let (offset, len) = self.header.notes;
        let mut bytes = vec![0; to_usize(len.min(16 << 20))];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// The page descriptor of `pfn`, or `None` for a page that the dump leaves out.
    pub fn desc(&self, pfn: Pfn) -> io::Result<Option<PageDesc>> {
        let Some(rank) = self.rank(pfn)? else { return Ok(None) };
        let mut bytes = [0; kdump::DESC_LEN];
        let offset = self.layout.desc_offset(rank).ok_or(io::ErrorKind::InvalidData)?;
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(PageDesc::parse(&bytes))
    }

    /// Calls `each` with every descriptor, in page order, reading them in large pieces.
    pub fn for_each_desc(&self, mut each: impl FnMut(PageDesc)) -> io::Result<()> {
        let mut left = self.kept;
        let mut offset = self.layout.descs_offset();
        let mut bytes = vec![0; kdump::DESC_LEN.saturating_mul(4096)];
        while left > 0 {
            let count = to_usize(left.min(4096));
            let part = bytes.get_mut(..count.saturating_mul(kdump::DESC_LEN)).unwrap_or_default();
            self.file.read_exact_at(part, offset)?;
            part.chunks_exact(kdump::DESC_LEN).filter_map(PageDesc::parse).for_each(&mut each);
            left = left.saturating_sub(to_u64(count));
            offset = offset.saturating_add(to_u64(part.len()));
        }
        Ok(())
    }

    fn read_bitmaps(&mut self) -> io::Result<()> {
        let mut block = vec![0; self.layout.page_size.in_memory()];
        let bits = self.bits_per_block();
        let mut ranges = RangeBuilder::default();
        for index in 0..self.layout.bitmap_blocks {
            self.read_block(self.layout.bitmap1_offset(), index, &mut block)?;
            ranges.add(&block, index.saturating_mul(bits), self.layout.max_mapnr);
            if ranges.ranges.len() > MAX_RANGES {
                return Err(io::Error::other(format!("more than {MAX_RANGES} memory ranges")));
            }
            self.read_block(self.layout.bitmap2_offset(), index, &mut block)?;
            self.ranks.push(self.kept);
            let ones = block.iter().fold(0_u64, |sum, byte| sum.saturating_add(u64::from(byte.count_ones())));
            self.kept = self.kept.saturating_add(ones);
        }
        self.ranges = ranges.finish();
        Ok(())
    }

    fn read_block(&self, base: u64, index: u64, block: &mut [u8]) -> io::Result<()> {
        let offset = base.saturating_add(index.saturating_mul(to_u64(block.len())));
        self.file.read_exact_at(block, offset)
    }

    fn bits_per_block(&self) -> u64 {
        self.layout.page_size.bytes().saturating_mul(8)
    }

    /// The position of `pfn` among the kept pages.
    fn rank(&self, pfn: Pfn) -> io::Result<Option<u64>> {
        let bits = self.bits_per_block();
        let index = pfn.0.checked_div(bits).unwrap_or(0);
        let Some(&before) = self.ranks.get(to_usize(index)) else { return Ok(None) };
        let mut block = vec![0; self.layout.page_size.in_memory()];
        self.read_block(self.layout.bitmap2_offset(), index, &mut block)?;
        let bit = pfn.0.checked_rem(bits).unwrap_or(0);
        let (byte, shift) = (to_usize(bit >> 3), bit & 7);
        let here = block.get(byte).copied().unwrap_or(0);
        if here >> shift & 1 == 0 {
            return Ok(None);
        }
        let whole = block.iter().take(byte).fold(0_u64, |n, b| n.saturating_add(u64::from(b.count_ones())));
        let below = (0..shift).filter(|shift| here >> shift & 1 == 1).count();
        Ok(Some(before.saturating_add(whole).saturating_add(to_u64(below))))
    }

    fn read_page(&self, pfn: Pfn, page: &mut [u8]) -> Result<(), ReadError> {
        let addr = self.layout.page_size.addr_of(pfn).unwrap_or(PhysAddr(u64::MAX));
        let len = page.len();
        let fail = |source| ReadError::Io { addr, len, source };
        let desc = self.desc(pfn).map_err(fail)?.ok_or(ReadError::Excluded(addr))?;
        if desc.offset == 0 {
            return Err(ReadError::Excluded(addr));
        }
        let compression = Compression::from_flags(desc.flags).ok_or_else(|| {
            fail(io::Error::other(format!("compression flag {:#x} is not supported", desc.flags)))
        })?;
        let size = to_usize(u64::from(desc.size));
        if size > len || (compression == Compression::Raw && size != len) {
            return Err(fail(io::Error::other(format!("descriptor with {size} bytes of data"))));
        }
        if compression == Compression::Raw {
            return self.file.read_exact_at(page, desc.offset).map_err(fail);
        }
        let mut packed = vec![0; size];
        self.file.read_exact_at(&mut packed, desc.offset).map_err(fail)?;
        let got = match compression {
            Compression::Raw => Ok(0),
            Compression::Zstd => zstd::bulk::decompress_to_buffer(&packed, page),
            Compression::Zlib => inflate(&packed, page),
        };
        match got.map_err(fail)? {
            whole if whole == len => Ok(()),
            short => Err(fail(io::Error::other(format!("page data of {short} bytes")))),
        }
    }
}

fn inflate(packed: &[u8], page: &mut [u8]) -> io::Result<usize> {
    let mut stream = flate2::Decompress::new(true);
    stream.decompress(packed, page, flate2::FlushDecompress::Finish).map_err(io::Error::other)?;
    Ok(to_usize(stream.total_out()))
}

impl PhysicalMemory for Kdump {
    fn page_size(&self) -> PageSize {
        self.layout.page_size
    }

    fn ranges(&self) -> &[PfnRange] {
        &self.ranges
    }

    fn read_exact_at(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        let size = self.layout.page_size;
        let mut page = vec![0; size.in_memory()];
        let mut at = addr;
        let mut rest = out;
        while !rest.is_empty() {
            let pfn = size.pfn_of(at);
            self.read_page(pfn, &mut page)?;
            let skip = size.addr_of(pfn).map_or(0, |base| to_usize(at.0.saturating_sub(base.0)));
            let from = page.get(skip..).unwrap_or_default();
            let (head, tail) = rest.split_at_mut(from.len().min(rest.len()));
            head.copy_from_slice(from.get(..head.len()).unwrap_or_default());
            at = at.checked_add(to_u64(head.len())).ok_or(ReadError::Hole(at))?;
            rest = tail;
        }
        Ok(())
    }

    fn page_reader(&self) -> Box<dyn PageReader + '_> {
        Box::new(self)
    }
}

impl PageReader for &Kdump {
    fn read_page(&mut self, pfn: Pfn, page: &mut [u8]) -> Result<(), ReadError> {
        Kdump::read_page(self, pfn, page)
    }
}

/// Collects the runs of set bits of a bitmap that comes block by block.
#[derive(Default)]
struct RangeBuilder {
    ranges: Vec<PfnRange>,
    open: Option<Pfn>,
    end: Pfn,
}

impl RangeBuilder {
    fn add(&mut self, block: &[u8], first: u64, limit: u64) {
        let bits = block.iter().flat_map(|byte| (0..8).map(move |shift| byte >> shift & 1 == 1));
        for (bit, pfn) in bits.zip(first..limit) {
            match (bit, self.open) {
                (true, None) => self.open = Some(Pfn(pfn)),
                (false, Some(start)) => {
                    self.ranges.extend(PfnRange::new(start, Pfn(pfn)));
                    self.open = None;
                }
                _ => (),
            }
            self.end = Pfn(pfn).saturating_add(1);
        }
    }

    fn finish(mut self) -> Vec<PfnRange> {
        self.ranges.extend(self.open.and_then(|start| PfnRange::new(start, self.end)));
        self.ranges
    }
}
