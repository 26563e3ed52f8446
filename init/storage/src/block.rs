//! Finding a block device by what stands on it, without udev: every device in `/sys/class/block` is
//! looked at until one matches or time is up.

mod choice;

use std::fmt::Write;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::format::features::{self, Needs};
use crate::format::gpt::{self, Partition};
use crate::format::rawdump;
use crate::format::superblock::{self, FileSystem};
use crate::{identity, patience};
use base::addr::to_usize;
use base::beat;
use base::config::DeviceId;
use base::facts::{Disk, Recorded};
use base::read_at::read_up_to;
use choice::Choice;

/// How long a device that matches but is not the recorded one is passed over: the other may have a
/// slower driver.
const SETTLE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// Entries in a table of sectors start at this LBA at the latest that is looked at.
const MAX_SECTOR: u64 = 4096;

/// A block device that is there.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// Node, such as `/dev/vda1`.
    pub node: PathBuf,
    /// What its superblock says, if it has one that we know.
    pub filesystem: Option<FileSystem>,
    /// What that file system needs besides.
    pub needs: Needs,
    /// UUID of the ext4 journal that has this device.
    pub journal: Option<String>,
    /// UUID by which a raw target is named: of our format, or of the swap area that may give way to
    /// it.
    pub raw_uuid: Option<String>,
    /// What its partition table says of it, if it is a partition.
    pub partition: Option<Partition>,
    /// Whether the device takes no writes.
    pub read_only: bool,
    /// Whether it can be read at all: a hung disk never says.
    pub answers: bool,
    /// Why it was chosen among others, or in spite of what was recorded: for people.
    pub remark: Option<String>,
}

/// No device matches. Lists what is there, since a wrong UUID is the usual cause.
#[derive(Debug, thiserror::Error)]
#[error("{wanted} did not appear within {seconds} s; there are: {present}")]
pub struct NotFound {
    wanted: String,
    seconds: u64,
    present: String,
}

impl From<NotFound> for vmcore::target::TargetError {
    fn from(error: NotFound) -> Self {
        Self::because(error)
    }
}

/// Waits up to `wait` for the device that `wanted` names. Tells PID 1 while it waits. Of several that
/// look alike a mounted one is taken; [`Device::remark`] says so.
pub fn find(wanted: &DeviceId, wait: Duration) -> Result<Device, NotFound> {
    find_recorded(wanted, None, wait)
}

/// The same; of several that look alike it is the one that was recorded.
pub fn find_recorded(wanted: &DeviceId, record: Option<&Disk>, wait: Duration) -> Result<Device, NotFound> {
    let name = match (wanted, record) {
        (DeviceId::Link(link), None) if !Path::new(link).exists() => {
            format!("{link} (a link of udev, which led nowhere when the image was loaded)")
        }
        _ => wanted.to_string(),
    };
    let choice =
        Choice { wanted, record, identity: &|device| identity::of(&device.node), is_mounted: &is_mounted };
    until(&name, wait, |devices, elapsed| choice.of(devices, elapsed >= wait.min(SETTLE)))
}

/// Waits for what `look` finds among the devices that are there; `name` is what it looks for.
fn until<T>(
    name: &str,
    wait: Duration,
    mut look: impl FnMut(&[Device], Duration) -> Option<T>,
) -> Result<T, NotFound> {
    let start = Instant::now();
    let mut is_logged = false;
    loop {
        let devices = list();
        let elapsed = start.elapsed();
        if let Some(found) = look(&devices, elapsed) {
            return Ok(found);
        }
        if elapsed >= wait {
            let present = describe(&devices);
            return Err(NotFound { wanted: name.to_owned(), seconds: wait.as_secs(), present });
        }
        if !is_logged {
            log::info!("waiting up to {} s for {name}", wait.as_secs());
            is_logged = true;
        }
        beat::alive();
        sleep(POLL);
    }
}

/// All devices of the btrfs that `first` belongs to, `first` in front, and the seeds that it may stand
/// on; waits up to `wait` for them. Fewer if some do not appear.
#[must_use]
pub fn members(first: &Device, recorded: Recorded<'_>, wait: Duration) -> Vec<Device> {
    let (Some(fs), Some(member)) = (&first.filesystem, &first.needs.member) else {
        return vec![first.clone()];
    };
    let name = format!("each of the {} devices of btrfs {}", member.count, fs.uuid);
    let mut best = Vec::new();
    let complete = until(&name, wait, |devices, _| {
        best = members_among(first, recorded, devices);
        (best.len() >= to_usize(member.count)).then_some(())
    });
    if let Err(error) = complete {
        log::warn!("{error}");
    }
    let is_seed = |device: &Device| device.needs.member.is_some() && device.needs.obstacle.is_some();
    let seeds = list().into_iter().filter(|device| is_seed(device) && device.filesystem != first.filesystem);
    best.extend(seeds);
    best
}

/// One device for each member; of copies the recorded one.
fn members_among(first: &Device, recorded: Recorded<'_>, devices: &[Device]) -> Vec<Device> {
    let mut found = vec![first.clone()];
    let id = |device: &Device| device.needs.member.as_ref().map(|member| member.id.clone());
    let same_fs = |device: &&Device| {
        device.filesystem.as_ref().map(|fs| (fs.kind, &fs.uuid))
            == first.filesystem.as_ref().map(|fs| (fs.kind, &fs.uuid))
    };
    for device in devices.iter().filter(same_fs) {
        let Some(member) = id(device) else { continue };
        if found.iter().any(|other| id(other).as_ref() == Some(&member)) {
            continue;
        }
        let copies: Vec<&Device> =
            devices.iter().filter(same_fs).filter(|other| id(other).as_ref() == Some(&member)).collect();
        let record = recorded.disk(&DeviceId::Link(member_name(&member)));
        let best = copies
            .iter()
            .find(|copy| record.is_some_and(|record| record.identity.is(&identity::of(&copy.node))));
        let best = best.or_else(|| copies.iter().find(|copy| is_mounted(copy))).unwrap_or(&device);
        found.push((*best).clone());
    }
    found
}

/// By what name a device of a btrfs is recorded.
#[must_use]
pub fn member_name(id: &str) -> String {
    format!("MEMBER={id}")
}

/// Waits up to `wait` for the device with the journal of an ext4 file system.
pub fn journal(uuid: &str, wait: Duration) -> Result<Device, NotFound> {
    let is_it = |device: &&Device| device.journal.as_deref() == Some(uuid);
    until(&format!("the journal {uuid}"), wait, |devices, _| devices.iter().find(is_it).cloned())
}

/// Whether a device is mounted. btrfs has a number of its own in the list of mounts, so the node counts
/// as well.
fn is_mounted(device: &Device) -> bool {
    let sysfs = Path::new("/sys/class/block").join(device.node.file_name().unwrap_or_default());
    let number = fs::read_to_string(sysfs.join("dev")).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| {
        let Some((front, back)) = line.split_once(" - ") else { return false };
        let source = back.split(' ').nth(1).unwrap_or_default();
        front.split(' ').nth(2) == Some(number.trim())
            || fs::canonicalize(source).is_ok_and(|source| source == device.node)
    })
}

/// The device of a path, with what stands on it. Of one that does not answer nothing is known but
/// its name.
#[must_use]
pub fn inspect(node: &Path) -> Device {
    inspect_all(&[node.to_owned()]).pop().unwrap_or_else(|| silent(node))
}

fn inspect_all(nodes: &[PathBuf]) -> Vec<Device> {
    let found = patience::ask(nodes, look);
    nodes.iter().zip(found).map(|(node, found)| found.unwrap_or_else(|| silent(node))).collect()
}

fn silent(node: &Path) -> Device {
    Device { node: node.to_owned(), ..Device::default() }
}

fn look(node: &Path) -> Device {
    let file = File::open(node);
    // A leg of a mirror looks like the whole; writing to it alone would make the legs differ.
    let whole = file.ok().filter(|file| !is_array_member(file));
    let head = whole.map(|file| read_head(&file, superblock::PROBE_LEN)).unwrap_or_default();
    let filesystem = superblock::probe(&head);
    let raw_uuid = rawdump::latest(&head).map(|ours| ours.uuid).or_else(|| superblock::swap(&head));
    let sysfs = Path::new("/sys/class/block").join(node.file_name().unwrap_or_default());
    let read_only = fs::read_to_string(sysfs.join("ro")).is_ok_and(|ro| ro.trim() == "1");
    let partition = partition_of(&sysfs);
    let needs = filesystem.as_ref().map(|fs| features::needs(fs.kind, &head)).unwrap_or_default();
    let journal = features::journal(&head);
    let node = node.to_owned();
    Device { node, filesystem, needs, journal, raw_uuid, partition, read_only, answers: true, remark: None }
}

/// Every block device with a size, and what stands on it.
#[must_use]
pub fn list() -> Vec<Device> {
    inspect_all(&nodes())
}

/// The nodes of every block device with a size, by name.
#[must_use]
pub fn nodes() -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    let present = names.iter().filter(|name| {
        let size = fs::read_to_string(Path::new("/sys/class/block").join(name).join("size"));
        size.is_ok_and(|size| size.trim() != "0") && !name.to_string_lossy().starts_with("fd")
    });
    present.map(|name| Path::new("/dev").join(name)).collect()
}

impl Device {
    /// By what a kernel without udev can look for it: what is on it, or its entry in a partition table.
    #[must_use]
    pub fn content(&self) -> Option<DeviceId> {
        let known = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let uuid = self.filesystem.as_ref().and_then(|fs| known(&fs.uuid)).or_else(|| self.raw_uuid.clone());
        let partition = || self.partition.as_ref().and_then(|partition| known(&partition.uuid));
        uuid.map(DeviceId::Uuid).or_else(|| partition().map(DeviceId::PartUuid))
    }

    /// What is to be remembered of it under a name that the configuration has.
    #[must_use]
    pub fn record(&self, device: String) -> Disk {
        Disk { device, content: self.content(), identity: identity::of(&self.node) }
    }

    /// Whether this is the device that is wanted.
    #[must_use]
    pub fn matches(&self, wanted: &DeviceId) -> bool {
        let fs = self.filesystem.as_ref();
        let part = self.partition.as_ref();
        match wanted {
            DeviceId::Uuid(uuid) => {
                fs.is_some_and(|fs| fs.uuid == *uuid) || self.raw_uuid.as_ref() == Some(uuid)
            }
            DeviceId::Label(label) => fs.is_some_and(|fs| fs.label == *label),
            DeviceId::PartUuid(uuid) => part.is_some_and(|part| part.uuid == *uuid),
            DeviceId::PartLabel(label) => part.is_some_and(|part| part.label == *label),
            DeviceId::Path(path) => self.node == Path::new(path),
            // A link leads somewhere only where there is udev.
            DeviceId::Link(link) => fs::canonicalize(link).is_ok_and(|node| node == self.node),
        }
    }
}

/// The entry of the partition at `/sys/class/block/NAME` in its disk's table.
fn partition_of(sysfs: &Path) -> Option<Partition> {
    let number: u32 = fs::read_to_string(sysfs.join("partition")).ok()?.trim().parse().ok()?;
    let disk = fs::canonicalize(sysfs).ok()?.parent()?.to_owned();
    let sector = fs::read_to_string(disk.join("queue/logical_block_size")).ok();
    let sector =
        sector.and_then(|text| text.trim().parse().ok()).filter(|size| (512..=MAX_SECTOR).contains(size))?;
    let file = File::open(Path::new("/dev").join(disk.file_name()?)).ok()?;
    read_table(&file, sector)?.into_iter().find(|partition| partition.number == number)
}

fn read_table(file: &File, sector: u64) -> Option<Vec<Partition>> {
    let head = read_head(file, to_usize(sector.saturating_mul(2)));
    let (mbr, second) = head.split_at_checked(to_usize(sector))?;
    let one = |lba: u64| read_up_to(file, lba.checked_mul(sector)?, to_usize(sector)).ok();
    if let Some(entries) = gpt::parse_header(second).and_then(|header| read_entries(file, sector, header)) {
        return Some(entries);
    }
    // The second copy of a GPT, in the last sector (find_valid_gpt(), block/partitions/efi.c).
    let len = (&*file).seek(SeekFrom::End(0)).unwrap_or(0);
    let last = len.checked_div(sector)?.saturating_sub(1);
    let backup = if gpt::is_protective(mbr) { one(last) } else { None };
    if let Some(header) = backup.and_then(|sector| gpt::parse_header(&sector)) {
        return read_entries(file, sector, header);
    }
    Some(gpt::parse_mbr(mbr, &mut |lba| one(lba)))
}

fn read_entries(file: &File, sector: u64, header: gpt::GptHeader) -> Option<Vec<Partition>> {
    let mut entries = vec![0; header.entries_len];
    file.read_exact_at(&mut entries, header.entries_lba.checked_mul(sector)?).ok()?;
    header.parse_entries(&entries)
}

/// Whether a device has the metadata of Linux software RAID at its end: versions 0.90 and 1.0,
/// which leave what is in front of them as it would be without RAID
/// (include/uapi/linux/raid/md_p.h; calc_dev_sboffset(), super_1_load(), drivers/md/md.c).
fn is_array_member(file: &File) -> bool {
    let Ok(len) = (&*file).seek(SeekFrom::End(0)) else { return false };
    let old = (len & !0xffff).checked_sub(64 << 10);
    let new = len.checked_sub(8 << 10).map(|at| at & !0xfff);
    let mut magic = [0; 4];
    [old, new]
        .into_iter()
        .flatten()
        .any(|at| file.read_exact_at(&mut magic, at).is_ok() && magic == superblock::MD_MAGIC)
}

/// The first `len` bytes, or as many as can be had.
fn read_head(file: &File, len: usize) -> Vec<u8> {
    read_up_to(file, 0, len).unwrap_or_default()
}

fn describe(devices: &[Device]) -> String {
    let mut text = String::new();
    for device in devices {
        let _ = write!(text, "{}{}", if text.is_empty() { "" } else { ", " }, device.node.display());
        if !device.answers {
            let _ = write!(text, " (does not answer)");
        }
        if let Some(fs) = &device.filesystem {
            let _ = write!(text, " ({} UUID={} LABEL={})", fs.kind.name(), fs.uuid, fs.label);
        }
        if let Some(uuid) = &device.raw_uuid {
            let _ = write!(text, " (UUID={uuid})");
        }
        if let Some(part) = &device.partition {
            let _ = write!(text, " (PARTUUID={} PARTLABEL={})", part.uuid, part.label);
        }
    }
    if text.is_empty() { "no block devices at all".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_matches_by_each_name() {
        let device = Device {
            node: "/dev/vda1".into(),
            filesystem: Some(FileSystem {
                kind: base::config::FsType::Ext4,
                label: "dump".into(),
                uuid: "ab-1".into(),
            }),
            raw_uuid: Some("ef-3".into()),
            partition: Some(Partition { number: 1, uuid: "cd-2".into(), label: "crash".into() }),
            ..Device::default()
        };
        for text in ["UUID=AB-1", "UUID=EF-3", "LABEL=dump", "PARTUUID=CD-2", "PARTLABEL=crash", "/dev/vda1"]
        {
            assert!(device.matches(&text.parse().unwrap()), "{text}");
        }
        for text in ["UUID=ab-2", "LABEL=Dump", "PARTUUID=ab-1", "PARTLABEL=dump", "/dev/vda"] {
            assert!(!device.matches(&text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_leg_of_a_mirror_is_no_device() {
        let len: u64 = (9 << 20) + 12_345;
        for at in [None, Some((len & !0xffff) - (64 << 10)), Some((len - (8 << 10)) & !0xfff)] {
            let mut file = tempfile::tempfile().unwrap();
            file.set_len(len).unwrap();
            if let Some(at) = at {
                file.write_all_at(&0xa92b_4efc_u32.to_le_bytes(), at).unwrap();
            }
            assert_eq!(is_array_member(&file), at.is_some(), "{at:?}");
            let _ = file.rewind();
        }
    }

    /// A GPT disk of 64 sectors without its first header, as an overwritten start leaves it.
    #[test]
    fn the_second_copy_of_a_partition_table_is_read_where_the_first_is_damaged() {
        let mut entries = vec![0_u8; 128 * 4];
        entries[..32].fill(7);
        let mut header = vec![0_u8; 512];
        header[..8].copy_from_slice(b"EFI PART");
        for (at, value) in [(12, 92_u32), (72, 40), (80, 4), (84, 128), (88, crc32fast::hash(&entries))] {
            header[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32fast::hash(&header[..92]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        let mut mbr = vec![0_u8; 512];
        (mbr[450], mbr[458], mbr[510], mbr[511]) = (0xee, 63, 0x55, 0xaa);
        let file = tempfile::tempfile().unwrap();
        for (sector, bytes) in [(0, &mbr), (40, &entries), (63, &header)] {
            file.write_all_at(bytes, sector * 512).unwrap();
        }
        let uuids =
            |file: &File| read_table(file, 512).unwrap().into_iter().map(|it| it.uuid).collect::<Vec<_>>();
        assert_eq!(uuids(&file), ["07070707-0707-0707-0707-070707070707"]);
        file.write_all_at(&[0], 450).unwrap();
        assert_eq!(uuids(&file), Vec::<String>::new(), "an old copy behind another table names nothing");
    }

    #[test]
    fn a_btrfs_has_one_device_for_each_member() {
        let device = |node: &str, uuid: &str, id: &str| Device {
            node: node.into(),
            filesystem: Some(FileSystem {
                kind: base::config::FsType::Btrfs,
                label: String::new(),
                uuid: uuid.into(),
            }),
            needs: Needs { member: Some(features::Member { id: id.into(), count: 2 }), ..Needs::default() },
            ..Device::default()
        };
        let devices = [
            device("/dev/no-such-a", "u", "m-1"),
            device("/dev/no-such-b", "other", "m-2"),
            device("/dev/no-such-c", "u", "m-2"),
            device("/dev/no-such-d", "u", "m-1"),
            device("/dev/no-such-e", "u", "m-2"),
        ];
        let found = members_among(&devices[3], Recorded::default(), &devices);
        let nodes: Vec<_> = found.iter().map(|device| device.node.to_str().unwrap()).collect();
        assert_eq!(nodes, ["/dev/no-such-d", "/dev/no-such-c"], "a copy beside its original breaks a btrfs");
    }

    #[test]
    fn a_missing_device_lists_what_is_there() {
        let wanted = "UUID=no-such".parse().unwrap();
        let error = find(&wanted, Duration::ZERO).unwrap_err().to_string();
        assert!(error.starts_with("UUID=no-such did not appear within 0 s; there are: "), "{error}");
    }
}
