//! What runs between two kernels: checks that the next one is whole, and enters it. The machine
//! code stands in [`sys::trampoline`](crate::sys::trampoline); here it gets its parameters.
//!
//! | page | what |
//! |---|---|
//! | 0 | code and constants |
//! | 1 | parameters |
//! | 2 | stack |
//! | 3-9 | page tables that map the first 4 GiB one to one, if wanted |

use sha2::{Digest, Sha256};

use crate::sys::trampoline::{CODE_PAGES, GDT_BASE_AT, Parameters, code};
use crate::{PAGE, Segment};
use base::addr::{to_u64, to_usize};

/// Bytes without page tables.
pub const LEN: u64 = 3 * PAGE;
/// Bytes with them.
pub const LEN_WITH_TABLES: u64 = 10 * PAGE;
/// PRESENT and WRITE.
const TABLE: u64 = 3;
/// PRESENT, WRITE and PSE: a page of 2 MiB.
const LARGE: u64 = 0x83;
const LARGE_SHIFT: u32 = 21;

/// Pages that are checked before the next kernel is entered: contents as whole pages.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    hash: Sha256,
    ranges: Vec<(u64, u64)>,
    bytes: u64,
}

/// More ranges than the trampoline has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} ranges to be checked before the jump; there is room for {limit}", limit = Parameters::RANGES)]
pub struct TooMany(usize);

impl Checked {
    /// Adds a segment.
    pub fn add(&mut self, segment: &Segment<'_>) {
        self.begin(segment.at, segment.size);
        self.update(&segment.bytes);
        let padding = to_usize(segment.size).saturating_sub(segment.bytes.len());
        self.update(&vec![0; padding]);
    }

    /// Begins a range of `size` bytes, a multiple of [`PAGE`], whose contents follow in pieces.
    pub fn begin(&mut self, at: u64, size: u64) {
        self.ranges.push((at, size));
        self.bytes = self.bytes.saturating_add(size);
    }

    /// The next piece of the range that was begun last.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    fn parameters(self) -> Result<Parameters, TooMany> {
        let mut digest = [0; 8];
        for (word, bytes) in digest.iter_mut().zip(self.hash.finalize().chunks_exact(4)) {
            *word = u32::from_be_bytes(bytes.try_into().unwrap_or_default());
        }
        // The last block of SHA-256 behind whole blocks: a 1 bit, zeros, and the length in bits
        // (FIPS 180-4, 5.1.1).
        let mut last_block = [0; 64];
        last_block[0] = 0x80;
        if let Some(length) = last_block.last_chunk_mut() {
            *length = self.bytes.saturating_mul(8).to_be_bytes();
        }
        let mut ranges = [(0, 0); Parameters::RANGES];
        let count = self.ranges.len();
        if count > ranges.len() {
            return Err(TooMany(count));
        }
        ranges.iter_mut().zip(self.ranges).for_each(|(to, from)| *to = from);
        Ok(Parameters { digest, last_block, count: to_u64(count), ranges, ..Parameters::default() })
    }
}

/// Where the jump leads.
#[derive(Clone, Copy, Debug)]
pub struct Jump {
    /// Physical address of the kernel's 64-bit entry.
    pub entry: u64,
    /// Physical address of boot_params.
    pub boot_params: u64,
    /// Whether the trampoline brings page tables of its own: what kexec maps may not hold the next
    /// kernel.
    pub tables: bool,
    /// I/O port of a 16550 that complaints go to; 0 without.
    pub serial: u16,
}

/// The trampoline as it is to lie at `at`, which is its entry too.
pub fn build(at: u64, jump: Jump, checked: Checked) -> Result<Vec<u8>, TooMany> {
    let page = |number: u64| at.saturating_add(number.saturating_mul(PAGE));
    let (top4, top5) = if jump.tables { (page(4), page(3)) } else { (0, 0) };
    let parameters = Parameters {
        entry: jump.entry,
        boot_params: jump.boot_params,
        top4,
        top5,
        serial: jump.serial.into(),
        ..checked.parameters()?
    };
    let mut out = code().to_vec();
    if let Some(base) = out.get_mut(GDT_BASE_AT.clone()) {
        let offset = u64::from_le_bytes((&*base).try_into().unwrap_or_default());
        base.copy_from_slice(&at.saturating_add(offset).to_le_bytes());
    }
    out.resize(to_usize(CODE_PAGES.saturating_mul(PAGE)), 0);
    out.extend(parameters.to_bytes());
    out.resize(to_usize(LEN), 0);
    if jump.tables {
        let mut entry = |value: u64| out.extend(value.to_le_bytes());
        // pml5 and pml4 with one entry each, a pdpt with four, four page directories: the first 4
        // GiB.
        for (next, count) in [(4, 1), (5, 1), (6, 4_u64)] {
            (0..count).for_each(|n| entry(page(n.saturating_add(next)) | TABLE));
            (count..512).for_each(|_| entry(0));
        }
        (0..4 * 512_u64).for_each(|n| entry(n.wrapping_shl(LARGE_SHIFT) | LARGE));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::trampoline;
    use base::fields::Fields;

    fn jump(tables: bool) -> Jump {
        Jump { entry: 0x3500_0200, boot_params: 0x3900_0000, tables, serial: 0x3f8 }
    }

    #[test]
    fn the_code_finds_what_was_checked_whole_and_what_was_not_damaged() {
        let mut checked = Checked::default();
        let contents = [vec![7; 4096], vec![9; 100]];
        // The code itself is called, at addresses of this process.
        let memory: Vec<Vec<u8>> = contents
            .iter()
            .map(|c| [c.clone(), vec![0; c.len().next_multiple_of(4096) - c.len()]].concat())
            .collect();
        for (bytes, memory) in contents.iter().zip(&memory) {
            let at = u64::try_from(memory.as_ptr().addr()).unwrap();
            checked.add(&Segment { name: "x", at, bytes: bytes.into(), size: to_u64(memory.len()) });
        }
        let parameters = checked.parameters().unwrap();
        let mut state = trampoline::INITIAL;
        for piece in memory.iter().map(Vec::as_slice).chain([&parameters.last_block[..]]) {
            trampoline::sha256(&mut state, piece);
        }
        assert_eq!(state, parameters.digest);
        let mut other = trampoline::INITIAL;
        trampoline::sha256(&mut other, &[7; 4096 - 64]);
        assert_ne!(other, state);
    }

    #[test]
    fn a_digest_is_that_of_fips_180() {
        let mut state = trampoline::INITIAL;
        let mut block = [0; 64];
        block[..4].copy_from_slice(b"abc\x80");
        block[63] = 24;
        trampoline::sha256(&mut state, &block);
        let hex: Vec<_> = state.iter().map(|word| format!("{word:08x}")).collect();
        assert_eq!(hex.concat(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn pages_and_parameters_stand_where_the_code_looks() {
        let at = 0x3a00_0000;
        let bytes = build(at, jump(true), Checked::default()).unwrap();
        assert_eq!(to_u64(bytes.len()), LEN_WITH_TABLES);
        let f = Fields(&bytes);
        let parameters: Vec<_> = (0..4).map(|n| f.u64(0x1000 + n * 8).unwrap()).collect();
        assert_eq!(parameters, [0x3500_0200, 0x3900_0000, at + 0x4000, at + 0x3000]);
        assert_eq!(f.u64(0x1020), Some(0x3f8));
        // A walk by either table ends at the address itself.
        for (top, levels) in [(3, 5), (4, 4)] {
            let address: u64 = 0xfee0_0123;
            let mut table = top * 0x1000;
            for level in (2..=levels).rev() {
                let index = usize::try_from((address >> (12 + 9 * (level - 1))) & 511).unwrap();
                let entry = f.u64(table + index * 8).unwrap();
                if level == 2 {
                    assert_eq!((entry & !0xfff) | (address & 0x1f_ffff), address);
                    assert_eq!(entry & 0x83, 0x83);
                } else {
                    assert_eq!(entry & 3, 3);
                    table = usize::try_from((entry & !0xfff) - at).unwrap();
                }
            }
        }
        let plain = build(at, jump(false), Checked::default()).unwrap();
        assert_eq!((to_u64(plain.len()), Fields(&plain).u64(0x1010)), (LEN, Some(0)));
    }

    #[test]
    fn the_code_does_not_depend_on_where_it_lies() {
        let build = |at| build(at, jump(false), Checked::default()).unwrap();
        let (low, high) = (build(0x100_0000), build(0x12_3456_7000));
        let differing: Vec<_> =
            low.iter().zip(&high).enumerate().filter(|(_, (a, b))| a != b).map(|(n, _)| n).collect();
        assert!(differing.iter().all(|at| GDT_BASE_AT.contains(at)), "{differing:x?}");
        let base = Fields(&low).u64(GDT_BASE_AT.start).unwrap();
        let gdt = usize::try_from(base - 0x100_0000).unwrap();
        assert_eq!(Fields(&low).u64(gdt + 16), Some(0x00af_9a00_0000_ffff), "the code segment");
    }

    #[test]
    fn more_ranges_than_there_is_room_for_are_refused() {
        let mut checked = Checked::default();
        (0..=Parameters::RANGES).for_each(|n| checked.begin(to_u64(n) * PAGE, PAGE));
        assert!(build(0x1000, jump(false), checked).is_err());
    }
}
