//! What is wrong with a disk: errors at places or from a write on, requests that are never answered, a disk that is
//! pulled out.
//!
//! A disk with faults is a stack of QEMU's block nodes, each of which can do nothing else: `throttle` (answers
//! late) over `raw` over `blkdebug` (answers with an error) over the file. It sits in a slot of its own, to be
//! pulled out.

use serde_json::{Value, json};
use std::path::Path;

/// EIO of asm-generic/errno-base.h: what a medium error becomes.
pub const EIO: u32 = 5;
/// ENOSPC of the same: what a thin volume without room answers.
pub const ENOSPC: u32 = 28;
/// Bytes per sector.
pub const SECTOR: u64 = 512;

/// Faults of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Requests of this kind that touch the sector fail, every time.
    At {
        /// Which kind.
        kind: Kind,
        /// Which sector.
        sector: u64,
    },
    /// All requests of this kind fail, from the `after`-th write on.
    From {
        /// Which kind.
        kind: Kind,
        /// How many writes go well before; from 0.
        after: u32,
        /// With which error.
        errno: u32,
    },
    /// None yet: the disk is made so that [`Action`]s work on it.
    None,
}

/// Kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes of the disk's cache.
    Flush,
}

/// What is done to a disk while the capture runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// No request of the disk with this name is answered any more.
    Stall(String),
    /// They are again.
    Resume(String),
    /// The disk with this name is pulled out.
    Unplug(String),
}

impl Fault {
    /// Writes to every `step`-th byte from `from` to below `to` fail: whatever writes `step` bytes there meets one.
    #[must_use]
    pub fn writes_between(from: u64, to: u64, step: u64) -> Vec<Self> {
        let sectors = from.div_ceil(SECTOR)..to.div_ceil(SECTOR);
        let step = usize::try_from(step.div_ceil(SECTOR).max(1)).unwrap_or(usize::MAX);
        sectors.step_by(step).map(|sector| Self::At { kind: Kind::Write, sector }).collect()
    }

    /// All writes and flushes after the first `after` writes fail.
    #[must_use]
    pub fn all_writes(after: u32, errno: u32) -> Vec<Self> {
        [Kind::Write, Kind::Flush].map(|kind| Self::From { kind, after, errno }).into()
    }
}

impl Kind {
    /// QEMU's name (`BlkdebugIOType` of qapi/block-core.json).
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
        }
    }
}

/// The `-object` that [`Action::Stall`] acts on.
pub(crate) fn throttle_group(name: &str) -> Value {
    json!({ "qom-type": "throttle-group", "id": format!("group-{name}") })
}

/// The limits of it: of a disk that stalls, or of a healthy one.
pub(crate) fn limits(stalled: bool) -> Value {
    // A byte a second, which makes a request of 4 KiB last more than an hour; 0 is no limit.
    let rate = u32::from(stalled);
    json!({ "bps-total": rate, "iops-total": 0 })
}

/// The `-blockdev`, called `name`, over the file `image`.
pub(crate) fn blockdev(name: &str, image: &Path, read_only: bool, faults: &[Fault]) -> Value {
    let mut errors = Vec::new();
    let mut states = Vec::new();
    for fault in faults {
        match fault {
            Fault::At { kind, sector } => errors.push(json!({
                "event": "none", "iotype": kind.name(), "errno": EIO, "sector": sector, "once": false,
            })),
            Fault::From { kind, after, errno } => {
                // blkdebug starts in state 1. A rule without an event holds in any state, so the requests count up states by
                // themselves: a write is `pwritev`, a flush comes by `flush_to_disk`.
                let last = after.saturating_add(1);
                for state in 1..last {
                    let next = state.saturating_add(1);
                    let rule = json!({ "event": "pwritev", "state": state, "new_state": next });
                    if !states.contains(&rule) {
                        states.push(rule);
                    }
                }
                let event = match kind {
                    Kind::Read => "read_aio",
                    Kind::Write => "pwritev",
                    Kind::Flush => "flush_to_disk",
                };
                errors.push(json!({
                    "event": event, "state": last, "iotype": kind.name(), "errno": errno, "once": false,
                }));
            }
            Fault::None => {}
        }
    }
    json!({
        "driver": "throttle", "node-name": format!("node-{name}"), "throttle-group": format!("group-{name}"),
        "read-only": read_only,
        "file": {
            "driver": "raw", "read-only": read_only,
            "file": {
                "driver": "blkdebug", "inject-error": errors, "set-state": states, "read-only": read_only,
                // Flushes to the host's disk would only cost time.
                "image": {
                    "driver": "file", "filename": image, "cache": { "no-flush": true }, "read-only": read_only,
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_becomes_a_sector_in_each_step() {
        let faults = Fault::writes_between(8192, 20_000, 4096);
        let at = |sector| Fault::At { kind: Kind::Write, sector };
        assert_eq!(faults, [at(16), at(24), at(32)]);
    }

    #[test]
    fn rules_count_writes() {
        let node = blockdev("x", Path::new("/x"), false, &Fault::all_writes(2, ENOSPC));
        let debug = node.pointer("/file/file").unwrap();
        assert_eq!(debug["set-state"].as_array().unwrap().len(), 2);
        assert_eq!(debug["inject-error"][0]["state"], 3);
        assert_eq!(debug["inject-error"][1]["iotype"], "flush");
    }
}
