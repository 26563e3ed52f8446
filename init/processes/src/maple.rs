//! Maple trees (lib/maple_tree.c, since 6.1): what the mappings of a process are kept in, and since 6.5
//! interrupts.
//!
//! The lower byte of a pointer to a node holds what kind of node it is. A node has pivots: slot `i`
//! is of what lies above pivot `i - 1` and not above pivot `i`; a pivot of 0 behind the first is the
//! end of the node.

use std::collections::BTreeSet;

use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;
use vmcore::kernel::KernelError;

use crate::layout::MapleLayout;
use crate::system::System;

/// `MAPLE_NODE_MASK`: nodes lie at multiples of 256.
const NODE: u64 = !0xff;
/// `enum maple_type`
const LEAF: u64 = 1;
const RANGE: u64 = 2;
const ALLOCATION: u64 = 3;
/// `MAPLE_HEIGHT_MAX` is 31; a tree of ten levels has more entries than there can be.
const MAX_DEPTH: usize = 16;
/// Nodes of a tree: one has at least four entries, and a process 2^20 mappings at most.
const MAX_NODES: usize = 1 << 19;

/// A node that is still to be read.
struct Next {
    node: u64,
    first: u64,
    last: u64,
    depth: usize,
}

/// The entries of a tree with the indices that they are of, by ascending index.
#[derive(Debug, Default)]
pub struct Entries {
    /// First and last index, and the entry.
    pub all: Vec<(u64, u64, VirtAddr)>,
    /// What could not be read.
    pub faults: Vec<String>,
}

/// Reads the tree at `tree`. Fails if its root cannot be read.
pub fn entries(system: &System<'_>, layout: &MapleLayout, tree: VirtAddr) -> Result<Entries, KernelError> {
    let root = system.word(tree, layout.root, "maple_tree.ma_root")?;
    let mut found = Entries::default();
    // xa_is_node(): an internal entry that is no small number; else the one entry, at index 0.
    if root & 3 != 2 || root <= 4096 {
        return Ok(found);
    }
    let mut seen = BTreeSet::new();
    let mut todo = vec![Next { node: root, first: 0, last: u64::MAX, depth: 0 }];
    while let Some(next) = todo.pop() {
        if next.depth > MAX_DEPTH || seen.len() >= MAX_NODES || !seen.insert(next.node & NODE) {
            found.faults.push("a tree leads back into itself".to_owned());
            break;
        }
        if let Err(error) = node(system, layout, &next, &mut found, &mut todo) {
            found.faults.push(format!(
                "entries from {:#x} to {:#x} are lost: {}",
                next.first,
                next.last,
                base::log::chain(&error)
            ));
        }
    }
    Ok(found)
}

/// Reads a node: entries go into `found`, nodes below it into `todo`, the first one last.
fn node(
    system: &System<'_>,
    layout: &MapleLayout,
    of: &Next,
    found: &mut Entries,
    todo: &mut Vec<Next>,
) -> Result<(), KernelError> {
    let what = "a node of a maple tree";
    let address = VirtAddr(of.node & NODE);
    let kind = of.node >> 3 & 0xf;
    let shape = match kind {
        LEAF | RANGE => layout.range,
        ALLOCATION => layout.allocation,
        value => return Err(KernelError::Absurd { what: "the kind of a maple node", value }),
    };
    let pivots = system.bytes(
        address,
        shape.pivots,
        to_usize(shape.count.saturating_sub(1).saturating_mul(8)),
        what,
    )?;
    let slots = system.bytes(address, shape.slots, to_usize(shape.count.saturating_mul(8)), what)?;
    let (pivots, slots) = (Fields(&pivots), Fields(&slots));
    let mut first = of.first;
    let start = todo.len();
    for index in 0..to_usize(shape.count) {
        let at = index.saturating_mul(8);
        let pivot = pivots.u64(at).filter(|pivot| index == 0 || *pivot != 0);
        let last = pivot.unwrap_or(of.last).min(of.last);
        let slot = slots.u64(at).unwrap_or(0);
        if last < first {
            return Err(KernelError::Absurd { what: "a pivot of a maple node", value: last });
        }
        if kind == LEAF {
            if slot > 4096 && slot.is_multiple_of(4) {
                found.all.push((first, last, VirtAddr(slot)));
            }
        } else if slot & NODE != 0 {
            todo.push(Next { node: slot, first, last, depth: of.depth.saturating_add(1) });
        }
        match last.checked_add(1).filter(|_| last < of.last) {
            Some(next) => first = next,
            None => break,
        }
    }
    if let Some(added) = todo.get_mut(start..) {
        added.reverse();
    }
    Ok(())
}
