//! Chains and hash tables of the kernel (include/linux/list.h, list_nulls.h, rhashtable.h).

use std::collections::BTreeSet;

use ::processes::system::System;
use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;

use super::{Rows, Stop};

/// Entries of one chain that are believed.
const MAX_CHAIN: usize = 100_000;
/// Chains of one table that are believed; the largest tables of the kernel have half a million.
const MAX_BUCKETS: u64 = 1 << 21;
/// Bytes of a table that are read at a time.
const PIECE: u64 = 1024;
/// Pieces of a table that cannot be read before the rest of it is left.
const MAX_FAULTS: u64 = 64;
/// Kernel addresses lie above.
const KERNEL: u64 = 0xff00_0000_0000_0000;

/// What a word leads to: nothing where it is null, odd (the mark at the end of an `hlist_nulls`) or no
/// address of the kernel.
fn target(word: u64) -> Option<VirtAddr> {
    (word >= KERNEL && word & 1 == 0).then_some(VirtAddr(word))
}

/// Entries that were seen; one that comes again ends its chain.
pub(super) type Seen = BTreeSet<VirtAddr>;

/// The entries of a chain that begins with what `first` leads to, each of which has the next one at
/// `next`. Fails with what was found, and why there is no more.
pub(super) fn chain(
    system: &System<'_>,
    first: u64,
    next: u64,
    seen: &mut Seen,
) -> (Vec<VirtAddr>, Option<String>) {
    let mut all = Vec::new();
    let mut word = first;
    while let Some(at) = target(word) {
        if all.len() >= MAX_CHAIN {
            return (all, Some(format!("a chain has more than {MAX_CHAIN} entries")));
        }
        if !seen.insert(at) {
            return (all, Some(format!("a chain leads to {:#x} again", at.0)));
        }
        word = match system.word(at, next, "a chain") {
            Ok(word) => word,
            Err(error) => return (all, Some(base::log::chain(&error))),
        };
        all.push(at);
    }
    (all, None)
}

/// The entries of an `hlist_head` that lies at `head`.
pub(super) fn hlist(system: &System<'_>, head: VirtAddr, seen: &mut Seen) -> (Vec<VirtAddr>, Option<String>) {
    match system.word(head, 0, "the head of a chain") {
        Ok(first) => chain(system, first, 0, seen),
        Err(error) => (Vec::new(), Some(base::log::chain(&error))),
    }
}

/// An array of heads of chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// The first head.
    pub(super) at: VirtAddr,
    /// Heads.
    pub(super) count: u64,
    /// Bytes from one to the next.
    pub(super) stride: u64,
    /// Where an entry has the next one.
    pub(super) next: u64,
    /// Whether the lowest bit of a head is a lock (rhashtable).
    pub(super) locks: bool,
}

impl Table {
    /// Heads without anything between them, with entries that begin with the next one.
    pub(super) fn of(at: VirtAddr, count: u64) -> Self {
        Self { at, count, stride: 8, next: 0, locks: false }
    }

    /// Calls `each` with all entries; says what could not be read.
    pub(super) fn walk(
        &self,
        system: &System<'_>,
        rows: &mut Rows<'_>,
        seen: &mut Seen,
        each: &mut dyn FnMut(VirtAddr, &mut Rows<'_>) -> Result<(), Stop>,
    ) -> Result<Option<String>, Stop> {
        let (mut fault, mut faults) = (None, 0_u64);
        let stride = self.stride.max(8);
        if self.count > MAX_BUCKETS {
            fault = Some(format!("{} chains cannot be: {MAX_BUCKETS} are walked", self.count));
        }
        let end = self.count.min(MAX_BUCKETS);
        let at_once = PIECE.checked_div(stride).unwrap_or(1).max(1);
        let mut number = 0;
        while number < end && faults < MAX_FAULTS {
            rows.in_time()?;
            let count = at_once.min(end.saturating_sub(number));
            // Not beyond the last head: what follows need not be there.
            let len = to_usize(count.saturating_sub(1).saturating_mul(stride).saturating_add(8));
            match system.bytes(self.at, number.saturating_mul(stride), len, "a table of chains") {
                Ok(bytes) => {
                    for head in bytes.chunks(to_usize(stride)) {
                        let head = Fields(head).u64(0).unwrap_or(0);
                        let head = if self.locks { head & !1 } else { head };
                        let (entries, why) = chain(system, head, self.next, seen);
                        fault = fault.or(why);
                        for entry in entries {
                            each(entry, rows)?;
                        }
                    }
                }
                Err(error) => {
                    faults = faults.saturating_add(1);
                    fault = fault.or_else(|| Some(base::log::chain(&error)));
                }
            }
            number = number.saturating_add(count);
        }
        Ok(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_ends_with_null_or_an_odd_number() {
        assert_eq!(target(0), None);
        assert_eq!(target(0xffff_8880_0000_0001), None);
        assert_eq!(target(0x7fff_0000_0000), None);
        assert_eq!(target(0xffff_8880_0000_0040), Some(VirtAddr(0xffff_8880_0000_0040)));
    }
}
