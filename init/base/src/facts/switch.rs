//! How the production kernel came to its end, and what was said about it while it still ran.
//!
//! Values only. The record of a planned switch lies in the handover page, a page of the reservation
//! that holds zeros after a panic, or in the facts, where the image is loaded anew for the switch.

use serde::{Deserialize, Serialize};

pub use crate::config::Trigger;

/// A planned switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Planned {
    /// Who wanted it and why.
    pub intent: Intent,
    /// What the live collectors found; it lies in the production kernel's memory.
    pub live: Option<Live>,
}

/// What an operator says before a switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Intent {
    /// Who: the login name, and the one that sudo or su was called by.
    pub who: String,
    /// User id that has logged in (audit(7)), which su and sudo do not change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// User who called sudo, as sudo says; empty if nobody did.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sudo_user: String,
    /// Number of the login session (audit(7)); empty if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub session: String,
    /// Address or terminal that the session came from; empty if that is not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// Why; empty if nobody said.
    pub why: String,
    /// Ticket or case number; empty if there is none.
    pub ticket: String,
    /// When, seconds since 1970; 0 if that is not known: the switch was prepared, and anybody's
    /// kexec makes it.
    pub at: u64,
    /// Whether dirty data was written back before the switch.
    pub synced: bool,
    /// Whether the switch was a deliberate panic, which keeps CPU registers.
    pub via_panic: bool,
}

/// Bytes in the production kernel's memory, in pages that need not be neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Live {
    /// How many bytes.
    pub len: u64,
    /// SHA-256 of them, hex.
    pub sha256: String,
    /// PFNs of the index pages, in order: each holds 512 PFNs of pages with the bytes, as
    /// little-endian `u64`.
    pub index: Vec<u64>,
}
