//! Whether the parts of the image contradict each other: what is wrong is left out, and said.

use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::Fields;

use super::sections::Section;
use crate::image::Image;
use crate::modules::Module;
use crate::orc::{ENTRY, IP, Tables};

/// Bytes of `.notes`, and notes, that are looked at.
const MAX_NOTES: u64 = 64 << 10;
/// `NT_GNU_BUILD_ID`
const BUILD_ID: u32 = 3;

/// Entries of ORC of all modules that are believed.
const MAX_ENTRIES: u64 = 1 << 22;

/// Tables of ORC, read and in order.
pub(super) struct Orc {
    pub(super) tables: Tables,
    /// The bytes of their sections.
    pub(super) ip: Vec<u8>,
    pub(super) entries: Vec<u8>,
}

/// Why tables of ORC are not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OrcFault {
    Absent,
    Unordered,
}

impl OrcFault {
    fn text(self) -> &'static str {
        match self {
            Self::Absent => "are not in the dump",
            Self::Unordered => "are damaged, they are not in order",
        }
    }
}

impl Orc {
    /// Reads tables whose entries must be there and be of ascending addresses within `code`.
    fn read(image: &Image<'_>, tables: Tables, code: (u64, u64)) -> Result<Self, OrcFault> {
        let read = |(start, end): (VirtAddr, VirtAddr), entry: usize| {
            let entries = tables.len().saturating_mul(to_u64(entry));
            let mut bytes = vec![0; to_usize(entries)];
            image.kernel.read(start, &mut bytes, "the tables of ORC").map_err(|_| OrcFault::Absent)?;
            // The end of a section may be aligned.
            bytes.truncate(to_usize(end.0.saturating_sub(start.0)));
            bytes.extend(image.bytes(start.0.saturating_add(entries), end.0));
            Ok::<_, OrcFault>(bytes)
        };
        let ip = read(tables.ip, IP)?;
        let entries = read(tables.entries, ENTRY)?;
        let (mut last, end) = code;
        for address in tables.code(&ip) {
            if !(last..end).contains(&address) {
                return Err(OrcFault::Unordered);
            }
            last = address;
        }
        Ok(Self { tables, ip, entries })
    }
}

/// Reads the tables of the kernel itself.
pub(super) fn orc(image: &Image<'_>, tables: Tables) -> Result<Orc, String> {
    let start = image.text().map_or(0, |(start, _)| start);
    let end = image.find(&["_end"]).unwrap_or(u64::MAX);
    Orc::read(image, tables, (start, end))
        .map_err(|fault| format!("stacks are not unwound exactly: the kernel's ORC tables {}", fault.text()))
}

/// The tables of each module that has some, and which cannot be had. What a module has thrown away after
/// its start is still in them.
pub(super) fn orc_of_modules<'m>(
    image: &Image<'_>,
    modules: &'m [Module],
) -> (Vec<(&'m Module, Orc)>, Vec<String>) {
    let (mut all, mut missing) = (Vec::new(), Vec::new());
    let mut budget = MAX_ENTRIES;
    for module in modules {
        let Some(tables) = module.orc.filter(|tables| tables.layout.is_some()) else { continue };
        let Some(rest) = budget.checked_sub(tables.len()) else { break };
        budget = rest;
        match Orc::read(image, tables, (0, u64::MAX)) {
            Ok(orc) => all.push((module, orc)),
            Err(fault) => missing.push(format!(
                "stacks are not unwound exactly: ORC tables of the module {} {}",
                module.name,
                fault.text()
            )),
        }
    }
    (all, missing)
}

/// What is wrong with the build id, by which readers tell whether a file is that of a dump.
pub(super) fn build_id(image: &Image<'_>) -> Option<&'static str> {
    let wanted = image.kernel.info().get("BUILD-ID")?;
    let Some((start, end)) = image.between(&["__start_notes"], &["__stop_notes"]) else {
        return Some("the build id: the kernel's symbol table does not have its notes");
    };
    let mut notes = vec![0; to_usize(end.saturating_sub(start).min(MAX_NOTES))];
    if image.kernel.read(VirtAddr(start), &mut notes, "the kernel's notes").is_err() {
        return Some("the build id: the kernel's notes are not in the dump");
    }
    let found = find_build_id(&notes).unwrap_or_default();
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16));
    let found: Option<String> = found.iter().flat_map(digits).collect();
    (found.as_deref() != Some(wanted)).then_some(
        "the build id: the kernel's notes have another one than VMCOREINFO, and readers may refuse the file",
    )
}

/// The build id in a row of notes.
fn find_build_id(notes: &[u8]) -> Option<&[u8]> {
    let fields = Fields(notes);
    let mut at = 0_usize;
    while at < notes.len() {
        let word = |offset: usize| fields.u32(at.checked_add(offset)?);
        let [name_len, len] = [word(0)?, word(4)?].map(|len| to_usize(len.into()));
        let name_at = at.checked_add(12)?;
        let desc_at = name_at.checked_add(name_len)?.checked_next_multiple_of(4)?;
        if word(8)? == BUILD_ID && fields.bytes(name_at, name_len)? == b"GNU\0" {
            return fields.bytes(desc_at, len);
        }
        at = desc_at.checked_add(len)?.checked_next_multiple_of(4)?;
    }
    None
}

/// Two sections that overlap, if there are some: the symbols that mark them contradict each other.
pub(super) fn overlap(sections: &[Section]) -> Option<(String, String)> {
    let mut all: Vec<&Section> = sections.iter().filter(|section| section.is_in_memory()).collect();
    all.sort_by_key(|section| section.address);
    let pairs = all.iter().zip(all.iter().skip(1));
    let mut overlapping =
        pairs.filter(|(one, next)| one.address.saturating_add(one.len) > next.address && next.len > 0);
    overlapping.next().map(|(one, next)| (one.name.to_string(), next.name.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_id_is_found_among_notes() {
        let note = |name: &[u8], kind: u8, desc: &[u8]| {
            let len = |bytes: &[u8]| [u8::try_from(bytes.len()).unwrap(), 0, 0, 0];
            let mut note = [&len(name)[..], &len(desc), &[kind, 0, 0, 0], name].concat();
            note.resize(note.len().next_multiple_of(4), 0);
            note.extend(desc);
            note.resize(note.len().next_multiple_of(4), 0);
            note
        };
        let others = [note(b"Linux\0", 0x10, &[1, 2, 3]), note(b"Xen\0", 3, &[9; 20])].concat();
        let notes = [&others[..], &note(b"GNU\0", 3, &[7; 20])].concat();
        assert_eq!(find_build_id(&notes), Some(&[7; 20][..]));
        assert_eq!(find_build_id(&others), None);
        for len in 0..notes.len() {
            assert!(find_build_id(&notes[..len]).is_none());
        }
        assert_eq!(find_build_id(&[0xff; 64]), None);
    }
}
