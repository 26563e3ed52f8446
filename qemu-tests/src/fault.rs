//! What is wrong with a disk: errors at places or from a write on, requests that are never
//! answered, a disk that is pulled out.
//!
//! A disk with faults is a stack of QEMU's block nodes, each of which can do nothing else:
//! `throttle` (answers late) over `raw` over `blkdebug` (answers with an error) over the file. It
//! sits in a slot of its own, to be pulled out.

use crate::control::Control;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

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
    /// All requests of this kind fail, from the `after`-th write on. One number for all such faults
    /// of a disk, and none at single sectors beside them: blkdebug forgets those at the first
    /// event.
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

/// What is done to the machine while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// No request of the disk with this name is answered any more. For good: QEMU 7.2 does not wake
    /// what a limit holds back when the limit goes.
    Stall(String),
    /// The disk with this name is pulled out.
    Unplug(String),
    /// A byte of the reservation for the capture kernel, so far from its beginning, becomes another
    /// one.
    Damage(u64),
    /// The cable of a card, by its number, is unplugged, and after a while plugged in again. What
    /// follows waits as long.
    LinkDown {
        /// Which card.
        card: usize,
        /// For how long; for good if not given.
        lasting: Option<Duration>,
    },
    /// The peer runs a script: `Action::Peer(peer.control(), Server::Ssh.stop())`. What follows
    /// waits for its end.
    Peer(Control, String),
    /// All CPUs get an NMI, as from a cloud's console or a BMC.
    Nmi,
    /// The first CPU gets a machine check: an error that cannot be corrected, in a processor's context that
    /// is corrupt.
    MachineCheck,
    /// Nothing for a while.
    Pause(Duration),
}

impl Fault {
    /// Writes to every `step`-th byte from `from` to below `to` fail: whatever writes `step` bytes
    /// there meets one.
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

    /// What happens right before (`BlkdebugEvent` of the same).
    fn event(self) -> &'static str {
        match self {
            Self::Read => "read_aio",
            Self::Write => "pwritev",
            Self::Flush => "flush_to_disk",
        }
    }
}

/// The `-object` that [`Action::Stall`] acts on.
pub(crate) fn throttle_group(name: &str) -> Value {
    json!({ "qom-type": "throttle-group", "id": format!("group-{name}") })
}

/// The limits of it for a disk that stalls.
pub(crate) fn limits() -> Value {
    // A byte a second, which makes a request of 4 KiB last more than an hour.
    json!({ "bps-total": 1 })
}

/// The `-blockdev` over the file `image`; blkdebug finds its rules in the file `rules`.
pub(crate) fn blockdev(name: &str, image: &Path, read_only: bool, rules: &Path) -> Value {
    json!({
        "driver": "throttle", "node-name": format!("node-{name}"), "throttle-group": format!("group-{name}"),
        "read-only": read_only,
        "file": {
            "driver": "raw", "read-only": read_only,
            "file": {
                "driver": "blkdebug", "config": rules, "read-only": read_only,
                // Flushes to the host's disk would only cost time.
                "image": {
                    "driver": "file", "filename": image, "cache": { "no-flush": true }, "read-only": read_only,
                },
            },
        },
    })
}

/// The rules, in the format of QEMU's docs/devel/blkdebug.txt: as an argument they could be too
/// long.
pub(crate) fn rules(faults: &[Fault]) -> String {
    let mut rules = Vec::new();
    let mut error = |event: &str, state: u32, kind: Kind, errno: u32, more: &str| {
        let kind = kind.name();
        rules.push(format!(
            "[inject-error]\nevent = \"{event}\"\nstate = \"{state}\"\niotype = \"{kind}\"\n\
             errno = \"{errno}\"\nonce = \"off\"\n{more}\n"
        ));
    };
    // blkdebug starts in state 1, which each write counts up as long as there is a next one.
    let mut states = 1;
    for fault in faults {
        match *fault {
            // State 0 is any; without an event the rule holds from the start.
            Fault::At { kind, sector } => error("none", 0, kind, EIO, &format!("sector = \"{sector}\"\n")),
            Fault::From { kind, after, errno } => {
                states = after.saturating_add(1);
                error(kind.event(), states, kind, errno, "");
            }
            Fault::None => {}
        }
    }
    for state in 1..states {
        let next = state.saturating_add(1);
        rules.push(format!(
            "[set-state]\nevent = \"pwritev\"\nstate = \"{state}\"\nnew_state = \"{next}\"\n\n"
        ));
    }
    rules.concat()
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
        let rules = rules(&Fault::all_writes(2, ENOSPC));
        assert_eq!((rules.matches("[set-state]").count(), rules.matches("[inject-error]").count()), (2, 2));
        assert!(rules.contains("state = \"3\"\niotype = \"flush\"\nerrno = \"28\""), "{rules}");
    }
}
