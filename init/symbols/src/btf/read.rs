//! BTF out of the kernel's memory, checked.

use core::ops::Range;

use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::{Fields, put};
use vmcore::kernel::{Kernel, KernelError};

use super::{Kind, MAX_BYTES, Type, TypeId, Types};
use crate::kallsyms::Symbols;
use crate::list;

/// `BTF_MAGIC`
const MAGIC: u16 = 0xeb9f;
/// Bytes of `struct btf_header`.
const HEADER: usize = 24;
/// `BTF_VERSION`
const VERSION: u8 = 1;
/// Bits of a type's second word that mean nothing.
const UNUSED: u32 = 0x60ff_0000;
/// Bytes of a name: `KSYM_NAME_LEN`, which the kernel holds names against.
const MAX_NAME: usize = 512;
/// Modules that are believed, as in [`crate::modules`].
const MAX_MODULES: usize = 1024;

/// Why there are no types.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel was built without them.
    #[error("the kernel has no type information in its memory (CONFIG_DEBUG_INFO_BTF is off)")]
    NoBtf,
    /// They could not be read.
    #[error("reading the kernel's type information (BTF)")]
    Memory(#[from] KernelError),
    /// The header makes no sense.
    #[error("the kernel's type information (BTF) is damaged: {what} is {value:#x}")]
    Header {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A structure is another one in VMCOREINFO.
    #[error(
        "the kernel's type information (BTF) has {ours} for {key}, VMCOREINFO {theirs}: one of them is damaged"
    )]
    Contradicts {
        /// `OFFSET(…)` or `SIZE(…)`.
        key: String,
        /// Bytes.
        ours: u64,
        /// Bytes.
        theirs: u64,
    },
    /// A type makes no sense.
    #[error("the kernel's type information (BTF) is damaged: type {id} has {what} {value:#x}")]
    Damaged {
        /// The number of the type in its blob.
        id: u32,
        /// What is wrong with it.
        what: &'static str,
        /// The value.
        value: u64,
    },
}

/// The types of the kernel itself.
pub fn read(kernel: &Kernel<'_>, symbols: &dyn Symbols) -> Result<Types, BtfError> {
    let (Some(start), Some(stop)) = (symbols.find("__start_BTF"), symbols.find("__stop_BTF")) else {
        return Err(BtfError::NoBtf);
    };
    let len = stop.0.checked_sub(start.0).map(to_usize).filter(|len| (HEADER..=MAX_BYTES).contains(len));
    let len = len.ok_or(BtfError::Header { what: "the end", value: stop.0 })?;
    let mut blob = vec![0; len];
    kernel.read(start, &mut blob, "the kernel's types")?;
    let mut types = Types::parse(&blob)?;
    if !types.has_signs() {
        types.restore_signs(1);
    }
    Ok(types)
}

/// The name of a module, which is safe to be shown, and the numbers of its types; or why they could not
/// be had.
pub type ModuleTypes = (String, Result<Range<u32>, BtfError>);

/// Adds the types of all modules that have some, and says which those are.
pub fn module_types(kernel: &Kernel<'_>, symbols: &dyn Symbols, types: &mut Types) -> Vec<ModuleTypes> {
    types_of_modules(kernel, symbols, types, &|_| true)
}

/// The same of the modules whose names are wanted.
pub fn types_of_modules(
    kernel: &Kernel<'_>,
    symbols: &dyn Symbols,
    types: &mut Types,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Vec<ModuleTypes> {
    let offsets = ["list", "btf"].map(|name| types.offset("btf_module", name));
    let fields = ["data", "data_size", "name"].map(|name| types.offset("btf", name));
    let (Some(head), [Some(list), Some(btf)], [Some(data), Some(size), Some(name)]) =
        (symbols.find("btf_modules"), offsets, fields)
    else {
        return Vec::new();
    };
    let mut all = Vec::new();
    let mut budget = MAX_BYTES;
    let (entries, is_whole) = list::all(kernel, head, MAX_MODULES);
    for (number, entry) in (1_usize..).zip(entries) {
        let at = |base: u64, offset: u64| VirtAddr(base.wrapping_add(offset));
        let mut module = format!("module {number}");
        let mut blob = || -> Result<Option<Vec<u8>>, BtfError> {
            let btf = kernel.read_u64(at(entry.0.wrapping_sub(list), btf), "a module's types")?;
            let mut text = [0; 56];
            kernel.read(at(btf, name), &mut text, "a module's name")?;
            module = base::text::line(&Fields(&text).text(0, text.len()).unwrap_or_default());
            if !is_wanted(&module) {
                return Ok(None);
            }
            let len = kernel.read_u32(at(btf, size), "a module's types")?;
            let data = kernel.read_u64(at(btf, data), "a module's types")?;
            let len = to_usize(len.into());
            if !(HEADER..=budget).contains(&len) {
                return Err(BtfError::Header { what: "the size of a module's types", value: to_u64(len) });
            }
            budget = budget.saturating_sub(len);
            let mut blob = vec![0; len];
            kernel.read(VirtAddr(data), &mut blob, "a module's types")?;
            Ok(Some(blob))
        };
        let first = types.len();
        let added = match blob() {
            Ok(None) => continue,
            Ok(Some(blob)) => types.add_split(&blob),
            Err(error) => Err(error),
        };
        all.push((module, added.map(|()| first..types.len())));
    }
    if !is_whole {
        let value = to_u64(all.len());
        all.push((
            "other modules".to_owned(),
            Err(BtfError::Header { what: "the end of their list, behind", value }),
        ));
    }
    if !types.has_signs() {
        types.restore_signs(types.kernel_end);
    }
    types.index();
    all
}

/// The parts of a blob.
struct Blob<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Blob<'a> {
    fn parse(blob: &'a [u8]) -> Result<Self, BtfError> {
        let fields = Fields(blob);
        let damaged = |what, value: u32| BtfError::Header { what, value: value.into() };
        let magic = fields.u16(0).unwrap_or(0);
        if magic != MAGIC {
            return Err(damaged("the magic number", magic.into()));
        }
        let version = fields.u8(2).unwrap_or(0);
        if version != VERSION {
            return Err(damaged("the version", version.into()));
        }
        let word = |at: usize| fields.u32(at).unwrap_or(u32::MAX);
        let header = word(4);
        if to_usize(header.into()) < HEADER {
            return Err(damaged("the size of its header", header));
        }
        let part = |what, offset: u32, len: u32| {
            let start = to_usize(header.into()).checked_add(to_usize(offset.into()));
            let part = start.and_then(|start| fields.bytes(start, to_usize(len.into())));
            part.ok_or(damaged(what, len))
        };
        let types = part("the size of its types", word(8), word(12))?;
        if word(8).checked_add(word(12)).is_none_or(|end| end > word(16)) {
            return Err(damaged("the place of its strings", word(16)));
        }
        let strings = part("the size of its strings", word(16), word(20))?;
        if strings.last().is_some_and(|last| *last != 0) {
            return Err(damaged(
                "the last byte of its strings",
                u32::from(strings.last().copied().unwrap_or(0)),
            ));
        }
        // Without a branch for each byte: nearly all blobs have nothing else.
        let is_ascii =
            strings.iter().fold(true, |all, byte| all & (*byte == 0 || matches!(*byte, b' '..=b'~')));
        let is_name = |name: &[u8]| {
            name.len() <= MAX_NAME
                && (is_ascii
                    || core::str::from_utf8(name).is_ok_and(|name| !name.contains(base::text::is_unsafe)))
        };
        if let Some(name) = strings.split(|byte| *byte == 0).find(|name| !is_name(name)) {
            let len = u32::try_from(name.len()).unwrap_or(u32::MAX);
            return Err(damaged("the length of a name that is too long or that no terminal can show", len));
        }
        Ok(Self { types, strings })
    }
}

/// How numbers and names of a blob become those of the row.
#[derive(Clone, Copy)]
struct Shift {
    /// Numbers and names below these are those of the kernel.
    base: (u32, u32),
    /// What is added to those above.
    types: u32,
    strings: u32,
    /// The first number, and the first place of a name, that are not there.
    end: (u32, u32),
}

impl Types {
    /// The types in a blob that stands by itself.
    pub fn parse(blob: &[u8]) -> Result<Self, BtfError> {
        let mut types = Self {
            bytes: Vec::new(),
            starts: vec![0],
            strings: Vec::new(),
            added: std::collections::BTreeMap::new(),
            by_name: Vec::new(),
            kernel_end: 1,
            read_end: 1,
            base: (1, 0),
        };
        if Blob::parse(blob)?.strings.first() != Some(&0) {
            return Err(BtfError::Header { what: "the first byte of its strings", value: 1 });
        }
        types.add_split(blob)?;
        types.base = (types.len(), u32::try_from(types.strings.len()).unwrap_or(u32::MAX));
        types.kernel_end = types.len();
        types.index();
        Ok(types)
    }

    /// Adds the types of a module, in a blob that goes on where the kernel's types end, and finds them by
    /// their names. If it is damaged, nothing is added.
    pub fn add_module(&mut self, blob: &[u8]) -> Result<(), BtfError> {
        self.add_split(blob)?;
        self.index();
        Ok(())
    }

    /// The same, but they are not found by their names yet.
    pub fn add_split(&mut self, blob: &[u8]) -> Result<(), BtfError> {
        let blob = Blob::parse(blob)?;
        let (bytes, strings, types) = (self.bytes.len(), self.strings.len(), self.starts.len());
        let total = bytes.saturating_add(blob.types.len()).max(strings.saturating_add(blob.strings.len()));
        if total > MAX_BYTES {
            return Err(BtfError::Header { what: "the size of all types", value: to_u64(total) });
        }
        self.bytes.extend_from_slice(blob.types);
        self.strings.extend_from_slice(blob.strings);
        let added = self.take_in(bytes, strings);
        if added.is_err() {
            self.bytes.truncate(bytes);
            self.strings.truncate(strings);
            self.starts.truncate(types);
        }
        added
    }

    /// Takes in the types from byte `bytes` on, whose names are from byte `strings` on.
    fn take_in(&mut self, bytes: usize, strings: usize) -> Result<(), BtfError> {
        let first = self.len();
        let mut at = bytes;
        while at < self.bytes.len() {
            let next = |bytes: &[u8]| {
                let info = Fields(bytes).u32(at.checked_add(4)?)?;
                let kind = Kind::of(info >> 24 & 0x1f).filter(|_| info & UNUSED == 0)?;
                let end = at.checked_add(12)?.checked_add(kind.more(info & 0xffff))?;
                (end <= bytes.len()).then_some(end)
            };
            let id = self.len().saturating_sub(first).saturating_add(self.base.0);
            let info = Fields(self.bytes.get(at..).unwrap_or_default()).u32(4).unwrap_or(0);
            let end =
                next(&self.bytes).ok_or(BtfError::Damaged { id, what: "the kind", value: info.into() })?;
            self.starts.push(u32::try_from(at).unwrap_or(u32::MAX));
            at = end;
        }
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let shift = Shift {
            base: self.base,
            types: first.saturating_sub(self.base.0),
            strings: number(strings).saturating_sub(self.base.1),
            end: (self.len(), number(self.strings.len())),
        };
        for id in first..self.len() {
            let of_blob = id.saturating_sub(first).saturating_add(self.base.0);
            let fault = |(what, value): (&'static str, u32)| BtfError::Damaged {
                id: of_blob,
                what,
                value: value.into(),
            };
            self.renumber(TypeId(id), shift).map_err(fault)?;
        }
        self.check(first).map_err(|(id, (what, value))| {
            let id = id.saturating_sub(first).saturating_add(self.base.0);
            BtfError::Damaged { id, what, value: value.into() }
        })
    }

    /// Turns the numbers and names in a type into those of the row; fails if one leads nowhere.
    fn renumber(&mut self, id: TypeId, shift: Shift) -> Result<(), (&'static str, u32)> {
        let start = to_usize(self.starts.get(to_usize(id.0.into())).copied().unwrap_or(0).into());
        let Some(found) = self.get(id) else { return Err(("the number", id.0)) };
        let places = Places::of(&found);
        let words = self.bytes.get_mut(start..).unwrap_or_default();
        for (places, (base, delta, end), what) in [
            (places.types, (shift.base.0, shift.types, shift.end.0), "a reference to type"),
            (places.names, (shift.base.1, shift.strings, shift.end.1), "a name at"),
        ] {
            for place in places.all() {
                let value = Fields(words).u32(place).unwrap_or(u32::MAX);
                let new = if value < base { Some(value) } else { value.checked_add(delta) };
                let new = new.filter(|new| *new < end).ok_or((what, value))?;
                if new != value {
                    put(words, place, &new.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}

/// Words in a type, in bytes from its start: one by itself, and one in each row of those behind it.
#[derive(Clone, Copy)]
struct Words {
    first: Option<usize>,
    rows: (usize, usize),
    step: usize,
}

impl Words {
    fn all(self) -> impl Iterator<Item = usize> {
        self.first.into_iter().chain((self.rows.0..self.rows.1).step_by(self.step))
    }
}

/// Where a type has numbers of types and places of names.
struct Places {
    types: Words,
    names: Words,
}

impl Places {
    fn of(found: &Type<'_>) -> Self {
        let end = found.more.len().saturating_add(12);
        let (types, names, step) = match found.kind {
            // Element and index; behind them is the number of elements.
            Kind::Array => ((12, 20), (0, 0), 4),
            Kind::Struct | Kind::Union => ((16, end), (12, end), 12),
            Kind::Enum => ((0, 0), (12, end), 8),
            Kind::Enum64 => ((0, 0), (12, end), 12),
            Kind::Prototype => ((16, end), (12, end), 8),
            Kind::Section => ((12, end), (0, 0), 12),
            _ => ((0, 0), (0, 0), 1),
        };
        Self {
            types: Words { first: found.kind.has_type().then_some(8), rows: types, step },
            names: Words { first: Some(0), rows: names, step },
        }
    }
}
