//! The kernel log out of hostile memory: the output is printable, bounded by the ring that it came
//! from, and counted right. uname and address translation on the way.
//!
//! Input: a control byte, a length, that many bytes of VMCOREINFO, a memory image. The image lies
//! at physical 0x1000 and, by the ELF header, at virtual `BASE`. Unless the control byte says
//! otherwise, the text comes after a usable VMCOREINFO, so that it only has to change what it wants
//! to.

use std::io::{self, Write};

use crate::build::{Load, elf_core, note, put};
use crate::{Scratch, take, take_u16};
use base::log::chain;
use vmcore::kernel::{Kernel, dmesg, uts};
use vmcore::source::{Access, Core, Vmcore};

const BASE: u64 = 0xffff_8880_0000_1000;
const PADDR: u64 = 0x1000;
/// Control bits: no VMCOREINFO but that of the input; no mapping in the ELF header.
const BARE: u8 = 1;
const UNMAPPED: u8 = 2;

/// Members as in Linux 6.1, the structures in a row from the start of the image.
const INFO: &str = "PAGESIZE=4096\nSYMBOL(prb)=ffff888000001000\nSYMBOL(init_uts_ns)=ffff888000001400\n\
    OFFSET(printk_ringbuffer.desc_ring)=0\nOFFSET(printk_ringbuffer.text_data_ring)=48\n\
    OFFSET(atomic_long_t.counter)=0\nOFFSET(prb_desc_ring.count_bits)=0\nOFFSET(prb_desc_ring.descs)=8\n\
    OFFSET(prb_desc_ring.infos)=16\nOFFSET(prb_desc_ring.head_id)=24\nOFFSET(prb_desc_ring.tail_id)=32\n\
    OFFSET(prb_data_ring.size_bits)=0\nOFFSET(prb_data_ring.data)=8\nSIZE(prb_desc)=24\n\
    OFFSET(prb_desc.state_var)=0\nOFFSET(prb_desc.text_blk_lpos)=8\nOFFSET(prb_data_blk_lpos.begin)=0\n\
    OFFSET(prb_data_blk_lpos.next)=8\nSIZE(printk_info)=88\nOFFSET(printk_info.ts_nsec)=8\n\
    OFFSET(printk_info.text_len)=16\nOFFSET(printk_info.caller_id)=20\n";

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    read(data);
}

/// Reads the log in the memory that `data` describes, and checks it.
fn read(data: &[u8]) -> Option<dmesg::DmesgStats> {
    let mut input = data;
    let control = take(&mut input, 1).first().copied().unwrap_or(0);
    let text_len = usize::from(take_u16(&mut input));
    let text = take(&mut input, text_len);
    let standard = if control & BARE == 0 { INFO.as_bytes() } else { &[] };
    let vaddr = if control & UNMAPPED == 0 { BASE } else { 0 };
    let notes = note("VMCOREINFO", 0, &[standard, text].concat());
    let file = Scratch::new(&elf_core(&notes, &[Load { vaddr, paddr: PADDR, bytes: input }]));
    let core = Vmcore::open(&file.path(), Access::Pread).ok()?;
    let kernel = Kernel::new(&core, core.info(), core.mappings());
    if let Ok(name) = uts::discover(&kernel) {
        assert_eq!(name.sysname, "Linux");
    }
    let mut out = Output::default();
    let result = dmesg::write(&kernel, &mut out);
    match &result {
        Ok(stats) => check_log(&kernel, *stats, &out),
        Err(error) => assert!(out.len == 0 || out.full, "{}", chain(error)),
    }
    result.ok()
}

fn check_log(kernel: &Kernel<'_>, stats: dmesg::DmesgStats, out: &Output) {
    assert!(stats.records + stats.damaged <= 1 << 26);
    assert!(stats.records <= out.lines);
    assert!(out.len == 0 || out.last == b'\n');
    // A byte of text becomes at most a line break and the indent under time stamp and caller.
    let limit = ring_size(kernel).saturating_add(stats.records).saturating_mul(64);
    assert!(out.len <= limit, "{} bytes from {} records, {} expected", out.len, stats.records, limit);
}

/// Size of the text ring, read on its own.
fn ring_size(kernel: &Kernel<'_>) -> u64 {
    let prb = kernel.read_u64(kernel.symbol("prb").unwrap(), "prb").unwrap();
    let offset = |name| kernel.offset(name).unwrap();
    let at = prb + offset("printk_ringbuffer.text_data_ring") + offset("prb_data_ring.size_bits");
    1 << kernel.read_u32(base::addr::VirtAddr(at), "size_bits").unwrap()
}

/// Looks at the text instead of keeping it; full after 32 MiB.
#[derive(Default)]
struct Output {
    len: u64,
    lines: u64,
    last: u8,
    full: bool,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(bytes.iter().all(|byte| matches!(byte, b'\n' | b'\t' | b' '..=b'~')), "{bytes:?}");
        self.len += u64::try_from(bytes.len()).unwrap();
        self.lines += bytes.iter().map(|&byte| u64::from(byte == b'\n')).sum::<u64>();
        self.last = bytes.last().copied().unwrap_or(self.last);
        self.full = self.len > 32 << 20;
        if self.full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let seed = |control: u8, text: &str, image: &[u8]| {
        let len = u16::try_from(text.len()).unwrap().to_le_bytes();
        [&[control], &len[..], text.as_bytes(), image].concat()
    };
    let (by_elf, by_tables) = (ring(BASE), tables());
    let text = "SYMBOL(prb)=ffffffff80000000\nSYMBOL(init_uts_ns)=ffffffff80000400\nSYMBOL(init_top_pgt)=ffffffff80001000\n\
        NUMBER(phys_base)=4096\nNUMBER(pgtable_l5_enabled)=0\nNUMBER(sme_mask)=0x0\n";
    let seeds = vec![
        seed(0, "", &by_elf),
        seed(BARE, INFO, &by_elf),
        seed(0, "SIZE(prb_desc)=24\n", &by_elf),
        seed(UNMAPPED, text, &by_tables),
        seed(0, text, &by_tables),
    ];
    for seed in &seeds {
        let stats = read(seed).expect("a ring");
        assert_eq!((stats.records, stats.damaged), (3, 0), "the fuzzer starts from rings that can be read");
    }
    let texts = MENDED.iter().map(|text| seed(0, text, &by_elf));
    let images = images(&by_elf).map(|image| seed(0, "", &image));
    let tables = mended_tables().map(|image| seed(UNMAPPED, text, &image));
    // e1e00068: an address less a number without an opposite.
    let moved = seed(UNMAPPED, &format!("{text}NUMBER(phys_base)=-9223372036854775808\n"), &by_tables);
    seeds.into_iter().chain(texts).chain(images).chain(tables).chain([moved]).collect()
}

/// What drgn mended in July and August 2026, as far as the log, page tables and uname are concerned; the
/// commits are its. Here the VMCOREINFO that says so.
const MENDED: &[&str] = &[
    // 7ea4199b, a499fdd5: sizes of nothing, and places that overflow when they are added.
    "SIZE(prb_desc)=0\nSIZE(printk_info)=0\n",
    "SIZE(prb_desc)=18446744073709551615\n",
    "OFFSET(prb_desc.text_blk_lpos)=18446744073709551615\nOFFSET(prb_data_blk_lpos.next)=18446744073709551608\n",
    "OFFSET(printk_info.text_len)=18446744073709551614\n",
    // 96add380: the last bytes that there are.
    "SYMBOL(prb)=fffffffffffffff8\nSYMBOL(init_uts_ns)=ffffffffffffffff\n",
    "OFFSET(uts_namespace.name)=18446744073709551615\n",
];

/// The same in memory, `ring` but for one thing.
fn images(ring: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let (prb, descs, infos) = (8, 0x60, 0xc0);
    let word = |at: usize, value: u64| (at, value.to_le_bytes().to_vec());
    let changes = [
        // 494911c3: counts that no kernel has, and shifts by all bits.
        word(prb, u32::MAX.into()),
        word(prb, 64),
        word(prb + 48, 63),
        word(prb + 48, u32::MAX.into()),
        // 4ffc0339: the end of what is counted lies before its start, or all around.
        word(prb + 24, 0),
        word(prb + 32, u64::MAX >> 2),
        // A record that is longer than its block, and one that is longer than the ring.
        word(infos + 16, u64::MAX),
        word(descs + 8, u64::MAX),
        // d088fde0, 9f6bd02f: two readers that must agree on where a name ends; none of these has an end.
        (0x404, [&b"Linux\0"[..], &[b'a'; 59], &[b'x'; 5 * 65]].concat()),
    ];
    let ring = ring.to_vec();
    changes.into_iter().map(move |(at, bytes)| {
        let mut image = ring.clone();
        image.resize(image.len().max(at + bytes.len()), 0);
        put(&mut image, at, &bytes);
        image
    })
}

/// 4655ff33, f800e5fa: page tables that lead to themselves, and to memory that is not there.
fn mended_tables() -> impl Iterator<Item = Vec<u8>> {
    let entries = [(0x1ff8, 0x2000), (0x2ff0, 0x3000), (0x3000, 0x2000), (0x4000, 0x5000), (0x4000, 1 << 51)];
    entries.into_iter().map(|(at, value): (usize, u64)| {
        let mut image = tables();
        put(&mut image, at, &(value | 1).to_le_bytes());
        image
    })
}

/// A ring of 4 descriptors and 256 bytes of text at virtual `base`, and `init_uts_ns` behind it.
fn ring(base: u64) -> Vec<u8> {
    let mut image = vec![0; 0x600];
    let mut word = |at: usize, value: u64| put(&mut image, at, &value.to_le_bytes());
    let (prb, descs, infos, text) = (8, 0x60, 0xc0, 0x220);
    let at = |offset: usize| base + u64::try_from(offset).unwrap();
    word(0, at(prb));
    word(prb, 2); // count_bits
    word(prb + 8, at(descs));
    word(prb + 16, at(infos));
    word(prb + 24, 6); // head_id
    word(prb + 32, 4); // tail_id
    word(prb + 48, 8); // size_bits
    word(prb + 56, at(text));
    for (id, state, begin, next, len) in
        [(4_u64, 2_u64, 0_u64, 32_u64, 12_u64), (5, 1, 224, 288, 20), (6, 2, 3, 3, 0)]
    {
        let index = usize::try_from(id % 4).unwrap();
        word(descs + 24 * index, state << 62 | id);
        word(descs + 24 * index + 8, begin);
        word(descs + 24 * index + 16, next);
        word(infos + 88 * index + 8, id * 1_234_567_890);
        word(infos + 88 * index + 16, len);
    }
    put(&mut image, text + 8, b"Linux ve\x1brs\nion text that wraps");
    put(&mut image, 0x404, b"Linux");
    image
}

/// The ring at the start of the kernel image (virtual 0xffffffff80000000, physical 0x1000), then
/// page tables.
fn tables() -> Vec<u8> {
    let mut image = ring(0xffff_ffff_8000_0000);
    image.resize(0x5000, 0);
    // Top at physical 0x2000, then 0x3000, 0x4000, 0x5000, which maps the first page.
    for (at, value) in [(0x1ff8, 0x3000), (0x2ff0, 0x4000), (0x3000, 0x5000), (0x4000, 0x1000)] {
        let value: u64 = value | 1;
        put(&mut image, at, &value.to_le_bytes());
    }
    image
}
