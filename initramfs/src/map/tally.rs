//! Pages by class and by what became of them: of a cell, a row, all memory.

use vmcore::filter::PageClass;

use crate::map::paint::{PAINTS, Shade};

/// Most kinds of pages that are told apart in one cell.
const MAX_PARTS: usize = 3;

/// What became of a page in the dump; in a vmcore all are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fate {
    /// In the file.
    Stored,
    /// In the file as one of the pages of zeros.
    Zero,
    /// Left out by the dump level.
    LeftOut,
    /// To be in the file, and not there.
    Lost,
}

impl Fate {
    /// All fates, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Stored, Self::Zero, Self::LeftOut, Self::Lost];

    #[expect(clippy::as_conversions, reason = "an enum without data")]
    fn index(self) -> usize {
        self as usize
    }
}

/// Pages by class and fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([[u64; Fate::ALL.len()]; PAINTS.len()]);

/// A part of a cell: from the first, some steps of the cell have a shade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it shows.
    pub shade: Shade,
    /// Where it begins.
    pub from: u64,
    /// Where it ends.
    pub to: u64,
}

impl Tally {
    /// Counts `pages` more.
    pub fn add(&mut self, class: PageClass, fate: Fate, pages: u64) {
        // Struct pages of what is left out are a class of dumps only: they are kernel memory.
        let place = PAINTS.iter().position(|paint| paint.class == class).unwrap_or(0);
        if let Some(count) = self.0.get_mut(place).and_then(|fates| fates.get_mut(fate.index())) {
            *count = count.saturating_add(pages);
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (paint, fates) in PAINTS.iter().zip(&other.0) {
            for (fate, pages) in Fate::ALL.into_iter().zip(fates) {
                self.add(paint.class, fate, *pages);
            }
        }
    }

    /// Pages of the class at `place` in [`PAINTS`] with a fate.
    #[must_use]
    pub fn of(&self, place: usize, fate: Fate) -> u64 {
        self.0.get(place).and_then(|fates| fates.get(fate.index())).copied().unwrap_or(0)
    }

    /// Pages of the class at `place` in [`PAINTS`].
    #[must_use]
    pub fn of_class(&self, place: usize) -> u64 {
        Fate::ALL.into_iter().fold(0, |sum, fate| sum.saturating_add(self.of(place, fate)))
    }

    /// Pages with a fate.
    #[must_use]
    pub fn of_fate(&self, fate: Fate) -> u64 {
        (0..PAINTS.len()).fold(0, |sum, place| sum.saturating_add(self.of(place, fate)))
    }

    /// All pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        (0..PAINTS.len()).fold(0, |sum, place| sum.saturating_add(self.of_class(place)))
    }

    /// Pages by how they are drawn; those that there are, in the order of the legend.
    pub fn shades(&self) -> impl Iterator<Item = (Shade, u64)> + '_ {
        let held = |place| self.of(place, Fate::Stored).saturating_add(self.of(place, Fate::Zero));
        let of_class = move |place| {
            [(Shade::Held(place), held(place)), (Shade::LeftOut(place), self.of(place, Fate::LeftOut))]
        };
        let lost = [(Shade::Lost, self.of_fate(Fate::Lost))];
        (0..PAINTS.len()).flat_map(of_class).chain(lost).filter(|&(_, pages)| pages > 0)
    }

    /// What the pages mostly are.
    #[must_use]
    pub fn main_shade(&self) -> Option<Shade> {
        let first = |best: (Shade, u64), next: (Shade, u64)| if next.1 > best.1 { next } else { best };
        self.shades().reduce(first).map(|(shade, _)| shade)
    }

    /// Divides `steps` by what the pages are, for a stacked bar: the few most frequent kinds in the
    /// order of the legend. What is rare and matters (lost, poisoned and offline pages) is shown
    /// however few they are.
    #[must_use]
    pub fn parts(&self, steps: u64) -> Vec<Part> {
        let all = self.pages();
        let mut kinds: Vec<(Shade, u64, bool)> = Vec::new();
        for (shade, pages) in self.shades() {
            let rare = shade.is_rare();
            let weight = if rare { pages.max(all.div_ceil(steps.max(1))) } else { pages };
            kinds.push((shade, weight, rare));
        }
        kinds.sort_by_key(|&(_, weight, rare)| (!rare, core::cmp::Reverse(weight)));
        kinds.truncate(MAX_PARTS);
        kinds.sort_by_key(|&(shade, ..)| shade.place());
        let whole = kinds.iter().fold(0_u64, |sum, (_, weight, _)| sum.saturating_add(*weight));
        let mut parts = Vec::with_capacity(kinds.len());
        let (mut sum, mut from) = (0_u64, 0);
        for (shade, weight, _) in kinds {
            sum = sum.saturating_add(weight);
            let to = scale(sum, steps, whole);
            if to > from {
                parts.push(Part { shade, from, to });
            }
            from = to;
        }
        parts
    }
}

/// `part` of `whole` in `steps`, to the nearest.
pub(super) fn scale(part: u64, steps: u64, whole: u64) -> u64 {
    let doubled = u128::from(part).saturating_mul(u128::from(steps)).saturating_mul(2);
    let rounded = doubled.saturating_add(u128::from(whole));
    u64::try_from(rounded.checked_div(u128::from(whole).saturating_mul(2)).unwrap_or(0)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cell_is_divided_by_what_its_pages_are() {
        let mut cell = Tally::default();
        cell.add(PageClass::User, Fate::Stored, 50);
        cell.add(PageClass::Kernel, Fate::Stored, 25);
        cell.add(PageClass::Slab, Fate::Stored, 24);
        let parts = |cell: &Tally| -> Vec<_> {
            cell.parts(16).iter().map(|part| (part.shade, part.from, part.to)).collect()
        };
        let (kernel, slab, user) = (Shade::Held(0), Shade::Held(1), Shade::Held(4));
        assert_eq!(parts(&cell), [(kernel, 0, 4), (slab, 4, 8), (user, 8, 16)]);
        cell.add(PageClass::Poisoned, Fate::LeftOut, 1);
        let poisoned = Shade::LeftOut(8);
        assert_eq!(parts(&cell), [(kernel, 0, 5), (user, 5, 15), (poisoned, 15, 16)]);
        assert_eq!(parts(&Tally::default()), []);
        assert_eq!(cell.main_shade(), Some(user));
    }

    proptest! {
        #[test]
        fn parts_fill_the_cell(
            counts in prop::collection::vec((0_usize..10, 0_usize..4, 0_u64..1 << 50), 1..12)
        ) {
            let mut cell = Tally::default();
            for (class, fate, pages) in counts {
                cell.add(PAINTS[class].class, Fate::ALL[fate], pages);
            }
            let parts = cell.parts(18);
            prop_assert!(parts.len() <= MAX_PARTS);
            prop_assert!(parts.windows(2).all(|pair| pair[0].to == pair[1].from));
            if cell.pages() > 0 {
                prop_assert_eq!((parts[0].from, parts.last().unwrap().to), (0, 18));
            }
        }
    }
}
