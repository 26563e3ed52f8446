//! Block devices on other block devices, as the loader found them active: the LVM volumes and LUKS
//! devices between disks and a target. Values only: nothing here reads a device or sets one up.
//!
//! What is here was read from the metadata on the disks; the capture reads that metadata again and
//! wants to find the same, so the parsers in `format` make these types too.

use core::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

/// Bytes of the longest volume key that a LUKS header can announce and that makes sense: two
/// 256-bit keys, with room to grow.
pub const MAX_KEY_LEN: usize = 512;

/// What stands between a target and the disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stack {
    /// `device` of the target, as its configuration writes it.
    pub target: String,
    /// Devices to set up, a device after those that it stands on. The target is the last one.
    pub layers: Vec<Layer>,
}

/// A device-mapper device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Layer {
    /// A linear or striped LVM volume.
    Lvm(LogicalVolume),
    /// A LUKS device.
    Luks(Encrypted),
}

/// A logical volume and what of its group it depends on. IDs are LVM's, without dashes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogicalVolume {
    /// Name of the volume group.
    pub group: String,
    /// ID of the volume group.
    pub group_id: String,
    /// Version of the group's metadata: LVM adds 1 with each change.
    pub seqno: u64,
    /// Size of an extent, sectors of 512 bytes.
    pub extent_size: u64,
    /// Name of the volume.
    pub name: String,
    /// ID of the volume.
    pub id: String,
    /// The parts of the volume, in its order and without gaps.
    pub segments: Vec<Segment>,
    /// The physical volumes that the segments lie on.
    pub physical: Vec<PhysicalVolume>,
}

/// A physical volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhysicalVolume {
    /// Its ID.
    pub id: String,
    /// Where its first extent lies, sectors of 512 bytes.
    pub pe_start: u64,
}

/// A part of a logical volume, on one physical volume or striped over several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Where it begins in the logical volume, extents.
    pub start: u64,
    /// Its length, extents.
    pub count: u64,
    /// Sectors of 512 bytes that go to one stripe before it is the next one's turn; 0 if there is
    /// one stripe only.
    pub stripe_size: u64,
    /// Where the stripes lie.
    pub stripes: Vec<Stripe>,
}

/// A run of extents on a physical volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stripe {
    /// ID of the physical volume.
    pub physical: String,
    /// Its first extent there.
    pub extent: u64,
}

impl fmt::Display for PhysicalVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, whose extents begin at sector {}", self.id, self.pe_start)
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} extents from extent {} on", self.count, self.start)?;
        if self.stripe_size > 0 {
            write!(f, ", in stripes of {} sectors", self.stripe_size)?;
        }
        for stripe in &self.stripes {
            write!(f, ", at extent {} of {}", stripe.extent, stripe.physical)?;
        }
        Ok(())
    }
}

/// A LUKS device with the key to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encrypted {
    /// What its header says.
    #[serde(flatten)]
    pub header: LuksHeader,
    /// The key that the data are encrypted with.
    pub key: VolumeKey,
}

/// What a LUKS header says of the data behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LuksHeader {
    /// UUID, as the header writes it.
    pub uuid: String,
    /// 1 or 2.
    pub version: u16,
    /// Cipher as dm-crypt takes it: `aes-xts-plain64`.
    pub cipher: String,
    /// Bytes that are encrypted at a time.
    pub sector_size: u64,
    /// Where the data begin, sectors of 512 bytes.
    pub offset: u64,
    /// Length of the data, sectors of 512 bytes; none if they go to the end of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sectors: Option<u64>,
    /// Added to the number of a sector when its IV is made.
    pub iv_offset: u64,
    /// Length of the volume key, bytes.
    pub key_len: u64,
}

/// A volume key: never shown, wiped when dropped. In TOML it is hex.
#[derive(Clone, PartialEq, Eq)]
pub struct VolumeKey(Zeroizing<Vec<u8>>);

impl VolumeKey {
    /// Takes a key.
    #[must_use]
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// Reads hex digits; the error does not repeat them.
    pub fn from_hex(text: &str) -> Result<Self, &'static str> {
        let digits = text.as_bytes();
        if digits.is_empty() || !digits.len().is_multiple_of(2) || digits.len() / 2 > MAX_KEY_LEN {
            return Err("a volume key has an even number of hex digits, at most 1024");
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(digits.len() / 2)); // grown, it would leave copies
        for pair in digits.chunks_exact(2) {
            let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
            let value = digit(0).zip(digit(1)).and_then(|(high, low)| u8::try_from((high << 4) | low).ok());
            bytes.push(value.ok_or("a volume key has hex digits only")?);
        }
        Ok(Self(bytes))
    }

    /// The key as lower-case hex digits.
    #[must_use]
    pub fn hex(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(self.0.len().saturating_mul(2)));
        for byte in self.0.iter() {
            for nibble in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(u32::from(nibble), 16));
            }
        }
        text
    }

    /// Length, bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no key at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeKey({} bytes)", self.0.len())
    }
}

impl Serialize for VolumeKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.hex())
    }
}

impl<'de> Deserialize<'de> for VolumeKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(from)?);
        Self::from_hex(&text).map_err(de::Error::custom)
    }
}

impl Stack {
    /// Whether a key is in it.
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer, Layer::Luks(_)))
    }
}

/// For people: what it is and its name.
impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lvm(volume) => write!(f, "LVM volume {}/{}", volume.group, volume.name),
            Self::Luks(device) => write!(f, "LUKS device {}", device.header.uuid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_hex_and_not_shown() {
        let key = VolumeKey::from_hex("00ffA5").unwrap();
        assert_eq!((key.hex().as_str(), key.len()), ("00ffa5", 3));
        assert_eq!(format!("{key:?}"), "VolumeKey(3 bytes)");
        for bad in ["", "0", "0g", "a\u{e4}", &"00".repeat(MAX_KEY_LEN + 1)] {
            let error = VolumeKey::from_hex(bad).unwrap_err();
            assert!(!error.contains("0g"), "{error}");
        }
    }

    #[test]
    fn a_stack_round_trips_and_shows_no_key() {
        let key = VolumeKey::from_hex("c0ffee11").unwrap();
        let header = LuksHeader { uuid: "u".into(), version: 2, key_len: 4, ..LuksHeader::default() };
        let volume = LogicalVolume {
            segments: vec![Segment { count: 3, stripes: vec![Stripe::default()], ..Segment::default() }],
            ..LogicalVolume::default()
        };
        let layers = vec![Layer::Luks(Encrypted { header, key }), Layer::Lvm(volume)];
        let stack = Stack { target: "UUID=x".into(), layers };
        assert!(stack.has_key());
        let text = toml::to_string(&stack).unwrap();
        assert!(text.contains("key = \"c0ffee11\""), "{text}");
        assert_eq!(toml::from_str::<Stack>(&text).unwrap(), stack);
        assert!(!format!("{stack:?}").contains("c0ffee11"));
    }
}
