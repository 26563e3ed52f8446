//! Texts that the production side plants in memory and the host side looks for in a dump.
//!
//! A marker is made from a seed that only the kernel command line of one run holds, so no binary,
//! image or earlier run can contain it: a marker that is found was read from the memory of this
//! very guest.

use std::fmt::{Display, Formatter, Result};

/// Bytes of a page; markers are planted a page at a time.
pub const PAGE: usize = 4096;

/// Where in the guest a marker is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Private anonymous memory of PID 1.
    Anonymous,
    /// A file on a tmpfs.
    Tmpfs,
    /// The page cache of a file on the disk, written, synced and read back.
    PageCache,
    /// A line in the kernel log.
    Log,
}

impl Kind {
    /// Every kind there is.
    pub const ALL: [Self; 4] = [Self::Anonymous, Self::Tmpfs, Self::PageCache, Self::Log];

    /// How many pages (of the log: lines) of this kind are planted.
    #[must_use]
    pub const fn count(self) -> usize {
        match self {
            Self::Anonymous => 1024,
            Self::Tmpfs | Self::PageCache => 256,
            Self::Log => 1,
        }
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Tmpfs => "tmpfs",
            Self::PageCache => "pagecache",
            Self::Log => "log",
        })
    }
}

/// The text all pages of a kind share; a five-digit page index follows it in memory. The kind is
/// one of [`Kind`] or of [`crate::planted::Plant`].
#[must_use]
pub fn prefix(seed: &str, kind: impl Display) -> String {
    // FNV-1a: enough to keep the text out of every file that knows only the seed.
    let hash = format!("{seed}{kind}").bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("marker-{kind}-{hash:016x}-")
}

/// The marker with its index, as it stands in memory.
#[must_use]
pub fn text(seed: &str, kind: impl Display, index: usize) -> String {
    format!("{}{index:05}", prefix(seed, kind))
}

/// A page filled with one marker, over and over.
#[must_use]
pub fn page(seed: &str, kind: impl Display, index: usize) -> Vec<u8> {
    let line = format!("{}\n", text(seed, kind, index));
    line.bytes().cycle().take(PAGE).collect()
}

/// Threads of the witness beside its first one.
pub const THREADS: usize = 3;

/// What a thread of the witness has on its stack.
#[must_use]
pub fn on_stack(number: usize) -> String {
    format!("thread {number} of the witness was here")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_differ_by_seed_kind_and_index() {
        let a = text("s", Kind::Tmpfs, 7);
        assert!(a.starts_with("marker-tmpfs-") && a.ends_with("-00007"), "{a}");
        assert_ne!(a, text("t", Kind::Tmpfs, 7));
        assert_ne!(a, text("s", Kind::Tmpfs, 8));
        assert_ne!(a, text("s", Kind::PageCache, 7));
        assert_eq!(page("s", Kind::Tmpfs, 7).len(), PAGE);
    }
}
