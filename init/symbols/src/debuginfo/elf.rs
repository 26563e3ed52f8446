//! The ELF file (System V ABI): header, segments, sections, symbol table.

use std::io::{self, Seek, SeekFrom, Write};

use base::addr::{to_u64, to_usize};
use base::fields::put;

use super::sections::{ALLOC, CODE, Content, NO_BITS, STRINGS, SYMBOLS, Section, number};
use crate::btf::Types;
use crate::globals::Variable;
use crate::image::{IMAGE, Image};

const HEADER: u64 = 64;
const SEGMENT: u64 = 56;
pub(super) const SYMBOL: u64 = 24;
/// `SHN_ABS`
pub(super) const ABSOLUTE: u16 = 0xfff1;
/// An object is believed to be no larger.
pub(super) const MAX_OBJECT: u64 = 1 << 24;

/// The symbol table: one symbol for each section, the local ones, the global ones.
pub(super) fn symbols(
    image: &Image<'_>,
    types: &Types,
    variables: &[Variable],
    sections: &[Section],
) -> [Section; 2] {
    let table = image.symbols;
    let mut local = vec![0; to_usize(SYMBOL)];
    let mut global = Vec::new();
    local.reserve(table.all().len().saturating_mul(to_usize(SYMBOL)));
    let mut by_address: Vec<&Variable> = variables.iter().collect();
    by_address.sort_by_key(|variable| variable.address);
    let mut known = by_address.as_slice();
    let mut above = table.all();
    for (number, section) in (1_u16..).zip(sections) {
        // STT_SECTION
        symbol(&mut local, 0, 3, number, (section.address, 0));
    }
    for found in table.all() {
        let address = image.link(found.address);
        let (number, section) = number(sections, address).map_or((ABSOLUTE, None), |(number, section)| {
            (u16::try_from(number).unwrap_or(ABSOLUTE), Some(section))
        });
        // All are in the order of their addresses.
        while let Some((_, rest)) = known.split_first().filter(|(first, _)| first.address < found.address) {
            known = rest;
        }
        while let Some((_, rest)) = above.split_first().filter(|(first, _)| first.address <= found.address) {
            above = rest;
        }
        let here = known.iter().take_while(|variable| variable.address == found.address).copied();
        let room = above.first().map_or(0, |next| next.address.0.saturating_sub(found.address.0));
        let (kind, len) = kind(table.name(found), (types, here), section, room.min(MAX_OBJECT));
        let binding = if found.is_global() { 1 << 4 } else { 0 };
        let out = if found.is_global() { &mut global } else { &mut local };
        symbol(out, table.name_offset(found), binding | kind, number, (address, len));
    }
    let first_global = u32::try_from(to_u64(local.len()) / SYMBOL).unwrap_or(u32::MAX);
    local.extend(global);
    let strings = u32::try_from(sections.len()).unwrap_or(u32::MAX);
    let mut symbols = Section::of_file(".symtab", SYMBOLS, local, 8);
    // Its strings are the next section; this one is behind all others.
    symbols.more = (strings.saturating_add(2), first_global, SYMBOL);
    [symbols, Section::of_file(".strtab", STRINGS, table.names().to_vec(), 1)]
}

/// `STT_*` and the size of a symbol, of the variables at its address; without one it fills its room.
fn kind<'v>(
    name: &str,
    (types, mut variables): (&Types, impl Iterator<Item = &'v Variable>),
    section: Option<&Section>,
    room: u64,
) -> (u8, u64) {
    let marks = ["_text", "_stext", "_etext", "_end", "_sdata", "_edata"];
    if name.starts_with("__start_") || name.starts_with("__stop_") || marks.contains(&name) {
        return (0, 0);
    }
    let variable = variables.find(|variable| variable.name == name);
    let len = variable.and_then(|variable| types.size(variable.of)).unwrap_or(room);
    // STT_FUNC, STT_OBJECT
    (if section.is_some_and(|section| section.flags & CODE != 0) { 2 } else { 1 }, len)
}

pub(super) fn symbol(out: &mut Vec<u8>, name: u32, info: u8, section: u16, (address, len): (u64, u64)) {
    out.extend_from_slice(&name.to_le_bytes());
    out.extend_from_slice(&[info, 0]);
    out.extend_from_slice(&section.to_le_bytes());
    out.extend_from_slice(&address.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
}

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What runs where it says: it has segments.
    Executable,
    /// What is put somewhere, section by section.
    Relocatable,
}

/// Writes the file; returns its length. What has no bytes is left out of the file, as a hole.
pub(super) fn write<W: Write + Seek>(out: &mut W, kind: Kind, mut sections: Vec<Section>) -> io::Result<u64> {
    let mut names = vec![0];
    let mut offsets = Vec::new();
    for name in sections.iter().map(|section| &*section.name).chain([".shstrtab"]) {
        offsets.push(u32::try_from(names.len()).unwrap_or(u32::MAX));
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    sections.push(Section::of_file(".shstrtab", STRINGS, names, 1));
    let loaded = sections.iter().filter(|section| section.is_in_memory()).count();
    // The notes have a segment, too.
    let segments = if kind == Kind::Executable { to_u64(loaded).saturating_add(1) } else { 0 };
    let mut at = SEGMENT.saturating_mul(segments).saturating_add(HEADER);
    let mut places = Vec::new();
    for section in &sections {
        if !matches!(section.content, Content::Nothing) {
            at = at.next_multiple_of(section.align.clamp(1, 16));
        }
        places.push(at);
        match &section.content {
            Content::Bytes(bytes) => {
                out.seek(SeekFrom::Start(at))?;
                out.write_all(bytes)?;
                at = at.saturating_add(section.len);
            }
            Content::Hole => at = at.saturating_add(section.len),
            Content::Nothing => {}
        }
    }
    let table = at.next_multiple_of(8);
    out.seek(SeekFrom::Start(table))?;
    out.write_all(&[0; 64])?;
    for ((section, name), place) in sections.iter().zip(&offsets).zip(&places) {
        out.write_all(&section_header(section, *name, *place))?;
    }
    let end = out.stream_position()?;
    out.seek(SeekFrom::Start(0))?;
    out.write_all(&file_header(table, segments, to_u64(sections.len())))?;
    if kind == Kind::Relocatable {
        return Ok(end);
    }
    for (section, place) in sections.iter().zip(&places).filter(|(section, _)| section.is_in_memory()) {
        out.write_all(&segment(1, section, *place))?;
    }
    let notes = sections.iter().zip(&places).find(|(section, _)| section.name == ".notes");
    out.write_all(&notes.map_or(vec![0; to_usize(SEGMENT)], |(section, place)| segment(4, section, *place)))?;
    Ok(end)
}

fn file_header(sections: u64, segments: u64, count: u64) -> Vec<u8> {
    let half = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
    let sections_and_none = count.saturating_add(1);
    // 64 bits, little-endian; an executable of x86_64, or a relocatable file, which has no segments.
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    let (entry, place, size) = if segments > 0 { (0x100_0000, HEADER, SEGMENT) } else { (0, 0, 0) };
    if segments == 0 {
        put(&mut out, 16, &[1]);
    }
    for word in [entry, place, sections] {
        out.extend(word.to_le_bytes());
    }
    out.extend([0; 4]);
    for value in [HEADER, size, segments, 64, sections_and_none, count] {
        out.extend(half(value).to_le_bytes());
    }
    out
}

fn section_header(section: &Section, name: u32, place: u64) -> Vec<u8> {
    let (link, info, size) = section.more;
    let mut out = name.to_le_bytes().to_vec();
    out.extend(section.kind.to_le_bytes());
    for word in [section.flags, section.address, place, section.len] {
        out.extend(word.to_le_bytes());
    }
    out.extend(link.to_le_bytes());
    out.extend(info.to_le_bytes());
    for word in [section.align, size] {
        out.extend(word.to_le_bytes());
    }
    out
}

/// A segment: `PT_LOAD` is 1, `PT_NOTE` 4.
fn segment(kind: u32, section: &Section, place: u64) -> Vec<u8> {
    let readable = 4_u32;
    let flags = match kind {
        1 if section.flags & CODE != 0 => readable | 1,
        1 => readable | 2,
        _ => readable,
    };
    let physical = section.address.checked_sub(IMAGE).filter(|_| section.flags & ALLOC != 0).unwrap_or(0);
    let in_file = if section.kind == NO_BITS { 0 } else { section.len };
    let mut out = kind.to_le_bytes().to_vec();
    out.extend(flags.to_le_bytes());
    for word in [place, section.address, physical, in_file, section.len, if kind == 4 { 4 } else { 1 }] {
        out.extend(word.to_le_bytes());
    }
    out
}
