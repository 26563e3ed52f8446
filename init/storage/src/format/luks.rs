//! LUKS1 and LUKS2 headers: how the data are encrypted and where they begin. Key slots are not for
//! us: the volume key comes from elsewhere.
//!
//! Structures: "LUKS On-Disk Format Specification" 1.2.3, "LUKS2 On-Disk Format Specification" 1.1.

use std::collections::BTreeMap;

use serde::Deserialize;
use sha2::{Digest, Sha256, Sha512};

use base::addr::to_usize;
use base::facts::stack::{LuksHeader, MAX_KEY_LEN};
use base::fields::Fields;

/// Bytes of the binary part of a LUKS2 header, and more than a LUKS1 header that is looked at.
pub const BINARY_LEN: usize = 4096;
/// Where the second copy of a LUKS2 header may begin: at the sizes that a header may have (table 1
/// of the specification).
pub const SECOND_COPIES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];

const MAGIC: &[u8] = b"LUKS\xba\xbe";
const MAGIC_SECOND: &[u8] = b"SKUL\xba\xbe";
const CHECKSUM_AT: usize = 448;
const CHECKSUM_LEN: usize = 64;

/// Why a LUKS device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LuksError {
    /// Neither 1 nor 2.
    #[error("LUKS version {0}")]
    Version(u16),
    /// Cut short, or a field makes no sense.
    #[error("LUKS header: {0}")]
    Field(&'static str),
    /// Neither copy has a checksum that holds.
    #[error("LUKS2 header: wrong checksum")]
    Checksum,
    /// A hash that we do not know.
    #[error("LUKS2 header: checksum by {0:?}, not by sha256 or sha512")]
    ChecksumKind(String),
    /// The JSON part.
    #[error("LUKS2 header: {0}")]
    Json(String),
    /// Part of the format that the capture cannot set up.
    #[error("LUKS2 device with {0}, which is not supported")]
    Unsupported(String),
}

/// A copy of a LUKS2 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The higher one is the newer copy.
    pub seqid: u64,
    /// What it says.
    pub header: Result<LuksHeader, LuksError>,
}

/// The version of the LUKS device that starts with `head`; none if it is no such device.
#[must_use]
pub fn version(head: &[u8]) -> Option<u16> {
    let fields = Fields(head);
    fields.bytes(0, MAGIC.len()).filter(|magic| *magic == MAGIC)?;
    be16(fields, 6)
}

/// The UUID that the header of a device says it has, sound or not; the head of either version has
/// it in the same place.
#[must_use]
pub fn uuid(head: &[u8]) -> Option<String> {
    version(head)?;
    Fields(head).text(168, 40)
}

/// Reads the LUKS1 header of the device that starts with `head` ([`BINARY_LEN`] bytes).
pub fn parse_luks1(head: &[u8]) -> Result<LuksHeader, LuksError> {
    let fields = Fields(head); // struct luks_phdr, section 2.3
    let (name, mode) = fields.text(8, 32).zip(fields.text(40, 32)).ok_or(LuksError::Field("cut short"))?;
    let number = |at| fields.u32_be(at).map(u64::from).ok_or(LuksError::Field("cut short"));
    checked(LuksHeader {
        uuid: fields.text(168, 40).ok_or(LuksError::Field("cut short"))?,
        version: 1,
        cipher: format!("{name}-{mode}"),
        sector_size: 512,
        offset: number(104)?,
        sectors: None,
        iv_offset: 0,
        key_len: number(108)?,
    })
}

/// Bytes of the copy of a LUKS2 header that starts with `binary`, JSON and all; none if none of
/// that length exists.
#[must_use]
pub fn copy_len(binary: &[u8]) -> Option<usize> {
    let fields = Fields(binary); // struct luks2_hdr_disk, section 2.1
    let magic = fields.bytes(0, MAGIC.len())?;
    ((magic == MAGIC || magic == MAGIC_SECOND) && be16(fields, 6)? == 2).then_some(())?;
    let len = fields.u64_be(8)?;
    SECOND_COPIES.contains(&len).then(|| to_usize(len))
}

/// Reads a whole copy of a LUKS2 header that lies at byte `offset` of its device.
///
/// Fails if the bytes are not a sound copy of a header. Where the copy is sound and holds something
/// that is not supported, that error is in [`Copy::header`].
pub fn parse_luks2(copy: &[u8], offset: u64) -> Result<Copy, LuksError> {
    let fields = Fields(copy);
    let cut = LuksError::Field("cut short");
    let len = copy_len(copy).ok_or(LuksError::Field("no LUKS2 header of a known length"))?;
    let (binary, json) =
        copy.get(..len).and_then(|copy| copy.split_at_checked(BINARY_LEN)).ok_or(cut.clone())?;
    let magic = if offset == 0 { MAGIC } else { MAGIC_SECOND };
    if fields.u64_be(256) != Some(offset) || !binary.starts_with(magic) {
        return Err(LuksError::Field("a copy lies where it does not belong"));
    }
    check(binary, json)?;
    let seqid = fields.u64_be(16).ok_or(cut.clone())?;
    let uuid = fields.text(168, 40).ok_or(cut)?;
    Ok(Copy { seqid, header: parse_json(json, uuid) })
}

fn check(binary: &[u8], json: &[u8]) -> Result<(), LuksError> {
    let mut cleared = binary.to_vec();
    let end = CHECKSUM_AT.saturating_add(CHECKSUM_LEN);
    let place = cleared.get_mut(CHECKSUM_AT..end).ok_or(LuksError::Field("cut short"))?;
    let stored = place.to_vec();
    place.fill(0);
    let kind = Fields(binary).text(72, 32).ok_or(LuksError::Field("cut short"))?;
    let sum = match kind.as_str() {
        "sha256" => Sha256::new().chain_update(&cleared).chain_update(json).finalize().to_vec(),
        "sha512" => Sha512::new().chain_update(&cleared).chain_update(json).finalize().to_vec(),
        _ => return Err(LuksError::ChecksumKind(kind)),
    };
    if stored.starts_with(&sum) { Ok(()) } else { Err(LuksError::Checksum) }
}

/// The parts of the JSON area (section 3) that matter here.
#[derive(Deserialize)]
struct Json {
    keyslots: BTreeMap<String, KeySlot>,
    segments: BTreeMap<String, Segment>,
    digests: BTreeMap<String, KeyDigest>,
    config: JsonConfig,
}

#[derive(Deserialize)]
struct KeySlot {
    key_size: u64,
}

#[derive(Deserialize)]
struct KeyDigest {
    keyslots: Vec<String>,
    segments: Vec<String>,
}

#[derive(Deserialize)]
struct Segment {
    r#type: String,
    offset: String,
    size: String,
    iv_tweak: Option<String>,
    encryption: Option<String>,
    sector_size: Option<u64>,
    integrity: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct JsonConfig {
    requirements: Option<Requirements>,
}

#[derive(Deserialize)]
struct Requirements {
    #[serde(default)]
    mandatory: Vec<String>,
}

fn parse_json(area: &[u8], uuid: String) -> Result<LuksHeader, LuksError> {
    let text = area.split(|&byte| byte == 0).next().unwrap_or_default();
    let json: Json = serde_json::from_slice(text).map_err(|error| LuksError::Json(error.to_string()))?;
    let required = json.config.requirements.map(|requirements| requirements.mandatory).unwrap_or_default();
    if let Some(requirement) = required.first() {
        return Err(LuksError::Unsupported(format!("requirement {requirement:?}"))); // a reencryption under way is one
    }
    let mut segments = json.segments.into_iter();
    let (Some((name, segment)), None) = (segments.next(), segments.next()) else {
        return Err(LuksError::Unsupported("more or less than one segment".into()));
    };
    if segment.r#type != "crypt" {
        return Err(LuksError::Unsupported(format!("a segment of type {:?}", segment.r#type)));
    }
    if segment.integrity.is_some() {
        return Err(LuksError::Unsupported("integrity protection".into()));
    }
    let digest = json.digests.values().find(|digest| digest.segments.contains(&name));
    let slot = digest.and_then(|digest| digest.keyslots.iter().find_map(|slot| json.keyslots.get(slot)));
    let missing = |what: &str| LuksError::Json(format!("no {what}"));
    let number =
        |text: &str| text.parse::<u64>().map_err(|_| LuksError::Json(format!("no number: {text:?}")));
    let sectors = |text: &str| {
        let bytes = number(text)?;
        let whole = bytes.is_multiple_of(512);
        whole.then_some(bytes / 512).ok_or_else(|| LuksError::Json(format!("{bytes} are no whole sectors")))
    };
    checked(LuksHeader {
        uuid,
        version: 2,
        cipher: segment.encryption.ok_or_else(|| missing("encryption"))?,
        sector_size: segment.sector_size.ok_or_else(|| missing("sector_size"))?,
        offset: sectors(&segment.offset)?,
        sectors: (segment.size != "dynamic").then(|| sectors(&segment.size)).transpose()?,
        iv_offset: number(&segment.iv_tweak.ok_or_else(|| missing("iv_tweak"))?)?,
        key_len: slot.ok_or_else(|| missing("key slot"))?.key_size,
    })
}

/// Refuses what dm-crypt would not take, or what would be another word in its table.
fn checked(header: LuksHeader) -> Result<LuksHeader, LuksError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ':' | '(' | ')' | ',');
    let ok = [
        ("UUID", header.uuid.len() == 36 && header.uuid.chars().all(|c| c.is_ascii_hexdigit() || c == '-')),
        ("cipher", header.cipher.contains('-') && header.cipher.chars().all(plain)),
        ("sector size", matches!(header.sector_size, 512 | 1024 | 2048 | 4096)),
        ("payload offset", header.offset > 0),
        ("IV offset", i64::try_from(header.iv_offset).is_ok()), // what TOML can hold, and far beyond any device
        ("key length", (1..=MAX_KEY_LEN).contains(&to_usize(header.key_len))),
    ];
    match ok.iter().find(|(_, ok)| !ok) {
        Some((field, _)) => Err(LuksError::Field(field)),
        None => Ok(header),
    }
}

fn be16(fields: Fields<'_>, offset: usize) -> Option<u16> {
    fields.bytes(offset, 2)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::fields::put;

    /// The first 208 bytes of a device by `cryptsetup luksFormat --type luks1` (2.6.1), without the
    /// digest.
    fn luks1() -> Vec<u8> {
        let mut bytes = vec![0; BINARY_LEN];
        put(&mut bytes, 0, b"LUKS\xba\xbe\x00\x01aes");
        put(&mut bytes, 40, b"xts-plain64");
        put(&mut bytes, 72, b"sha256");
        put(&mut bytes, 104, &[0, 0, 0x10, 0, 0, 0, 0, 0x40]);
        put(&mut bytes, 168, b"5a17c0de-0000-4000-8000-0000000000a1");
        bytes
    }

    /// The JSON area of a device by `cryptsetup luksFormat --type luks2 --pbkdf pbkdf2` (2.6.1).
    const JSON: &str = include_str!("testdata/luks2.json");
    const SUMS: [&str; 2] = [
        "8cae42f34bfb6434a7110eee71f3edd03e6f690914d56777350400a28e747751",
        "b890fc1f034473982c6e777e0d41c7480333dce323b62f697e85920e9ae7b721",
    ];
    const SALTS: [&str; 2] = [
        "f854ed84743916e20cfaae58632d1f96741693539f5518ec0d097a2c3190827c7f74b542ea1cec2691e499c3b50ab73fb65e1c7d54bb57c57312b62664798597",
        "15d4c4c95d6021506b95d30cd133e8ed2724aa64c3d34dd22476a9376b3f888874116cd3d8206a8504011086981b55456dec52389f624ab43224770dbbe18f3a",
    ];

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The two copies of that device's header, put together of their parts.
    fn luks2(second: bool) -> Vec<u8> {
        let mut bytes = vec![0; 0x4000];
        put(&mut bytes, 0, if second { MAGIC_SECOND } else { MAGIC });
        put(&mut bytes, 7, &[2]);
        put(&mut bytes, 8, &0x4000_u64.to_be_bytes());
        put(&mut bytes, 16, &3_u64.to_be_bytes());
        put(&mut bytes, 72, b"sha256");
        put(&mut bytes, 104, &hex(SALTS[usize::from(second)]));
        put(&mut bytes, 168, b"5a17c0de-0000-4000-8000-0000000000a2");
        put(&mut bytes, 256, &(if second { 0x4000_u64 } else { 0 }).to_be_bytes());
        put(&mut bytes, CHECKSUM_AT, &hex(SUMS[usize::from(second)]));
        put(&mut bytes, BINARY_LEN, JSON.as_bytes());
        bytes
    }

    fn with_json(json: &str) -> Vec<u8> {
        let mut bytes = luks2(false);
        bytes[BINARY_LEN..].fill(0);
        put(&mut bytes, BINARY_LEN, json.as_bytes());
        put(&mut bytes, CHECKSUM_AT, &[0; CHECKSUM_LEN]);
        let sum = Sha256::digest(&bytes);
        put(&mut bytes, CHECKSUM_AT, &sum);
        bytes
    }

    #[test]
    fn reads_headers_made_by_cryptsetup() {
        let header = parse_luks1(&luks1()).unwrap();
        assert_eq!(header.cipher, "aes-xts-plain64");
        assert_eq!((header.offset, header.sector_size, header.key_len, header.iv_offset), (4096, 512, 64, 0));
        for (second, offset) in [(false, 0), (true, 0x4000)] {
            let copy = parse_luks2(&luks2(second), offset).unwrap();
            let header = copy.header.unwrap();
            assert_eq!(copy.seqid, 3);
            assert_eq!(
                (header.cipher.as_str(), header.uuid.as_str()),
                ("aes-xts-plain64", "5a17c0de-0000-4000-8000-0000000000a2")
            );
            assert_eq!(
                (header.offset, header.sectors, header.sector_size, header.key_len),
                (32768, None, 4096, 64)
            );
        }
        assert_eq!(
            (version(&luks1()), version(&luks2(false)), version(&luks2(true))),
            (Some(1), Some(2), None)
        );
    }

    #[test]
    fn a_changed_bit_or_a_copy_elsewhere_is_refused() {
        for at in [8, 17, 73, 110, 170, CHECKSUM_AT, BINARY_LEN + 5, 0x3fff] {
            let mut bytes = luks2(false);
            bytes[at] ^= 1;
            assert!(parse_luks2(&bytes, 0).is_err(), "byte {at}");
        }
        assert!(parse_luks2(&luks2(false), 0x4000).is_err());
        assert!(parse_luks2(&luks2(true), 0).is_err());
        for cut in [0, 7, 300, BINARY_LEN, 0x3fff] {
            assert!(parse_luks2(&luks2(false)[..cut], 0).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn what_cannot_be_set_up_is_named() {
        let refused = |from: &str, to: &str| {
            assert!(JSON.contains(from), "{from}");
            parse_luks2(&with_json(&JSON.replace(from, to)), 0).unwrap().header.unwrap_err().to_string()
        };
        let integrity = r#""sector_size":4096,"integrity":{"type":"hmac(sha256)"}"#;
        assert!(refused(r#""sector_size":4096"#, integrity).contains("integrity protection"));
        assert!(refused(r#""type":"crypt""#, r#""type":"linear""#).contains("\"linear\""));
        let requirement = r#""config":{"requirements":{"mandatory":["online-reencrypt-v2"]},"#;
        assert!(refused(r#""config":{"#, requirement).contains("online-reencrypt-v2"));
        assert!(refused("aes-xts-plain64\",\"sector", "aes xts\",\"sector").contains("cipher"));
        assert!(refused(r#""sector_size":4096"#, r#""sector_size":8192"#).contains("sector size"));
        assert!(refused(r#""offset":"16777216""#, r#""offset":"1""#).contains("sectors"));
        assert!(refused("{\"keyslots\"", "{").contains("LUKS2 header"));
    }
}
