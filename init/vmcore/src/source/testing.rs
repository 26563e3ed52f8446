//! vmcores made up by tests: a few calls describe memory and notes, and a file comes out.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "for tests, which may panic"
)]
#![cfg_attr(not(test), expect(clippy::arithmetic_side_effects, reason = "likewise"))]

use std::collections::BTreeMap;

use tempfile::NamedTempFile;

use crate::format::{elf, note};

const PAGE: u64 = 4096;

/// A vmcore under construction.
#[derive(Debug, Default)]
pub struct CoreFile {
    segments: Vec<(u64, Vec<u8>)>,
    notes: Vec<u8>,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl CoreFile {
    /// A core without memory or notes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A segment with these bytes.
    #[must_use]
    pub fn segment(mut self, paddr: u64, bytes: &[u8]) -> Self {
        self.segments.push((paddr, bytes.to_vec()));
        self
    }

    /// `pages` pages from `paddr` on: every third page zero, the others text-like and different.
    #[must_use]
    pub fn memory(mut self, paddr: u64, pages: u64, seed: u64) -> Self {
        let mut bytes = Vec::new();
        for index in 0..pages {
            let page = Self::sample_page(seed.wrapping_mul(1_000_003) + index);
            self.pages.insert(paddr / PAGE + index, page.clone());
            bytes.extend(page);
        }
        self.segments.push((paddr, bytes));
        self
    }

    /// A note.
    #[must_use]
    pub fn note(mut self, name: &str, kind: u32, desc: &[u8]) -> Self {
        self.notes.extend(note::build(name, kind, desc));
        self
    }

    /// The page that [`CoreFile::memory`] put at `pfn`.
    #[must_use]
    pub fn page(&self, pfn: u64) -> Vec<u8> {
        self.pages[&pfn].clone()
    }

    fn sample_page(seed: u64) -> Vec<u8> {
        let len = usize::try_from(PAGE).unwrap();
        if seed.is_multiple_of(3) {
            return vec![0; len];
        }
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let noisy = seed.is_multiple_of(7); // does not compress
        (0..len)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let [low, ..] = x.to_le_bytes();
                if noisy { low } else { low & 3 }
            })
            .collect()
    }

    /// The file's bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let count = self.segments.len() + 1;
        let extended = count >= 0xffff;
        let table = elf::HEADER_LEN + count * elf::PROGRAM_HEADER_LEN;
        let section_at = table;
        let notes_at = (table + if extended { elf::SECTION_HEADER_LEN } else { 0 }).next_multiple_of(4096);
        let mut at = (notes_at + self.notes.len()).next_multiple_of(4096);
        let mut out = vec![0_u8; 64];
        out[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        let mut set = |offset: usize, bytes: &[u8]| out[offset..offset + bytes.len()].copy_from_slice(bytes);
        set(16, &[4, 0, 62, 0, 1]);
        set(32, &64_u64.to_le_bytes());
        set(52, &[64, 0, 56, 0]);
        set(58, &[64, 0]);
        if extended {
            set(40, &u64::try_from(section_at).unwrap().to_le_bytes());
            set(56, &[0xff, 0xff]);
        } else {
            set(56, &u16::try_from(count).unwrap().to_le_bytes());
        }
        let mut header = |kind: u32, offset: usize, paddr: u64, len: usize| {
            let len = u64::try_from(len).unwrap();
            out.extend(kind.to_le_bytes());
            out.extend(0_u32.to_le_bytes());
            for word in [u64::try_from(offset).unwrap(), 0, paddr, len, len, 0] {
                out.extend(word.to_le_bytes());
            }
        };
        header(4, notes_at, 0, self.notes.len());
        let mut places = Vec::new();
        for (paddr, bytes) in &self.segments {
            header(1, at, *paddr, bytes.len());
            places.push(at);
            at = (at + bytes.len()).next_multiple_of(if extended { 1 } else { 4096 });
        }
        if extended {
            let mut section = vec![0; elf::SECTION_HEADER_LEN];
            section[44..48].copy_from_slice(&u32::try_from(count).unwrap().to_le_bytes());
            out.extend(section);
        }
        out.resize(notes_at, 0);
        out.extend(&self.notes);
        for ((_, bytes), place) in self.segments.iter().zip(places) {
            out.resize(place, 0);
            out.extend(bytes);
        }
        out
    }

    /// The file, gone when dropped.
    #[must_use]
    pub fn write(&self) -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), self.bytes()).unwrap();
        file
    }
}
