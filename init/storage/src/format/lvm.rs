//! LVM2 on disk: the label of a physical volume, where its metadata lies, and the metadata as
//! volumes and segments.
//!
//! Structures as in LVM2's lib/format_text/layout.h and lib/label/label.h; all numbers
//! little-endian.

mod text;

use base::addr::{to_u64, to_usize};
use base::facts::stack::{LogicalVolume, PhysicalVolume, Segment, Stripe};
use base::fields::Fields;

use text::{Section, Value};

/// Bytes at the start of a device in which a label may stand: four sectors.
pub const LABEL_LEN: usize = 2048;
/// Bytes of the header of a metadata area.
pub const AREA_HEADER_LEN: usize = 512;
/// Longest metadata that are read: LVM's default area has room for half of it.
pub const MAX_TEXT_LEN: u64 = 2 << 20;

const SECTOR: usize = 512;
const LABEL_ID: &[u8] = b"LABELONE";
const LABEL_TYPE: &[u8] = b"LVM2 001";
const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
/// What LVM's checksum starts with, inverted, as crc32fast counts.
const CRC_START: u32 = !0xf597_a6cf;
/// Areas of a physical volume: LVM makes one of data and at most two of metadata.
const MAX_AREAS: usize = 8;
const AREA_IGNORED: u32 = 1;

/// Why metadata cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LvmError {
    /// The header of a metadata area.
    #[error("header of the LVM metadata area: {0}")]
    Area(&'static str),
    /// Longer than we read.
    #[error("LVM metadata of {0} bytes")]
    TooLong(u64),
    /// The checksum of the text.
    #[error("LVM metadata: wrong checksum")]
    Checksum,
    /// No metadata as LVM writes them.
    #[error("LVM metadata, byte {0}: {1}")]
    Syntax(usize, &'static str),
    /// A field is missing or of another kind.
    #[error("LVM metadata: no {0}")]
    Missing(&'static str),
    /// Something other than linear and striped.
    #[error("LVM volume {volume} has {what}, which is not supported: linear and striped volumes are")]
    Unsupported {
        /// Which volume.
        volume: String,
        /// What it has.
        what: String,
    },
    /// The group has no such volume.
    #[error("no LVM volume with ID {0} in group {1}")]
    NoVolume(String, String),
}

/// The label of a physical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// ID of the physical volume, without dashes.
    pub id: String,
    /// Where its metadata areas lie: offset and length in bytes.
    pub areas: Vec<(u64, u64)>,
}

/// Where metadata lie, as the header of their area says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Byte on the device where they begin.
    pub start: u64,
    /// Bytes from there.
    pub len: u64,
    /// Byte on the device where the rest begins, if they go past the end of the area.
    pub rest_start: u64,
    /// Bytes there.
    pub rest_len: u64,
    crc: u32,
}

/// A volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeGroup {
    /// Name.
    pub name: String,
    /// ID, without dashes.
    pub id: String,
    /// Version of the metadata.
    pub seqno: u64,
    /// Size of an extent, sectors of 512 bytes.
    pub extent_size: u64,
    /// Physical volumes by the names that segments call them by.
    pub physical: Vec<(String, PhysicalVolume)>,
    /// Logical volumes.
    pub logical: Vec<Volume>,
}

/// A logical volume of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// ID, without dashes.
    pub id: String,
    /// Its parts; the error says why it cannot be set up.
    pub segments: Result<Vec<Segment>, LvmError>,
}

/// Finds the label in the first [`LABEL_LEN`] bytes of a device.
#[must_use]
pub fn parse_label(head: &[u8]) -> Option<Label> {
    head.chunks_exact(SECTOR).take(LABEL_LEN / SECTOR).zip(0_u64..).find_map(|(sector, number)| {
        let fields = Fields(sector); // struct label_header
        let ours = fields.bytes(0, 8)? == LABEL_ID
            && fields.bytes(24, 8)? == LABEL_TYPE
            && fields.u64(8)? == number
            && fields.u32(16)? == crc(sector.get(20..)?);
        ours.then_some(())?;
        parse_pv(Fields(sector.get(to_usize(u64::from(fields.u32(20)?))..)?))
    })
}

/// struct pv_header: the ID, then the list of data areas and that of metadata areas, each ended by
/// a zero entry.
fn parse_pv(fields: Fields<'_>) -> Option<Label> {
    let id = String::from_utf8(fields.bytes(0, 32)?.to_vec()).ok()?;
    id.chars().all(|c| c.is_ascii_alphanumeric()).then_some(())?;
    let mut lists = 0;
    let mut areas = Vec::new();
    for entry in 0..MAX_AREAS {
        let at = entry.checked_mul(16)?.checked_add(40)?;
        match (fields.u64(at)?, fields.u64(at.checked_add(8)?)?) {
            (0, 0) if lists == 1 => return Some(Label { id, areas }),
            (0, 0) => lists = 1,
            area if lists == 1 => areas.push(area),
            _ => (),
        }
    }
    None
}

/// Reads the header of the metadata area at byte `start` of the device; `None` if the area is not
/// in use.
pub fn parse_area(header: &[u8], start: u64) -> Result<Option<Location>, LvmError> {
    let fields = Fields(header); // struct mda_header
    let cut = || LvmError::Area("cut short");
    let covered = header.get(4..AREA_HEADER_LEN).ok_or_else(cut)?;
    if fields.bytes(4, AREA_MAGIC.len()) != Some(AREA_MAGIC) || fields.u32(20) != Some(1) {
        return Err(LvmError::Area("no magic"));
    }
    if fields.u32(0) != Some(crc(covered)) {
        return Err(LvmError::Area("wrong checksum"));
    }
    let number = |at| fields.u64(at).ok_or_else(cut);
    // Struct raw_locn, the first.
    let (own_start, size, offset, len) = (number(24)?, number(32)?, number(40)?, number(48)?);
    let (crc, flags) = fields.u32(56).zip(fields.u32(60)).ok_or_else(cut)?;
    if own_start != start {
        return Err(LvmError::Area("it belongs elsewhere"));
    }
    if offset == 0 || flags & AREA_IGNORED != 0 {
        return Ok(None);
    }
    if len > MAX_TEXT_LEN {
        return Err(LvmError::TooLong(len));
    }
    let header_len = to_u64(AREA_HEADER_LEN);
    let room = size.checked_sub(offset).filter(|_| offset >= header_len && len <= size);
    let place = || {
        let room = room?;
        let rest_len = len.saturating_sub(room); // the text goes on behind the header, as in a ring
        let fits = rest_len <= offset.checked_sub(header_len)?;
        let (start, rest_start) = (start.checked_add(offset)?, start.checked_add(header_len)?);
        fits.then_some(Location { start, len: len.min(room), rest_start, rest_len, crc })
    };
    place().map(Some).ok_or(LvmError::Area("the metadata lie outside it"))
}

/// Reads the metadata that lie at `location`.
pub fn parse_text(location: &Location, bytes: &[u8]) -> Result<VolumeGroup, LvmError> {
    if crc(bytes) != location.crc {
        return Err(LvmError::Checksum);
    }
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let text = bytes.get(..end).and_then(|bytes| str::from_utf8(bytes).ok());
    parse_metadata(text.ok_or(LvmError::Syntax(0, "not UTF-8"))?)
}

/// Reads metadata: a section with the group's name, and lines about the writer.
pub fn parse_metadata(text: &str) -> Result<VolumeGroup, LvmError> {
    let root = text::parse(text)?;
    let mut groups = root.sections();
    let (Some((name, group)), None) = (groups.next(), groups.next()) else {
        return Err(LvmError::Missing("single volume group"));
    };
    let physical = group.section("physical_volumes").into_iter().flat_map(Section::sections);
    let physical = physical.map(|(name, section)| {
        let id = section.id()?;
        Ok((name.to_owned(), PhysicalVolume { id, pe_start: section.number("pe_start")? }))
    });
    let physical: Vec<_> = physical.collect::<Result<_, LvmError>>()?;
    let logical = group.section("logical_volumes").into_iter().flat_map(Section::sections);
    let logical = logical.map(|(name, section)| {
        let segments = parse_segments(name, section, &physical);
        Ok(Volume { name: name.to_owned(), id: section.id()?, segments })
    });
    Ok(VolumeGroup {
        name: name.to_owned(),
        id: group.id()?,
        seqno: group.number("seqno")?,
        extent_size: group.number("extent_size")?,
        logical: logical.collect::<Result<_, LvmError>>()?,
        physical,
    })
}

fn parse_segments(
    volume: &str,
    section: &Section<'_>,
    physical: &[(String, PhysicalVolume)],
) -> Result<Vec<Segment>, LvmError> {
    let unsupported = |what: &str| LvmError::Unsupported { volume: volume.to_owned(), what: what.to_owned() };
    let named = section.sections().filter(|(name, _)| name.starts_with("segment"));
    let mut segments: Vec<Segment> =
        named.map(|(_, segment)| parse_segment(segment, physical, &unsupported)).collect::<Result<_, _>>()?;
    segments.sort_by_key(|segment| segment.start);
    let mut next = Some(0);
    for segment in &segments {
        if next != Some(segment.start) || segment.count == 0 {
            return Err(unsupported("a gap between its segments"));
        }
        next = segment.start.checked_add(segment.count);
    }
    if segments.is_empty() || to_u64(segments.len()) != section.number("segment_count")? {
        return Err(LvmError::Missing("segment that segment_count announces"));
    }
    Ok(segments)
}

fn parse_segment(
    segment: &Section<'_>,
    physical: &[(String, PhysicalVolume)],
    unsupported: &dyn Fn(&str) -> LvmError,
) -> Result<Segment, LvmError> {
    let kind = segment.text("type")?;
    if kind != "striped" {
        return Err(unsupported(&format!("a segment of type {kind:?}"))); // what is linear is one stripe
    }
    let list = segment.list("stripes")?;
    let stripes = list.chunks(2).map(|pair| match pair {
        &[Value::Text(ref name), Value::Number(extent)] => {
            let found = physical.iter().find(|(other, _)| other == name);
            let (_, found) =
                found.ok_or_else(|| unsupported(&format!("a segment on {name:?}, no physical volume")))?;
            Ok(Stripe { physical: found.id.clone(), extent })
        }
        _ => Err(LvmError::Missing("stripe with a name and a number")),
    });
    let stripes: Vec<_> = stripes.collect::<Result<_, _>>()?;
    let (start, count) = (segment.number("start_extent")?, segment.number("extent_count")?);
    let announced = segment.number("stripe_count")?;
    if stripes.is_empty() || to_u64(stripes.len()) != announced || !count.is_multiple_of(announced) {
        return Err(LvmError::Missing("stripes that stripe_count announces"));
    }
    let stripe_size = if announced > 1 { segment.number("stripe_size")? } else { 0 };
    Ok(Segment { start, count, stripe_size, stripes })
}

impl VolumeGroup {
    /// The volume with this ID, with all that it depends on.
    pub fn volume(&self, id: &str) -> Result<LogicalVolume, LvmError> {
        let found = self.logical.iter().find(|volume| volume.id == id);
        let volume = found.ok_or_else(|| LvmError::NoVolume(id.to_owned(), self.name.clone()))?;
        let segments = volume.segments.clone()?;
        let used = |physical: &PhysicalVolume| {
            segments.iter().flat_map(|segment| &segment.stripes).any(|stripe| stripe.physical == physical.id)
        };
        Ok(LogicalVolume {
            group: self.name.clone(),
            group_id: self.id.clone(),
            seqno: self.seqno,
            extent_size: self.extent_size,
            name: volume.name.clone(),
            id: volume.id.clone(),
            physical: self
                .physical
                .iter()
                .map(|(_, physical)| physical)
                .filter(|one| used(one))
                .cloned()
                .collect(),
            segments,
        })
    }
}

impl Section<'_> {
    /// The value of `id`, without its dashes.
    fn id(&self) -> Result<String, LvmError> {
        Ok(self.text("id")?.replace('-', ""))
    }
}

fn crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(CRC_START);
    hasher.update(bytes);
    !hasher.finalize()
}

#[cfg(test)]
mod tests;
