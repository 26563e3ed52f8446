//! What was loaded, for `status` and for what builds on it; gone with the next boot, like the panic
//! kernel itself.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::proof::Print;
use crate::fingerprint::crc32;
use crate::host;
use crate::remote::{Expiry, SecretFile};

/// Where it is kept.
pub(super) const PATH: &str = "/run/afterimage/loaded.toml";
/// Beside it, what was in memory: it has addresses of the kernel's, which are for root only.
const PRINT: &str = "print.toml";

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
    /// Processes that a walk through the kernel's memory found, as the summary of a crash will walk.
    #[serde(default)]
    pub walked: Option<usize>,
    /// Why there was no walk, or what is wrong with it; empty if nothing is.
    #[serde(default)]
    pub walk_fault: String,
    /// What was in memory right after the load; in a file of its own.
    #[serde(skip)]
    pub print: Print,
    /// CRC32 of the record without this line, hex: nobody has changed it since.
    #[serde(default)]
    pub seal: String,
    /// Whether somebody has.
    #[serde(skip)]
    pub is_changed: bool,
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
        self.save_to(Path::new(PATH))
    }

    fn save_to(&self, path: &Path) -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir)?;
        let sealed = Self { seal: self.seal(), ..self.clone() };
        let print = Print { seal: sealed.seal.clone(), ..self.print.clone() };
        write(&dir.join(PRINT), 0o600, &toml::to_string(&print).unwrap_or_default())?;
        write(path, 0o644, &toml::to_string(&sealed).unwrap_or_default())
    }

    fn read_from(path: &Path) -> Option<Self> {
        let loaded: Self = toml::from_str(&fs::read_to_string(path).ok()?).ok()?;
        let print = fs::read_to_string(path.with_file_name(PRINT)).ok();
        let print: Print = print.and_then(|text| toml::from_str(&text).ok()).unwrap_or_default();
        // One that has lost its seal is no older one, if there is a print with a seal.
        let is_changed = (!loaded.seal.is_empty() && loaded.seal != loaded.seal())
            || (print.reservation != 0 && print.seal != loaded.seal);
        Some(Self { print, is_changed, ..loaded })
    }

    fn seal(&self) -> String {
        let unsealed = Self { seal: String::new(), ..self.clone() };
        crc32(toml::to_string(&unsealed).unwrap_or_default().as_bytes())
    }
}

/// Writes a file that there is never half of.
fn write(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(mode)).tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// What `load` recorded in this boot.
#[must_use]
pub fn recorded() -> Option<Loaded> {
    let loaded = Loaded::read_from(Path::new(PATH))?;
    (loaded.boot_id == host::read("/proc/sys/kernel/random/boot_id")).then_some(loaded)
}

/// A stale record is recognised by its boot id, or by nothing being loaded.
pub(super) fn forget() {
    let path = Path::new(PATH);
    for file in [path.to_owned(), path.with_file_name(PRINT)] {
        let _ = fs::remove_file(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_was_changed_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("afterimage/loaded.toml");
        let print = Print { reservation: 1 << 20, ..Print::default() };
        let loaded = Loaded { entry: Some(0x5000), kernel: "6.1".into(), print, ..Loaded::default() };
        loaded.save_to(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.with_file_name(PRINT))), (0o644, 0o600));
        let public = fs::read_to_string(&path).unwrap();
        assert!(!public.contains("description") && !public.contains("symbol"), "{public}");
        let read = Loaded::read_from(&path).unwrap();
        assert!(!read.is_changed && read.entry == Some(0x5000) && read.seal.len() == 8, "{read:?}");
        read.save_to(&path).unwrap();
        assert_eq!(Loaded::read_from(&path).unwrap(), read, "saved once more it is the same");
        let text = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("entry = 20480", "entry = 20481"),
            ("kernel = \"6.1\"", "kernel = \"6.2\""),
            ("seal = ", "other = "),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text, "{from}: {text}");
            fs::write(&path, changed).unwrap();
            assert!(Loaded::read_from(&path).unwrap().is_changed, "{to}");
        }
        // Without the print, as for other users, the seal still holds.
        fs::write(&path, &text).unwrap();
        fs::remove_file(path.with_file_name(PRINT)).unwrap();
        let public = Loaded::read_from(&path).unwrap();
        assert!(!public.is_changed && public.print == Print::default());
        fs::write(&path, "boot_id = 7").unwrap();
        assert!(Loaded::read_from(&path).is_none());
    }
}
