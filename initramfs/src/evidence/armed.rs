//! What is written down when the machine is armed, and the key for this load.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use base::facts::{self, Secret};
use evidence::arm::{ArmRecord, SCHEMA};
use evidence::canonical::CanonicalError;
use evidence::minisign::SecretKey;
use evidence::{hex, sha256};
use tempfile::Builder;
use zeroize::Zeroizing;

use super::key::{self, KeyError};
use crate::host;
use crate::loader::Loaded;
use crate::sys::wiping;

/// What the firmware says of the machine.
const DMI: &str = "/sys/class/dmi/id";
const DMI_FIELDS: [&str; 4] = ["sys_vendor", "product_name", "product_serial", "product_uuid"];
/// Copies of arm records that are kept on the host.
const KEPT: usize = 200;

/// Why there is no arm record.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// No random bytes.
    #[error("reading /dev/urandom")]
    Random(#[source] io::Error),
    /// The record has no text.
    #[error("writing the arm record")]
    Text(#[from] CanonicalError),
}

/// What is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The image's file.
    pub image: &'a [u8],
    /// The kernel's file.
    pub kernel: &'a [u8],
    /// SHA-256 of the program in the image, hex.
    pub init_sha256: &'a str,
    /// SHA-256 of the configuration in it, hex.
    pub config_sha256: &'a str,
}

/// Makes the key of a load and its arm record. Where the host has no key and none can be made, the record is
/// not signed, and that is said.
pub fn arm(loaded: &Loaded, parts: &Parts<'_>) -> Result<facts::Evidence, ArmError> {
    wiping::begin();
    let seed = random().map_err(ArmError::Random)?;
    let id = random().map_err(ArmError::Random)?;
    let key = SecretKey::from_seed(&seed);
    let host_key = host_key(Path::new(key::PATH));
    let record = ArmRecord {
        schema: SCHEMA.to_owned(),
        id: hex(id.get(..16).unwrap_or_default()),
        afterimage: env!("CARGO_PKG_VERSION").to_owned(),
        host: host::read("/proc/sys/kernel/hostname"),
        machine_id: host::read("/etc/machine-id"),
        boot_id: loaded.boot_id.clone(),
        dmi: dmi(Path::new(DMI)),
        by: loaded.by.clone(),
        at: loaded.at,
        running_kernel: host::read("/proc/sys/kernel/osrelease"),
        capture_kernel: loaded.kernel.clone(),
        kernel_sha256: hex(&sha256(parts.kernel)),
        image_sha256: hex(&sha256(parts.image)),
        init_sha256: parts.init_sha256.to_owned(),
        config_sha256: parts.config_sha256.to_owned(),
        cmdline: loaded.cmdline.clone(),
        public_key: key.public().to_string(),
        host_key: host_key.as_ref().map(|key| key.public().to_string()).unwrap_or_default(),
    };
    let text = record.to_json()?;
    let comment = format!("load {} of {}", record.id, record.host);
    let arm_signature = host_key.map(|key| key.sign(text.as_bytes(), &comment)).unwrap_or_default();
    Ok(facts::Evidence { seed: Secret::new(hex(&*seed)), arm: text, arm_signature })
}

fn host_key(path: &Path) -> Option<SecretKey> {
    let warn = |error: &KeyError| {
        log::warn!("{}: nobody can say later that the load key is of this host", base::log::chain(error));
    };
    key::secret(path).inspect_err(warn).ok()
}

fn dmi(directory: &Path) -> BTreeMap<String, String> {
    let field = |name: &&str| {
        let text = host::read(&directory.join(name).to_string_lossy());
        Some((name.to_string(), text)).filter(|(_, text)| !text.is_empty())
    };
    DMI_FIELDS.iter().filter_map(field).collect()
}

/// 32 random bytes.
pub(super) fn random() -> io::Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    File::open("/dev/urandom")?.read_exact(&mut *bytes)?;
    Ok(bytes)
}

/// Leaves a copy of an arm record and its signature in a directory, for who collects them before anything
/// happens. Nothing in them is secret.
pub fn publish(evidence: &facts::Evidence, at: u64, directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let id = hex(&sha256(evidence.arm.as_bytes()));
    let name = format!("{at:011}-{}.json", id.get(..16).unwrap_or_default());
    for (name, text) in [(name.clone(), &evidence.arm), (format!("{name}.minisig"), &evidence.arm_signature)]
    {
        if text.is_empty() {
            continue;
        }
        let mut file = Builder::new().prefix(".afterimage-").tempfile_in(directory)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(directory.join(name)).map_err(|error| error.error)?;
    }
    File::open(directory)?.sync_all()?;
    thin_out(directory)
}

/// Removes the oldest copies: their names begin with the time.
fn thin_out(directory: &Path) -> io::Result<()> {
    let is_ours = |name: &String| {
        let (time, _) = name.split_once('-').unwrap_or_default();
        time.len() == 11 && time.bytes().all(|byte| byte.is_ascii_digit())
    };
    let names = fs::read_dir(directory)?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(is_ours).collect();
    names.sort_unstable();
    let surplus = names.len().saturating_sub(KEPT.saturating_mul(2)); // each with its signature
    names.iter().take(surplus).try_for_each(|name| fs::remove_file(directory.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arm_record_names_the_key_that_its_seed_makes() {
        let parts = Parts { image: b"image", kernel: b"kernel", init_sha256: "aa", config_sha256: "bb" };
        let made = arm(&Loaded::default(), &parts).unwrap();
        let record: ArmRecord = serde_json::from_str(&made.arm).unwrap();
        let seed: Vec<u8> = (0..32)
            .map(|at| u8::from_str_radix(&made.seed.expose()[at * 2..at * 2 + 2], 16).unwrap())
            .collect();
        let key = SecretKey::from_seed(&seed.try_into().unwrap());
        assert_eq!(record.public_key, key.public().to_string());
        assert_eq!(record.image_sha256, hex(&sha256(b"image")));
        let other = arm(&Loaded::default(), &parts).unwrap();
        assert_ne!(other.seed, made.seed, "each load has its own");
        assert!(!format!("{made:?}").contains(made.seed.expose()));
    }

    #[test]
    fn the_newest_copies_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("README"), "mine").unwrap();
        for at in 0..KEPT as u64 + 3 {
            let made = facts::Evidence {
                arm: format!("{{\"at\":{at}}}"),
                arm_signature: "signature".into(),
                ..facts::Evidence::default()
            };
            publish(&made, at, dir.path()).unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), KEPT * 2 + 1);
        assert!(names[0].starts_with("00000000003-"), "{}", names[0]);
    }
}
