//! In what a layer differs from the one that was recorded.

use base::facts::stack::{LogicalVolume, LuksHeader};

/// Says in what the metadata of today differ from those recorded: name, then, now.
#[must_use]
pub fn volume_difference(was: &LogicalVolume, is: &LogicalVolume) -> Option<(&'static str, String, String)> {
    let fields = [
        ("the ID of the volume group", was.group_id.clone(), is.group_id.clone()),
        ("the metadata's seqno", was.seqno.to_string(), is.seqno.to_string()),
        ("the extent size", was.extent_size.to_string(), is.extent_size.to_string()),
        ("the volume's ID", was.id.clone(), is.id.clone()),
        ("the segment map", list(&was.segments), list(&is.segments)),
        ("the physical volumes", list(&was.physical), list(&is.physical)),
    ];
    fields.into_iter().find(|(_, was, is)| was != is)
}

fn list(items: &[impl core::fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn length(sectors: Option<u64>) -> String {
    sectors.map_or_else(|| "all of the device".to_owned(), |sectors| format!("{sectors} sectors"))
}

pub(super) fn header_difference(was: &LuksHeader, is: &LuksHeader) -> Option<(&'static str, String, String)> {
    let fields = [
        ("the version", was.version.to_string(), is.version.to_string()),
        ("the cipher", was.cipher.clone(), is.cipher.clone()),
        ("the sector size", was.sector_size.to_string(), is.sector_size.to_string()),
        ("the payload offset", was.offset.to_string(), is.offset.to_string()),
        ("the length", length(was.sectors), length(is.sectors)),
        ("the IV offset", was.iv_offset.to_string(), is.iv_offset.to_string()),
        ("the length of the key", was.key_len.to_string(), is.key_len.to_string()),
    ];
    fields.into_iter().find(|(_, was, is)| was != is)
}
