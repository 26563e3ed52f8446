//! The log reader on rings made up here; real kernels' logs are compared with makedumpfile's in
//! `qemu-tests`.

use super::*;
use crate::format::vmcoreinfo::VmcoreInfo;
use crate::kernel::LinearMap;
use crate::source::testing::CoreFile;
use crate::source::{Access, Vmcore};
use base::addr::PhysAddr;

const BASE: u64 = 0xffff_8000_0000_0000;
const PRB: usize = 0x100;
const DESCS: usize = 0x400;
const INFOS: usize = 0x800;
const DATA: usize = 0x1000;
const COUNT_BITS: u32 = 3;
const SIZE_BITS: u32 = 8;

/// A ring of 8 descriptors and 256 bytes of text, in a memory of its own.
struct RingImage {
    memory: Vec<u8>,
    caller: bool,
}

impl RingImage {
    fn new(tail: u64, head: u64) -> Self {
        let mut ring = Self { memory: vec![0; 0x3000], caller: false };
        ring.u64(0, BASE + u64::try_from(PRB).unwrap());
        ring.u32(PRB, COUNT_BITS);
        ring.u64(PRB + 8, BASE + u64::try_from(DESCS).unwrap());
        ring.u64(PRB + 16, BASE + u64::try_from(INFOS).unwrap());
        ring.u64(PRB + 24, head);
        ring.u64(PRB + 32, tail);
        ring.u32(PRB + 48, SIZE_BITS);
        ring.u64(PRB + 56, BASE + u64::try_from(DATA).unwrap());
        ring
    }

    fn u64(&mut self, at: usize, value: u64) {
        self.memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.memory[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// A descriptor in `state` whose block is `begin..next`, and its info.
    fn desc(mut self, id: u64, state: u64, begin: u64, next: u64, text_len: u16) -> Self {
        let index = usize::try_from(id % 8).unwrap();
        self.u64(DESCS + index * 24, state << 62 | id);
        self.u64(DESCS + index * 24 + 8, begin);
        self.u64(DESCS + index * 24 + 16, next);
        self.u64(INFOS + index * 32, id * 1_000_001_000); // 1 s and 1 us per id
        self.memory[INFOS + index * 32 + 8..][..2].copy_from_slice(&text_len.to_le_bytes());
        self.u32(INFOS + index * 32 + 12, if id.is_multiple_of(2) { 42 } else { 0x8000_0003 });
        self
    }

    /// Text behind the 8 bytes of a block that starts at `at` in the ring.
    fn text(mut self, at: usize, text: &[u8]) -> Self {
        self.memory[DATA + at + 8..][..text.len()].copy_from_slice(text);
        self
    }

    /// A finalized record in its usual place.
    fn record(self, id: u64, at: u64, text: &[u8]) -> Self {
        let next = at + 8 + u64::try_from(text.len().next_multiple_of(8)).unwrap();
        let place = usize::try_from(at % 256).unwrap();
        self.desc(id, FINALIZED, at, next, u16::try_from(text.len()).unwrap()).text(place, text)
    }

    fn read(&self) -> Result<(String, DmesgStats), DmesgError> {
        self.read_end(u64::MAX)
    }

    /// The log's end of no more than `limit` bytes.
    fn read_end(&self, limit: u64) -> Result<(String, DmesgStats), DmesgError> {
        let caller = if self.caller { "OFFSET(printk_info.caller_id)=12\n" } else { "" };
        let info = format!(
            "SYMBOL(prb)={BASE:x}\nOFFSET(printk_ringbuffer.desc_ring)=0\nOFFSET(printk_ringbuffer.text_data_ring)=48\n\
             OFFSET(prb_desc_ring.count_bits)=0\nOFFSET(prb_desc_ring.descs)=8\nOFFSET(prb_desc_ring.infos)=16\n\
             OFFSET(prb_desc_ring.head_id)=24\nOFFSET(prb_desc_ring.tail_id)=32\nOFFSET(atomic_long_t.counter)=0\n\
             OFFSET(prb_data_ring.size_bits)=0\nOFFSET(prb_data_ring.data)=8\nSIZE(prb_desc)=24\n\
             OFFSET(prb_desc.state_var)=0\nOFFSET(prb_desc.text_blk_lpos)=8\nOFFSET(prb_data_blk_lpos.begin)=0\n\
             OFFSET(prb_data_blk_lpos.next)=8\nSIZE(printk_info)=32\nOFFSET(printk_info.ts_nsec)=0\n\
             OFFSET(printk_info.text_len)=8\n{caller}"
        );
        let info = VmcoreInfo::parse(info.as_bytes());
        let file = CoreFile::new().segment(0x1_0000, &self.memory).write();
        let core = Vmcore::open(file.path(), Access::Pread).unwrap();
        let linear: [LinearMap; 1] = [(VirtAddr(BASE), PhysAddr(0x1_0000), 0x3000)];
        let mut out = Vec::new();
        let kernel = Kernel::new(&core, &info, &linear);
        let ring = Ring::discover(&kernel)?;
        let stats = ring.write(&mut out, limit.min(ring.output_limit()))?;
        Ok((String::from_utf8(out).unwrap(), stats))
    }
}

#[test]
fn records_come_in_order_with_their_times_and_callers() {
    let mut ring = RingImage::new(2, 4)
        .record(2, 0, b"two")
        .record(3, 16, b"three\nlines\x1b[2J\xff")
        .record(4, 48, b"four");
    let (text, stats) = ring.read().unwrap();
    assert_eq!(
        text,
        "[    2.000002] two\n[    3.000003] three\n               lines\\x1b[2J\\xff\n[    4.000004] four\n"
    );
    assert_eq!(stats, DmesgStats { records: 3, damaged: 0, left_out: 0 });
    ring.caller = true;
    let (text, _) = ring.read().unwrap();
    assert!(text.starts_with("[    2.000002] [     T42] two\n[    3.000003] [      C3] three\n"), "{text}");
}

#[test]
fn blocks_that_wrap_start_again_at_the_ring_s_start() {
    // Old rule: a block that would reach the end exactly wraps too. New rule (6.18): it stays and
    // ends at 0.
    let wrapped = RingImage::new(1, 1).desc(1, COMMITTED, 248, 256 + 16, 5).text(0, b"hello");
    assert_eq!(wrapped.read().unwrap().0, "[    1.000001] hello\n");
    let at_end = RingImage::new(1, 1).desc(1, COMMITTED, 240, 256, 5).text(240, b"hello");
    assert_eq!(at_end.read().unwrap().0, "[    1.000001] hello\n");
}

#[test]
fn unfinished_lost_and_overwritten_records_are_no_records() {
    let ring = RingImage::new(1, 5)
        .desc(1, 0, 0, 16, 3) // reserved
        .desc(2, FINALIZED, FAILED_LPOS, FAILED_LPOS, 0)
        .desc(3, FINALIZED, 3, 3, 0) // an empty line
        .desc(12, FINALIZED, 0, 16, 3) // where 4 was
        .record(5, 32, b"five");
    assert_eq!(ring.read().unwrap().0, "[    3.000003] \n[    5.000005] five\n");
}

#[test]
fn damage_costs_a_record_not_the_log() {
    let ring = RingImage::new(1, 3)
        .record(1, 0, b"one")
        .desc(2, FINALIZED, 16, 20, 9) // too small for an id
        .desc(3, FINALIZED, 32, 48, 60_000) // longer than its block
        .text(32, b"cut here");
    let (text, stats) = ring.read().unwrap();
    assert_eq!(text, "[    1.000001] one\n[    3.000003] cut here\n");
    assert_eq!(stats, DmesgStats { records: 2, damaged: 1, left_out: 0 });
}

#[test]
fn a_tail_that_does_not_fit_is_not_believed() {
    let ring = RingImage::new(1 << 40, 3).record(1, 0, b"one").record(3, 16, b"three");
    assert_eq!(ring.read().unwrap().0, "[    1.000001] one\n[    3.000003] three\n");
}

#[test]
fn absurd_sizes_are_refused() {
    for (at, value) in [(PRB, 27), (PRB, 0), (PRB + 48, 32), (PRB + 48, u32::MAX)] {
        let mut ring = RingImage::new(1, 1).record(1, 0, b"one");
        ring.u32(at, value);
        assert!(matches!(ring.read(), Err(DmesgError::Ring(KernelError::Absurd { .. }))), "{at:#x} {value}");
    }
}

#[test]
fn records_that_share_text_do_not_multiply_it() {
    let text = [b'x'; 120];
    let mut ring = RingImage::new(1, 8).record(1, 0, &text);
    for id in 2..=8 {
        ring = ring.record(id, 0, &text);
    }
    let (text, stats) = ring.read().unwrap();
    assert_eq!(stats, DmesgStats { records: 2, damaged: 6, left_out: 0 }, "256 bytes hold 2 times 120");
    assert_eq!(text.matches('x').count(), 240);
}

#[test]
fn the_largest_ring_without_records_is_given_up() {
    let mut ring = RingImage::new(1, 1 << 25);
    ring.u32(PRB, MAX_COUNT_BITS);
    ring.u64(PRB + 8, 0); // descs, not mapped
    let (text, stats) = ring.read().unwrap();
    let left_out = (1 << 25) - MAX_MISSES;
    assert_eq!((text.as_str(), stats), ("", DmesgStats { records: 0, damaged: MAX_MISSES, left_out }));
}

#[test]
fn of_a_log_that_is_too_long_the_end_is_written() {
    let ring = RingImage::new(1, 3).record(1, 0, b"one").record(2, 16, b"two").record(3, 32, b"three");
    let line = "[    3.000003] three\n";
    for (limit, expected, left_out) in [(line.len(), line, 2), (line.len() - 1, "", 2), (0, "", 2)] {
        let (text, stats) = ring.read_end(to_u64(limit)).unwrap();
        assert_eq!((text.as_str(), stats.left_out), (expected, left_out), "{limit}");
    }
    let (text, stats) = ring.read_end(to_u64(line.len()) + 20).unwrap();
    assert_eq!((text.as_str(), stats.left_out), (&*format!("[    2.000002] two\n{line}"), 1));
    assert_eq!(ring.read_end(60).unwrap().1, DmesgStats { records: 3, damaged: 0, left_out: 0 });
}

#[test]
fn escaped_bytes_cannot_be_mistaken_for_text() {
    let ring = RingImage::new(1, 2).record(1, 0, b"\x1b").record(2, 16, b"\\x1b");
    assert_eq!(ring.read().unwrap().0, "[    1.000001] \\x1b\n[    2.000002] \\x5cx1b\n");
}

#[test]
fn the_length_is_known_before_a_record_is_written() {
    for text in [&b"plain\ttext"[..], b"a\nb\n\n", b"\\\x00\xff\x7f", b""] {
        for caller in [None, Some(7)] {
            let info = RecordInfo { ts_nsec: 99_999_000_000_000, caller, by_kernel: true };
            let mut out = Vec::new();
            write_record(info, text, &mut out).unwrap();
            assert_eq!(to_u64(out.len()), printed_len(&prefix(info), text));
        }
    }
}
