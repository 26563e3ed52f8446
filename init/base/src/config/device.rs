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
}

/// A device name that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no device: use UUID=, LABEL=, PARTUUID=, PARTLABEL= or the kernel's own name such as \
     /dev/sda1 (the links in /dev/disk and /dev/mapper are udev's, which the image does not have)"
)]
pub struct DeviceIdError(String);

impl FromStr for DeviceId {
    type Err = DeviceIdError;

    fn from_str(text: &str) -> Result<Self, DeviceIdError> {
        let error = || DeviceIdError(text.to_owned());
        if let Some(node) = text.strip_prefix("/dev/") {
            // The image has no udev, so only the kernel's own names exist in it.
            let clean = !matches!(node, "" | "." | "..") && !node.contains('/');
            return clean.then(|| Self::Path(text.to_owned())).ok_or_else(error);
        }
        let (key, value) = text.split_once('=').filter(|(_, value)| !value.is_empty()).ok_or_else(error)?;
        match key {
            "UUID" => Ok(Self::Uuid(value.to_ascii_lowercase())),
            "LABEL" => Ok(Self::Label(value.to_owned())),
            "PARTUUID" => Ok(Self::PartUuid(value.to_ascii_lowercase())),
            "PARTLABEL" => Ok(Self::PartLabel(value.to_owned())),
            _ => Err(error()),
        }
    }
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
            Self::Path(path) => f.write_str(path),
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
        for bad in ["", "UUID=", "sda1", "/dev/", "/dev/..", "/dev/disk/by-id/x", "/dev//x", "ID=1"] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
        }
    }
}
