//! Why a device is no raw target.

use std::io;

use crate::format::rawdump::{MIN_LEN, SuperblockTooLong};
use vmcore::sink::SinkError;

/// Why a device is no raw target, or stopped to be one.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// The device has no room for anything.
    #[error("{device} has {len} bytes; a raw target needs at least {MIN_LEN}")]
    TooSmall {
        /// Which device.
        device: String,
        /// Its bytes.
        len: u64,
    },
    /// Somebody else's data.
    #[error(
        "{device} holds {what}{}: take another device, or give this one up with `afterimage prepare \
         --force`{}",
        named(uuid),
        remedy(uuid)
    )]
    Foreign {
        /// Which device.
        device: String,
        /// What it holds.
        what: &'static str,
        /// UUID of that; may be empty.
        uuid: String,
    },
    /// Data of nobody that we know.
    #[error(
        "{0} holds something that is neither zeros nor afterimage's: look what it is (`blkid -p {0}`); \
         `afterimage prepare --force {0}` gives it up and makes the device a raw target"
    )]
    Unknown(String),
    /// A capture that nobody has copied off.
    #[error(
        "{device} holds the capture {capture}, which was not collected: `afterimage recover` it, or allow \
         overwrite = [\"uncollected\"]"
    )]
    Uncollected {
        /// Which device.
        device: String,
        /// Name of the capture.
        capture: String,
    },
    /// No superblock of ours that can be read.
    #[error("{0} has no superblock of afterimage")]
    NoSuperblock(String),
    /// A superblock of ours, which is not the only thing on the device any more.
    #[error("{device} has a superblock of afterimage, but holds {what}: nothing is written to it")]
    NotOurs {
        /// Which device.
        device: String,
        /// What it holds.
        what: String,
    },
    /// Another superblock than the one that was read before.
    #[error("{device} has changed: its superblock is of generation {found}, not {expected}")]
    Changed {
        /// Which device.
        device: String,
        /// Generation that was read before.
        expected: u64,
        /// Generation that stands there.
        found: u64,
    },
    /// The device cannot be opened, read or written.
    #[error("{what} {device}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Which device.
        device: String,
        /// Cause.
        source: io::Error,
    },
    /// The superblock or the log cannot be written.
    #[error("{what} of {device}")]
    Write {
        /// What was being written.
        what: &'static str,
        /// Which device.
        device: String,
        /// Cause.
        source: SinkError,
    },
    /// The superblock does not hold what it is to say.
    #[error("the superblock of {device} does not fit")]
    Superblock {
        /// Which device.
        device: String,
        /// Cause.
        source: SuperblockTooLong,
    },
    /// No random bytes.
    #[error("reading random bytes")]
    Random(#[source] io::Error),
}

impl From<RawError> for vmcore::target::TargetError {
    fn from(error: RawError) -> Self {
        Self::because(error)
    }
}

pub(super) fn named(uuid: &str) -> String {
    if uuid.is_empty() { String::new() } else { format!(" (UUID={})", base::text::line(uuid)) }
}

fn remedy(uuid: &str) -> String {
    // It is the disk's: what could end the string in the configuration, or goes to a terminal as an
    // escape sequence, is never put into a line to be copied.
    let is_plain = !uuid.is_empty() && uuid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_plain { format!(", or allow overwrite = [\"UUID={uuid}\"]") } else { String::new() }
}
