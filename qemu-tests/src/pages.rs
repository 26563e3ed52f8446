//! Pages that can be judged by themselves: from a seed, a kind and an index all 4096 bytes follow.
//!
//! For questions about very many pages. Cheap to make where the processor is emulated. Beside
//! [`crate::marker`], whose texts are for readers that search: the words here hold no text, and
//! stand in no file of the host.

use anyhow::{Context, Result};
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Whose memory a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Private memory of a process that sleeps.
    Anonymous,
    /// A file on a tmpfs.
    Tmpfs,
    /// Page cache as on the disk.
    Clean,
    /// Page cache that is not on the disk.
    Dirty,
    /// Private memory of another process, taken after memory was added.
    Late,
}

impl Kind {
    /// Those that every system with pages has.
    pub const USUAL: [Self; 4] = [Self::Anonymous, Self::Tmpfs, Self::Clean, Self::Dirty];
    /// Every one there is.
    pub const ALL: [Self; 5] = [Self::Anonymous, Self::Tmpfs, Self::Clean, Self::Dirty, Self::Late];

    /// The first word of its pages.
    #[must_use]
    pub fn tag(self, seed: &str) -> u64 {
        // FNV-1a, and one round of xorshift so that all bits differ between kinds.
        let hash = format!("page {seed} {self}").bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        next(hash | 1)
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Anonymous => "anonymous",
            Self::Tmpfs => "tmpfs",
            Self::Clean => "clean",
            Self::Dirty => "dirty",
            Self::Late => "late",
        })
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.to_string() == name);
        found.with_context(|| format!("there are no pages called {name:?}"))
    }
}

/// Makes `page` the one with this index of the kind with this tag.
pub fn fill(page: &mut [u8], tag: u64, index: u64) {
    let (words, _) = page.as_chunks_mut();
    let head = [tag, index];
    let mut state = tag ^ index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let body = std::iter::repeat_with(|| {
        state = next(state);
        state
    });
    for (word, value) in words.iter_mut().zip(head.into_iter().chain(body)) {
        *word = value.to_le_bytes();
    }
}

/// Tag and index of a page, if it is one.
#[must_use]
pub fn head(page: &[u8]) -> Option<(u64, u64)> {
    let (words, _) = page.as_chunks();
    let [tag, index, ..] = words else { return None };
    Some((u64::from_le_bytes(*tag), u64::from_le_bytes(*index)))
}

/// One step of xorshift64 (Marsaglia, Xorshift RNGs, 2003).
fn next(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_follows_from_seed_kind_and_index_and_from_nothing_else() {
        let make = |seed: &str, kind: Kind, index| {
            let mut page = vec![0; PAGE];
            fill(&mut page, kind.tag(seed), index);
            page
        };
        let page = make("s", Kind::Tmpfs, 7);
        assert_eq!(head(&page), Some((Kind::Tmpfs.tag("s"), 7)));
        assert_eq!(page, make("s", Kind::Tmpfs, 7));
        for other in [make("s", Kind::Tmpfs, 8), make("s", Kind::Dirty, 7), make("t", Kind::Tmpfs, 7)] {
            // Chance makes a word or two equal.
            let equal = page.chunks(8).zip(other.chunks(8)).filter(|(a, b)| a == b).count();
            assert!(equal < 4, "{equal} words");
        }
        assert_eq!(head(&page[..8]), None);
    }

    #[test]
    fn names_are_read_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse::<Kind>().unwrap(), kind);
        }
        assert!("potatoes".parse::<Kind>().is_err());
    }
}
