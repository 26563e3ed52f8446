//! What stands on a raw target: a device without a file system that holds one capture. Bytes only,
//! no I/O.
//!
//! ```text
//! 0          superblock of even generations    } written in turn: a torn write of one leaves the other
//! 4096       superblock of odd generations     }
//! 8192       zeros: old signatures are gone, and a later mkfs shows
//! 1 MiB ..   the log: records, each at a multiple of 512, appended and never written again
//! ```
//! The records in their order are the writes that make the files. A file's bytes that no record has
//! are zero.
//!
//! Nothing here knows what the files mean, and nothing trusts a byte that no checksum covers.

mod contents;
mod record;
mod superblock;

pub use contents::{Contents, contents};
pub use record::{HEADER_LEN, Kind, LogId, MAX_PAYLOAD, Name, RecordHeader, record_len};
pub use superblock::{Nonce, SLOT_LEN, State, Superblock, SuperblockTooLong, is_safe_name, is_uuid, latest};

/// Where the log begins.
pub const LOG_START: u64 = 1 << 20;
/// Records begin at multiples of this.
pub const RECORD_ALIGN: u64 = 512;
/// The smallest device: what stands before the log, and as much again.
pub const MIN_LEN: u64 = 2 * LOG_START;
