//! The timeline: what happened when, in the keys that Timesketch asks for (`message`, `datetime`,
//! `timestamp_desc`).

use base::time::utc;

use super::Row;

pub(super) const NAME: &str = "timeline";
pub(super) const FILE: &str = "timeline.jsonl";

/// What the kernel's clocks said in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Seconds since 1970.
    pub now: Option<u64>,
    /// Seconds since the boot.
    pub uptime: Option<u64>,
}

impl Clock {
    /// Seconds since 1970 of a moment that is told in nanoseconds since the boot. To the second: the
    /// clocks are read at the end.
    pub(super) fn since_boot(self, nanoseconds: u64) -> Option<u64> {
        let boot = self.now?.checked_sub(self.uptime?)?;
        boot.checked_add(nanoseconds / 1_000_000_000)
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// Seconds since 1970.
    pub(super) at: u64,
    /// What.
    pub(super) message: String,
    /// What kind of time it is.
    pub(super) kind: &'static str,
}

impl Moment {
    pub(super) fn row(&self) -> Row {
        let mut row = Row::default();
        row.set("message", self.message.clone());
        // A time that no clock shows is damage: the row stays, without it.
        match utc(self.at) {
            Some(text) => row.set("datetime", text),
            None => row.error("datetime", &format!("{} seconds since 1970 cannot be", self.at)),
        }
        row.set("timestamp_desc", self.kind);
        row
    }
}
