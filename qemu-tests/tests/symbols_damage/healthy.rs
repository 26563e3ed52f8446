//! What is right, and where in memory it lies: symbols and types of a healthy core.

use anyhow::{Context, Result, ensure};
use base::addr::VirtAddr;
use std::collections::BTreeMap;
use std::ops::Range;
use symbols::btf::{self, Space, Types};
use symbols::kallsyms::{self, SymbolTable};
use vmcore::kernel::Kernel;
use vmcore::source::{Core, Vmcore};

const SYMBOLS: [&str; 8] = [
    "init_task",
    "modules",
    "init_uts_ns",
    "linux_banner",
    "schedule",
    "runqueues",
    "page_offset_base",
    "btf_modules",
];
/// Structures and members; an empty one stands for the size.
const PLACES: [(&str, &str); 18] = [
    ("task_struct", ""),
    ("task_struct", "pid"),
    ("task_struct", "comm"),
    ("task_struct", "tasks"),
    ("task_struct", "mm"),
    ("task_struct", "thread_pid"),
    ("list_head", ""),
    ("list_head", "next"),
    ("list_head", "prev"),
    ("page", ""),
    ("page", "flags"),
    ("page", "mapping"),
    ("mm_struct", "pgd"),
    ("mm_struct", "arg_start"),
    ("module", "list"),
    ("module", "name"),
    ("file", "f_op"),
    ("btf_module", "btf"),
];

/// A part of memory that is damaged.
pub(crate) struct Region {
    pub(crate) name: &'static str,
    pub(crate) parts: Vec<Range<u64>>,
}

/// A symbol, and the bytes that say where it is.
pub(crate) struct Symbol {
    pub(crate) name: String,
    pub(crate) address: VirtAddr,
    pub(crate) ranges: Vec<Range<u64>>,
}

/// A size or an offset, and the bytes that say it.
pub(crate) struct Place {
    pub(crate) structure: &'static str,
    pub(crate) path: &'static str,
    pub(crate) value: u64,
    pub(crate) ranges: Vec<Range<u64>>,
}

impl Place {
    pub(crate) fn find(&self, types: &Types) -> Option<u64> {
        value(types, self.structure, self.path)
    }
}

fn value(types: &Types, structure: &str, path: &str) -> Option<u64> {
    if path.is_empty() { types.size_of(structure) } else { types.offset(structure, path) }
}

pub(crate) struct Healthy<'c> {
    pub(crate) kernel: Kernel<'c>,
    pub(crate) table: SymbolTable,
    pub(crate) regions: [Region; 4],
    pub(crate) symbols: Vec<Symbol>,
    pub(crate) places: Vec<Place>,
    offset: u64,
}

impl<'c> Healthy<'c> {
    pub(crate) fn of(core: &'c Vmcore) -> Result<Self> {
        let kernel = Kernel::new(core, core.info(), core.mappings());
        let table = kallsyms::read(&kernel)?;
        let types = btf::read(&kernel, &table)?;
        let find = |name: &str| table.find(name).map(|at| at.0).with_context(|| name.to_owned());
        let part = |start: &str, stop: &str| anyhow::Ok(find(start)?..find(stop)?);
        let banner = find("linux_banner")?;
        let offset = core.info().get("KERNELOFFSET").context("KERNELOFFSET")?;
        let blob = part("__start_BTF", "__stop_BTF")?;
        let regions = [
            Region { name: "symbols", parts: table_parts(&kernel, &table)? },
            Region { name: "types", parts: vec![blob.clone()] },
            Region {
                name: "ORC",
                parts: vec![
                    part("__start_orc_unwind_ip", "__stop_orc_unwind_ip")?,
                    part("__start_orc_unwind", "__stop_orc_unwind")?,
                ],
            },
            Region {
                name: "notes",
                parts: vec![part("__start_notes", "__stop_notes")?, banner..banner + 100],
            },
        ];
        let symbols = symbols(&kernel, &table)?;
        let places = places(&kernel, &types, blob)?;
        let offset = u64::from_str_radix(offset, 16)?;
        Ok(Self { kernel, table, regions, symbols, places, offset })
    }

    /// The link-time address.
    pub(crate) fn link(&self, address: VirtAddr) -> u64 {
        if address.0 >= 0xffff_ffff_8000_0000 { address.0 - self.offset } else { address.0 }
    }
}

fn bytes(kernel: &Kernel<'_>, at: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len)?];
    kernel.read(VirtAddr(at), &mut bytes, "a healthy core")?;
    Ok(bytes)
}

fn key(kernel: &Kernel<'_>, name: &str) -> Result<u64> {
    kernel.info().symbol(name).map(|at| at.0).with_context(|| format!("SYMBOL({name})"))
}

/// Addresses; number, names, marks, tokens and their index.
fn table_parts(kernel: &Kernel<'_>, table: &SymbolTable) -> Result<Vec<Range<u64>>> {
    let addresses = key(kernel, "kallsyms_offsets")?;
    let count = key(kernel, "kallsyms_num_syms")?;
    let index = key(kernel, "kallsyms_token_index")?;
    let mut parts = vec![addresses..addresses + 4 * table.all().len() as u64, count..index + 512];
    if let Ok(base) = key(kernel, "kallsyms_relative_base") {
        parts.push(base..base + 8);
    }
    Ok(parts)
}

/// Where the symbols lie, and the bytes of their addresses, their names and the tokens of these.
fn symbols(kernel: &Kernel<'_>, table: &SymbolTable) -> Result<Vec<Symbol>> {
    let addresses = key(kernel, "kallsyms_offsets")?;
    let names_at = key(kernel, "kallsyms_names")?;
    let tokens_at = key(kernel, "kallsyms_token_table")?;
    let index_at = key(kernel, "kallsyms_token_index")?;
    let names = bytes(kernel, names_at, tokens_at - names_at)?;
    let index = bytes(kernel, index_at, 512)?;
    let text = bytes(kernel, tokens_at, index_at - tokens_at)?;
    let mut symbols = Vec::new();
    let mut at = 0_usize;
    for (number, symbol) in (0_u64..).zip(table.all()) {
        let start = at;
        let mut len = usize::from(names[at]);
        at += 1;
        if len & 0x80 != 0 {
            len = len & 0x7f | usize::from(names[at]) << 7;
            at += 1;
        }
        let tokens = &names[at..at + len];
        at += len;
        let name = table.name(symbol);
        if !SYMBOLS.contains(&name) || table.find(name) != Some(symbol.address) {
            continue;
        }
        let word = addresses + 4 * number;
        let mut ranges = vec![word..word + 4, names_at + start as u64..names_at + at as u64];
        let mut expanded = String::new();
        for token in tokens.iter().map(|token| usize::from(*token)) {
            let of = u16::from_le_bytes([index[2 * token], index[2 * token + 1]]);
            let token_text = text[usize::from(of)..].split(|byte| *byte == 0).next().context("a token")?;
            expanded.push_str(std::str::from_utf8(token_text)?);
            let (place, entry) = (tokens_at + u64::from(of), index_at + 2 * token as u64);
            ranges.extend([entry..entry + 2, place..place + token_text.len() as u64 + 1]);
        }
        ensure!(expanded[1..] == *name, "{expanded} is {name}");
        symbols.push(Symbol { name: name.to_owned(), address: symbol.address, ranges });
    }
    ensure!(symbols.len() >= 6, "only {} of the symbols are there", symbols.len());
    Ok(symbols)
}

/// Sizes and offsets, and the bytes of their structures and names.
fn places(kernel: &Kernel<'_>, types: &Types, blob: Range<u64>) -> Result<Vec<Place>> {
    let bytes = bytes(kernel, blob.start, blob.end - blob.start)?;
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let header = word(4) as usize;
    let (types_at, types_len) = (header + word(8) as usize, word(12) as usize);
    let strings_at = header + word(16) as usize;
    let mut records = vec![0..0];
    let mut at = types_at;
    while at < types_at + types_len {
        let info = word(at + 4);
        let rows = (info & 0xffff) as usize;
        let more = match info >> 24 & 0x1f {
            1 | 14 | 17 => 4,
            3 => 12,
            4 | 5 | 15 | 19 => 12 * rows,
            6 | 13 => 8 * rows,
            _ => 0,
        };
        records.push(at..at + 12 + more);
        at += 12 + more;
    }
    let string = |name: &str| {
        let wanted = [b"\0", name.as_bytes(), b"\0"].concat();
        let found = bytes[strings_at..].windows(wanted.len()).position(|bytes| bytes == wanted);
        found.map(|at| strings_at + at..strings_at + at + wanted.len())
    };
    let mut places = Vec::new();
    for (structure, path) in PLACES {
        let Some(value) = value(types, structure, path) else { continue };
        let mut ranges = vec![string(structure).context("a name")?];
        ranges.extend(string(path).filter(|_| !path.is_empty()));
        let mut open = vec![types.named(Space::Struct, structure).context("a structure")?.0];
        while let Some(id) = open.pop() {
            let record = records[id as usize].clone();
            if matches!(word(record.start + 4) >> 24 & 0x1f, 4 | 5) {
                // Members of members that have no name.
                let members = (record.start + 12..record.end).step_by(12);
                open.extend(members.filter(|at| word(*at) == 0).map(|at| word(at + 4)));
            }
            ranges.push(record);
        }
        let ranges = ranges
            .into_iter()
            .map(|range| blob.start + range.start as u64..blob.start + range.end as u64)
            .collect();
        places.push(Place { structure, path, value, ranges });
    }
    ensure!(places.len() >= 15, "only {} of the members are there", places.len());
    Ok(places)
}

/// The values of all symbols of an ELF file, by name.
pub(crate) fn symbols_of_elf(file: &[u8]) -> BTreeMap<String, Vec<u64>> {
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap_or_default());
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap_or_default());
    let sections = u64_at(40) as usize;
    let count = usize::from(u16::from_le_bytes([file[60], file[61]]));
    let part = |number: usize| {
        let header = sections + 64 * number;
        let start = u64_at(header + 24) as usize;
        start..start + u64_at(header + 32) as usize
    };
    let table = (0..count).find(|number| u32_at(sections + 64 * number + 4) == 2).unwrap_or(0);
    let strings = part(u32_at(sections + 64 * table + 40) as usize);
    let mut all: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for at in part(table).step_by(24) {
        let name = &file[strings.start + u32_at(at) as usize..strings.end];
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if SYMBOLS.iter().any(|wanted| wanted.as_bytes() == name) {
            all.entry(String::from_utf8_lossy(name).into_owned()).or_default().push(u64_at(at + 8));
        }
    }
    all
}
