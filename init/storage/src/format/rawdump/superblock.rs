//! The superblock: whose device it is, what it holds, and what it remembers of crashes.

use core::fmt;

use serde::{Deserialize, Serialize};

use base::addr::{to_u64, to_usize};
use base::fields::{Fields, put};

/// Bytes of a superblock; there are two, one behind the other.
pub const SLOT_LEN: usize = 4096;

/// First bytes of each superblock.
pub(super) const MAGIC: &[u8; 8] = b"afterimg";
const VERSION: u32 = 1;
const CRC_AT: usize = 16;
const PAYLOAD_AT: usize = 32;
/// Longest name of a capture or a file.
const MAX_NAME: usize = 128;

/// What has become of the capture on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// There was none yet.
    Empty,
    /// It has begun; where it ends is found by reading the log.
    Writing,
    /// It has come to its end.
    Sealed,
    /// It has been copied off the device.
    Collected,
}

/// 16 random bytes that every record of a capture repeats. The old kernel's memory, which the
/// records carry, may hold anything, but not what was drawn after that kernel died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce(pub [u8; 16]);

/// What a superblock says. Unknown keys are ignored, so that an older version may follow a newer
/// one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Superblock {
    /// Counts superblocks; of two valid ones the higher is true.
    pub generation: u64,
    /// Of the capture.
    pub state: State,
    /// UUID of the device's format, lower case with dashes.
    pub uuid: String,
    /// Generation in which the log was begun; each of its records repeats it.
    pub log: u64,
    /// Nonce of the log.
    pub nonce: Nonce,
    /// Attempts at the capture so far, from 1; each writes files of its own.
    pub attempt: u32,
    /// What the target remembers of crashes; only `target` knows what it means.
    pub ledger: serde_json::Value,
    /// Name of the capture; empty if there is none.
    pub capture: String,
    /// Device offset after the last record; 0 until the capture is sealed.
    pub end: u64,
    /// Number of records; 0 until the capture is sealed.
    pub records: u64,
    /// When and to where the capture was collected, for people; empty if it was not, or by a version
    /// that did not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub collected: String,
}

/// What a superblock is to say does not fit into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a superblock of {0} bytes")]
pub struct SuperblockTooLong(usize);

impl Superblock {
    /// Device offset of the slot that this one is written to.
    #[must_use]
    pub fn offset(&self) -> u64 {
        if self.generation.is_multiple_of(2) { 0 } else { to_u64(SLOT_LEN) }
    }

    /// The slot's bytes.
    pub fn emit(&self) -> Result<Vec<u8>, SuperblockTooLong> {
        let payload = serde_json::to_vec(self).unwrap_or_default();
        let room = SLOT_LEN.saturating_sub(PAYLOAD_AT);
        let len = u32::try_from(payload.len()).ok().filter(|_| (1..=room).contains(&payload.len()));
        let len = len.ok_or(SuperblockTooLong(payload.len()))?;
        let mut out = vec![0; SLOT_LEN];
        put(&mut out, 0, MAGIC);
        put(&mut out, 8, &VERSION.to_le_bytes());
        put(&mut out, 12, &len.to_le_bytes());
        put(&mut out, PAYLOAD_AT, &payload);
        let crc = crc32fast::hash(&out);
        put(&mut out, CRC_AT, &crc.to_le_bytes());
        Ok(out)
    }

    /// Decodes a slot; `None` if any bit of it is wrong, or if its names could leave a directory.
    #[must_use]
    pub fn parse(slot: &[u8]) -> Option<Self> {
        let slot = slot.get(..SLOT_LEN)?;
        let fields = Fields(slot);
        let ours = slot.starts_with(MAGIC) && fields.u32(8)? == VERSION;
        ours.then_some(())?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(fields.bytes(0, CRC_AT)?);
        hasher.update(&[0; 4]);
        hasher.update(slot.get(CRC_AT.saturating_add(4)..)?);
        (hasher.finalize() == fields.u32(CRC_AT)?).then_some(())?;
        let payload = fields.bytes(PAYLOAD_AT, to_usize(u64::from(fields.u32(12)?)))?;
        let parsed: Self = serde_json::from_slice(payload).ok()?;
        let named = parsed.capture.is_empty() || is_safe_name(&parsed.capture);
        (is_uuid(&parsed.uuid) && named).then_some(parsed)
    }

    /// Whether the capture came to its end, so that [`Self::end`] and [`Self::records`] are known;
    /// a collected one may have.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.state != State::Writing && self.end > 0
    }
}

/// The superblock that holds, of the two at the start of a device.
#[must_use]
pub fn latest(head: &[u8]) -> Option<Superblock> {
    let slots = head.chunks(SLOT_LEN).take(2).filter_map(Superblock::parse);
    slots.max_by_key(|superblock| superblock.generation)
}

/// Whether a text has the form of a UUID: 36 digits of lower case and dashes, which is all that a
/// superblock takes for one.
#[must_use]
pub fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => matches!(b, b'0'..=b'9' | b'a'..=b'f'),
        })
}

/// Whether a name that was read can be that of a file or directory: `[A-Za-z0-9._-]`, no leading
/// dot.
#[must_use]
pub fn is_safe_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> Self {
        nonce.to_string()
    }
}

impl TryFrom<String> for Nonce {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 32);
        number.map(|number| Self(number.to_be_bytes())).ok_or_else(|| format!("{text:?} is no nonce"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn sample(generation: u64) -> Superblock {
        Superblock {
            generation,
            state: State::Sealed,
            uuid: "01234567-89ab-cdef-0123-456789abcdef".into(),
            log: 3,
            nonce: Nonce(*b"0123456789abcdef"),
            attempt: 2,
            ledger: serde_json::json!({"sequence": u64::MAX, "crashes": [1, u64::MAX]}),
            capture: "2025-11-23T12-13-20Z-web-1-0123abcd".into(),
            end: 1 << 40,
            records: 77,
            collected: String::new(),
        }
    }

    #[test]
    fn slots_take_turns_and_the_later_one_holds() {
        let (a, b) = (sample(6), sample(7));
        assert_eq!((a.offset(), b.offset()), (0, 4096));
        let head = [a.emit().unwrap(), b.emit().unwrap()].concat();
        assert_eq!(&head[..12], b"afterimg\x01\0\0\0");
        assert_eq!(&head[32..47], b"{\"generation\":6");
        assert_eq!(latest(&head), Some(b.clone()));
        for torn in 0..8 {
            let mut head = head.clone();
            head[4096 + torn * 512..8192].fill(0x55);
            assert_eq!(latest(&head), Some(a.clone()), "torn at sector {torn}");
        }
    }

    #[test]
    fn names_that_leave_a_directory_are_no_superblock() {
        for bad in ["../x", ".", "a/b", "a\0", "-\n"] {
            let superblock = Superblock { capture: bad.into(), ..sample(1) };
            assert_eq!(Superblock::parse(&superblock.emit().unwrap()), None, "{bad:?}");
        }
        let long = Superblock { ledger: "x".repeat(5000).into(), ..sample(1) };
        assert!(long.emit().is_err());
    }

    #[test]
    fn a_uuid_is_36_digits_and_dashes_in_their_places() {
        assert!(is_uuid("01234567-89ab-cdef-0123-456789abcdef"));
        for bad in
            ["", "1234-abcd", "01234567-89AB-cdef-0123-456789abcdef", "0123456-789ab-cdef-0123-456789abcdef"]
        {
            assert!(!is_uuid(bad), "{bad:?}");
            let superblock = Superblock { uuid: bad.into(), ..sample(1) };
            assert_eq!(Superblock::parse(&superblock.emit().unwrap()), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn one_wrong_bit_is_noticed(at in 0..SLOT_LEN, bit in 0..8_u32) {
            let mut slot = sample(9).emit().unwrap();
            prop_assert_eq!(Superblock::parse(&slot), Some(sample(9)));
            slot[at] ^= 1 << bit;
            prop_assert_eq!(Superblock::parse(&slot), None);
        }
    }
}
