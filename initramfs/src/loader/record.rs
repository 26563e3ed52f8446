//! What was loaded, for `status` and for what builds on it; gone with the next boot, like the panic
//! kernel itself.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::host;
use crate::remote::{Expiry, SecretFile};

/// Where it is kept.
pub(super) const PATH: &str = "/run/afterimage/loaded.toml";

/// The system call that loaded the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Road {
    /// kexec_load(2): we place it, and a planned switch can enter it.
    Own,
    /// kexec_file_load(2): the kernel does, and enters it on a panic only.
    #[default]
    FileLoad,
}

/// What was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "a record: each is a fact of its own")]
pub struct Loaded {
    /// Boot during which it was loaded.
    pub boot_id: String,
    /// When, seconds since 1970.
    pub at: u64,
    /// Who loaded it.
    #[serde(default)]
    pub by: String,
    /// How.
    #[serde(default)]
    pub road: Road,
    /// The kernel file.
    pub kernel_file: PathBuf,
    /// Its release.
    pub kernel: String,
    /// The image file.
    pub image_file: PathBuf,
    /// CRC32 of the image file, hex.
    pub image_crc32: String,
    /// CRC32 of the configuration in it, hex.
    #[serde(default)]
    pub config_crc32: String,
    /// Recommended reservation, bytes.
    pub recommended: u64,
    /// The capture kernel's command line.
    pub cmdline: String,
    /// Whether volume keys went with the image.
    #[serde(default)]
    pub keys_in_image: bool,
    /// The key file that was named on the command line.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Files of keys that were read.
    #[serde(default)]
    pub secret_files: Vec<SecretFile>,
    /// Whether the way to a target on the network was not known.
    #[serde(default)]
    pub way_unknown: bool,
    /// Until when keys are good that went with the image.
    #[serde(default)]
    pub expiries: Vec<Expiry>,
    /// Physical address at which the image is entered; on our own road.
    #[serde(default)]
    pub entry: Option<u64>,
    /// Physical address of the handover page; on our own road.
    #[serde(default)]
    pub handover: Option<u64>,
    /// Whether the handover page is loaded as well, so that any kexec enters the image.
    #[serde(default)]
    pub staged: bool,
    /// Whether the kernel keeps the core header up to date when CPUs and memory come and go.
    #[serde(default)]
    pub updates_header: bool,
}

impl Road {
    /// The system call.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "kexec_load",
            Self::FileLoad => "kexec_file_load",
        }
    }
}

impl Loaded {
    pub(super) fn save(&self) -> io::Result<()> {
        let dir = Path::new(PATH).parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir)?;
        fs::write(PATH, toml::to_string(self).unwrap_or_default())
    }
}

/// What `load` recorded in this boot.
#[must_use]
pub fn recorded() -> Option<Loaded> {
    let loaded: Loaded = toml::from_str(&fs::read_to_string(PATH).ok()?).ok()?;
    (loaded.boot_id == host::read("/proc/sys/kernel/random/boot_id")).then_some(loaded)
}

/// A stale record is recognised by its boot id, or by nothing being loaded.
pub(super) fn forget() {
    let _ = fs::remove_file(PATH);
}
