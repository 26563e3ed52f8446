//! How page classes look, and the order they come in: one table for all renderers.

use vmcore::filter::PageClass;

/// How a class looks.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    /// Which.
    pub class: PageClass,
    /// Its sign on terminals without colours.
    pub letter: char,
    /// Its colours on terminals with 256 of them: in the file, and left out.
    pub ansi: (u8, u8),
    /// Red, green, blue.
    pub rgb: [u8; 3],
}

/// Every class that a map shows, in the order of tables, legends and cells. The colours are those
/// of Okabe and Ito, which colour-blind people can tell apart, and greys.
pub const PAINTS: [Paint; 11] = {
    const fn paint(class: PageClass, letter: char, ansi: (u8, u8), rgb: [u8; 3]) -> Paint {
        Paint { class, letter, ansi, rgb }
    }
    [
        paint(PageClass::Kernel, 'K', (32, 24), [0x00, 0x72, 0xb2]),
        paint(PageClass::Slab, 'S', (117, 67), [0x56, 0xb4, 0xe9]),
        paint(PageClass::Cache, 'C', (36, 23), [0x00, 0x9e, 0x73]),
        paint(PageClass::PrivateCache, 'P', (227, 101), [0xf0, 0xe4, 0x42]),
        paint(PageClass::User, 'U', (214, 94), [0xe6, 0x9f, 0x00]),
        paint(PageClass::Hugetlb, 'H', (166, 88), [0xd5, 0x5e, 0x00]),
        paint(PageClass::Free, '.', (252, 240), [0xd4, 0xd4, 0xd4]),
        paint(PageClass::Unknown, '?', (244, 237), [0x80, 0x80, 0x80]),
        paint(PageClass::Poisoned, '!', (201, 127), [0x00, 0x00, 0x00]),
        paint(PageClass::Offline, 'o', (175, 96), [0xcc, 0x79, 0xa7]),
        paint(PageClass::Reserved, 'R', (18, 17), [0x00, 0x3b, 0x6f]),
    ]
};
/// The colour of pages that a dump lost, whatever their class: black, with white lines where there
/// is room.
pub const LOST: [u8; 3] = [0x20, 0x20, 0x20];
/// The same on terminals.
pub const LOST_ANSI: u8 = 196;

/// How pages of a kind are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shade {
    /// In the file: the colour of the class with this place in [`PAINTS`].
    Held(usize),
    /// Left out: the same, paler.
    LeftOut(usize),
    /// Lost.
    Lost,
}

impl Shade {
    /// All shades, in the order of the legend.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..PAINTS.len()).flat_map(|place| [Self::Held(place), Self::LeftOut(place)]).chain([Self::Lost])
    }

    /// Its number in [`Shade::all`].
    #[must_use]
    pub fn place(self) -> usize {
        match self {
            Self::Held(place) => place.saturating_mul(2),
            Self::LeftOut(place) => place.saturating_mul(2).saturating_add(1),
            Self::Lost => PAINTS.len().saturating_mul(2),
        }
    }

    /// The colour of an area.
    #[must_use]
    pub fn rgb(self) -> [u8; 3] {
        let of = |place: usize| PAINTS.get(place).map_or(LOST, |paint| paint.rgb);
        match self {
            Self::Held(place) => of(place),
            Self::LeftOut(place) => of(place).map(|channel| {
                let mixed = u16::from(channel).saturating_add(255_u16.saturating_mul(3)) / 4;
                u8::try_from(mixed).unwrap_or(u8::MAX)
            }),
            Self::Lost => LOST,
        }
    }

    /// The colour of the lines that hatch the area, if it is hatched.
    #[must_use]
    pub fn hatch(self) -> Option<[u8; 3]> {
        match self {
            Self::Held(_) => None,
            Self::LeftOut(place) => Some(Self::Held(place).rgb()),
            Self::Lost => Some([0xff; 3]),
        }
    }

    /// The class of the pages; none of lost ones, which may be of any.
    #[must_use]
    pub fn class(self) -> Option<PageClass> {
        let (Self::Held(place) | Self::LeftOut(place)) = self else { return None };
        PAINTS.get(place).map(|paint| paint.class)
    }

    /// Whether it is rare and matters: shown however few pages there are.
    #[must_use]
    pub fn is_rare(self) -> bool {
        self == Self::Lost || matches!(self.class(), Some(PageClass::Poisoned | PageClass::Offline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paints_are_one_per_class_and_all_differ() {
        for class in PageClass::ALL {
            let paints = PAINTS.iter().filter(|paint| paint.class == class).count();
            assert_eq!(paints, usize::from(class != PageClass::UnusedVmemmap));
        }
        let mut colours: Vec<_> = Shade::all().map(Shade::rgb).collect();
        colours.sort_unstable();
        colours.dedup();
        assert_eq!(colours.len(), 23);
        let ansi = PAINTS.iter().flat_map(|paint| [paint.ansi.0, paint.ansi.1]).chain([LOST_ANSI]);
        assert_eq!(ansi.collect::<std::collections::BTreeSet<_>>().len(), 23);
        assert!((0..).zip(Shade::all()).all(|(place, shade)| shade.place() == place));
    }
}
