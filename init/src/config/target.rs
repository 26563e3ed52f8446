//! `[[target]]`: where a dump may go, and how much of the place is its own.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{DeviceId, FsType, checked};

/// `[[target]]`: a directory in a file system, or a whole block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// What kind of target it is. A key that means nothing for its kind is refused.
    #[serde(rename = "type")]
    pub kind: TargetKind,
    /// The device.
    pub device: DeviceId,
    /// Seconds to wait for the device to appear.
    #[serde(default = "default_wait")]
    pub wait: u64,
    /// What is saved where the whole plan does not fit.
    #[serde(default)]
    pub when_full: WhenFull,
    /// Key file that opens the LUKS device under the target. Read on the host when the image is loaded, never in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// file system: directory on it, absolute; made if missing. Not given: `/var/crash`.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// file system: its type; read from the superblock if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fstype: Option<FsType>,
    /// file system: how many complete dumps are kept; the oldest go when a new one is safe. Not given: all.
    #[serde(default, deserialize_with = "checked::keep", skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// file system: free space that a dump leaves to others.
    #[serde(default, skip_serializing_if = "Size::is_zero")]
    pub reserve: Size,
    /// raw: what else than an empty device of ours may be written over: `uncollected`, or the `UUID=` of what stands there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overwrite: Vec<String>,
}

/// `type` of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// A directory in a file system.
    Filesystem,
    /// A partition, disk or volume without a file system, prepared by `afterimage prepare`.
    Raw,
}

/// What becomes of a target that is too small for the dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// A dump of level 31 if that fits; otherwise the log and the notes.
    #[default]
    Stricter,
    /// As much of the dump as fits, marked INCOMPLETE: what readers need first comes first.
    Part,
    /// The log and the notes.
    Log,
    /// Nothing: the next target has to hold it.
    Nothing,
}

/// A number of bytes: `500M`, `2G`, or a bare number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

/// No number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no size: write bytes as a string, with K, M, G or T for powers of 1024, such as \"500M\"")]
pub struct SizeError(String);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

fn default_wait() -> u64 {
    30
}

impl Target {
    /// Directory on a file system.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or("/var/crash")
    }

    /// Refuses keys that mean nothing for this kind of target, each by its name.
    pub(super) fn check(&self) -> Result<(), String> {
        let foreign: &[(&str, bool)] = match self.kind {
            TargetKind::Filesystem => &[("overwrite", !self.overwrite.is_empty())],
            TargetKind::Raw => &[
                ("path", self.path.is_some()),
                ("fstype", self.fstype.is_some()),
                ("keep", self.keep.is_some()),
                ("reserve", !self.reserve.is_zero()),
            ],
        };
        match foreign.iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(format!("{key} means nothing for a {} target", self.kind)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TargetKind::Filesystem => write!(f, "{}:{}", self.device, self.path()),
            TargetKind::Raw => write!(f, "raw {}", self.device),
        }
    }
}

impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filesystem => "filesystem",
            Self::Raw => "raw",
        })
    }
}

impl Size {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference to it")]
    fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let unit = UNITS.iter().find(|(letter, _)| text.ends_with(*letter));
        let (digits, shift) =
            unit.map_or((text, 0), |&(letter, shift)| (text.strip_suffix(letter).unwrap_or(text), shift));
        let number = digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let bytes = number.and_then(|number| number.checked_mul(1_u64.checked_shl(shift)?));
        bytes.map(Self).ok_or_else(|| SizeError(text.to_owned()))
    }
}

impl TryFrom<String> for Size {
    type Error = SizeError;

    fn try_from(text: String) -> Result<Self, SizeError> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |&&(_, shift): &&(char, u32)| self.0 > 0 && self.0.trailing_zeros() >= shift;
        match UNITS.iter().find(fits) {
            Some((letter, shift)) => write!(f, "{}{letter}", self.0.checked_shr(*shift).unwrap_or(0)),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("512", 512), ("500M", 500 << 20), ("2G", 2 << 30), ("3T", 3 << 40)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
            assert_eq!(Size(bytes).to_string(), text);
        }
        for bad in ["", "M", "-1", "1 G", "1g", "MM", "99999999999T", "1MM", "+1"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
