//! Which bytes of a file are known.

use std::collections::BTreeMap;

/// Ranges of bytes, disjoint and not adjacent: start → end.
#[derive(Clone, Debug, Default)]
pub(super) struct Cover(BTreeMap<u64, u64>);

impl Cover {
    pub(super) fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut from, mut to) = (start, end);
        while let Some((&a, &b)) = self.0.range(..=to).next_back().filter(|&(_, &b)| b >= from) {
            self.0.remove(&a);
            (from, to) = (from.min(a), to.max(b));
        }
        self.0.insert(from, to);
    }

    pub(super) fn remove(&mut self, start: u64, end: u64) {
        while let Some((&a, &b)) = self.0.range(..end).next_back().filter(|&(_, &b)| b > start) {
            self.0.remove(&a);
            if a < start {
                self.0.insert(a, start);
            }
            if b > end {
                self.0.insert(end, b);
            }
            if start >= end {
                return;
            }
        }
    }

    /// Whether all of `start..end` is known.
    pub(super) fn has(&self, start: u64, end: u64) -> bool {
        start >= end || self.0.range(..=start).next_back().is_some_and(|(_, &b)| b >= end)
    }

    /// The known parts of `start..end`.
    pub(super) fn within(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let first = self.0.range(..=start).next_back().map_or(start, |(&a, _)| a);
        let parts = self.0.range(first..end.max(first)).map(|(&a, &b)| (a.max(start), b.min(end)));
        parts.filter(|(a, b)| a < b).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_a_set_of_bytes(steps in prop::collection::vec((any::<bool>(), 0..60_u64, 0..20_u64), 0..30)) {
            let mut cover = Cover::default();
            let mut model = [false; 100];
            for (add, start, len) in steps {
                if add { cover.add(start, start + len) } else { cover.remove(start, start + len) }
                for at in start..start + len {
                    model[usize::try_from(at).unwrap()] = add;
                }
            }
            for (at, &known) in (0_u64..).zip(&model) {
                prop_assert_eq!(cover.has(at, at + 1), known, "{}", at);
            }
            let parts = cover.within(10, 50);
            let sum: u64 = parts.iter().map(|(a, b)| b - a).sum();
            let known = model[10..50].iter().filter(|&&known| known).count();
            prop_assert_eq!(usize::try_from(sum).unwrap(), known);
        }
    }
}
