//! `[evidence]`

use serde::{Deserialize, Serialize};

use super::checked;

/// `[evidence]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Evidence {
    /// Whether each capture gets a manifest, its signature, a chain of events and `SHA256SUMS`.
    pub save: bool,
    /// Number of the case that captures of this host belong to; empty: none.
    #[serde(deserialize_with = "checked::one_line")]
    pub case: String,
    /// Directory on this host where `afterimage load` leaves a copy of each arm record and its signature, for
    /// collectors to take before anything happens; empty: nowhere.
    #[serde(deserialize_with = "checked::one_line")]
    pub arm_records: String,
}

impl Default for Evidence {
    fn default() -> Self {
        Self { save: true, case: String::new(), arm_records: "/var/lib/afterimage/arm".to_owned() }
    }
}
