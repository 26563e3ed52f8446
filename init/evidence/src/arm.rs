//! `arm.json`: what the loader wrote down when it armed the machine, before anything happened: which image,
//! by whom, and the public half of the key that was made for this load alone. The host's key signs it. The
//! secret half lies in the armed image only, in memory, and is gone with it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::canonical::{self, CanonicalError};

/// What this version writes.
pub const SCHEMA: &str = "afterimage-arm-1";

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArmRecord {
    /// [`SCHEMA`].
    pub schema: String,
    /// Number of this load: 32 hex digits of random.
    pub id: String,
    /// Version of afterimage.
    pub afterimage: String,
    /// The host's name.
    pub host: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// `/sys/class/dmi/id`: vendor, product, serial number, UUID.
    pub dmi: BTreeMap<String, String>,
    /// Who armed it.
    pub by: String,
    /// When, seconds since 1970.
    pub at: u64,
    /// Release of the running kernel.
    pub running_kernel: String,
    /// Release of the capture kernel.
    pub capture_kernel: String,
    /// SHA-256 of its file.
    pub kernel_sha256: String,
    /// SHA-256 of the image's file.
    pub image_sha256: String,
    /// SHA-256 of the program in it.
    pub init_sha256: String,
    /// SHA-256 of the configuration in it.
    pub config_sha256: String,
    /// The capture kernel's command line.
    pub cmdline: String,
    /// The key that signs the manifest of a capture by this image, as `minisign -P` takes it.
    pub public_key: String,
    /// The host's key that signs this record, likewise; empty if it is not signed.
    pub host_key: String,
}

impl ArmRecord {
    /// The bytes that are signed.
    pub fn to_json(&self) -> Result<String, CanonicalError> {
        canonical::to_string(self)
    }
}
