//! The kdump-compressed format, version 6: headers, sub header, page descriptors (bytes only, no
//! I/O).
//!
//! ```text
//! block 0            disk_dump_header
//! block 1 ..         kdump_sub_header, then the ELF notes
//! ..                 bitmap 1 (page exists), bitmap 2 (page has a descriptor)
//! ..                 page_desc[popcount(bitmap 2)], in PFN order
//! ..                 page data, any order, shared or with gaps
//! ```
//! Field names and offsets are those of makedumpfile's `diskdump_mod.h` on a 64-bit little-endian
//! machine, which crash and libkdumpfile read alike.

use base::addr::{PageSize, Pfn, to_u64};
use base::fields::{Fields, put};

/// `header_version`: 6 has 64-bit page numbers, the notes and VMCOREINFO.
pub const VERSION: i32 = 6;
/// Bytes of `disk_dump_header`.
pub const HEADER_LEN: usize = 464;
/// Bytes of `kdump_sub_header`.
pub const SUB_HEADER_LEN: usize = 104;
/// Bytes of `page_desc`.
pub const DESC_LEN: usize = 24;

const SIGNATURE: &[u8; 8] = b"KDUMP   ";
const UTSNAME_FIELD: usize = 65; // __NEW_UTS_LEN + 1
/// Offset of `disk_dump_header.status`.
const STATUS_AT: usize = 424;
const STATUS_INCOMPLETE: u32 = 0x8;
const STATUS_EXCLUDED_VMEMMAP: u32 = 0x10;

/// How one page's data is stored: `page_desc.flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As it is, exactly one block long.
    Raw,
    /// A zlib stream.
    Zlib,
    /// An LZO1X stream with its end marker.
    Lzo,
    /// Snappy's raw format, without frames.
    Snappy,
    /// A zstd frame.
    Zstd,
}

impl Compression {
    const ALL: [Self; 5] = [Self::Raw, Self::Zlib, Self::Lzo, Self::Snappy, Self::Zstd];

    /// The flag in `page_desc.flags` and `disk_dump_header.status`.
    #[must_use]
    pub fn flag(self) -> u32 {
        match self {
            Self::Raw => 0,
            Self::Zlib => 0x1,
            Self::Lzo => 0x2,
            Self::Snappy => 0x4,
            Self::Zstd => 0x20,
        }
    }

    /// The compression that a descriptor's flags name, or `None` for one that the format does not
    /// have.
    #[must_use]
    pub fn from_flags(flags: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.flag() == flags)
    }
}

/// `new_utsname`: the six strings of the production kernel's uname.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Utsname {
    /// Always "Linux".
    pub sysname: String,
    /// Host name; chosen by whoever could call sethostname(2), so hostile.
    pub nodename: String,
    /// Kernel release.
    pub release: String,
    /// Build string.
    pub version: String,
    /// Machine; readers refuse a dump of another one than theirs.
    pub machine: String,
    /// NIS domain.
    pub domainname: String,
}

impl Utsname {
    /// Bytes of `struct new_utsname`.
    pub const LEN: usize = 6 * UTSNAME_FIELD;

    /// Decodes `struct new_utsname`.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let field = |index: usize| Fields(bytes).text(index.checked_mul(UTSNAME_FIELD)?, UTSNAME_FIELD);
        Some(Self {
            sysname: field(0)?,
            nodename: field(1)?,
            release: field(2)?,
            version: field(3)?,
            machine: field(4)?,
            domainname: field(5)?,
        })
    }

    fn emit(&self, out: &mut [u8]) {
        let texts =
            [&self.sysname, &self.nodename, &self.release, &self.version, &self.machine, &self.domainname];
        for (place, text) in out.chunks_exact_mut(UTSNAME_FIELD).zip(texts) {
            let limit = UTSNAME_FIELD.saturating_sub(1); // keeps the NUL
            put(place, 0, text.as_bytes().get(..limit).unwrap_or(text.as_bytes()));
        }
    }
}

/// Everything in the header and the sub header that is not derived from the layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// uname of the production kernel.
    pub utsname: Utsname,
    /// Time of the crash, seconds since 1970.
    pub crash_time: u64,
    /// Set until the last byte of the dump is written.
    pub incomplete: bool,
    /// Whether struct pages of pages that are left out are left out, too.
    pub excluded_vmemmap: bool,
    /// Compression flag that most pages have; readers only print it.
    pub compression_flag: u32,
    /// Number of CPU register notes.
    pub nr_cpus: u32,
    /// `phys_base` of x86_64, as its 64-bit pattern.
    pub phys_base: u64,
    /// Dump level that was asked for.
    pub dump_level: u32,
    /// File offset and bytes of the VMCOREINFO text, 0 if there is none.
    pub vmcoreinfo: (u64, u64),
    /// File offset and bytes of the ELF notes.
    pub notes: (u64, u64),
}

/// Where the parts of a dump lie; fixed by the page size, the notes' size and the number of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Block size, which readers take as the page size.
    pub page_size: PageSize,
    /// Blocks of the sub header and the notes.
    pub sub_header_blocks: u64,
    /// Blocks of one bitmap.
    pub bitmap_blocks: u64,
    /// First page number after the last page.
    pub max_mapnr: u64,
}

/// The numbers of a dump that do not fit the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a dump of {max_mapnr} page frames with {notes_len} bytes of notes does not fit the kdump format")]
pub struct LayoutError {
    max_mapnr: u64,
    notes_len: u64,
}

impl Layout {
    /// The layout for `max_mapnr` page frames and `notes_len` bytes of ELF notes.
    pub fn new(page_size: PageSize, max_mapnr: u64, notes_len: u64) -> Result<Self, LayoutError> {
        let bs = page_size.bytes();
        let layout = to_u64(SUB_HEADER_LEN).checked_add(notes_len).map(|sub| Self {
            page_size,
            sub_header_blocks: sub.div_ceil(bs),
            bitmap_blocks: max_mapnr.div_ceil(8).div_ceil(bs),
            max_mapnr,
        });
        // The header holds the number of blocks in 32 bits; 2^31 blocks are far beyond any machine.
        let fits = |l: &Self| {
            l.sub_header_blocks < 1 << 24 && l.bitmap_blocks < 1 << 30 && l.data_offset(max_mapnr).is_some()
        };
        layout.filter(fits).ok_or(LayoutError { max_mapnr, notes_len })
    }

    /// File offset of the ELF notes.
    #[must_use]
    pub fn notes_offset(&self) -> u64 {
        self.page_size.bytes().saturating_add(to_u64(SUB_HEADER_LEN))
    }

    /// File offset of bitmap 1.
    #[must_use]
    pub fn bitmap1_offset(&self) -> u64 {
        self.sub_header_blocks.saturating_add(1).saturating_mul(self.page_size.bytes())
    }

    /// File offset of bitmap 2.
    #[must_use]
    pub fn bitmap2_offset(&self) -> u64 {
        self.bitmap1_offset().saturating_add(self.bitmap_bytes())
    }

    /// Bytes of one bitmap, padding included.
    #[must_use]
    pub fn bitmap_bytes(&self) -> u64 {
        self.bitmap_blocks.saturating_mul(self.page_size.bytes())
    }

    /// File offset of the first page descriptor.
    #[must_use]
    pub fn descs_offset(&self) -> u64 {
        self.bitmap2_offset().saturating_add(self.bitmap_bytes())
    }

    /// File offset of the descriptor at `rank` (the page's position among the kept pages).
    #[must_use]
    pub fn desc_offset(&self, rank: u64) -> Option<u64> {
        self.descs_offset().checked_add(rank.checked_mul(to_u64(DESC_LEN))?)
    }

    /// First block boundary after `kept` descriptors, where page data starts.
    #[must_use]
    pub fn data_offset(&self, kept: u64) -> Option<u64> {
        self.desc_offset(kept)?.checked_next_multiple_of(self.page_size.bytes())
    }

    /// The bytes of block 0 and of the sub header (without the notes).
    #[must_use]
    pub fn emit_headers(&self, header: &Header) -> (Vec<u8>, [u8; SUB_HEADER_LEN]) {
        (self.emit_header(header), self.emit_sub_header(header))
    }

    fn emit_header(&self, header: &Header) -> Vec<u8> {
        let mut out = vec![0; self.page_size.in_memory()];
        let status = header.compression_flag
            | if header.incomplete { STATUS_INCOMPLETE } else { 0 }
            | if header.excluded_vmemmap { STATUS_EXCLUDED_VMEMMAP } else { 0 };
        let low32 = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
        put(&mut out, 0, SIGNATURE);
        put(&mut out, 8, &VERSION.to_le_bytes());
        if let Some(place) = out.get_mut(12..12 + Utsname::LEN) {
            header.utsname.emit(place);
        }
        put(&mut out, 408, &header.crash_time.to_le_bytes()); // timestamp.tv_sec
        put(&mut out, STATUS_AT, &status.to_le_bytes());
        put(&mut out, 428, &low32(self.page_size.bytes())); // block_size
        put(&mut out, 432, &low32(self.sub_header_blocks)); // sub_hdr_size
        put(&mut out, 436, &low32(self.bitmap_blocks.saturating_mul(2)));
        put(&mut out, 440, &low32(self.max_mapnr));
        put(&mut out, 460, &header.nr_cpus.to_le_bytes());
        out
    }

    fn emit_sub_header(&self, header: &Header) -> [u8; SUB_HEADER_LEN] {
        let mut out = [0; SUB_HEADER_LEN];
        put(&mut out, 0, &header.phys_base.to_le_bytes());
        put(&mut out, 8, &header.dump_level.to_le_bytes());
        put(&mut out, 32, &header.vmcoreinfo.0.to_le_bytes());
        put(&mut out, 40, &header.vmcoreinfo.1.to_le_bytes());
        put(&mut out, 48, &header.notes.0.to_le_bytes());
        put(&mut out, 56, &header.notes.1.to_le_bytes());
        put(&mut out, 96, &self.max_mapnr.to_le_bytes()); // max_mapnr_64
        out
    }
}

/// Sets INCOMPLETE in the header that `block0` begins with, and leaves everything else as it is.
pub fn mark_incomplete(block0: &mut [u8]) {
    if let Some(status) = Fields(block0).u32(STATUS_AT) {
        put(block0, STATUS_AT, &(status | STATUS_INCOMPLETE).to_le_bytes());
    }
}

/// Why bytes are not a dump that we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KdumpError {
    /// The file ends inside the headers.
    #[error("the file ends inside the headers of the dump")]
    Truncated,
    /// The signature is another one.
    #[error("no kdump signature")]
    Signature,
    /// Too old a version to hold 64-bit page numbers.
    #[error("kdump header version {0} is not supported, only 6 and later")]
    Version(i32),
    /// The block size is no page size.
    #[error("kdump block size {0} is not a page size")]
    BlockSize(u32),
    /// Bitmap and page numbers contradict each other.
    #[error("{bitmap_blocks} bitmap blocks cannot describe {max_mapnr} page frames")]
    Bitmap {
        /// Blocks of both bitmaps.
        bitmap_blocks: u32,
        /// Page frames.
        max_mapnr: u64,
    },
}

/// Whether a file starts like a kdump-compressed dump.
#[must_use]
pub fn has_signature(bytes: &[u8]) -> bool {
    bytes.starts_with(SIGNATURE)
}

/// Decodes the header in `block0` into the layout and what it says; `sub_header` are the bytes at
/// one block.
pub fn parse_headers(block0: &[u8], sub_header: &[u8]) -> Result<(Layout, Header), KdumpError> {
    if !has_signature(block0) {
        return Err(KdumpError::Signature);
    }
    let h = Fields(block0);
    let version = h.i32(8).ok_or(KdumpError::Truncated)?;
    if version < VERSION {
        return Err(KdumpError::Version(version));
    }
    let block_size = block_size(block0)?;
    let parts = || {
        let s = Fields(sub_header);
        let header = Header {
            utsname: Utsname::parse(h.bytes(12, Utsname::LEN)?)?,
            crash_time: h.u64(408)?,
            incomplete: h.u32(STATUS_AT)? & STATUS_INCOMPLETE != 0,
            excluded_vmemmap: h.u32(STATUS_AT)? & STATUS_EXCLUDED_VMEMMAP != 0,
            compression_flag: h.u32(STATUS_AT)? & !(STATUS_INCOMPLETE | STATUS_EXCLUDED_VMEMMAP),
            nr_cpus: h.u32(460)?,
            phys_base: s.u64(0)?,
            dump_level: s.u32(8)?,
            vmcoreinfo: (s.u64(32)?, s.u64(40)?),
            notes: (s.u64(48)?, s.u64(56)?),
        };
        let bitmap_blocks = h.u32(436)?;
        let layout = Layout {
            page_size: block_size,
            sub_header_blocks: u64::from(h.u32(432)?),
            bitmap_blocks: u64::from(bitmap_blocks >> 1),
            max_mapnr: s.u64(96)?,
        };
        Some((layout, header, bitmap_blocks))
    };
    let (layout, header, bitmap_blocks) = parts().ok_or(KdumpError::Truncated)?;
    if layout.max_mapnr.div_ceil(8) > layout.bitmap_bytes() {
        return Err(KdumpError::Bitmap { bitmap_blocks, max_mapnr: layout.max_mapnr });
    }
    Ok((layout, header))
}

/// The block size in block 0, needed to find the sub header.
pub fn block_size(block0: &[u8]) -> Result<PageSize, KdumpError> {
    let raw = Fields(block0).u32(428).ok_or(KdumpError::Truncated)?;
    PageSize::from_bytes(u64::from(raw)).ok_or(KdumpError::BlockSize(raw))
}

/// The pages from the first up to but not including the second that a part of a split dump holds;
/// `None` for a dump in one file. May be empty: makedumpfile leaves a part without pages when there
/// are more parts than work.
#[must_use]
pub fn split_range(sub_header: &[u8]) -> Option<(Pfn, Pfn)> {
    let s = Fields(sub_header);
    let (split, start, end) = (s.i32(12)?, s.u64(80)?, s.u64(88)?); // split, start_pfn_64, end_pfn_64
    (split != 0).then_some((Pfn(start), Pfn(end)))
}

/// `page_desc`: where a page's data lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageDesc {
    /// File offset; 0 marks a page that could not be read or was never written.
    pub offset: u64,
    /// Bytes of the data.
    pub size: u32,
    /// Compression flag.
    pub flags: u32,
}

impl PageDesc {
    /// The descriptor's bytes (`page_flags` is 0: no reader uses it).
    #[must_use]
    pub fn emit(self) -> [u8; DESC_LEN] {
        let mut out = [0; DESC_LEN];
        put(&mut out, 0, &self.offset.to_le_bytes());
        put(&mut out, 8, &self.size.to_le_bytes());
        put(&mut out, 12, &self.flags.to_le_bytes());
        out
    }

    /// Decodes a descriptor.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let f = Fields(bytes);
        Some(Self { offset: f.u64(0)?, size: f.u32(8)?, flags: f.u32(12)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Layout, Header) {
        let layout = Layout::new(PageSize::FOUR_KIB, 0x40000, 5000).unwrap();
        let header = Header {
            utsname: Utsname {
                sysname: "Linux".into(),
                nodename: "host".into(),
                release: "6.1".into(),
                machine: "x86_64".into(),
                ..Utsname::default()
            },
            crash_time: 1_763_900_000,
            incomplete: true,
            excluded_vmemmap: false,
            compression_flag: Compression::Zstd.flag(),
            nr_cpus: 4,
            phys_base: 0x1234_0000,
            dump_level: 1,
            vmcoreinfo: (4300, 100),
            notes: (4200, 5000),
        };
        (layout, header)
    }

    #[test]
    fn layout_is_the_formats() {
        let (layout, _) = sample();
        assert_eq!(layout.sub_header_blocks, 2); // 104 + 5000 bytes
        assert_eq!(layout.bitmap_blocks, 8); // 262,144 bits
        assert_eq!(layout.bitmap1_offset(), 3 * 4096);
        assert_eq!(layout.bitmap2_offset(), 11 * 4096);
        assert_eq!(layout.desc_offset(2), Some(19 * 4096 + 48));
        assert_eq!(layout.data_offset(1), Some(20 * 4096));
    }

    #[test]
    fn header_bytes_are_the_ones_of_diskdump_mod_h() {
        let (layout, header) = sample();
        let (block0, sub) = layout.emit_headers(&header);
        assert_eq!(block0.len(), 4096);
        assert_eq!(&block0[..12], b"KDUMP   \x06\0\0\0");
        assert_eq!(&block0[12..18], b"Linux\0");
        assert_eq!(&block0[12 + 4 * 65..12 + 4 * 65 + 7], b"x86_64\0");
        assert_eq!(&block0[408..416], &1_763_900_000_u64.to_le_bytes());
        assert_eq!(&block0[424..444], b"\x28\0\0\0\x00\x10\0\0\x02\0\0\0\x10\0\0\0\x00\x00\x04\x00");
        assert_eq!(&block0[460..464], &[4, 0, 0, 0]);
        assert_eq!(&sub[..12], b"\0\0\x34\x12\0\0\0\0\x01\0\0\0");
        assert_eq!(&sub[96..], &0x40000_u64.to_le_bytes());
    }

    #[test]
    fn headers_round_trip() {
        let (layout, header) = sample();
        let (block0, sub) = layout.emit_headers(&header);
        assert_eq!(parse_headers(&block0, &sub), Ok((layout, header)));
    }

    #[test]
    fn a_part_of_a_split_dump_names_its_pages() {
        let (layout, header) = sample();
        let (_, mut sub) = layout.emit_headers(&header);
        assert_eq!(split_range(&sub), None);
        sub[12] = 1;
        sub[80..96].copy_from_slice(b"\0\x01\0\0\0\0\0\0\x01\x01\0\0\0\0\0\0");
        assert_eq!(split_range(&sub), Some((Pfn(0x100), Pfn(0x101))));
        assert_eq!(split_range(&sub[..95]), None);
    }

    #[test]
    fn contradictions_are_named() {
        let (layout, header) = sample();
        let (block0, sub) = layout.emit_headers(&header);
        let with = |at: usize, bytes: &[u8]| {
            let mut b = block0.clone();
            b[at..at + bytes.len()].copy_from_slice(bytes);
            parse_headers(&b, &sub)
        };
        assert_eq!(with(0, b"x"), Err(KdumpError::Signature));
        assert_eq!(with(8, &[5]), Err(KdumpError::Version(5)));
        assert_eq!(with(428, &[1, 0, 0, 0]), Err(KdumpError::BlockSize(1)));
        assert_eq!(with(436, &[2]), Err(KdumpError::Bitmap { bitmap_blocks: 2, max_mapnr: 0x40000 }));
        assert_eq!(parse_headers(&block0[..450], &sub), Err(KdumpError::Truncated));
    }

    #[test]
    fn a_layout_beyond_the_format_is_refused() {
        assert!(Layout::new(PageSize::FOUR_KIB, u64::MAX, 0).is_err());
        assert!(Layout::new(PageSize::FOUR_KIB, 1, u64::MAX).is_err());
    }

    #[test]
    fn descriptors_round_trip() {
        let desc = PageDesc { offset: 0x1_0000_0001, size: 77, flags: 0x20 };
        assert_eq!(PageDesc::parse(&desc.emit()), Some(desc));
        assert_eq!(desc.emit()[..16], [1, 0, 0, 0, 1, 0, 0, 0, 77, 0, 0, 0, 0x20, 0, 0, 0]);
    }
}
