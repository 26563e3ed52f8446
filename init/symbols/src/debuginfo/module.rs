//! The debug file of a loaded module: what the distribution's `.ko.debug` is to drgn, crash and gdb.
//!
//! It is a relocatable file, since readers put each section of a module where the kernel has it
//! (`/sys/module/NAME/sections`). It has the module's own types whole, and of the kernel's types what
//! lies in those; the rest is in the kernel's file. Code and data have no bytes, as in a file that was
//! stripped of everything else.

#[cfg(test)]
mod tests;

use core::ops::Range;
use std::io::{self, Cursor};

use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::{Fields, put};

use super::cfi::{self, Frames};
use super::checks::Orc;
use super::closure::{self, Wanted};
use super::dies::{Dies, Marks, tag};
use super::dwarf::{self, FUNCTIONS, Function, Names};
use super::elf::{self, ABSOLUTE, MAX_OBJECT, SYMBOL};
use super::sections::{
    ALLOC, BITS, CODE, Content, NO_BITS, NOTE, RELOCATIONS, STRINGS, SYMBOLS, Section, WRITE,
};
use crate::btf::{Kind, TypeId, Types};
use crate::image::Image;
use crate::kallsyms::Symbol;
use crate::modules::{Module, Part};

/// Bytes of notes that are copied.
const MAX_NOTES: u64 = 64 << 10;
/// `R_X86_64_64`
const ADDRESS: u64 = 1;
/// `SHF_INFO_LINK`
const INFO_LINK: u64 = 0x40;

/// What is in the file of a module.
#[derive(Clone, Debug, Default)]
pub struct ModuleReport {
    /// Its name.
    pub name: String,
    /// Symbols.
    pub symbols: usize,
    /// The module's own types.
    pub types: usize,
    /// Functions with their types.
    pub functions: usize,
    /// Pieces of code with call frame information.
    pub frames: u64,
}

/// What a file is made of.
pub(super) struct Source<'a> {
    pub(super) module: &'a Module,
    /// Its sections; there must be some.
    pub(super) parts: &'a [Part],
    /// The numbers of its types.
    pub(super) types: Range<u32>,
    pub(super) orc: Option<&'a Orc>,
}

/// The file of a module. Strings are added to those of `types`.
pub(super) fn write(
    image: &Image<'_>,
    types: &mut Types,
    source: &Source<'_>,
) -> io::Result<(Vec<u8>, ModuleReport)> {
    let module = source.module;
    // Not the bare name, by which gdb would take the words `struct NAME` for a file.
    let names = Names::add(types, &[], &format!("{}.ko", module.name));
    let types = &*types;
    let functions = functions(types, source);
    let mut frames = Frames::marked();
    if let Some(orc) = source.orc {
        cfi::of_module(&mut frames, module, orc, |address| address);
    }
    let report = ModuleReport {
        name: module.name.clone(),
        symbols: module.symbols.all().len(),
        types: source.types.len(),
        functions: functions.len(),
        frames: frames.functions,
    };

    let dwarf = Dwarf::write(types, source, &functions, &names);
    let mut all: Vec<Section> = source.parts.iter().map(|part| of_part(image, module, part)).collect();
    let places = frames.places.take().unwrap_or_default();
    let about =
        format!("made by afterimage {} of the kernel's own symbols and types\n", env!("CARGO_PKG_VERSION"));
    let debug = [
        (".debug_info", dwarf.info, 1, dwarf.addresses),
        (".debug_aranges", dwarf.aranges, 16, dwarf.ranges),
        (".debug_frame", frames.bytes, 8, places),
        (".debug_abbrev", dwarf.abbrev, 1, Vec::new()),
        (".debug_str", dwarf.strings, 1, Vec::new()),
        (".afterimage", about.into_bytes(), 1, Vec::new()),
    ];
    let mut relocations = Vec::new();
    for (name, mut bytes, align, places) in debug {
        let table = relocate(&mut bytes, &places, source.parts);
        all.push(Section::of_file(name, BITS, bytes, align));
        if !table.is_empty() {
            let mut section = Section::of_file(format!(".rela{name}"), RELOCATIONS, table, 8);
            section.flags = INFO_LINK;
            section.more = (0, number(all.len()), 24);
            relocations.push(section);
        }
    }
    let table = number(all.len().saturating_add(relocations.len()).saturating_add(1));
    for mut section in relocations {
        section.more.0 = table;
        all.push(section);
    }
    all.extend(symbols(source, number(all.len()).saturating_add(2)));
    let mut out = Cursor::new(Vec::new());
    elf::write(&mut out, elf::Kind::Relocatable, all)?;
    Ok((out.into_inner(), report))
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// The part that an address lies in, by its section's number, and how far in it.
fn part(parts: &[Part], address: u64) -> Option<(u16, u64)> {
    // By address; an empty one holds nothing.
    let behind = parts.partition_point(|part| part.address <= address);
    let index = behind.checked_sub(1)?;
    let within = address.checked_sub(parts.get(index)?.address)?;
    let is_in = parts.get(index).is_some_and(|part| within < part.len);
    Some((u16::try_from(behind).ok()?, within)).filter(|_| is_in)
}

fn of_part(image: &Image<'_>, module: &Module, part: &Part) -> Section {
    let (first, end) = module.text;
    let is_code = (first..end).contains(&part.address);
    let notes = if part.name.starts_with(".note") && part.len <= MAX_NOTES {
        let mut bytes = vec![0; to_usize(part.len)];
        let read = image.kernel.read(VirtAddr(part.address), &mut bytes, "a module's notes");
        read.ok().map(|()| without_padding(bytes))
    } else {
        None
    };
    let (kind, flags) = match &notes {
        Some(_) => (NOTE, ALLOC),
        None if is_code => (NO_BITS, ALLOC | CODE),
        None if part.name.starts_with(".data") || part.name.starts_with(".bss") => (NO_BITS, ALLOC | WRITE),
        None => (NO_BITS, ALLOC),
    };
    Section {
        name: part.name.clone().into(),
        kind,
        flags,
        address: 0,
        len: notes.as_ref().map_or(part.len, |notes| to_u64(notes.len())),
        content: notes.map_or(Content::Nothing, Content::Bytes),
        align: 1 << part.address.trailing_zeros().min(6),
        more: (0, 0, 0),
    }
}

/// Notes without what lies between the last one and the next section.
fn without_padding(mut notes: Vec<u8>) -> Vec<u8> {
    let mut end = 0_usize;
    let next = |at: usize| {
        let len = |offset: usize| Fields(&notes).u32(at.checked_add(offset)?).map(|len| to_usize(len.into()));
        let (name, desc) = (len(0)?, len(4)?);
        let body = name.checked_next_multiple_of(4)?.checked_add(desc.checked_next_multiple_of(4)?)?;
        let end = at.checked_add(12)?.checked_add(body)?;
        (name > 0 && end <= notes.len()).then_some(end)
    };
    while let Some(at) = next(end) {
        end = at;
    }
    notes.truncate(end);
    notes
}

/// Relocations of addresses in a section, which are zero in it.
fn relocate(bytes: &mut [u8], places: &[(u32, u64)], parts: &[Part]) -> Vec<u8> {
    let mut table = Vec::new();
    for (at, address) in places {
        // What lies in no section stays where it is.
        let Some((number, within)) = part(parts, *address) else { continue };
        put(bytes, to_usize((*at).into()), &[0; 8]);
        // The symbol of a section has its number.
        for word in [u64::from(*at), u64::from(number) << 32 | ADDRESS, within] {
            table.extend_from_slice(&word.to_le_bytes());
        }
    }
    table
}

/// The functions that the module's types have and whose name is one symbol's, by address.
fn functions(types: &Types, source: &Source<'_>) -> Vec<Function> {
    let module = source.module;
    let (first, end) = module.text;
    let function = |id: TypeId| {
        let found = types.get(id).filter(|found| found.kind == Kind::Function)?;
        let mut all = module.symbols.all_named(types.string(found.name));
        let symbol = all.next().filter(|_| all.next().is_none())?;
        let address = symbol.address.0;
        let is_code = (first..end).contains(&address) && part(source.parts, address).is_some();
        is_code.then(|| Function {
            address,
            len: len(source, symbol),
            name: found.name,
            is_global: symbol.is_global(),
            prototype: Some(found.target()),
        })
    };
    let mut functions: Vec<Function> = source.types.clone().map(TypeId).filter_map(function).collect();
    functions.sort_by_key(|function| (function.address, function.name));
    functions.dedup_by_key(|function| function.address);
    functions
}

/// Bytes of what a symbol is of: up to the next one, or to the end of its section.
fn len(source: &Source<'_>, symbol: &Symbol) -> u64 {
    let address = symbol.address.0;
    let rest = part(source.parts, address).and_then(|(number, within)| {
        let part = source.parts.get(usize::from(number).checked_sub(1)?)?;
        part.len.checked_sub(within)
    });
    let gap = source.module.symbols.gap(symbol.address).unwrap_or(MAX_OBJECT);
    gap.min(rest.unwrap_or(0)).min(MAX_OBJECT)
}

/// Sections of DWARF, and where addresses are in them.
struct Dwarf {
    info: Vec<u8>,
    abbrev: Vec<u8>,
    strings: Vec<u8>,
    addresses: Vec<(u32, u64)>,
    aranges: Vec<u8>,
    ranges: Vec<(u32, u64)>,
}

impl Dwarf {
    fn write(types: &Types, source: &Source<'_>, functions: &[Function], names: &Names) -> Self {
        let own = source.types.clone().map(TypeId);
        let wanted = closure::of(types, own.chain(names.types()));
        let mut dies = Dies::marked();
        let start = dies.begin_unit(false);
        dies.entry(tag::UNIT, true, &names.unit());
        for (id, wanted) in types.ids().zip(wanted.iter().skip(1)) {
            let is_structure =
                || types.get(id).is_some_and(|found| matches!(found.kind, Kind::Struct | Kind::Union));
            match wanted {
                Wanted::No => {}
                Wanted::Named if is_structure() => dwarf::declaration(&mut dies, types, id),
                Wanted::Named | Wanted::Whole => dwarf::entry(&mut dies, types, id, names),
            }
        }
        dwarf::end_types(&mut dies, types, start, names);
        let (mut aranges, mut ranges) = (Vec::new(), Vec::new());
        // A section is put somewhere by itself.
        let number = |function: &Function| part(source.parts, function.address).map(|(number, _)| number);
        for unit in
            functions.chunk_by(|one, next| number(one) == number(next)).flat_map(|all| all.chunks(FUNCTIONS))
        {
            let start = dies.begin_unit(true);
            if let Some((low, len)) = dwarf::write_functions(&mut dies, types, unit, names) {
                // Behind the header.
                ranges.push((u32::try_from(aranges.len().saturating_add(16)).unwrap_or(u32::MAX), low));
                dwarf::range(&mut aranges, start, low, len);
            }
            dies.end_unit(start);
        }
        let (mut info, abbrev, Marks { strings, addresses }) = dies.finish();
        let strings = move_strings(&mut info, &strings, types);
        Self { info, abbrev, strings, addresses, aranges, ranges }
    }
}

/// The strings that entries have, of all those of the kernel; the places of them are changed to the new
/// ones.
fn move_strings(info: &mut [u8], places: &[u32], types: &Types) -> Vec<u8> {
    let mut strings = vec![0];
    let mut known = std::collections::HashMap::new();
    for at in places {
        let at = to_usize((*at).into());
        let old = Fields(info).u32(at).unwrap_or(0);
        let new = *known.entry(old).or_insert_with(|| {
            let new = u32::try_from(strings.len()).unwrap_or(u32::MAX);
            strings.extend_from_slice(types.string(old).as_bytes());
            strings.push(0);
            new
        });
        put(info, at, &new.to_le_bytes());
    }
    strings
}

/// The symbol table: one symbol for each section, the local ones, the global ones; and its strings, which
/// are section number `strings`.
fn symbols(source: &Source<'_>, strings: u32) -> [Section; 2] {
    let table = &source.module.symbols;
    let mut local = vec![0; to_usize(SYMBOL)];
    let mut global = Vec::new();
    for (number, _) in (1_u16..).zip(source.parts) {
        // STT_SECTION
        elf::symbol(&mut local, 0, 3, number, (0, 0));
    }
    for found in table.all() {
        let (first, end) = source.module.text;
        let place = part(source.parts, found.address.0);
        let (section, value) = place.unwrap_or((ABSOLUTE, found.address.0));
        // STT_FUNC, STT_OBJECT
        let kind = if (first..end).contains(&found.address.0) { 2 } else { 1 };
        let (out, binding) = if found.is_global() { (&mut global, 1 << 4) } else { (&mut local, 0) };
        elf::symbol(out, table.name_offset(found), binding | kind, section, (value, len(source, found)));
    }
    let first_global = u32::try_from(to_u64(local.len()) / SYMBOL).unwrap_or(u32::MAX);
    local.extend(global);
    let mut symbols = Section::of_file(".symtab", SYMBOLS, local, 8);
    symbols.more = (strings, first_global, SYMBOL);
    [symbols, Section::of_file(".strtab", STRINGS, table.names().to_vec(), 1)]
}
