//! Where the targets on disks were on the host when the image was loaded: which device it was among
//! those that look alike, and where in its file system the host sees the directory. Values only.

use serde::{Deserialize, Serialize};

use super::Stack;
use crate::config::DeviceId;

/// A device that a configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    /// `device`, as the configuration writes it.
    pub device: String,
    /// What is on it, by a name that a kernel without udev can look for; none if nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<DeviceId>,
    /// By what it is told from a copy.
    pub identity: Identity,
}

/// By what a device is told from another one that holds the same. A field that is empty or 0 is not
/// known, and tells nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Serial number or world-wide name of the disk, or the UUID of a device-mapper device.
    pub serial: String,
    /// Where the disk is attached: the addresses on the way to it that no kernel numbers anew, such
    /// as `pci0000:00/0000:00:04.0`.
    pub bus: String,
    /// Number of the partition on its disk; 0 if it is a whole one.
    pub partition: u32,
    /// Length, sectors of 512 bytes.
    pub sectors: u64,
}

/// Where in a file system the host sees a directory of captures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct View {
    /// The target, as messages name it.
    pub target: String,
    /// The directory of captures: a path without links from the top of the file system; on btrfs from
    /// the top of subvolume 5.
    pub directory: String,
    /// What of the file system the host has mounted, likewise: what is below it can be seen there.
    pub root: String,
    /// Where the host sees the directory of captures.
    pub host: String,
    /// Why that is not the place that the configuration asks for; empty if it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// What the loader recorded of devices.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recorded<'a> {
    /// What stands between targets and disks.
    pub stacks: &'a [Stack],
    /// The devices themselves.
    pub disks: &'a [Disk],
}

impl Identity {
    /// Whether another identity is that of the same device. What one of the two does not know makes no
    /// difference; without anything that both know there is nothing to say, and so no.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let texts = [(&self.serial, &other.serial), (&self.bus, &other.bus)];
        let mut known = texts.into_iter().filter(|(a, b)| !a.is_empty() && !b.is_empty());
        // A disk that was moved to another slot is the same disk: a serial number is enough.
        let is_disk = known.next().is_some_and(|(a, b)| a == b);
        let same_len = self.sectors == 0 || other.sectors == 0 || self.sectors == other.sectors;
        is_disk && self.partition == other.partition && same_len
    }
}

impl<'a> Recorded<'a> {
    /// The record of a device.
    #[must_use]
    pub fn disk(&self, device: &DeviceId) -> Option<&'a Disk> {
        let name = device.to_string();
        self.disks.iter().find(|disk| disk.device == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_told_from_its_copy() {
        let identity = |serial: &str, bus: &str, partition, sectors| Identity {
            serial: serial.into(),
            bus: bus.into(),
            partition,
            sectors,
        };
        let was = identity("S1", "pci/4", 2, 100);
        for same in [was.clone(), identity("S1", "pci/5", 2, 100), identity("", "pci/4", 2, 0)] {
            assert!(was.is(&same), "{same:?}");
        }
        let others = [
            identity("S2", "pci/4", 2, 100),
            identity("S1", "pci/4", 3, 100),
            identity("S1", "pci/4", 2, 101),
            identity("", "pci/5", 2, 100),
            identity("", "", 2, 100),
        ];
        for other in others {
            assert!(!was.is(&other), "{other:?}");
        }
    }
}
