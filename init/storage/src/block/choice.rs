//! Which of the devices that are there a name means. A cloned disk has every name of the other one, so
//! what the loader has recorded decides, or what is mounted; where nothing does, that is said.

use base::config::DeviceId;
use base::facts::{Disk, Identity};

use super::Device;

/// What is looked for, and how devices are told apart.
pub(super) struct Choice<'a> {
    /// The name.
    pub(super) wanted: &'a DeviceId,
    /// What the loader has recorded under that name.
    pub(super) record: Option<&'a Disk>,
    /// Tells a device from a copy.
    pub(super) identity: &'a dyn Fn(&Device) -> Identity,
    /// Whether this system has a device mounted.
    pub(super) is_mounted: &'a dyn Fn(&Device) -> bool,
}

impl Choice<'_> {
    /// The device that is meant, with a remark if that was not plain. `is_last`: nothing better will
    /// come.
    pub(super) fn of(&self, devices: &[Device], is_last: bool) -> Option<Device> {
        let matching: Vec<&Device> = devices.iter().filter(|device| self.matches(device)).collect();
        let Some(record) = self.record.filter(|record| record.identity != Identity::default()) else {
            return self.without_record(&matching);
        };
        let same: Vec<&Device> =
            matching.iter().copied().filter(|device| record.identity.is(&(self.identity)(device))).collect();
        match (same.as_slice(), matching.as_slice()) {
            (&[device], &[_]) => Some(device.clone()),
            (&[device], _) => {
                let others = names(&matching, device);
                Some(remarked(
                    device,
                    others.map(|others| {
                        format!(
                            "{} is also on {others}, a copy: the one that was recorded is taken",
                            self.wanted
                        )
                    }),
                ))
            }
            (&[device, ..], _) => Some(self.ambiguous(device, &same)),
            (&[], &[device, ..]) if is_last => {
                let remark = format!(
                    "{} is on {}, which is not the device that held it when the image was loaded: it is taken \
                     all the same",
                    self.wanted,
                    device.node.display()
                );
                Some(remarked(device, Some(remark)))
            }
            _ => None,
        }
    }

    /// Whether a device has the name, or holds what was recorded under it. A kernel's name counts only
    /// where nothing else is known: the next kernel may give it to another disk.
    fn matches(&self, device: &Device) -> bool {
        let Some(record) = self.record else { return device.matches(self.wanted) };
        match (self.wanted, &record.content) {
            (DeviceId::Path(_) | DeviceId::Link(_), Some(content)) => device.matches(content),
            (DeviceId::Path(_) | DeviceId::Link(_), None) => record.identity.is(&(self.identity)(device)),
            _ => device.matches(self.wanted),
        }
    }

    fn without_record(&self, matching: &[&Device]) -> Option<Device> {
        let &[first, ref others @ ..] = matching else { return None };
        if names(matching, first).is_none() || others.is_empty() {
            // Of a btrfs on several devices the mounted one, if there is one: all are it.
            return Some(first.clone());
        }
        let mounted: Vec<&Device> =
            matching.iter().copied().filter(|device| (self.is_mounted)(device)).collect();
        match mounted[..] {
            [device] => Some(remarked(
                device,
                names(matching, device).map(|others| {
                    format!("{} is also on {others}, a copy: the one that is mounted is taken", self.wanted)
                }),
            )),
            _ => Some(self.ambiguous(first, matching)),
        }
    }

    fn ambiguous(&self, device: &Device, alike: &[&Device]) -> Device {
        let remark = names(alike, device).map(|others| {
            format!(
                "{} is on {} and on {others}, and nothing tells which is meant: the first is taken; name it by \
                 PARTUUID= or /dev/disk/by-id, or give the copy another UUID",
                self.wanted,
                device.node.display()
            )
        });
        remarked(device, remark)
    }
}

fn remarked(device: &Device, remark: Option<String>) -> Device {
    Device { remark, ..device.clone() }
}

/// The nodes of the copies of a device; `None` if there is none. Another device of the same btrfs is no
/// copy.
fn names(alike: &[&Device], device: &Device) -> Option<String> {
    let is_copy = |other: &&&Device| other.node != device.node && other.needs.member == device.needs.member;
    let copies: Vec<String> =
        alike.iter().filter(is_copy).map(|other| other.node.display().to_string()).collect();
    (!copies.is_empty()).then(|| copies.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::features::{Member, Needs};
    use crate::format::superblock::FileSystem;
    use base::config::FsType;

    fn device(node: &str, member: Option<&str>) -> Device {
        let member = member.map(|id| Member { id: id.into(), count: 2 });
        Device {
            node: node.into(),
            filesystem: Some(FileSystem { kind: FsType::Btrfs, label: String::new(), uuid: "u-1".into() }),
            needs: Needs { member, ..Needs::default() },
            answers: true,
            ..Device::default()
        }
    }

    fn identity(device: &Device) -> Identity {
        Identity { bus: format!("slot of {}", device.node.display()), sectors: 9, ..Identity::default() }
    }

    fn record(name: &str, content: Option<&str>, of: &str) -> Disk {
        let content = content.map(|content| content.parse().unwrap());
        Disk { device: name.into(), content, identity: identity(&device(of, None)) }
    }

    fn choose(wanted: &str, record: Option<&Disk>, mounted: &str, is_last: bool) -> Option<(String, String)> {
        let wanted = wanted.parse().unwrap();
        let choice = Choice {
            wanted: &wanted,
            record,
            identity: &identity,
            is_mounted: &|device| device.node.to_str() == Some(mounted),
        };
        let devices = [device("/dev/vda", None), device("/dev/vdb", None)];
        let found = choice.of(&devices, is_last)?;
        Some((found.node.display().to_string(), found.remark.unwrap_or_default()))
    }

    #[test]
    fn of_a_disk_and_its_clone_the_mounted_one_is_taken_and_told() {
        let (node, remark) = choose("UUID=u-1", None, "/dev/vdb", true).unwrap();
        assert!(
            node == "/dev/vdb" && remark.contains("also on /dev/vda") && remark.contains("mounted"),
            "{remark}"
        );
        let (node, remark) = choose("UUID=u-1", None, "", true).unwrap();
        assert!(node == "/dev/vda" && remark.contains("nothing tells"), "{remark}");
    }

    #[test]
    fn of_a_disk_and_its_clone_the_recorded_one_is_taken_and_told() {
        let was = record("UUID=u-1", Some("UUID=u-1"), "/dev/vdb");
        let (node, remark) = choose("UUID=u-1", Some(&was), "", false).unwrap();
        assert!(node == "/dev/vdb" && remark.contains("recorded"), "{remark}");
    }

    #[test]
    fn another_device_is_waited_out_and_taken_in_the_end() {
        let was = record("UUID=u-1", Some("UUID=u-1"), "/dev/vdz");
        assert_eq!(choose("UUID=u-1", Some(&was), "", false), None);
        let (node, remark) = choose("UUID=u-1", Some(&was), "", true).unwrap();
        assert!(node == "/dev/vda" && remark.contains("not the device"), "{remark}");
    }

    #[test]
    fn a_link_and_a_kernel_name_lead_to_what_was_there() {
        let (by_id, moved) = ("/dev/disk/by-id/disk-1", "/dev/vda");
        for wanted in [by_id, moved] {
            for content in [None, Some("UUID=u-1")] {
                let was = record(wanted, content, "/dev/vdb");
                let (node, _) = choose(wanted, Some(&was), "", false).unwrap();
                assert_eq!(node, "/dev/vdb", "{wanted} {content:?}");
            }
        }
        assert_eq!(choose(by_id, None, "", true), None, "no udev, no record");
    }

    #[test]
    fn devices_of_one_btrfs_are_no_copies() {
        let wanted = "UUID=u-1".parse().unwrap();
        let choice = Choice { wanted: &wanted, record: None, identity: &identity, is_mounted: &|_| false };
        let devices = [device("/dev/vda", Some("m-1")), device("/dev/vdb", Some("m-2"))];
        assert_eq!(choice.of(&devices, true).unwrap().remark, None);
        let devices = [device("/dev/vda", Some("m-1")), device("/dev/vdb", Some("m-1"))];
        assert!(choice.of(&devices, true).unwrap().remark.is_some());
    }
}
