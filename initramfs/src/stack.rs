//! What a target stands on, found on the running host: the device-mapper devices from the disks up,
//! read from the metadata on them and checked against what is active. What the capture could not
//! set up again is refused here, with the reason.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base::facts::stack::{Layer, LogicalVolume, LuksHeader};
use storage::format::lvm::LvmError;
use storage::metadata::{self, MetadataError};
use storage::stack::{self as tables, Place};
use storage::sys::dm::{self, Control, Target};

use crate::host;

const SYSFS: &str = "/sys/class/block";
/// Devices on each other: no host has more, and a cycle would have no end.
const MAX_DEPTH: usize = 16;

/// Why the capture could not set up what the target stands on.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// Another kind of device.
    #[error(
        "{device} is a {kind} device, which the capture kernel cannot set up: linear and striped LVM volumes \
         and LUKS devices are supported"
    )]
    Unsupported {
        /// Kernel name.
        device: String,
        /// What it is.
        kind: String,
    },
    /// No rights, most likely.
    #[error("reading {path}: this needs root")]
    Open {
        /// Which device.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The metadata.
    #[error("metadata on {path}")]
    Metadata {
        /// On which device.
        path: PathBuf,
        /// Cause.
        source: MetadataError,
    },
    /// There are none.
    #[error("{0}: there are no LVM metadata on its physical volumes")]
    NoMetadata(String),
    /// The header is somewhere else.
    #[error("{device}: {below} does not hold its LUKS header; a detached header is not supported")]
    Detached {
        /// Kernel name.
        device: String,
        /// Where the data are.
        below: PathBuf,
    },
    /// The device mapper does not answer.
    #[error("the table of {device}")]
    Table {
        /// Kernel name.
        device: String,
        /// Cause.
        source: io::Error,
    },
    /// The metadata on disk say something else than what is active.
    #[error("{device}: what is active is not what its metadata say ({what}); a change may be under way")]
    NotActive {
        /// Kernel name.
        device: String,
        /// What is different.
        what: &'static str,
    },
    /// Too many devices on each other.
    #[error("{0} stands on more than 16 devices in each other")]
    TooDeep(String),
    /// The target is named in a way that will not last.
    #[error("target {0}: the capture kernel numbers device-mapper devices anew; name it by UUID= or LABEL=")]
    Number(String),
}

/// A device-mapper device of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// An LVM volume.
    Lvm(LogicalVolume),
    /// A LUKS device; the key is not known yet.
    Luks {
        /// What its header says.
        header: LuksHeader,
        /// The device with the header.
        node: PathBuf,
    },
}

/// Whether a device, by its kernel name, is made by the device mapper.
#[must_use]
pub fn is_stacked(name: &str) -> bool {
    name.starts_with("dm-")
}

/// The device-mapper devices under the device of this kernel name and itself, a device after those
/// that it stands on.
pub fn discover(name: &str) -> Result<Vec<Found>, StackError> {
    let mut found = Vec::new();
    walk(name, 0, &mut found)?;
    Ok(found)
}

/// The devices at the bottom, by kernel name: those that stand on no others.
#[must_use]
pub fn bottom(name: &str) -> Vec<String> {
    fn follow(name: &str, depth: usize, names: &mut Vec<String>) {
        let slaves = slaves(name);
        if (slaves.is_empty() || depth > MAX_DEPTH) && !names.iter().any(|other| other == name) {
            names.push(name.to_owned());
        }
        for slave in slaves.iter().filter(|_| depth <= MAX_DEPTH) {
            follow(slave, depth.saturating_add(1), names);
        }
    }
    let mut names = Vec::new();
    follow(name, 0, &mut names);
    names
}

/// The modules that set up these devices: the device mapper, and what the ciphers are made of.
#[must_use]
pub fn modules(found: &[Found]) -> Vec<String> {
    let mut wanted = vec!["dm_mod".to_owned()];
    for device in found {
        if let Found::Luks { header, .. } = device {
            let parts = cipher_parts(&header.cipher);
            // All optional: an algorithm that is built in has no module, but perhaps one with a
            // faster version of it, which refuses to load on another CPU.
            wanted.extend(parts.iter().map(|part| format!("-crypto-{part}")));
            wanted.extend(parts.iter().map(|part| format!("-{part}")));
            wanted.push("-cryptomgr".to_owned());
            wanted.push("dm_crypt".to_owned());
        }
    }
    wanted
}

/// The algorithms in a cipher of dm-crypt: `aes-cbc-essiv:sha256` is made of aes, cbc, essiv and
/// sha256. IV generators that are part of dm-crypt itself have no module and do no harm.
fn cipher_parts(cipher: &str) -> Vec<String> {
    let words = cipher.strip_prefix("capi:").unwrap_or(cipher).split(['-', ':', '(', ')', ',']);
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn walk(name: &str, depth: usize, found: &mut Vec<Found>) -> Result<(), StackError> {
    if depth > MAX_DEPTH {
        return Err(StackError::TooDeep(name.to_owned()));
    }
    let slaves = slaves(name);
    for slave in &slaves {
        walk(slave, depth.saturating_add(1), found)?;
    }
    if !is_stacked(name) {
        // What stands on others and is not the device mapper's is md, bcache, a partition of one …
        return if slaves.is_empty() && !name.starts_with("md") {
            Ok(())
        } else {
            Err(StackError::Unsupported { device: name.to_owned(), kind: "software RAID or cache".into() })
        };
    }
    let device = match kind_of(&host::read(&format!("{SYSFS}/{name}/dm/uuid"))) {
        Ok(Kind::Lvm(id)) => volume(name, &id, &slaves)?,
        Ok(Kind::Luks(uuid)) => luks(name, &uuid, &slaves)?,
        Err(kind) => return Err(StackError::Unsupported { device: name.to_owned(), kind }),
    };
    if !found.contains(&device) {
        found.push(device);
    }
    Ok(())
}

/// What a device-mapper UUID says.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// LVM: IDs of group and volume, 32 characters each.
    Lvm(String),
    /// LUKS: the UUID without dashes.
    Luks(String),
}

/// LVM and cryptsetup write what they are into the UUID. The error is the kind of device for
/// people.
fn kind_of(uuid: &str) -> Result<Kind, String> {
    if let Some(ids) = uuid.strip_prefix("LVM-") {
        // The parts of thin pools, snapshots, caches and mirrors have a suffix.
        let plain = ids.len() == 64 && ids.chars().all(|c| c.is_ascii_alphanumeric());
        return if plain { Ok(Kind::Lvm(ids.to_owned())) } else { Err("compound LVM".into()) };
    }
    let luks = ["CRYPT-LUKS1-", "CRYPT-LUKS2-"].iter().find_map(|prefix| uuid.strip_prefix(prefix));
    if let Some((id, _)) = luks.and_then(|rest| rest.split_once('-')) {
        return Ok(Kind::Luks(id.to_owned()));
    }
    let kind = match uuid.split('-').next().unwrap_or_default() {
        "" => "device-mapper",
        "mpath" => "multipath",
        "CRYPT" => "dm-crypt, but no LUKS,",
        part if part.starts_with("part") => "device-mapper partition",
        other => return Err(format!("device-mapper ({other})")),
    };
    Err(kind.to_owned())
}

fn volume(name: &str, ids: &str, slaves: &[String]) -> Result<Found, StackError> {
    let (group_id, id) = ids.split_at_checked(32).unwrap_or((ids, ""));
    let mut places = Vec::new();
    let mut volume: Option<LogicalVolume> = None;
    for slave in slaves {
        let (path, file) = open(slave)?;
        let failed = |source| StackError::Metadata { path: path.clone(), source };
        let Some(label) = metadata::label(&file) else { continue };
        if let Some(group) = metadata::volume_group(&file, &label).map_err(failed)? {
            let is = group.volume(id).map_err(|error: LvmError| failed(error.into()))?;
            let same = is.group_id == group_id && volume.as_ref().is_none_or(|other| *other == is);
            if !same {
                return Err(not_active(name, "its physical volumes disagree"));
            }
            volume = Some(is);
        }
        places.push(place(label.id, &path, &file)?);
    }
    let volume = volume.ok_or_else(|| StackError::NoMetadata(name.to_owned()))?;
    let expected = tables::table(&Layer::Lvm(volume.clone()), &places);
    if expected.map_err(|_| not_active(name, "its physical volumes"))? != active_table(name)? {
        return Err(not_active(name, "the segment map"));
    }
    Ok(Found::Lvm(volume))
}

fn luks(name: &str, uuid: &str, slaves: &[String]) -> Result<Found, StackError> {
    let [slave] = slaves else {
        return Err(not_active(name, "it stands on more or less than one device"));
    };
    let (path, file) = open(slave)?;
    let header =
        metadata::luks(&file).map_err(|source| StackError::Metadata { path: path.clone(), source })?;
    let header = header.filter(|header| header.uuid.replace('-', "") == uuid);
    let header =
        header.ok_or_else(|| StackError::Detached { device: name.to_owned(), below: path.clone() })?;
    let place = place(header.uuid.clone(), &path, &file)?;
    check_crypt(name, &header, &place, &active_table(name)?)?;
    Ok(Found::Luks { header, node: path })
}

/// Compares all of a dm-crypt table but the key, which may be in the kernel's key ring, and the
/// options that change no data.
fn check_crypt(name: &str, header: &LuksHeader, place: &Place, table: &[Target]) -> Result<(), StackError> {
    let [Target { kind, parameters, .. }] = table else {
        return Err(not_active(name, "more or less than one segment"));
    };
    let words: Vec<&str> = parameters.split(' ').collect();
    let &[cipher, _, iv_offset, device, offset, ref options @ ..] = words.as_slice() else {
        return Err(not_active(name, "a table that is too short"));
    };
    let sector_size = options.iter().find_map(|option| option.strip_prefix("sector_size:")).unwrap_or("512");
    let checks = [
        ("no dm-crypt", kind == "crypt"),
        ("the cipher", cipher == header.cipher),
        ("the IV offset", iv_offset == header.iv_offset.to_string()),
        ("the device under it", device == place.numbers),
        ("the payload offset", offset == header.offset.to_string()),
        ("the sector size", sector_size == header.sector_size.to_string()),
        ("large IV sectors", !options.contains(&"iv_large_sectors")),
        ("integrity protection", !options.iter().any(|option| option.starts_with("integrity:"))),
    ];
    checks.iter().find(|(_, same)| !same).map_or(Ok(()), |(what, _)| Err(not_active(name, what)))
}

fn active_table(name: &str) -> Result<Vec<Target>, StackError> {
    let dm_name = host::read(&format!("{SYSFS}/{name}/dm/name"));
    let table = Control::open().and_then(|control| control.table(&dm_name));
    table.map_err(|source| StackError::Table { device: name.to_owned(), source })
}

fn place(id: String, path: &Path, file: &File) -> Result<Place, StackError> {
    let numbers = file.metadata().map(|metadata| dm::device_numbers(metadata.rdev()));
    let numbers = numbers.map_err(|source| StackError::Open { path: path.to_owned(), source })?;
    let sectors =
        metadata::sectors(file).map_err(|source| StackError::Metadata { path: path.to_owned(), source })?;
    Ok(Place { id, numbers, sectors })
}

fn open(name: &str) -> Result<(PathBuf, File), StackError> {
    let path = Path::new("/dev").join(name);
    match File::open(&path) {
        Ok(file) => Ok((path, file)),
        Err(source) => Err(StackError::Open { path, source }),
    }
}

fn slaves(name: &str) -> Vec<String> {
    let entries = fs::read_dir(format!("{SYSFS}/{name}/slaves")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn not_active(device: &str, what: &'static str) -> StackError {
    StackError::NotActive { device: device.to_owned(), what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    #[test]
    fn uuids_tell_the_kind() {
        let ids = "PQFvTiwrzmMh7QNyn0yMjOivCMqJRy1YLin111aaaabbbbccccddddeeeeffffff";
        assert_eq!(kind_of(&format!("LVM-{ids}")), Ok(Kind::Lvm(ids.into())));
        assert_eq!(kind_of(&format!("LVM-{ids}-tpool")), Err("compound LVM".into()));
        let luks = "CRYPT-LUKS2-5a17c0de000040008000000000000a21-crash-dumps";
        assert_eq!(kind_of(luks), Ok(Kind::Luks("5a17c0de000040008000000000000a21".into())));
        assert_eq!(kind_of("mpath-3600"), Err("multipath".into()));
        assert!(kind_of("CRYPT-PLAIN-x").unwrap_err().contains("no LUKS"));
        assert!(kind_of("CRYPT-VERITY-x-y").unwrap_err().contains("no LUKS"));
        assert!(kind_of("part1-mpath-3600").unwrap_err().contains("partition"));
        assert_eq!(kind_of(""), Err("device-mapper".into()));
    }

    #[test]
    fn ciphers_fall_into_algorithms() {
        assert_eq!(cipher_parts("aes-xts-plain64"), ["aes", "xts", "plain64"]);
        assert_eq!(cipher_parts("aes-cbc-essiv:sha256"), ["aes", "cbc", "essiv", "sha256"]);
        assert_eq!(cipher_parts("capi:xts(aes)-plain64"), ["xts", "aes", "plain64"]);
    }

    #[test]
    fn a_cipher_needs_its_modules_where_there_are_any() {
        let header = LuksHeader { cipher: "aes-xts-plain64".into(), ..LuksHeader::default() };
        let luks = Found::Luks { header, node: PathBuf::new() };
        let modules = modules(&[Found::Lvm(LogicalVolume::default()), luks]);
        for name in ["dm_mod", "-crypto-xts", "-crypto-aes", "dm_crypt"] {
            assert!(modules.iter().any(|module| module == name), "{name}: {modules:?}");
        }
    }

    #[test]
    fn a_crypt_table_is_compared_but_for_its_key() {
        let header = LuksHeader {
            cipher: "aes-xts-plain64".into(),
            sector_size: 4096,
            offset: 32768,
            ..LuksHeader::default()
        };
        let place = Place { id: String::new(), numbers: "254:0".into(), sectors: 1 << 20 };
        let check = |text: &str| {
            let parameters = Zeroizing::new(text.to_owned());
            let target = Target { start: 0, len: 8, kind: "crypt".into(), parameters };
            check_crypt("dm-1", &header, &place, &[target]).map_err(|error| error.to_string())
        };
        let key = ":64:logon:cryptsetup:x-d0";
        assert_eq!(
            check(&format!("aes-xts-plain64 {key} 0 254:0 32768 2 allow_discards sector_size:4096")),
            Ok(())
        );
        let refused = [
            (format!("aes-cbc-plain64 {key} 0 254:0 32768 1 sector_size:4096"), "cipher"),
            (format!("aes-xts-plain64 {key} 0 254:1 32768 1 sector_size:4096"), "device under it"),
            (format!("aes-xts-plain64 {key} 0 254:0 32768"), "sector size"),
            (format!("aes-xts-plain64 {key} 0 254:0 4096 1 sector_size:4096"), "payload offset"),
            (format!("aes-xts-plain64 {key}"), "too short"),
        ];
        for (text, what) in refused {
            assert!(check(&text).unwrap_err().contains(what), "{text}");
        }
    }
}
