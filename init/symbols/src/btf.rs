//! Types of the kernel and its modules, in BTF (Documentation/bpf/btf.rst, include/uapi/linux/btf.h).
//!
//! All types lie in one row and are numbered through: those of the kernel, those of each module, and
//! those that [`Types`] is asked to add. What is read from memory is checked once, when it comes in:
//! each reference leads to a type and each name into the strings. A blob with one fault is refused
//! as a whole, because a type that is wrong makes wrong output of everything that is built of it.

mod check;
mod index;
mod read;
mod signs;
#[cfg(test)]
mod tests;

use core::ffi::CStr;
use std::collections::BTreeMap;

use base::addr::{to_u64, to_usize};
use base::fields::Fields;

pub use index::Space;
pub use read::{BtfError, ModuleTypes, module_types, read, types_of_modules};

/// Modifiers and arrays in arrays that are followed; [`check`] lets no type have more.
const MAX_DEPTH: u32 = 32;
/// Structures without a name that a member is looked for in; `struct page` has a dozen.
const MAX_SEARCHED: u32 = 1000;
/// Bytes of all types, and of all names; a kernel with 500 modules has 12 MiB.
const MAX_BYTES: usize = 64 << 20;

/// The number of a type; 0 is `void`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(pub u32);

impl TypeId {
    /// `void`
    pub const VOID: Self = Self(0);
}

/// What a type is: `BTF_KIND_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the header")]
#[repr(u8)]
pub enum Kind {
    Int = 1,
    Pointer = 2,
    Array = 3,
    Struct = 4,
    Union = 5,
    Enum = 6,
    Forward = 7,
    Typedef = 8,
    Volatile = 9,
    Const = 10,
    Restrict = 11,
    Function = 12,
    Prototype = 13,
    Variable = 14,
    Section = 15,
    Float = 16,
    DeclarationTag = 17,
    TypeTag = 18,
    Enum64 = 19,
}

impl Kind {
    /// All kinds, in the order of their numbers, which begin with 1.
    const ALL: [Self; 19] = [
        Self::Int,
        Self::Pointer,
        Self::Array,
        Self::Struct,
        Self::Union,
        Self::Enum,
        Self::Forward,
        Self::Typedef,
        Self::Volatile,
        Self::Const,
        Self::Restrict,
        Self::Function,
        Self::Prototype,
        Self::Variable,
        Self::Section,
        Self::Float,
        Self::DeclarationTag,
        Self::TypeTag,
        Self::Enum64,
    ];

    fn of(number: u32) -> Option<Self> {
        Self::ALL.get(to_usize(number.checked_sub(1)?.into())).copied()
    }

    fn number(self) -> u32 {
        let index = Self::ALL.iter().zip(1_u32..).find(|(kind, _)| **kind == self);
        index.map_or(0, |(_, number)| number)
    }

    /// Whether the third word is a type; else it is a size.
    fn has_type(self) -> bool {
        matches!(
            self,
            Self::Pointer
                | Self::Typedef
                | Self::Volatile
                | Self::Const
                | Self::Restrict
                | Self::Function
                | Self::Prototype
                | Self::Variable
                | Self::DeclarationTag
                | Self::TypeTag
        )
    }

    /// Bytes behind the three words: of each element, and of all of them if there is one row only.
    fn more(self, elements: u32) -> usize {
        let rows = |bytes: usize| bytes.saturating_mul(to_usize(elements.into()));
        match self {
            Self::Int | Self::Variable | Self::DeclarationTag => 4,
            Self::Array => 12,
            Self::Struct | Self::Union | Self::Section | Self::Enum64 => rows(12),
            Self::Enum | Self::Prototype => rows(8),
            _ => 0,
        }
    }

    /// Whether it only changes how the type behind it may be used, or gives it a name.
    fn is_transparent(self) -> bool {
        matches!(self, Self::Typedef | Self::Volatile | Self::Const | Self::Restrict | Self::TypeTag)
    }
}

/// A type.
#[derive(Clone, Copy, Debug)]
pub struct Type<'a> {
    /// What it is.
    pub kind: Kind,
    /// Where its name begins in [`Types::strings`]; 0 if it has none.
    pub name: u32,
    /// `kind_flag`: of a structure, that members say how many bits they have; of an enumeration, that
    /// values have a sign; of a forward declaration, that it is a union.
    pub flag: bool,
    /// The third word: a size in bytes, or a type.
    word: u32,
    /// What is behind the three words.
    more: &'a [u8],
}

/// A member of a structure or union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name in [`Types::strings`]; 0 if it has none.
    pub name: u32,
    /// Its type.
    pub of: TypeId,
    /// Bits from the start of the structure.
    pub bit: u32,
    /// Bits, of a bit field; else 0.
    pub bits: u8,
}

impl<'a> Type<'a> {
    /// Bytes of an integer, structure, union, enumeration or floating-point number.
    #[must_use]
    pub fn size(&self) -> u32 {
        if self.kind.has_type() { 0 } else { self.word }
    }

    /// The type that a pointer, typedef, modifier, function or variable is of; of a prototype what it
    /// returns; else `void`.
    #[must_use]
    pub fn target(&self) -> TypeId {
        TypeId(if self.kind.has_type() { self.word } else { 0 })
    }

    fn rows(&self, len: usize) -> impl Iterator<Item = Fields<'a>> + use<'a> {
        self.more.chunks_exact(len).map(Fields)
    }

    /// Members of a structure or union, in their order.
    pub fn members(&self) -> impl Iterator<Item = Member> + use<'a> {
        let bit_fields = self.flag;
        let is_aggregate = matches!(self.kind, Kind::Struct | Kind::Union);
        let rows = self.rows(12).filter(move |_| is_aggregate);
        rows.filter_map(move |row| {
            let (name, of, offset) = (row.u32(0)?, TypeId(row.u32(4)?), row.u32(8)?);
            let [.., bits] = offset.to_le_bytes();
            let (bit, bits) = if bit_fields { (offset & 0x00ff_ffff, bits) } else { (offset, 0) };
            Some(Member { name, of, bit, bits })
        })
    }

    /// Names and values of an enumeration; a value without a sign is that of its bits.
    pub fn enumerators(&self) -> impl Iterator<Item = (u32, i128)> + use<'a> {
        let (kind, signed) = (self.kind, self.flag);
        let len = if kind == Kind::Enum64 { 12 } else { 8 };
        let rows = self.rows(len).filter(move |_| matches!(kind, Kind::Enum | Kind::Enum64));
        rows.filter_map(move |row| {
            let low = row.u32(4)?;
            let value = match (row.u32(8).filter(|_| kind == Kind::Enum64), signed) {
                (Some(high), true) => (u64::from(high) << 32 | u64::from(low)).cast_signed().into(),
                (Some(high), false) => (u64::from(high) << 32 | u64::from(low)).into(),
                (None, true) => low.cast_signed().into(),
                (None, false) => low.into(),
            };
            Some((row.u32(0)?, value))
        })
    }

    /// Names and types of the parameters of a prototype; type `void` without a name stands for `...`.
    pub fn parameters(&self) -> impl Iterator<Item = (u32, TypeId)> + use<'a> {
        let is_prototype = self.kind == Kind::Prototype;
        let rows = self.rows(8).filter(move |_| is_prototype);
        rows.filter_map(|row| Some((row.u32(0)?, TypeId(row.u32(4)?))))
    }

    /// Type and number of the elements of an array.
    #[must_use]
    pub fn elements(&self) -> Option<(TypeId, u32)> {
        let row = Fields(self.more);
        (self.kind == Kind::Array).then(|| Some((TypeId(row.u32(0)?), row.u32(8)?))).flatten()
    }

    /// Of a section: its variables, how many bytes behind its start each one lies, and its bytes.
    pub fn variables(&self) -> impl Iterator<Item = (TypeId, u32, u32)> + use<'a> {
        let is_section = self.kind == Kind::Section;
        let rows = self.rows(12).filter(move |_| is_section);
        rows.filter_map(|row| Some((TypeId(row.u32(0)?), row.u32(4)?, row.u32(8)?)))
    }

    /// Of an integer: whether it has a sign, is a character, is a truth value (`BTF_INT_*`).
    #[must_use]
    pub fn encoding(&self) -> (bool, bool, bool) {
        let word = Fields(self.more).u32(0).filter(|_| self.kind == Kind::Int).unwrap_or(0);
        let has = |bit: u32| word & (bit << 24) != 0;
        (has(1), has(2), has(4))
    }
}

/// The types of a kernel.
#[derive(Clone, Debug)]
pub struct Types {
    /// Types as BTF has them, with numbers and names of this row.
    bytes: Vec<u8>,
    /// Where each type begins; that of `void` is not used.
    starts: Vec<u32>,
    strings: Vec<u8>,
    /// Strings that were added.
    added: BTreeMap<String, u32>,
    /// Types by name, in order; those that were added are not in it.
    by_name: Vec<TypeId>,
    /// Types of the kernel itself, and of its modules: the first type behind them.
    kernel_end: u32,
    read_end: u32,
    /// The kernel's types and names: what split BTF counts from.
    base: (u32, u32),
}

impl Types {
    /// Number of types, `void` among them.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.starts.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is nothing but `void`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.len() < 2
    }

    /// The numbers of all types but `void`.
    pub fn ids(&self) -> impl Iterator<Item = TypeId> + use<> {
        (1..self.len()).map(TypeId)
    }

    /// The numbers of the kernel's own types.
    pub fn kernel_ids(&self) -> impl Iterator<Item = TypeId> + use<> {
        (1..self.kernel_end).map(TypeId)
    }

    /// A type; none for `void`.
    #[must_use]
    pub fn get(&self, id: TypeId) -> Option<Type<'_>> {
        if id == TypeId::VOID {
            return None;
        }
        let start = to_usize(u64::from(*self.starts.get(to_usize(id.0.into()))?));
        let fields = Fields(self.bytes.get(start..)?);
        let info = fields.u32(4)?;
        let kind = Kind::of(info >> 24 & 0x1f)?;
        let more = fields.bytes(12, kind.more(info & 0xffff))?;
        Some(Type { kind, name: fields.u32(0)?, flag: info >> 31 == 1, word: fields.u32(8)?, more })
    }

    /// All names, each with a NUL behind it, as in a `.debug_str`; the first one is empty.
    #[must_use]
    pub fn strings(&self) -> &[u8] {
        &self.strings
    }

    /// A name. Bytes that are not UTF-8 make it empty.
    #[must_use]
    pub fn string(&self, offset: u32) -> &str {
        let bytes = self.strings.get(to_usize(offset.into())..).unwrap_or_default();
        CStr::from_bytes_until_nul(bytes).ok().and_then(|text| text.to_str().ok()).unwrap_or_default()
    }

    /// The name of a type.
    #[must_use]
    pub fn name(&self, id: TypeId) -> &str {
        self.get(id).map_or("", |found| self.string(found.name))
    }

    /// The type behind typedefs and modifiers; `void` if they do not end.
    #[must_use]
    pub fn strip(&self, id: TypeId) -> TypeId {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            match self.get(id) {
                Some(found) if found.kind.is_transparent() => id = found.target(),
                _ => return id,
            }
        }
        TypeId::VOID
    }

    /// Bytes of an object of the type; none if it has no size: `void`, a function, a structure that is
    /// only declared.
    #[must_use]
    pub fn size(&self, id: TypeId) -> Option<u64> {
        let mut id = self.strip(id);
        let mut count = 1_u64;
        for _ in 0..MAX_DEPTH {
            let found = self.get(id)?;
            return match found.kind {
                Kind::Pointer => count.checked_mul(8),
                Kind::Array => {
                    let (element, length) = found.elements()?;
                    count = count.checked_mul(length.into())?;
                    id = self.strip(element);
                    continue;
                }
                Kind::Int | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Float => {
                    count.checked_mul(found.size().into())
                }
                _ => None,
            };
        }
        None
    }

    /// A member of a structure, with those of its members that have no name; `path` may lead into
    /// members of members ("f_path.dentry"). Its offset in bytes, and its type. None for a bit field
    /// that does not begin at a byte.
    #[must_use]
    pub fn member(&self, id: TypeId, path: &str) -> Option<(u64, TypeId)> {
        let (mut offset, mut id) = (0_u64, id);
        for name in path.split('.') {
            let (bit, of) = self.find_member(id, name, &mut MAX_SEARCHED.to_owned())?;
            offset = offset.checked_add(bit.is_multiple_of(8).then_some(bit / 8)?)?;
            id = of;
        }
        Some((offset, id))
    }

    /// Looks in no more structures than `budget`, which falls.
    fn find_member(&self, id: TypeId, name: &str, budget: &mut u32) -> Option<(u64, TypeId)> {
        *budget = budget.checked_sub(1)?;
        let found = self.get(self.strip(id))?;
        if let Some(member) =
            found.members().find(|member| member.name != 0 && self.string(member.name) == name)
        {
            return Some((member.bit.into(), member.of));
        }
        found.members().filter(|member| member.name == 0).find_map(|member| {
            let (bit, of) = self.find_member(member.of, name, budget)?;
            Some((u64::from(member.bit).checked_add(bit)?, of))
        })
    }

    /// The offset of a member of a structure that has a name, in bytes.
    #[must_use]
    pub fn offset(&self, structure: &str, path: &str) -> Option<u64> {
        self.member(self.named(Space::Struct, structure)?, path).map(|(offset, _)| offset)
    }

    /// Bytes of a structure that has a name.
    #[must_use]
    pub fn size_of(&self, structure: &str) -> Option<u64> {
        self.size(self.named(Space::Struct, structure)?)
    }

    /// Where `text` is among the strings; it is added if it is not one that was added before.
    pub fn add_string(&mut self, text: &str) -> u32 {
        if let Some(&offset) = self.added.get(text) {
            return offset;
        }
        let Ok(offset) = u32::try_from(self.strings.len()) else { return 0 };
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        self.added.insert(text.to_owned(), offset);
        offset
    }

    /// Adds a type that is `kind` of `target`: a pointer, a modifier, a declaration of a structure
    /// (`flag`: of a union).
    pub fn add(&mut self, kind: Kind, name: u32, flag: bool, target: TypeId) -> TypeId {
        self.append([name, info(kind, flag, 0), target.0], &[])
    }

    /// Adds an integer of `size` bytes.
    pub fn add_integer(&mut self, name: &str, size: u8, signed: bool) -> TypeId {
        let name = self.add_string(name);
        let word = u32::from(signed) << 24 | u32::from(size).saturating_mul(8);
        self.append([name, info(Kind::Int, false, 0), size.into()], &word.to_le_bytes())
    }

    /// Adds an array.
    pub fn add_array(&mut self, element: TypeId, length: u32) -> TypeId {
        let index = self.named(Space::Plain, "unsigned int").unwrap_or_default();
        let words = [element.0, index.0, length].map(u32::to_le_bytes);
        self.append([0, info(Kind::Array, false, 0), 0], words.as_flattened())
    }

    /// Adds a prototype of a function; a parameter of type `void` stands for `...`.
    pub fn add_prototype(&mut self, returns: TypeId, parameters: &[TypeId]) -> TypeId {
        let rows: Vec<[[u8; 4]; 2]> =
            parameters.iter().map(|of| [0_u32.to_le_bytes(), of.0.to_le_bytes()]).collect();
        let elements = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        let info = info(Kind::Prototype, false, elements);
        self.append([0, info, returns.0], rows.as_flattened().as_flattened())
    }

    /// Appends a type of three words, with what is behind them.
    fn append(&mut self, words: [u32; 3], more: &[u8]) -> TypeId {
        let Ok(start) = u32::try_from(self.bytes.len()) else { return TypeId::VOID };
        let id = TypeId(self.len());
        self.bytes.extend_from_slice(words.map(u32::to_le_bytes).as_flattened());
        self.bytes.extend_from_slice(more);
        self.starts.push(start);
        id
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn memory_use(&self) -> u64 {
        let words = self.starts.len().saturating_add(self.by_name.len()).saturating_mul(4);
        to_u64(self.bytes.len().saturating_add(self.strings.len()).saturating_add(words))
    }
}

/// The second word of a type: `kind_flag`, kind, number of elements.
fn info(kind: Kind, flag: bool, elements: u32) -> u32 {
    u32::from(flag) << 31 | kind.number() << 24 | elements & 0xffff
}
