//! Builders: ELF cores, notes, dumps. Straight from the formats' definitions, for well-formed files
//! that a fuzzer then damages.

/// Puts `value` into `out` at `offset`.
pub fn put(out: &mut [u8], offset: usize, value: &[u8]) {
    out[offset..offset + value.len()].copy_from_slice(value);
}

fn len64(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("64-bit lengths")
}

fn len32(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("a small input").to_le_bytes()
}

/// An ELF note.
#[must_use]
pub fn note(name: &str, kind: u32, desc: &[u8]) -> Vec<u8> {
    let name = [name.as_bytes(), &[0]].concat();
    let mut out = [len32(&name), len32(desc), kind.to_le_bytes()].concat();
    for part in [&name[..], desc] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// A PT_LOAD segment.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Virtual address; 0 for none.
    pub vaddr: u64,
    /// Physical address.
    pub paddr: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// An ELF64 core with these notes and segments, packed tightly.
#[must_use]
pub fn elf_core(notes: &[u8], loads: &[Load<'_>]) -> Vec<u8> {
    let count = u16::try_from(loads.len() + 1).expect("few segments");
    let mut out = vec![0; 64];
    put(&mut out, 0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    put(&mut out, 16, &[4, 0, 62, 0, 1]); // ET_CORE, x86_64
    put(&mut out, 32, &64_u64.to_le_bytes()); // e_phoff
    put(&mut out, 52, &[64, 0, 56, 0]); // e_ehsize, e_phentsize
    put(&mut out, 56, &count.to_le_bytes());
    let mut at = 64 + 56 * u64::from(count);
    let mut data = Vec::new();
    let note = Load { vaddr: 0, paddr: 0, bytes: notes };
    for (kind, load) in [(4_u32, &note)].into_iter().chain(loads.iter().map(|load| (1, load))) {
        let len = len64(load.bytes);
        out.extend(kind.to_le_bytes());
        out.extend(7_u32.to_le_bytes());
        for word in [at, load.vaddr, load.paddr, len, len, 0] {
            out.extend(word.to_le_bytes());
        }
        at += len;
        data.extend(load.bytes);
    }
    [out, data].concat()
}

/// A page of a dump: its data as stored, and the compression flag.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// Page number.
    pub pfn: u64,
    /// `page_desc.flags`.
    pub flags: u32,
    /// The data.
    pub bytes: &'a [u8],
}

/// Block size of [`kdump`].
const BLOCK: usize = 4096;

/// A kdump-compressed dump, version 6, of 4 KiB pages below page 32,768, with these notes,
/// VMCOREINFO and pages; pages must be sorted.
#[must_use]
pub fn kdump(notes: &[u8], vmcoreinfo: &[u8], pages: &[Stored<'_>]) -> Vec<u8> {
    let max_mapnr = pages.iter().map(|page| page.pfn + 1).max().unwrap_or(0);
    let mut head = vec![0; BLOCK];
    put(&mut head, 0, b"KDUMP   ");
    put(&mut head, 8, &6_u32.to_le_bytes());
    put(&mut head, 12, b"Linux");
    put(&mut head, 12 + 4 * 65, b"x86_64");
    put(&mut head, 428, &4096_u32.to_le_bytes()); // block_size
    put(&mut head, 432, &1_u32.to_le_bytes()); // sub_hdr_size
    put(&mut head, 436, &2_u32.to_le_bytes()); // bitmap_blocks
    let sub_len: u64 = 104;
    let mut sub = vec![0; BLOCK];
    put(&mut sub, 32, &(4096 + sub_len).to_le_bytes());
    put(&mut sub, 40, &len64(vmcoreinfo).to_le_bytes());
    put(&mut sub, 48, &(4096 + sub_len + len64(vmcoreinfo)).to_le_bytes());
    put(&mut sub, 56, &len64(notes).to_le_bytes());
    put(&mut sub, 96, &max_mapnr.to_le_bytes());
    put(&mut sub, 104, vmcoreinfo);
    put(&mut sub, 104 + vmcoreinfo.len(), notes);
    let mut bitmap = vec![0_u8; BLOCK];
    let (mut descs, mut data) = (Vec::new(), Vec::new());
    let data_at = 4 * len64(&bitmap) + 24 * u64::try_from(pages.len()).expect("few pages");
    for page in pages {
        let byte = usize::try_from(page.pfn / 8).expect("a small page number");
        bitmap[byte] |= 1 << (page.pfn % 8);
        descs.extend((data_at + len64(&data)).to_le_bytes());
        descs.extend(len32(page.bytes));
        descs.extend(page.flags.to_le_bytes());
        descs.extend([0; 8]);
        data.extend(page.bytes);
    }
    [head, sub, bitmap.clone(), bitmap, descs, data].concat()
}

/// The flattened form of a file, in pieces of `size` bytes, with or without its end.
#[must_use]
pub fn flatten(file: &[u8], size: usize, end: bool) -> Vec<u8> {
    let mut out = vec![0; 4096];
    put(&mut out, 0, b"makedumpfile");
    put(&mut out, 16, &1_u64.to_be_bytes()); // type
    put(&mut out, 24, &1_u64.to_be_bytes()); // version
    let mut offset = 0;
    for piece in file.chunks(size) {
        out.extend([offset, len64(piece)].map(u64::to_be_bytes).concat());
        out.extend(piece);
        offset += len64(piece);
    }
    if end {
        out.extend([0xff; 16]);
    }
    out
}
