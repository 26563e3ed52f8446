//! A core of 6 MiB whose page tables show one page of line breaks as a log of up to 2 GiB: what is
//! printed, and what it takes to print it, has a limit.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails panics")]
#![expect(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "likewise")]
#![expect(clippy::cast_possible_truncation, reason = "a test runs on a 64-bit machine")]

use std::fs;
use std::io::{self, Write};

use afterimage::input::Input;
use afterimage::inspect;
use vmcore::kernel::dmesg;
use vmcore::source::testing::CoreFile;

const IMAGE: u64 = 0xffff_ffff_8000_0000;
const DATA: u64 = 0xffff_c900_0000_0000;
const TEXT: u64 = 65_536;
/// What any machine's log may have.
const LIMIT: u64 = 64 << 20;

struct Memory(Vec<u8>);

impl Memory {
    fn word(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn half(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// The core, with a ring of 2^`size_bits` bytes of text.
fn bomb(size_bits: u32) -> Vec<u8> {
    let mut memory = Memory(vec![0; 6 << 20]);
    let index = |shift: u32| (DATA >> shift & 511) as usize * 8;
    memory.word(0x1000 + 511 * 8, 0x2003);
    memory.word(0x2000 + 510 * 8, 0x83);
    memory.word(0x1000 + index(39), 0x3003);
    memory.word(0x3000 + index(30), 0x4003);
    memory.word(0x3000 + index(30) + 8, 0x5003);
    for entry in 0..1024 {
        memory.word(0x4000 + entry * 8, 0x40_0083);
    }
    memory.0[0x40_0000..].fill(b'\n');
    let records = (1_u64 << size_bits) / TEXT;
    memory.word(0x6000, IMAGE + 0x7000);
    memory.half(0x7000, records.ilog2());
    memory.word(0x7008, IMAGE + 0x10_0000);
    memory.word(0x7010, IMAGE + 0x20_0000);
    memory.word(0x7018, records - 1);
    memory.half(0x7040, size_bits);
    memory.word(0x7048, DATA);
    for record in 0..records {
        let (desc, info) = (0x10_0000 + record as usize * 24, 0x20_0000 + record as usize * 16);
        memory.word(desc, record | 2 << 62);
        memory.word(desc + 8, record * TEXT);
        memory.word(desc + 16, (record + 1) * TEXT);
        memory.word(info, u64::MAX);
        memory.half(info + 8, TEXT as u32 - 8);
    }
    let text = format!(
        "OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)={:x}\nNUMBER(phys_base)=0\n\
         NUMBER(pgtable_l5_enabled)=0\nSYMBOL(prb)={:x}\nOFFSET(printk_ringbuffer.desc_ring)=0\n\
         OFFSET(printk_ringbuffer.text_data_ring)=64\nOFFSET(prb_desc_ring.count_bits)=0\n\
         OFFSET(prb_desc_ring.descs)=8\nOFFSET(prb_desc_ring.infos)=16\nOFFSET(prb_desc_ring.head_id)=24\n\
         OFFSET(prb_desc_ring.tail_id)=32\nOFFSET(atomic_long_t.counter)=0\nOFFSET(prb_data_ring.size_bits)=0\n\
         OFFSET(prb_data_ring.data)=8\nSIZE(prb_desc)=24\nOFFSET(prb_desc.state_var)=0\n\
         OFFSET(prb_desc.text_blk_lpos)=8\nOFFSET(prb_data_blk_lpos.begin)=0\nOFFSET(prb_data_blk_lpos.next)=8\n\
         SIZE(printk_info)=16\nOFFSET(printk_info.ts_nsec)=0\nOFFSET(printk_info.text_len)=8\nCRASHTIME=1700000000\n",
        IMAGE + 0x1000,
        IMAGE + 0x6000
    );
    CoreFile::new().segment(0, &memory.0).note("VMCOREINFO", 0, text.as_bytes()).bytes()
}

fn open(size_bits: u32) -> (tempfile::TempDir, Input) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb");
    fs::write(&path, bomb(size_bits)).unwrap();
    let input = Input::open(&[path]).unwrap();
    (dir, input)
}

/// Counts bytes.
#[derive(Default)]
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_log_that_is_printed_has_a_limit() {
    for size_bits in [24, 28, 31] {
        let (_dir, input) = open(size_bits);
        let mut count = Count::default();
        let stats = dmesg::write(&input.kernel(), &mut count).unwrap();
        assert!((LIMIT / 2..=LIMIT).contains(&count.0), "{size_bits}: {} bytes", count.0);
        // What is left out is the oldest part, and is counted.
        assert_eq!(stats.records + stats.left_out, (1 << size_bits) / TEXT);
        assert!(stats.records >= 20, "{stats:?}");
    }
}

#[test]
fn the_report_says_so_and_takes_no_more_memory_than_others() {
    let (_dir, input) = open(31);
    let report = inspect::report(&input).unwrap();
    assert!(report.text.contains("older ones left out; the last lines:"), "{}", report.text);
    assert!(report.text.len() < 20_000, "{}", report.text.len());
    let peak = vmcore::budget::peak_memory().unwrap();
    assert!(peak < 128 << 20, "{peak} bytes");
}
