//! Bytes at a place in physical memory that the capture kernel can be told: locked pages of this
//! process and index pages that name them.
//!
//! mlock(2) keeps pages in memory, not in their place: compaction, memory hot-plug and CMA may move
//! them still. So huge pages are declined, compaction of locked pages is switched off as long as
//! this lives, and [`Locked::has_moved`] is asked right before the switch. What moves later is told
//! by the SHA-256.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use base::addr::{to_u64, to_usize};
use base::facts::Live;
use memmap2::{Advice, MmapMut};
use sha2::{Digest, Sha256};

const PAGE: usize = 4096;
/// PFNs in an index page.
const ENTRIES: usize = 512;
/// Documentation/admin-guide/sysctl/vm.rst: whether compaction may move locked pages (4.2).
const COMPACTION: &str = "/proc/sys/vm/compact_unevictable_allowed";

/// Why bytes cannot be placed.
#[derive(Debug, thiserror::Error)]
pub enum LockedError {
    /// No memory, or none that may be locked.
    #[error("locking {len} bytes of memory")]
    Lock {
        /// How many.
        len: usize,
        /// Cause.
        source: io::Error,
    },
    /// The kernel does not say where the pages are.
    #[error("reading /proc/self/pagemap")]
    Pagemap(#[source] io::Error),
    /// It says so to CAP_SYS_ADMIN only.
    #[error("/proc/self/pagemap does not tell where page {0} is: that needs CAP_SYS_ADMIN")]
    NotTold(usize),
    /// The kernel of this machine has other pages.
    #[error("pages of this machine are not 4 KiB")]
    PageSize,
}

/// Locked bytes and their index.
#[derive(Debug)]
pub(super) struct Locked {
    map: MmapMut,
    /// Pages of bytes; those of the index follow.
    data: usize,
    /// Where each page is.
    pfns: Vec<u64>,
    live: Live,
    _compaction: Compaction,
}

/// What the sysctl was before.
#[derive(Debug)]
struct Compaction(Option<String>);

impl Locked {
    /// Copies `bytes`, at least one, into locked memory.
    pub(super) fn new(bytes: &[u8]) -> Result<Self, LockedError> {
        if !matches!(nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE), Ok(Some(4096))) {
            return Err(LockedError::PageSize);
        }
        let compaction = Compaction::stop();
        let data = bytes.len().div_ceil(PAGE);
        let pages = data.saturating_add(data.div_ceil(ENTRIES));
        let len = pages.saturating_mul(PAGE);
        let failed = |source| LockedError::Lock { len, source };
        let mut map = MmapMut::map_anon(len).map_err(failed)?;
        let _ = map.advise(Advice::NoHugePage); // a kernel without huge pages does not know it
        if let Some(place) = map.get_mut(..bytes.len()) {
            place.copy_from_slice(bytes);
        }
        map.lock().map_err(failed)?;
        let live = Live {
            len: to_u64(bytes.len()),
            sha256: format!("{:x}", Sha256::digest(bytes)),
            index: Vec::new(),
        };
        let mut locked = Self { map, data, pfns: Vec::new(), live, _compaction: compaction };
        locked.index()?;
        Ok(locked)
    }

    /// Where the bytes are, for the record of the switch.
    pub(super) fn live(&self) -> &Live {
        &self.live
    }

    /// Pages, those of the index included.
    pub(super) fn pages(&self) -> usize {
        self.pfns.len()
    }

    /// Whether a page is not where the index says; then [`Locked::index`] is to be called and the
    /// switch recorded anew.
    pub(super) fn has_moved(&self) -> Result<bool, LockedError> {
        Ok(self.look()? != self.pfns)
    }

    /// Writes into the index where the pages are now.
    pub(super) fn index(&mut self) -> Result<(), LockedError> {
        self.pfns = self.look()?;
        let (data, index) = self.pfns.split_at_checked(self.data).unwrap_or_default();
        self.live.index = index.to_vec();
        let start = self.data.saturating_mul(PAGE);
        let places = self.map.get_mut(start..).unwrap_or_default().chunks_exact_mut(8);
        for (place, pfn) in places.zip(data) {
            place.copy_from_slice(&pfn.to_le_bytes());
        }
        Ok(())
    }

    fn look(&self) -> Result<Vec<u64>, LockedError> {
        let pages = self.map.len().div_ceil(PAGE);
        let mut entries = vec![0; pages.saturating_mul(8)];
        let first = to_u64(self.map.as_ptr().addr().div_euclid(PAGE));
        let file = File::open("/proc/self/pagemap").map_err(LockedError::Pagemap)?;
        file.read_exact_at(&mut entries, first.saturating_mul(8)).map_err(LockedError::Pagemap)?;
        pfns(&entries)
    }
}

impl Compaction {
    fn stop() -> Self {
        let before = fs::read_to_string(COMPACTION).ok();
        Self(before.filter(|_| fs::write(COMPACTION, "0").is_ok()))
    }
}

impl Drop for Compaction {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = fs::write(COMPACTION, before);
        }
    }
}

/// PFNs in entries of pagemap: bits 0 to 54 of pages that are there, bit 63
/// (Documentation/admin-guide/mm/pagemap.rst). 0 is what those see who may not know.
fn pfns(entries: &[u8]) -> Result<Vec<u64>, LockedError> {
    let words = entries.chunks_exact(8).map(|entry| entry.try_into().map_or(0, u64::from_le_bytes));
    let pfn = |(page, word): (usize, u64)| {
        let pfn = word & ((1 << 55) - 1);
        let present = word >> 63 == 1;
        (present && pfn != 0).then_some(pfn).ok_or(LockedError::NotTold(page))
    };
    words.enumerate().map(pfn).collect()
}

/// Pages and index pages of so many bytes.
#[must_use]
pub(super) fn index_pages(bytes: u64) -> usize {
    to_usize(bytes.div_ceil(to_u64(PAGE.saturating_mul(ENTRIES))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pagemap_entries_of_pages_that_are_there_have_a_pfn() {
        let entry = |word: u64| word.to_le_bytes();
        let there = (1 << 63) | (1 << 55) | 0x1234;
        assert_eq!(pfns(&[entry(there), entry(1 << 63 | 7)].concat()).unwrap(), [0x1234, 7]);
        for hidden in [1 << 63, 0x1234, 0] {
            let error = pfns(&[entry(there), entry(hidden)].concat()).unwrap_err();
            assert!(matches!(error, LockedError::NotTold(1)), "{error}");
        }
    }

    #[test]
    fn locked_bytes_have_an_index_of_their_pages() {
        let bytes: Vec<u8> = (0..513 * PAGE + 5).map(|n| u8::try_from(n % 253).unwrap()).collect();
        let mut locked = match Locked::new(&bytes) {
            Ok(locked) => locked,
            Err(error) => {
                // Not root, or root of a user namespace: it says which.
                assert!(matches!(error, LockedError::NotTold(0) | LockedError::Lock { .. }), "{error}");
                return;
            }
        };
        assert_eq!((locked.pages(), locked.live().index.len(), index_pages(514 * 4096)), (516, 2, 2));
        assert_eq!(locked.live().len, to_u64(bytes.len()));
        assert_eq!(&locked.map[..bytes.len()], bytes);
        let index = |locked: &Locked, page: usize| {
            let at = (514 + page / ENTRIES) * PAGE + page % ENTRIES * 8;
            u64::from_le_bytes(locked.map[at..at + 8].try_into().unwrap())
        };
        assert!((0..514).all(|page| index(&locked, page) == locked.pfns[page]));
        assert!(locked.live().index.iter().eq(&locked.pfns[514..]));
        locked.pfns[3] ^= 1;
        assert!(locked.has_moved().unwrap());
        locked.index().unwrap();
        assert!(!locked.has_moved().unwrap());
    }
}
