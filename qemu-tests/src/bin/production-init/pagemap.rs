//! Where pages are and what the kernel thinks of them: `/proc/self/pagemap` and `/proc/kpageflags`.

use anyhow::{Context, Result, ensure};
use memmap2::{MmapMut, MmapRaw};
use qemu_tests::marker::PAGE;
use qemu_tests::page_flags::Flags;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const PRESENT: u64 = 1 << 63;
/// The low bits of an entry.
const PFN: u64 = (1 << 55) - 1;
/// Bytes of a word in either file.
const WORD: usize = 8;

/// The page frames behind `size` bytes at an address of this process; what is not present has none.
pub(crate) fn frames(start: *const u8, size: usize) -> Result<Vec<u64>> {
    let pagemap = File::open("/proc/self/pagemap").context("opening /proc/self/pagemap")?;
    let mut words = vec![0; size.div_ceil(PAGE).saturating_mul(WORD)];
    let first = u64::try_from(start.addr().wrapping_div(PAGE).saturating_mul(WORD))?;
    pagemap.read_exact_at(&mut words, first).context("reading /proc/self/pagemap")?;
    let (words, _) = words.as_chunks();
    let entries = words.iter().map(|word| u64::from_ne_bytes(*word));
    let frames: Vec<_> = entries.filter(|entry| entry & PRESENT != 0).map(|entry| entry & PFN).collect();
    ensure!(!frames.contains(&0), "pagemap hides page frame numbers");
    Ok(frames)
}

/// The page frames of private memory.
pub(crate) fn of_memory(memory: &MmapMut) -> Result<Vec<u64>> {
    frames(memory.as_ptr(), memory.len())
}

/// The page frames of a mapped file.
pub(crate) fn of_file(mapping: &MmapRaw) -> Result<Vec<u64>> {
    frames(mapping.as_ptr(), mapping.len())
}

/// The flags of page frames.
pub(crate) struct KPageFlags(File);

impl KPageFlags {
    /// Opens them.
    pub(crate) fn open() -> Result<Self> {
        Ok(Self(File::open("/proc/kpageflags").context("opening /proc/kpageflags")?))
    }

    /// The flags of one.
    pub(crate) fn of(&self, pfn: u64) -> Result<Flags> {
        let mut word = [0; WORD];
        let at = pfn.saturating_mul(u64::try_from(WORD)?);
        self.0.read_exact_at(&mut word, at).with_context(|| format!("reading the flags of page {pfn}"))?;
        Ok(Flags(u64::from_ne_bytes(word)))
    }

    /// All page frames there are flags of.
    pub(crate) fn pfns(&self) -> Result<Range<u64>> {
        let mut buffer = vec![0; 64 << 10];
        let mut size: u64 = 0;
        loop {
            let read =
                self.0.read_at(&mut buffer, size).with_context(|| format!("reading flags at {size}"))?;
            if read == 0 {
                return Ok(0..size >> WORD.trailing_zeros());
            }
            size = size.saturating_add(u64::try_from(read)?);
        }
    }

    /// Reads the flags of all page frames to the front of `buffer`; gives their size in bytes.
    pub(crate) fn all(&self, buffer: &mut [u8]) -> Result<usize> {
        let mut size: usize = 0;
        loop {
            let rest = buffer.get_mut(size..).unwrap_or_default();
            ensure!(!rest.is_empty(), "the buffer for /proc/kpageflags is too small");
            let read = self
                .0
                .read_at(rest, u64::try_from(size)?)
                .with_context(|| format!("reading flags at {size}"))?;
            if read == 0 {
                return Ok(size);
            }
            size = size.saturating_add(read);
        }
    }
}
