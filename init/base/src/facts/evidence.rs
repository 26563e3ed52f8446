//! What signs a capture, and what was written down of it at load.

use serde::{Deserialize, Serialize};

use super::Secret;

/// The key of one load, and its arm record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// The seed of the key, 64 hex digits. It stands nowhere else.
    pub seed: Secret,
    /// The text of `arm.json`.
    pub arm: String,
    /// Its signature by the host's key, in minisign's format; empty if the host has none.
    pub arm_signature: String,
}
