//! The kernel's arrays of pointers by number: xarrays, and the radix trees and IDRs that are built alike
//! (include/linux/xarray.h).

use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::Fields;
use vmcore::kernel::KernelError;

use crate::system::System;
use crate::tables::Steps;

/// A tree of 64-bit indices has eleven levels of six bits.
const MAX_SHIFT: u8 = 60;

/// What an array has from an index on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The first index.
    pub index: u64,
    /// How many indices it is of.
    pub count: u64,
    /// What the array has there, as the kernel keeps it: a pointer, or a value, whose lowest bit is
    /// set. None where it could not be read.
    pub entry: Option<u64>,
}

/// The node that an entry leads to, if it does (`xa_is_node`).
fn node_of(entry: u64) -> Option<VirtAddr> {
    (entry & 3 == 2 && entry > 4096).then_some(VirtAddr(entry & !3))
}

/// Calls `each` with what the array has from index `first` to `behind`, in order; pieces at the ends may
/// reach beyond. `head` is its `xa_head`.
pub fn walk(
    system: &System<'_>,
    head: u64,
    (first, behind): (u64, u64),
    steps: &Steps,
    each: &mut dyn FnMut(Piece),
) {
    let mut walk = Walk { system, first, behind, steps, each };
    match node_of(head) {
        Some(node) => walk.descend(node, 0, None),
        None if head == 0 => {}
        // A single entry, at index 0.
        None => walk.tell(0, 1, Some(head)),
    }
}

/// The pointers that the IDR at `idr` has, by their numbers, at most `limit`; how many could not be read,
/// or were left out. `root` is the offset of `idr_rt.xa_head`.
pub fn pointers(
    system: &System<'_>,
    idr: VirtAddr,
    root: u64,
    limit: usize,
) -> Result<(Vec<(u64, VirtAddr)>, u64), KernelError> {
    let head = system.word(idr, root, "idr.idr_rt.xa_head")?;
    let (mut all, mut lost) = (Vec::new(), 0_u64);
    // A node has something below it, or is not there: there are no more nodes than pointers.
    let steps = Steps::at_most(to_u64(limit));
    walk(system, head, (0, u64::MAX), &steps, &mut |piece| match piece.entry {
        Some(entry) if entry.is_multiple_of(4) && all.len() < limit => {
            all.push((piece.index, VirtAddr(entry)));
        }
        _ => lost = lost.saturating_add(1),
    });
    Ok((all, lost))
}

struct Walk<'a, 'b> {
    system: &'a System<'b>,
    first: u64,
    behind: u64,
    steps: &'a Steps,
    each: &'a mut dyn FnMut(Piece),
}

impl Walk<'_, '_> {
    /// A node whose first slot is of index `base`. Shifts fall from node to node, so that it ends.
    fn descend(&mut self, node: VirtAddr, base: u64, above: Option<u8>) {
        let layout = &self.system.layout;
        let slots_of_node = layout.node_slots;
        let shift = self.system.byte(node, layout.node.shift, "xa_node.shift").ok();
        let shift = shift.filter(|shift| *shift <= MAX_SHIFT && above.is_none_or(|above| *shift < above));
        let (true, Some(shift)) = (self.steps.take(), shift) else {
            let count = above.and_then(|above| 1_u64.checked_shl(above.into())).unwrap_or(u64::MAX);
            return self.tell(base, count, None);
        };
        let size = 1_u64.wrapping_shl(shift.into());
        let skip = (self.first.saturating_sub(base) >> shift).min(slots_of_node);
        let end = self.behind.saturating_sub(base).div_ceil(size).min(slots_of_node);
        let len = to_usize(end.saturating_sub(skip).saturating_mul(8));
        let at = layout.node.slots.saturating_add(skip.saturating_mul(8));
        let Ok(slots) = self.system.bytes(node, at, len, "xa_node.slots") else {
            return self.tell(base, size.saturating_mul(slots_of_node), None);
        };
        for index in skip..end {
            let at = to_usize(index.saturating_sub(skip).saturating_mul(8));
            let entry = Fields(&slots).u64(at).unwrap_or(0);
            let start = base.saturating_add(index.saturating_mul(size));
            match node_of(entry) {
                _ if entry == 0 => {}
                Some(below) if shift > 0 => self.descend(below, start, Some(shift)),
                Some(_) => self.tell(start, 1, None),
                // A sibling: the slot that it names has the entry, which spans several slots.
                None if entry & 3 == 2 => {
                    let sibling = entry >> 2;
                    let named = (sibling < index).then(|| {
                        let at = layout.node.slots.saturating_add(sibling.saturating_mul(8));
                        self.system.word(node, at, "xa_node.slots").ok()
                    });
                    self.tell(start, size, named.flatten().filter(|entry| entry & 3 != 2));
                }
                None => self.tell(start, size, Some(entry)),
            }
        }
    }

    fn tell(&mut self, index: u64, count: u64, entry: Option<u64>) {
        if entry != Some(0) {
            (self.each)(Piece { index, count, entry });
        }
    }
}
