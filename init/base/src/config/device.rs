//! How a device is named: by what stands on it, or by its path.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// A block device, by its content or its node. Kernel names (`/dev/sda1`) can change between
/// kernels, so anything else is better.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceId {
    /// UUID of the file system, compared without case.
    Uuid(String),
    /// Label of the file system.
    Label(String),
    /// UUID of the partition, compared without case.
    PartUuid(String),
    /// Label of a GPT partition.
    PartLabel(String),
    /// A node under /dev, by the kernel's name.
    Path(String),
    /// A link under /dev that udev makes: `/dev/disk/by-id/…`, `/dev/mapper/…`, `/dev/GROUP/VOLUME`. The
    /// loader looks where it leads.
    Link(String),
}

/// A device name that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no device: use UUID=, LABEL=, PARTUUID=, PARTLABEL=, ID=, a link such as \
     /dev/disk/by-id/NAME, or the kernel's own name such as /dev/sda1"
)]
pub struct DeviceIdError(String);

impl FromStr for DeviceId {
    type Err = DeviceIdError;

    fn from_str(text: &str) -> Result<Self, DeviceIdError> {
        let error = || DeviceIdError(text.to_owned());
        if let Some(node) = text.strip_prefix("/dev/") {
            return Self::of_node(text, node).ok_or_else(error);
        }
        let (key, value) = text.split_once('=').filter(|(_, value)| !value.is_empty()).ok_or_else(error)?;
        match key {
            "UUID" => Ok(Self::Uuid(value.to_ascii_lowercase())),
            "LABEL" => Ok(Self::Label(value.to_owned())),
            "PARTUUID" => Ok(Self::PartUuid(value.to_ascii_lowercase())),
            "PARTLABEL" => Ok(Self::PartLabel(value.to_owned())),
            // As fstab(5) has it.
            "ID" => Self::of_node(&format!("/dev/disk/by-id/{value}"), &format!("disk/by-id/{value}"))
                .ok_or_else(error),
            _ => Err(error()),
        }
    }
}

impl DeviceId {
    /// The device at `text`, which is `node` below /dev. What a link is named after is looked for by
    /// that: no link is needed then.
    fn of_node(text: &str, node: &str) -> Option<Self> {
        let parts: Vec<&str> = node.split('/').collect();
        if parts.iter().any(|part| matches!(*part, "" | "." | "..")) || text.contains(['\0', '\n']) {
            return None;
        }
        let link = || Some(Self::Link(text.to_owned()));
        match parts[..] {
            [_] => Some(Self::Path(text.to_owned())),
            ["disk", by, name] => {
                let Some(name) = unescape(name) else { return link() };
                match by {
                    "by-uuid" => Some(Self::Uuid(name.to_ascii_lowercase())),
                    "by-label" => Some(Self::Label(name)),
                    "by-partuuid" => Some(Self::PartUuid(name.to_ascii_lowercase())),
                    "by-partlabel" => Some(Self::PartLabel(name)),
                    _ => link(),
                }
            }
            _ => link(),
        }
    }
}

/// What udev writes as `\x20` in the name of a link; `None` if it writes something else there.
fn unescape(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((plain, escape)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        let digits = escape.strip_prefix('x')?.get(..2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = escape.get(3..)?;
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

impl TryFrom<String> for DeviceId {
    type Error = DeviceIdError;

    fn try_from(text: String) -> Result<Self, DeviceIdError> {
        text.parse()
    }
}

impl From<DeviceId> for String {
    fn from(id: DeviceId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(value) => write!(f, "UUID={value}"),
            Self::Label(value) => write!(f, "LABEL={value}"),
            Self::PartUuid(value) => write!(f, "PARTUUID={value}"),
            Self::PartLabel(value) => write!(f, "PARTLABEL={value}"),
            Self::Path(path) | Self::Link(path) => f.write_str(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!("UUID=ABCD-12".parse(), Ok(DeviceId::Uuid("abcd-12".into())));
        assert_eq!("/dev/vda1".parse(), Ok(DeviceId::Path("/dev/vda1".into())));
        for bad in
            ["", "UUID=", "sda1", "/dev/", "/dev/..", "/dev//x", "KEY=1", "ID=", "ID=../x", "/dev/a\nb"]
        {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_link_of_udev_names_a_device() {
        let parse = |text: &str| text.parse::<DeviceId>().unwrap();
        assert_eq!(parse("/dev/disk/by-uuid/ABCD-12"), DeviceId::Uuid("abcd-12".into()));
        assert_eq!(parse("/dev/disk/by-label/crash\\x20dumps"), DeviceId::Label("crash dumps".into()));
        assert_eq!(parse("/dev/disk/by-partuuid/1234ABCD-05"), DeviceId::PartUuid("1234abcd-05".into()));
        assert_eq!(parse("/dev/disk/by-partlabel/a\\x2fb"), DeviceId::PartLabel("a/b".into()));
        let links = [
            "/dev/disk/by-id/wwn-0x5000-part1",
            "/dev/disk/by-id/dm-name-vg-crash",
            "/dev/disk/by-path/pci-0000:00:1f.2-ata-1-part3",
            "/dev/disk/by-path/pci-0000:00:1f.2-ata-1-part/by-partnum/3",
            "/dev/disk/by-diskseq/7-part1",
            "/dev/disk/by-dname/sda-part2",
            "/dev/disk/by-loop-ref/x",
            "/dev/disk/by-label/a\\y",
            "/dev/mapper/vg-crash",
            "/dev/vg/crash",
            "/dev/md/crash",
        ];
        for link in links {
            assert_eq!(parse(link), DeviceId::Link(link.into()));
            assert_eq!(parse(link).to_string(), link);
        }
        assert_eq!(parse("ID=wwn-0x5000"), DeviceId::Link("/dev/disk/by-id/wwn-0x5000".into()));
    }
}
