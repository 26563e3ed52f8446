//! What a target is on this host: its device, how much room is on it, and the modules that reach
//! it. Writes nothing and mounts nothing.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::addr::to_u64;
use base::config::{DeviceId, FsType, Network, Place, Target, TargetKind};
use base::fields::Fields;
use nix::sys::statvfs::statvfs;
use storage::block;
use storage::format::superblock::PROBE_LEN;
use storage::targets::ours::OpenDirectory;
use storage::targets::{captures, raw};

use super::modules::{Unknown, closure};
use super::network::{self, Reach};
use crate::boot_entry::Mounts;
use crate::drivers::{self, DriversError};
use crate::modules::ModuleTree;
use crate::place::{self, Seen};
use crate::remote::Expiry;

/// A target on this host.
#[derive(Clone, Debug)]
pub struct Storage {
    /// The target.
    pub target: Target,
    /// Of a target on the network: what it is instead.
    pub reach: Option<Reach>,
    /// Its device, or what is there instead.
    pub device: Result<Device, String>,
}

/// A target's device.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its node.
    pub node: PathBuf,
    /// Name of the file system on it, of those that we know.
    pub filesystem: Option<String>,
    /// Whether it takes no writes.
    pub read_only: bool,
    /// Its size.
    pub bytes: u64,
    /// Room on it.
    pub room: Room,
    /// Why a capture would save no dump there, whatever the room: a raw device with something on
    /// it, a crash loop.
    pub refused: Option<String>,
    /// Where the host sees its directory; none if it is not mounted.
    pub place: Option<Seen>,
    /// What is not plain about which device it is: a copy.
    pub remark: Option<String>,
    /// What it stands on, if it is no disk or partition.
    pub stack: Option<String>,
    /// Modules that it needs, with what they depend on, built-in ones left out; or why that is not
    /// known.
    pub modules: Result<Vec<String>, Unknown>,
}

/// Room for a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Bytes that are free.
    Free(u64),
    /// The file system is not mounted and its superblock does not tell.
    Unknown,
}

/// Looks at the device of a target; `tree` has the modules of the image's kernel.
#[must_use]
pub fn look(
    target: &Target,
    network: &Network,
    tree: Result<&ModuleTree, &String>,
    expiries: &[Expiry],
) -> Storage {
    let name = target.to_string();
    let until = expiries.iter().find(|expiry| expiry.target == name).map(|expiry| expiry.at);
    let reach = network::look(target, network, tree, until);
    let device = match target.device() {
        Some(device) => block::find(device, Duration::ZERO).map_err(|error| error.to_string()),
        None => Err("it is no device of this host".to_owned()),
    };
    let device = device.map(|found| device_of(&found, target, tree));
    Storage { target: target.clone(), reach, device }
}

fn device_of(found: &block::Device, target: &Target, tree: Result<&ModuleTree, &String>) -> Device {
    let sysfs = Path::new("/sys/class/block").join(found.node.file_name().unwrap_or_default());
    let sectors: u64 = read(&sysfs.join("size")).parse().unwrap_or(0);
    let bytes = sectors.saturating_mul(512); // of 512 bytes on every device
    let configured = match &target.place {
        Place::Filesystem(wanted) => wanted.fstype,
        _ => None,
    };
    let kind = configured.or(found.filesystem.as_ref().map(|fs| fs.kind));
    let mounts = Mounts::parse(&read(Path::new("/proc/self/mountinfo")));
    let place = match &target.place {
        Place::Filesystem(wanted) => place::seen(wanted, &target.to_string(), found, &mounts),
        _ => None,
    };
    let refused = match &target.place {
        Place::Raw(wanted) => {
            raw::refusal(&found.node, &wanted.overwrite).err().map(|error| base::log::chain(&error))
        }
        Place::Filesystem(_) => place.as_ref().and_then(|seen| crash_loop(Path::new(&seen.view.host))),
        Place::Ssh(_) | Place::Nfs(_) | Place::Https(_) | Place::S3(_) => None,
    };
    let room = match target.kind() {
        TargetKind::Raw => Room::Free(bytes),
        TargetKind::Filesystem => {
            let free = place
                .as_ref()
                .and_then(|seen| free_mounted(Path::new(&seen.at)))
                .or_else(|| free_unmounted(&found.node, kind?));
            free.map_or(Room::Unknown, Room::Free)
        }
        TargetKind::Ssh | TargetKind::Nfs | TargetKind::Https | TargetKind::S3 => Room::Unknown,
    };
    Device {
        node: found.node.clone(),
        filesystem: kind.map(|kind| kind.name().to_owned()),
        read_only: found.read_only,
        bytes,
        room,
        refused,
        place,
        remark: found.remark.clone(),
        stack: stack(&sysfs),
        modules: tree.map_err(|error| Unknown::Other(error.clone())).and_then(|tree| modules(target, tree)),
    }
}

fn modules(target: &Target, tree: &ModuleTree) -> Result<Vec<String>, Unknown> {
    let other = |error: &dyn core::error::Error| Unknown::Other(base::log::chain(error));
    let found = drivers::discover(target, tree).map_err(|error| match error {
        DriversError::Stacked(..) => Unknown::Stacked(error.to_string()),
        error => other(&error),
    })?;
    let roots: Vec<String> = found
        .modules
        .into_iter()
        .chain(found.fstype.into_iter().flat_map(|fstype| drivers::filesystem_modules(fstype, tree)))
        .collect();
    closure(&roots, tree).map_err(Unknown::Other)
}

/// The modules that mount a file system on a device of this host, as those of a target.
pub(super) fn modules_of(
    device: &DeviceId,
    fstype: FsType,
    tree: &ModuleTree,
) -> Result<Vec<String>, String> {
    let (_, mut roots) = drivers::reach(device, tree).map_err(|error| base::log::chain(&error))?;
    roots.extend(drivers::filesystem_modules(fstype, tree));
    closure(&roots, tree)
}

/// Returns the warning about a crash loop that the ledger of a directory of captures remembers.
fn crash_loop(captures: &Path) -> Option<String> {
    let ledger = captures::read_ledger(&OpenDirectory::open_at(captures).ok()?);
    ledger.looping.then(|| {
        let (at, crashes) = (captures.display(), ledger.crashes.len());
        format!(
            "{at} remembers {crashes} crashes, a loop: run `afterimage reset {at}` when its cause is seen to"
        )
    })
}

/// Bytes that the file system leaves to every user. The capture, as root, may find a few percent more,
/// which another program may have used up by then.
fn free_mounted(path: &Path) -> Option<u64> {
    let stat = statvfs(path).ok()?;
    stat.blocks_available().checked_mul(stat.fragment_size())
}

fn free_unmounted(node: &Path, kind: FsType) -> Option<u64> {
    let mut head = Vec::new();
    File::open(node).ok()?.take(to_u64(PROBE_LEN)).read_to_end(&mut head).ok()?;
    free_in_superblock(kind, &head)
}

/// The same from what the superblock counts; exact if it was unmounted cleanly.
fn free_in_superblock(kind: FsType, head: &[u8]) -> Option<u64> {
    match kind {
        // ext4_super_block, fs/ext4/ext4.h
        FsType::Ext4 => {
            let sb = Fields(head.get(1024..)?);
            // S_log_block_size.
            let block = 1024_u64.checked_shl(sb.u32(0x18)?).filter(|&size| (1024..=65536).contains(&size))?;
            let is_64bit = sb.u32(0x60)? & 0x80 != 0; // s_feature_incompat, EXT4_FEATURE_INCOMPAT_64BIT
            let count = |low, high| {
                let high = if is_64bit { u64::from(sb.u32(high)?) } else { 0 };
                Some(high << 32 | u64::from(sb.u32(low)?))
            };
            // S_free_blocks_count, s_r_blocks_count.
            let (free, reserved) = (count(0x0c, 0x158)?, count(0x08, 0x154)?);
            free.saturating_sub(reserved).checked_mul(block)
        }
        // struct xfs_dsb, fs/xfs/libxfs/xfs_format.h
        FsType::Xfs => {
            let sb = Fields(head);
            sb.u64_be(144)?.checked_mul(u64::from(sb.u32_be(4)?)) // sb_fdblocks, sb_blocksize
        }
        FsType::Btrfs | FsType::Vfat => None,
    }
}

/// What sysfs tells of a device on other devices: names, the layer's own identifier, what it stands
/// on.
fn stack(sysfs: &Path) -> Option<String> {
    let below: Vec<String> = fs::read_dir(sysfs.join("slaves"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let named =
        [("name", "dm/name"), ("uuid", "dm/uuid"), ("level", "md/level"), ("file", "loop/backing_file")];
    let mut words: Vec<String> = named
        .into_iter()
        .map(|(key, file)| (key, read(&sysfs.join(file))))
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key} {value}"))
        .collect();
    if !below.is_empty() {
        words.push(format!("on {}", below.join(", ")));
    }
    (!words.is_empty()).then(|| words.join(", "))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks_tell_free_blocks() {
        let mut head = vec![0; PROBE_LEN];
        head[1024 + 0x18] = 2; // 4 KiB
        head[1024 + 0x0c..1024 + 0x10].copy_from_slice(&1000_u32.to_le_bytes());
        head[1024 + 0x08] = 50;
        head[1024 + 0x158] = 1; // means nothing without the feature
        assert_eq!(free_in_superblock(FsType::Ext4, &head), Some(950 << 12));
        head[1024 + 0x60] = 0x80;
        assert_eq!(free_in_superblock(FsType::Ext4, &head), Some(((1 << 32) + 950) << 12));
        head[1024 + 0x18] = 40;
        assert_eq!(free_in_superblock(FsType::Ext4, &head), None);
        head[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        head[144..152].copy_from_slice(&77_u64.to_be_bytes());
        assert_eq!(free_in_superblock(FsType::Xfs, &head), Some(77 << 12));
        assert_eq!(free_in_superblock(FsType::Btrfs, &head), None);
        for cut in [0, 5, 145, 1025, 1100, 1300] {
            let _ = free_in_superblock(FsType::Ext4, &head[..cut]); // total on any prefix
            let _ = free_in_superblock(FsType::Xfs, &head[..cut]);
        }
    }

    #[test]
    fn a_device_on_others_says_what_sysfs_knows() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stack(dir.path()), None);
        fs::create_dir_all(dir.path().join("dm")).unwrap();
        fs::create_dir_all(dir.path().join("slaves/vda3")).unwrap();
        fs::write(dir.path().join("dm/name"), "vg-crash\n").unwrap();
        fs::write(dir.path().join("dm/uuid"), "LVM-abc\n").unwrap();
        assert_eq!(stack(dir.path()).as_deref(), Some("name vg-crash, uuid LVM-abc, on vda3"));
    }
}
