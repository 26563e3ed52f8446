//! Pages by class and by what became of them: of a cell, a row, all memory.

use vmcore::filter::PageClass;

use crate::map::paint::{PAINTS, Shade};

/// Most kinds of pages that are told apart in one cell, unless more of them are rare and matter.
const MAX_PARTS: usize = 3;
/// The part of a cell that a kind of pages has at least which is rare and matters: one in so many.
const RARE_PART: u64 = 8;

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

    /// What one sign shows of the pages, where they have no more room: poisoned and lost ones however few
    /// they are, otherwise what they mostly are. Offline pages count as all others do, since a balloon has
    /// them everywhere.
    #[must_use]
    pub fn sign(&self) -> Option<Shade> {
        let poisoned = self.shades().find(|(shade, _)| shade.class() == Some(PageClass::Poisoned));
        let damaged = poisoned.or_else(|| self.shades().find(|&(shade, _)| shade == Shade::Lost));
        damaged.map_or_else(|| self.main_shade(), |(shade, _)| Some(shade))
    }

    /// Divides `steps` of a cell by what the pages are, for a stacked bar: the few most frequent kinds in the
    /// order of the legend. What is rare and matters (lost, poisoned and offline pages) is shown however few
    /// they are.
    #[must_use]
    pub fn parts(&self, steps: u64) -> Vec<Part> {
        let mut kinds: Vec<(Shade, u64)> = self.shades().collect();
        kinds.sort_by_key(|&(shade, pages)| (!shade.is_rare(), core::cmp::Reverse(pages)));
        let rare = kinds.iter().filter(|(shade, _)| shade.is_rare()).count();
        kinds.truncate(MAX_PARTS.max(rare.saturating_add(1)));
        kinds.sort_by_key(|&(shade, _)| shade.place());
        divide(&kinds, steps, steps / RARE_PART)
    }

    /// Divides `steps` by all that the pages are, as [`Tally::parts`] does; what is rare and matters has
    /// `least` steps.
    #[must_use]
    pub fn bar(&self, steps: u64, least: u64) -> Vec<Part> {
        divide(&self.shades().collect::<Vec<_>>(), steps, least)
    }
}

/// Divides `steps` by numbers of pages. The kinds that are rare and matter have `least` steps, 1 at least,
/// before the others share what remains; without that, rounding would leave a few of many pages no step at
/// all.
fn divide(kinds: &[(Shade, u64)], steps: u64, least: u64) -> Vec<Part> {
    let whole = kinds.iter().fold(0_u64, |sum, (_, pages)| sum.saturating_add(*pages));
    let rare = kinds.iter().fold(0_u64, |sum, (shade, _)| sum.saturating_add(u64::from(shade.is_rare())));
    let least = least.clamp(1, steps.checked_div(rare).unwrap_or(steps).max(1));
    let shared = steps.saturating_sub(least.saturating_mul(rare));
    let mut parts = Vec::with_capacity(kinds.len());
    let (mut sum, mut ahead, mut from) = (0_u64, 0_u64, 0);
    for &(shade, pages) in kinds {
        sum = sum.saturating_add(pages);
        ahead = ahead.saturating_add(if shade.is_rare() { least } else { 0 });
        let to = scale(sum, shared, whole).saturating_add(ahead).min(steps);
        if to > from {
            parts.push(Part { shade, from, to });
        }
        from = to;
    }
    parts
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
        assert_eq!(parts(&cell), [(kernel, 0, 5), (user, 5, 14), (poisoned, 14, 16)]);
        assert_eq!(parts(&Tally::default()), []);
        assert_eq!((cell.main_shade(), cell.sign()), (Some(user), Some(poisoned)));
    }

    #[test]
    fn a_sign_shows_what_is_damaged_however_little_it_is() {
        let mut cell = Tally::default();
        assert_eq!(cell.sign(), None);
        cell.add(PageClass::Offline, Fate::LeftOut, 10);
        cell.add(PageClass::User, Fate::LeftOut, 1 << 40);
        assert_eq!(cell.sign(), Some(Shade::LeftOut(4)));
        cell.add(PageClass::User, Fate::Lost, 1);
        assert_eq!(cell.sign(), Some(Shade::Lost));
        cell.add(PageClass::Poisoned, Fate::Stored, 1);
        assert_eq!(cell.sign(), Some(Shade::Held(8)));
    }

    proptest! {
        #[test]
        fn parts_fill_the_cell(
            counts in prop::collection::vec((0..PAINTS.len(), 0_usize..4, 0_u64..1 << 50), 1..12)
        ) {
            let mut cell = Tally::default();
            for (class, fate, pages) in counts {
                cell.add(PAINTS[class].class, Fate::ALL[fate], pages);
            }
            let parts = cell.parts(18);
            let shades = cell.shades().map(|(shade, _)| shade);
            let rare: Vec<_> = shades.filter(|shade| shade.is_rare()).collect();
            prop_assert!(parts.len() <= MAX_PARTS.max(rare.len() + 1));
            // In a cell and in the bar of all memory.
            for drawn in [&parts, &cell.bar(1024, 4)] {
                for shade in &rare {
                    let part = drawn.iter().find(|part| part.shade == *shade);
                    let steps = part.map(|part| part.to - part.from);
                    prop_assert!(steps >= Some(2), "{shade:?} in {drawn:?}");
                }
            }
            prop_assert!(parts.windows(2).all(|pair| pair[0].to == pair[1].from));
            if cell.pages() > 0 {
                prop_assert_eq!((parts[0].from, parts.last().unwrap().to), (0, 18));
            }
        }
    }
}
