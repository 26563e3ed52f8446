//! Where the symbol table lies in a kernel that does not say so (before 6.0).
//!
//! The tokens of the ten digits are always themselves and lie side by side, which no other data
//! looks like; the index behind them tells where the token table begins. The names lie before it,
//! behind their number and the base of the addresses, which is the start of the image
//! (write_src(), scripts/kallsyms.c of 5.10: offsets, relative_base, num_syms, names, markers,
//! token_table, token_index, each aligned to 8 bytes).

use vmcore::kernel::Kernel;

use super::{Addresses, KallsymsError, MAX_SYMBOLS, Places};
use crate::memory;
use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::Fields;

/// Bytes of the kernel's image that are searched for tokens.
const MAX_IMAGE: u64 = 128 << 20;
/// Bytes before the tokens that are searched for the names: compressed names of 200,000 symbols take
/// 2 MiB.
const MAX_NAMES: u64 = 16 << 20;
/// Bytes behind the digits in which the index is: at most 246 other tokens.
const MAX_BEHIND: usize = 8192;
/// Bytes that are searched at a time.
const WINDOW: u64 = 1 << 20;
/// The fewest symbols that a kernel has.
const MIN_SYMBOLS: u32 = 1000;
/// Places that look like the digits of a token table, and words that look like the base before names,
/// that are looked at more closely. A kernel has one table, but memory may hold any number.
const MAX_TRIED: usize = 16;
const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";

/// Finds the tables.
pub(super) fn find(kernel: &Kernel<'_>) -> Result<Places, KallsymsError> {
    let start = kernel.info().symbol("_stext").ok_or(KallsymsError::NotFound)?;
    let mut at = start.0;
    let end = start.0.saturating_add(MAX_IMAGE);
    let mut tried = 0;
    while at < end {
        let overlap = to_u64(MAX_BEHIND);
        let window = memory::or_zeros(kernel, at, WINDOW.saturating_add(overlap));
        let hits = window.windows(DIGITS.len()).take(to_usize(WINDOW)).enumerate();
        for (offset, _) in hits.filter(|(_, bytes)| *bytes == DIGITS) {
            let digits = at.saturating_add(to_u64(offset));
            tried = usize::saturating_add(tried, 1);
            if tried > MAX_TRIED {
                return Err(KallsymsError::NotFound);
            }
            if let Some(places) = around(kernel, start.0, digits, window.get(offset..).unwrap_or_default()) {
                return Ok(places);
            }
        }
        at = at.saturating_add(WINDOW);
    }
    Err(KallsymsError::NotFound)
}

/// The tables around the digits of a token table; `behind` is memory from the digits on.
fn around(kernel: &Kernel<'_>, base: u64, digits: u64, behind: &[u8]) -> Option<Places> {
    let first = to_usize(digits.next_multiple_of(8).saturating_sub(digits));
    let index = (first..MAX_BEHIND).step_by(8).find(|&at| is_index(behind, at))?;
    let of_zero = Fields(behind).u16(index.checked_add(usize::from(b'0').checked_mul(2)?)?)?;
    let tokens = digits.checked_sub(u64::from(of_zero))?;
    let index = VirtAddr(digits.checked_add(to_u64(index))?);
    let before = tokens.saturating_sub(MAX_NAMES).max(base) & !7;
    let bytes = memory::or_zeros(kernel, before, tokens.checked_sub(before)?);
    let fields = Fields(&bytes);
    let bases = (0..bytes.len()).step_by(8).filter(|&at| fields.u64(at) == Some(base));
    let counted = bases.filter_map(|at| Some((at, at.checked_add(8).and_then(|at| fields.u32(at))?)));
    for (at, count) in
        counted.filter(|(_, count)| (MIN_SYMBOLS..=MAX_SYMBOLS).contains(count)).take(MAX_TRIED)
    {
        let names = at.checked_add(16)?;
        if !are_names(bytes.get(names..)?, count) {
            continue;
        }
        let offsets = u64::from(count).checked_mul(4)?.next_multiple_of(8);
        let at = before.checked_add(to_u64(at))?;
        return Some(Places {
            names: VirtAddr(at.checked_add(16)?),
            count,
            tokens: VirtAddr(tokens),
            index,
            addresses: Addresses::Relative { at: VirtAddr(at.checked_sub(offsets)?), base },
        });
    }
    None
}

/// Whether the index of a token table lies at `at`: 256 offsets that ascend from 0.
fn is_index(bytes: &[u8], at: usize) -> bool {
    let Some(index) = Fields(bytes).bytes(at, 512) else { return false };
    if !index.starts_with(&[0, 0]) {
        return false;
    }
    let offsets: Vec<u16> = (0..256_usize).filter_map(|n| Fields(index).u16(n.saturating_mul(2))).collect();
    offsets.first() == Some(&0) && offsets.is_sorted_by(|one, next| one < next)
}

/// Whether so many names, each with its length, fit in front of the tokens.
fn are_names(bytes: &[u8], count: u32) -> bool {
    let mut at = 0_usize;
    (0..count).all(|_| {
        let len = bytes.get(at).copied().map_or(0, usize::from);
        at = at.saturating_add(len).saturating_add(1);
        // A length of two bytes came with 6.1, whose tables need not be searched for.
        (1..128).contains(&len) && at <= bytes.len()
    })
}
