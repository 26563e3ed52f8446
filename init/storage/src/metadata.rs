//! Reads the LVM and LUKS metadata of a block device: on the host when the image is loaded, and
//! again by the capture.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use crate::format::luks::{self, LuksError};
use crate::format::lvm::{self, Label, LvmError, VolumeGroup};
use base::addr::{to_u64, to_usize};
use base::facts::stack::LuksHeader;
use base::read_at::read_up_to;

/// Why there are no metadata to be had.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The device does not read.
    #[error("reading {len} bytes at {offset:#x}")]
    Read {
        /// Bytes that were wanted.
        len: usize,
        /// From where.
        offset: u64,
        /// Cause.
        source: io::Error,
    },
    /// LVM's.
    #[error(transparent)]
    Lvm(#[from] LvmError),
    /// Those of LUKS.
    #[error(transparent)]
    Luks(#[from] LuksError),
}

/// The LVM label of a device; none if it has none or does not read.
#[must_use]
pub fn label(device: &File) -> Option<Label> {
    lvm::parse_label(&read_up_to(device, 0, lvm::LABEL_LEN).ok()?)
}

/// The metadata of the volume group of a physical volume: of its areas the newest. None if it has
/// no area in use.
pub fn volume_group(device: &File, label: &Label) -> Result<Option<VolumeGroup>, MetadataError> {
    let mut newest: Option<VolumeGroup> = None;
    let mut failed = None;
    for &(start, _) in &label.areas {
        match read_area(device, start) {
            Ok(Some(group)) if newest.as_ref().is_none_or(|newest| newest.seqno < group.seqno) => {
                newest = Some(group);
            }
            Ok(_) => (),
            Err(error) => failed = Some(error),
        }
    }
    // What is in a damaged area nobody knows: it may have been newer.
    failed.map_or(Ok(newest), Err)
}

fn read_area(device: &File, start: u64) -> Result<Option<VolumeGroup>, MetadataError> {
    let header = read(device, start, lvm::AREA_HEADER_LEN)?;
    let Some(location) = lvm::parse_area(&header, start)? else { return Ok(None) };
    let mut text = read(device, location.start, to_usize(location.len))?;
    text.extend(read(device, location.rest_start, to_usize(location.rest_len))?);
    Ok(Some(lvm::parse_text(&location, &text)?))
}

/// The UUID of a LUKS device, whatever else its header says.
#[must_use]
pub fn luks_uuid(device: &File) -> Option<String> {
    luks::uuid(&read_up_to(device, 0, luks::BINARY_LEN).ok()?)
}

/// The LUKS header of a device; none if it is no LUKS device. Of the two copies of a LUKS2 header
/// the newer sound one counts.
pub fn luks(device: &File) -> Result<Option<LuksHeader>, MetadataError> {
    let head = read_up_to(device, 0, luks::BINARY_LEN).unwrap_or_default();
    match luks::version(&head) {
        None => Ok(None),
        Some(1) => Ok(Some(luks::parse_luks1(&head)?)),
        Some(2) => luks2(device, &head).map(Some),
        Some(version) => Err(LuksError::Version(version).into()),
    }
}

fn luks2(device: &File, head: &[u8]) -> Result<LuksHeader, MetadataError> {
    let first = luks::copy_len(head).ok_or(LuksError::Field("length"));
    let first = first.map_err(MetadataError::from).and_then(|len| read_copy(device, 0, len));
    // The second copy begins where the first one ends; one that is damaged may not say where that
    // is.
    let second = luks::SECOND_COPIES.iter().find_map(|&offset| {
        let len = luks::copy_len(&read_up_to(device, offset, luks::BINARY_LEN).ok()?)?;
        (to_u64(len) == offset).then(|| read_copy(device, offset, len).ok())?
    });
    let newest = match (first, second) {
        (Ok(first), Some(second)) if second.seqid > first.seqid => second,
        (Ok(first), _) => first,
        (Err(_), Some(second)) => second,
        (Err(error), None) => return Err(error),
    };
    Ok(newest.header?)
}

fn read_copy(device: &File, offset: u64, len: usize) -> Result<luks::Copy, MetadataError> {
    Ok(luks::parse_luks2(&read(device, offset, len)?, offset)?)
}

/// Length of a block device in sectors of 512 bytes.
pub fn sectors(mut device: &File) -> Result<u64, MetadataError> {
    let end = device.seek(SeekFrom::End(0));
    Ok(end.map_err(|source| MetadataError::Read { len: 0, offset: u64::MAX, source })? / 512)
}

fn read(device: &File, offset: u64, len: usize) -> Result<Vec<u8>, MetadataError> {
    let failed = |source| MetadataError::Read { len, offset, source };
    let bytes = read_up_to(device, offset, len).map_err(failed)?;
    let whole = bytes.len() == len;
    whole.then_some(bytes).ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))
}
