//! The kernel log, out of the printk ring buffer of Linux 5.10 and later
//! (kernel/printk/printk_ringbuffer.h).
//!
//! The ring is read as it lies: a record that is being written, was overwritten or is damaged is
//! skipped and counted, and the next one is tried. Only sizes that the format allows bound the
//! loops, and the output has a limit of its own: page tables can show one page of line breaks as a
//! ring of 2 GiB, which would be 75 GB of text.

mod lines;
mod tail;

use std::io::{self, Write};

use serde::Serialize;

use crate::kernel::{Kernel, KernelError};
use base::addr::{PfnRange, VirtAddr, to_u64, to_usize};
use base::fields::Fields;

pub use lines::Line;
pub use tail::{Death, Tail};

/// Flag bits at the top of `prb_desc.state_var`; the rest is the record's id.
const STATE_SHIFT: u32 = 62;
const ID_MASK: u64 = (1 << STATE_SHIFT) - 1;
const COMMITTED: u64 = 1;
const FINALIZED: u64 = 2;
/// The largest `log_buf_len` is 2 GiB (LOG_BUF_LEN_MAX); one descriptor per 32 bytes of it.
const MAX_SIZE_BITS: u32 = 31;
const MAX_COUNT_BITS: u32 = 26;
/// `printk_info.caller_id` of an interrupt (printk_caller_id(), kernel/printk/printk.c).
const CALLER_IS_CPU: u32 = 0x8000_0000;
/// `FAILED_LPOS`: the text of the record was lost when it was printed.
const FAILED_LPOS: u64 = 1;
/// Descriptors without a readable record that are passed over: a ring of 32 MiB of text has no
/// more. Memory that claims the largest ring would otherwise cost minutes in which nothing is
/// saved.
const MAX_MISSES: u64 = 1 << 20;
/// Bytes of output that are believed of any machine, and of a large one this part of its memory.
const MIN_OUTPUT: u64 = 64 << 20;
const OUTPUT_PART: u64 = 64;
/// Bytes of output for a byte that is escaped.
const ESCAPED: u64 = 4;
/// Bytes of output for a line break, at most: itself, a time stamp of 64 bits and a caller.
const MAX_PREFIX: u64 = 40;
/// `prb_data_block.id` stands before the text.
const BLOCK_ID_LEN: u64 = 8;

/// Why the log could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DmesgError {
    /// The ring buffer was not found, or its head makes no sense.
    #[error("finding the printk ring buffer")]
    Ring(#[from] KernelError),
    /// The text could not be written.
    #[error("writing the kernel log")]
    Write(#[source] io::Error),
}

/// How much of the log was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DmesgStats {
    /// Records written.
    pub records: u64,
    /// Records that could not be read although the ring says they are there.
    pub damaged: u64,
    /// The oldest descriptors of the ring, which were left out because the text has a limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Writes the log as text: a line per line of each record, with its time stamp and, where the
/// kernel tells it, who printed it (`T` and a thread id, or `C` and a CPU in interrupt context), as
/// makedumpfile prints them. Every byte that is not printable ASCII, and a backslash, becomes
/// `\xNN`, as in /dev/kmsg (msg_add_ext_text(), kernel/printk/printk.c): the old kernel's users
/// choose the text.
pub fn write(kernel: &Kernel<'_>, out: &mut dyn Write) -> Result<DmesgStats, DmesgError> {
    let ring = Ring::discover(kernel)?;
    ring.write(out, ring.output_limit())
}

/// What `struct printk_info` tells of a record.
#[derive(Clone, Copy, Debug)]
struct RecordInfo {
    /// Time stamp, nanoseconds since boot.
    ts_nsec: u64,
    /// Thread id, or CPU number with [`CALLER_IS_CPU`].
    caller: Option<u32>,
    /// Whether the kernel wrote it: what comes by /dev/kmsg never has the facility 0
    /// (devkmsg_write(), kernel/printk/printk.c).
    by_kernel: bool,
}

/// What stands in front of a record's first line, and is blank in front of its other ones.
fn prefix(info: RecordInfo) -> String {
    let seconds = info.ts_nsec / 1_000_000_000;
    let micros = info.ts_nsec / 1000 % 1_000_000;
    let caller = info.caller.map_or_else(String::new, |id| {
        let kind = if id & CALLER_IS_CPU == 0 { 'T' } else { 'C' };
        format!("[{:>8}] ", format!("{kind}{}", id & !CALLER_IS_CPU))
    });
    format!("[{seconds:5}.{micros:06}] {caller}")
}

/// Whether the byte is printed as it is.
fn is_plain(byte: u8) -> bool {
    byte == b'\t' || (matches!(byte, b' '..=b'~') && byte != b'\\')
}

/// One line per line of text; continuation lines are indented to the text, as makedumpfile prints
/// them.
fn write_record(info: RecordInfo, text: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let prefix = prefix(info);
    let mut line = Vec::with_capacity(to_usize(printed_len(&prefix, text)));
    line.extend_from_slice(prefix.as_bytes());
    for &byte in text {
        if byte == b'\n' {
            line.push(b'\n');
            line.resize(line.len().saturating_add(prefix.len()), b' ');
        } else if is_plain(byte) {
            line.push(byte);
        } else {
            line.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        }
    }
    line.push(b'\n');
    out.write_all(&line)
}

/// Bytes that [`write_record`] writes.
fn printed_len(prefix: &str, text: &[u8]) -> u64 {
    let prefix = to_u64(prefix.len());
    let of = |byte: &u8| match *byte {
        b'\n' => prefix.saturating_add(1),
        byte if is_plain(byte) => 1,
        _ => ESCAPED,
    };
    text.iter().map(of).fold(prefix.saturating_add(1), u64::saturating_add)
}

/// `struct printk_ringbuffer`, with the layout that VMCOREINFO gives.
#[derive(Debug)]
pub struct Ring<'a, 'm> {
    kernel: &'a Kernel<'m>,
    count_bits: u32,
    descs: VirtAddr,
    infos: VirtAddr,
    tail_id: u64,
    head_id: u64,
    size_bits: u32,
    data: VirtAddr,
    desc: DescLayout,
    info: InfoLayout,
}

/// `struct prb_desc`.
#[derive(Debug)]
struct DescLayout {
    size: usize,
    state: usize,
    begin: usize,
    next: usize,
}

/// `struct printk_info`.
#[derive(Debug)]
struct InfoLayout {
    size: usize,
    ts_nsec: usize,
    text_len: usize,
    /// Right behind the length since there is this ring (struct printk_info,
    /// kernel/printk/printk_ringbuffer.h); VMCOREINFO does not have it.
    facility: usize,
    caller_id: Option<usize>,
}

impl<'a, 'm> Ring<'a, 'm> {
    /// Finds the ring buffer of a kernel.
    pub fn discover(kernel: &'a Kernel<'m>) -> Result<Self, KernelError> {
        let what = "the printk ring buffer";
        let prb = VirtAddr(kernel.read_u64(kernel.symbol("prb")?, "prb")?);
        let at = |base: VirtAddr, names: &[&str]| {
            let mut addr = base;
            for name in names {
                addr = addr
                    .checked_add(kernel.offset(name)?)
                    .ok_or(KernelError::Absurd { what, value: base.0 })?;
            }
            Ok::<_, KernelError>(addr)
        };
        let member = |name: &str| kernel.offset(name).map(to_usize);
        let (desc_ring, data_ring) = ("printk_ringbuffer.desc_ring", "printk_ringbuffer.text_data_ring");
        let counter = "atomic_long_t.counter";
        let state = member("prb_desc.state_var")?.saturating_add(member(counter)?);
        let lpos = member("prb_desc.text_blk_lpos")?;
        let ring = Self {
            kernel,
            count_bits: kernel.read_u32(at(prb, &[desc_ring, "prb_desc_ring.count_bits"])?, what)?,
            descs: VirtAddr(kernel.read_u64(at(prb, &[desc_ring, "prb_desc_ring.descs"])?, what)?),
            infos: VirtAddr(kernel.read_u64(at(prb, &[desc_ring, "prb_desc_ring.infos"])?, what)?),
            head_id: kernel.read_u64(at(prb, &[desc_ring, "prb_desc_ring.head_id", counter])?, what)?
                & ID_MASK,
            tail_id: kernel.read_u64(at(prb, &[desc_ring, "prb_desc_ring.tail_id", counter])?, what)?
                & ID_MASK,
            size_bits: kernel.read_u32(at(prb, &[data_ring, "prb_data_ring.size_bits"])?, what)?,
            data: VirtAddr(kernel.read_u64(at(prb, &[data_ring, "prb_data_ring.data"])?, what)?),
            desc: DescLayout {
                size: to_usize(kernel.size("prb_desc")?),
                state,
                begin: lpos.saturating_add(member("prb_data_blk_lpos.begin")?),
                next: lpos.saturating_add(member("prb_data_blk_lpos.next")?),
            },
            info: InfoLayout {
                size: to_usize(kernel.size("printk_info")?),
                ts_nsec: member("printk_info.ts_nsec")?,
                text_len: member("printk_info.text_len")?,
                facility: member("printk_info.text_len")?.saturating_add(2),
                caller_id: member("printk_info.caller_id").ok(),
            },
        };
        for (what, value, limit) in [
            ("prb_desc_ring.count_bits", ring.count_bits, MAX_COUNT_BITS),
            ("prb_data_ring.size_bits", ring.size_bits, MAX_SIZE_BITS),
        ] {
            if value == 0 || value > limit {
                return Err(KernelError::Absurd { what, value: u64::from(value) });
            }
        }
        Ok(ring)
    }

    /// Where the ring lies: start and bytes of its descriptors, infos and texts.
    #[must_use]
    pub fn places(&self) -> [(VirtAddr, u64); 3] {
        let of = |size: usize| self.count().saturating_mul(to_u64(size));
        [(self.descs, of(self.desc.size)), (self.infos, of(self.info.size)), (self.data, self.text_size())]
    }

    /// Bytes of output that a log is believed to have at most: 64 MiB, or a small part of a large
    /// machine's memory.
    #[must_use]
    pub fn output_limit(&self) -> u64 {
        let memory = self.kernel.memory();
        let bytes = PfnRange::count(memory.ranges()).saturating_mul(memory.page_size().bytes());
        MIN_OUTPUT.max(bytes / OUTPUT_PART)
    }

    /// Writes the records as text, the oldest first; see [`write()`]. Of a log that has more than
    /// `limit` bytes of text the end is written.
    pub fn write(&self, out: &mut dyn Write, limit: u64) -> Result<DmesgStats, DmesgError> {
        let left_out = self.beyond(limit);
        let mut stats = DmesgStats { left_out, ..DmesgStats::default() };
        let mut text = Vec::new();
        let mut misses = 0_u64;
        // Records do not share text; damaged ones that do must not fill the target.
        let mut room = self.text_size();
        let mut limit = limit;
        for id in self.ids().skip(to_usize(left_out)) {
            match self.record(id, &mut text) {
                Ok(Some(info)) if to_u64(text.len()) <= room => {
                    let len = printed_len(&prefix(info), &text);
                    // Only where a single record is longer than all that is wanted.
                    let Some(left) = limit.checked_sub(len) else { break };
                    limit = left;
                    write_record(info, &text, out).map_err(DmesgError::Write)?;
                    stats.records = stats.records.saturating_add(1);
                    room = room.saturating_sub(to_u64(text.len()));
                    continue;
                }
                Ok(None) => (),
                Ok(Some(_)) => stats.damaged = stats.damaged.saturating_add(1),
                Err(error) => {
                    log::debug!("log record {id:#x}: {error}");
                    stats.damaged = stats.damaged.saturating_add(1);
                }
            }
            misses = misses.saturating_add(1);
            if misses > MAX_MISSES {
                log::warn!("log ring: {MAX_MISSES} descriptors without a record, giving up at {id:#x}");
                break;
            }
        }
        Ok(stats)
    }

    /// How many of the oldest descriptors are to be passed over, so that the text of the others has
    /// no more than `limit` bytes.
    fn beyond(&self, limit: u64) -> u64 {
        let number = self.span().1;
        let of_text = self.text_size().saturating_mul(MAX_PREFIX);
        let longest = of_text.saturating_add(number.saturating_mul(MAX_PREFIX));
        if longest <= limit {
            return 0;
        }
        let (mut sum, mut misses, mut text) = (0_u64, 0_u64, Vec::new());
        for newer in 0..number {
            let id = self.head_id.wrapping_sub(newer) & ID_MASK;
            match self.record(id, &mut text) {
                Ok(Some(info)) => sum = sum.saturating_add(printed_len(&prefix(info), &text)),
                _ => misses = misses.saturating_add(1),
            }
            if sum > limit || misses > MAX_MISSES {
                return number.saturating_sub(newer.max(1));
            }
        }
        0
    }

    fn count(&self) -> u64 {
        1_u64.wrapping_shl(self.count_bits)
    }

    /// Bytes of the text ring.
    fn text_size(&self) -> u64 {
        1_u64.wrapping_shl(self.size_bits)
    }

    /// The id of the oldest record and how many descriptors there are from it to the newest, at most
    /// one of each. A tail that does not fit the head is not believed: then every descriptor before
    /// the head is tried.
    fn span(&self) -> (u64, u64) {
        let span = self.head_id.wrapping_sub(self.tail_id) & ID_MASK;
        if span < self.count() {
            (self.tail_id, span.saturating_add(1))
        } else {
            (self.head_id.wrapping_sub(self.count()).wrapping_add(1), self.count())
        }
    }

    /// The ids from the oldest record to the newest.
    fn ids(&self) -> impl Iterator<Item = u64> + use<> {
        let (first, number) = self.span();
        if first & ID_MASK != self.tail_id {
            log::warn!("log ring: tail {:#x} does not fit head {:#x}", self.tail_id, self.head_id);
        }
        (0..number).map(move |step| first.wrapping_add(step) & ID_MASK)
    }

    /// Reads record `id` into `text`; `None` for one that holds no text or has not been written to
    /// its end.
    fn record(&self, id: u64, text: &mut Vec<u8>) -> Result<Option<RecordInfo>, KernelError> {
        let index = id & self.count().wrapping_sub(1);
        let desc = self.element(self.descs, index, self.desc.size, "prb_desc")?;
        let field =
            |offset| Fields(&desc).u64(offset).ok_or(KernelError::Absurd { what: "prb_desc", value: index });
        let state_var = field(self.desc.state)?;
        let state = state_var.wrapping_shr(STATE_SHIFT);
        if state_var & ID_MASK != id || !matches!(state, COMMITTED | FINALIZED) {
            return Ok(None);
        }
        let (begin, next) = (field(self.desc.begin)?, field(self.desc.next)?);
        let info = self.element(self.infos, index, self.info.size, "printk_info")?;
        let info = Fields(&info);
        let absurd = KernelError::Absurd { what: "printk_info", value: index };
        let (Some(ts_nsec), Some(text_len)) = (info.u64(self.info.ts_nsec), info.u16(self.info.text_len))
        else {
            return Err(absurd);
        };
        text.clear();
        // Bit 0 marks a record without a data block; if it is not lost, it is an empty line
        // (EMPTY_LINE_LPOS).
        let has_block = begin & 1 == 0 && next & 1 == 0;
        if has_block {
            self.read_block(begin, next, usize::from(text_len), text)?;
        } else if begin == FAILED_LPOS {
            return Ok(None);
        }
        let caller = self.info.caller_id.and_then(|offset| info.u32(offset));
        Ok(Some(RecordInfo { ts_nsec, caller, by_kernel: info.u8(self.info.facility) == Some(0) }))
    }

    /// The text of the data block from `begin` to `next`, which wraps as a whole to the ring's
    /// start.
    fn read_block(
        &self,
        begin: u64,
        next: u64,
        text_len: usize,
        text: &mut Vec<u8>,
    ) -> Result<(), KernelError> {
        let size = self.text_size();
        let mask = size.wrapping_sub(1);
        let same_turn = begin.wrapping_shr(self.size_bits) == next.wrapping_shr(self.size_bits);
        let (from, to) = match (begin & mask, next & mask) {
            (from, 0) if !same_turn => (from, size), // ends exactly at the ring's end
            (from, to) if same_turn => (from, to),
            (_, to) => (0, to),
        };
        let what = "a log text block";
        let room = to.checked_sub(from).and_then(|len| len.checked_sub(BLOCK_ID_LEN));
        let room = room.ok_or(KernelError::Absurd { what, value: begin })?;
        let offset = from.saturating_add(BLOCK_ID_LEN);
        let addr = self.data.checked_add(offset).ok_or(KernelError::Absurd { what, value: self.data.0 })?;
        text.resize(text_len.min(to_usize(room)), 0);
        self.kernel.read(addr, text, what)
    }

    fn element(
        &self,
        base: VirtAddr,
        index: u64,
        size: usize,
        what: &'static str,
    ) -> Result<Vec<u8>, KernelError> {
        let offset = index.checked_mul(to_u64(size));
        let addr = offset.and_then(|offset| base.checked_add(offset));
        let mut bytes = vec![0; size];
        self.kernel.read(addr.ok_or(KernelError::Absurd { what, value: base.0 })?, &mut bytes, what)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
