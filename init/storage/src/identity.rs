//! By what a block device is told from a copy of it: serial number, place on the buses, partition and
//! length, as sysfs has them (Documentation/ABI/stable/sysfs-block, Documentation/ABI/testing/sysfs-bus-*).

use std::fs;
use std::path::{Path, PathBuf};

use base::facts::Identity;

/// Files with a serial number or a world-wide name below the disk: of the device mapper and of md, of
/// NVMe, of virtio, of SCSI, of MMC.
const SERIALS: [&str; 7] =
    ["dm/uuid", "md/uuid", "wwid", "serial", "device/wwid", "device/cid", "device/serial"];
/// What the kernel numbers in the order of probing, which is another one in the next kernel.
const NUMBERED: [&str; 6] = ["target", "end_device-", "expander-", "port-", "phy-", "rport-"];

/// The identity of a device by its node; empty if sysfs does not know it.
#[must_use]
pub fn of(node: &Path) -> Identity {
    let sysfs = Path::new("/sys/class/block").join(node.file_name().unwrap_or_default());
    fs::canonicalize(&sysfs).map(|path| read(&path)).unwrap_or_default()
}

/// The same by its directory in sysfs.
fn read(path: &Path) -> Identity {
    let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let partition = text(path.join("partition")).parse().unwrap_or(0);
    let disk = if partition > 0 { path.parent().unwrap_or(path) } else { path };
    let serials = SERIALS.iter().map(|file| text(disk.join(file)));
    Identity {
        serial: serials.into_iter().find(|serial| !serial.is_empty()).unwrap_or_default(),
        bus: bus(disk),
        partition,
        sectors: text(path.join("size")).parse().unwrap_or(0),
    }
}

/// The parts of a disk's path in sysfs that are addresses, as `/dev/disk/by-path` has them.
fn bus(disk: &Path) -> String {
    let mut so_far = PathBuf::new();
    let mut parts = Vec::new();
    for component in disk {
        so_far.push(component);
        if component == "block" {
            break;
        }
        let name = component.to_string_lossy();
        if NUMBERED.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let numbers: Vec<&str> = name.split(':').collect();
        let is_number = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
        if name.strip_prefix("ata").is_some_and(|number| is_number(&number)) {
            // Ports of one controller: they have a number of their own on it.
            let port = so_far.join("ata_port").join(component).join("port_no");
            parts.push(format!("port{}", fs::read_to_string(port).unwrap_or_default().trim()));
        } else if let ([_, rest @ ..], true) = (numbers.as_slice(), numbers.iter().all(is_number))
            && rest.len() == 3
        {
            parts.push(rest.join(":")); // without the number of the SCSI host
        } else if name.contains(':') {
            parts.push(name.into_owned());
        } else if let Some((_, port)) = name.split_once('-') {
            parts.push(port.to_owned()); // of USB, without the number of the bus
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_numbered_anew_is_no_address() {
        let cases = [
            ("/sys/devices/pci0000:00/0000:00:04.0/virtio1/block/vda", "pci0000:00/0000:00:04.0"),
            (
                "/sys/devices/pci0000:00/0000:00:1f.2/host3/target3:0:1/3:0:1:2/block/sdc",
                "pci0000:00/0000:00:1f.2/0:1:2",
            ),
            (
                "/sys/devices/pci0000:00/0000:00:1d.0/0000:01:00.0/nvme/nvme0/nvme0n1",
                "pci0000:00/0000:00:1d.0/0000:01:00.0",
            ),
            (
                "/sys/devices/pci0000:00/0000:00:14.0/usb2/2-3/2-3:1.0/host6/target6:0:0/6:0:0:0/block/sdd",
                "pci0000:00/0000:00:14.0/3/2-3:1.0/0:0:0",
            ),
            ("/sys/devices/virtual/block/dm-0", ""),
        ];
        for (path, expected) in cases {
            assert_eq!(bus(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_partition_is_told_by_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("0000:00:04.0/block/vda");
        let part = disk.join("vda2");
        fs::create_dir_all(&part).unwrap();
        for (file, text) in
            [("vda2/partition", "2\n"), ("vda2/size", "999\n"), ("serial", "S-1\n"), ("size", "2000")]
        {
            fs::write(disk.join(file), text).unwrap();
        }
        let found = read(&part);
        assert_eq!((&*found.serial, found.partition, found.sectors), ("S-1", 2, 999));
        assert!(found.bus.ends_with("0000:00:04.0"), "{found:?}");
        let whole = read(&disk);
        assert_eq!((whole.partition, whole.sectors, &whole.bus), (0, 2000, &found.bus));
    }
}
