//! What a device holds that is to be a raw target, from its first bytes.

use crate::format::rawdump::superblock::MAGIC;
use crate::format::rawdump::{LOG_START, SLOT_LEN, Superblock, latest};
use crate::format::superblock::{self, Foreign};
use base::addr::to_usize;
use base::fields::Fields;

/// What stands on a device.
#[derive(Clone, Debug, PartialEq)]
pub enum Contents {
    /// Nothing: zeros.
    Blank,
    /// A format of ours, and nothing beside it.
    Ours(Box<Superblock>),
    /// Somebody else's, even if a superblock of ours is still there: mkfs does not write every
    /// block.
    Foreign(Foreign),
    /// Bytes of nobody that we know.
    Unknown,
}

/// Says what stands on the device whose first [`LOG_START`] bytes are `head`.
#[must_use]
pub fn contents(head: &[u8]) -> Contents {
    if let Some(foreign) = superblock::foreign(head) {
        return Contents::Foreign(foreign);
    }
    let zeros = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    let Some((slots, rest)) = head.split_at_checked(SLOT_LEN.saturating_mul(2)) else {
        return Contents::Unknown;
    };
    if head.len() < to_usize(LOG_START) || !zeros(rest) {
        return Contents::Unknown;
    }
    if zeros(slots) {
        return Contents::Blank;
    }
    // A slot may be torn, and still begins as it did before or as it was to begin.
    let torn = |slot: &[u8]| Fields(slot).bytes(0, 8).is_some_and(|magic| magic == MAGIC || zeros(magic));
    match latest(slots) {
        Some(superblock) if slots.chunks(SLOT_LEN).all(torn) => Contents::Ours(Box::new(superblock)),
        _ => Contents::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::rawdump::superblock::tests::sample;

    fn device(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; to_usize(LOG_START)];
        for (at, bytes) in parts {
            head[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn only_zeros_and_ours_may_be_written() {
        let (a, b) = (sample(6).emit().unwrap(), sample(7).emit().unwrap());
        let ours = |generation| Contents::Ours(Box::new(sample(generation)));
        assert_eq!(contents(&device(&[])), Contents::Blank);
        assert_eq!(contents(&device(&[(0, &a), (4096, &b)])), ours(7));
        assert_eq!(contents(&device(&[(0, &a), (4096, &b[..256])])), ours(6), "a torn slot");
        assert_eq!(contents(&device(&[(4096, &b)])), ours(7));
        for stray in [8192, 65536, (1 << 20) - 1] {
            assert_eq!(contents(&device(&[(0, &a), (stray, b"x")])), Contents::Unknown, "{stray}");
        }
        assert_eq!(contents(&device(&[(0, &a), (4096, b"x")])), Contents::Unknown);
        assert_eq!(contents(&device(&[(0, b"x")])), Contents::Unknown);
        assert_eq!(contents(&device(&[])[1..]), Contents::Unknown, "too short to tell");
        assert_eq!(contents(&[]), Contents::Unknown);
    }

    #[test]
    fn what_mkfs_made_beside_our_superblock_is_foreign() {
        let b = sample(7).emit().unwrap();
        let ext = device(&[(1024 + 0x38, b"\x53\xef"), (4096, &b)]);
        assert!(matches!(contents(&ext), Contents::Foreign(found) if found.what == "ext4"));
        let swap = device(&[(4086, b"SWAPSPACE2"), (4096, &b)]);
        assert!(matches!(contents(&swap), Contents::Foreign(found) if found.what == "swap"));
    }
}
