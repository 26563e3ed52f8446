//! The kernel's red-black trees (`struct rb_root`, include/linux/rbtree_types.h).

use std::collections::BTreeSet;

use base::addr::VirtAddr;
use vmcore::kernel::Kernel;

/// `rb_node.rb_right`, `rb_node.rb_left`; the colour and the parent are in the first word.
const RIGHT: u64 = 8;
const LEFT: u64 = 16;

/// The nodes of the tree whose root lies at `root`, in order, at most `limit`: addresses of their
/// `rb_node`. Where a part cannot be read, or leads back into the tree, it is left out, and the tree is
/// not whole.
#[must_use]
pub fn all(kernel: &Kernel<'_>, root: VirtAddr, limit: usize) -> (Vec<VirtAddr>, bool) {
    let Ok(mut at) = kernel.read_u64(root, "a tree") else { return (Vec::new(), false) };
    let child = |node: VirtAddr, side: u64| {
        node.checked_add(side).and_then(|place| kernel.read_u64(place, "a tree").ok())
    };
    let (mut seen, mut above, mut all) = (BTreeSet::new(), Vec::new(), Vec::new());
    let mut whole = true;
    loop {
        // Down to the left, as far as it goes.
        while at != 0 {
            let node = VirtAddr(at);
            if seen.len() >= limit || !seen.insert(node) {
                whole = false;
                break;
            }
            let Some(left) = child(node, LEFT) else {
                whole = false;
                break;
            };
            above.push(node);
            at = left;
        }
        let Some(node) = above.pop() else { return (all, whole) };
        all.push(node);
        let right = child(node, RIGHT);
        whole &= right.is_some();
        at = right.unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{START, with_kernel};

    /// Nodes of three words, one after the other, behind the root.
    fn tree(words: &[u64], limit: usize) -> (Vec<u64>, bool) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        with_kernel("", &bytes, |kernel| {
            let (nodes, whole) = all(kernel, VirtAddr(START), limit);
            (nodes.iter().map(|node| (node.0 - START - 8) / 24).collect(), whole)
        })
    }

    fn node(number: u64) -> u64 {
        START + 8 + number * 24
    }

    #[test]
    fn nodes_come_in_order() {
        // 0 has 1 at its left and 2 at its right; 2 has 3 at its left.
        let words = [node(0), 0, node(2), node(1), 0, 0, 0, 0, 0, node(3), 0, 0, 0];
        assert_eq!(tree(&words, 10), (vec![1, 0, 3, 2], true));
        assert_eq!(tree(&words, 2), (vec![1, 0], false));
        assert_eq!(tree(&[0], 10), (vec![], true));
    }

    #[test]
    fn a_tree_that_leads_into_itself_ends() {
        let words = [node(0), 0, node(0), node(1), 0, node(0), node(1)];
        let (nodes, whole) = tree(&words, 100);
        assert_eq!((nodes, whole), (vec![1, 0], false));
        let far = [node(0), 0, 1 << 47, 1 << 46];
        assert!(!tree(&far, 100).1);
    }
}
