//! Debugging information entries, and the table of their abbreviations (DWARF 4, section 7.5).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use base::addr::to_usize;
use base::fields::put;

use crate::btf::TypeId;

/// Attributes of an entry at most.
const MAX_ATTRIBUTES: usize = 8;

/// Tags of entries (`DW_TAG_*`).
pub(super) mod tag {
    pub(crate) const ARRAY: u8 = 0x01;
    pub(crate) const ENUMERATION: u8 = 0x04;
    pub(crate) const PARAMETER: u8 = 0x05;
    pub(crate) const MEMBER: u8 = 0x0d;
    pub(crate) const POINTER: u8 = 0x0f;
    pub(crate) const UNIT: u8 = 0x11;
    pub(crate) const STRUCTURE: u8 = 0x13;
    pub(crate) const PROTOTYPE: u8 = 0x15;
    pub(crate) const TYPEDEF: u8 = 0x16;
    pub(crate) const UNION: u8 = 0x17;
    pub(crate) const ANY_PARAMETERS: u8 = 0x18;
    pub(crate) const SUBRANGE: u8 = 0x21;
    pub(crate) const BASE: u8 = 0x24;
    pub(crate) const CONST: u8 = 0x26;
    pub(crate) const ENUMERATOR: u8 = 0x28;
    pub(crate) const FUNCTION: u8 = 0x2e;
    pub(crate) const VARIABLE: u8 = 0x34;
    pub(crate) const VOLATILE: u8 = 0x35;
    pub(crate) const RESTRICT: u8 = 0x37;
}

/// Attributes (`DW_AT_*`).
pub(super) mod at {
    pub(crate) const LOCATION: u8 = 0x02;
    pub(crate) const NAME: u8 = 0x03;
    pub(crate) const BYTE_SIZE: u8 = 0x0b;
    pub(crate) const BIT_SIZE: u8 = 0x0d;
    pub(crate) const LOW_PC: u8 = 0x11;
    pub(crate) const HIGH_PC: u8 = 0x12;
    pub(crate) const LANGUAGE: u8 = 0x13;
    pub(crate) const COMP_DIR: u8 = 0x1b;
    pub(crate) const CONST_VALUE: u8 = 0x1c;
    pub(crate) const PRODUCER: u8 = 0x25;
    pub(crate) const PROTOTYPED: u8 = 0x27;
    pub(crate) const COUNT: u8 = 0x37;
    pub(crate) const MEMBER_LOCATION: u8 = 0x38;
    pub(crate) const DECLARATION: u8 = 0x3c;
    pub(crate) const ENCODING: u8 = 0x3e;
    pub(crate) const EXTERNAL: u8 = 0x3f;
    pub(crate) const TYPE: u8 = 0x49;
    pub(crate) const DATA_BIT_OFFSET: u8 = 0x6b;
}

/// The value of an attribute, in the form that it is written in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// A string, by its place in `.debug_str`.
    String(u32),
    U8(u8),
    U32(u32),
    U64(u64),
    Signed(i64),
    Unsigned(u64),
    Address(u64),
    Flag,
    /// A type.
    Type(TypeId),
    /// An array type, with no number of elements: what ends a structure.
    Boundless(TypeId),
    /// The address of a variable.
    At(u64),
}

impl Value {
    /// `DW_FORM_*`; a type is in another unit if `far`.
    fn form(self, far: bool) -> u8 {
        match self {
            Self::Address(_) => 0x01,
            Self::U32(_) => 0x06,
            Self::U64(_) => 0x07,
            Self::U8(_) => 0x0b,
            Self::Signed(_) => 0x0d,
            Self::String(_) => 0x0e,
            Self::Unsigned(_) => 0x0f,
            Self::Type(_) | Self::Boundless(_) if far => 0x10,
            Self::Type(_) | Self::Boundless(_) => 0x13,
            Self::At(_) => 0x18,
            Self::Flag => 0x19,
        }
    }
}

/// The attributes of an entry; more than [`MAX_ATTRIBUTES`] no entry has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    all: [(u8, Value); MAX_ATTRIBUTES],
    len: usize,
}

impl Attributes {
    /// These, as far as they are there.
    pub(super) fn new<const N: usize>(attributes: [Option<(u8, Value)>; N]) -> Self {
        let mut new = Self { all: [(0, Value::Flag); MAX_ATTRIBUTES], len: 0 };
        for attribute in attributes {
            new.add(attribute);
        }
        new
    }

    /// Adds one, if it is there.
    pub(super) fn add(&mut self, attribute: Option<(u8, Value)>) {
        if let (Some(attribute), Some(slot)) = (attribute, self.all.get_mut(self.len)) {
            *slot = attribute;
            self.len = self.len.saturating_add(1);
        }
    }
}

impl std::ops::Deref for Attributes {
    type Target = [(u8, Value)];

    fn deref(&self) -> &Self::Target {
        self.all.get(..self.len).unwrap_or_default()
    }
}

/// What entries have in common, in one number that is quickly compared: tag, whether it has children,
/// and for each attribute its number of seven bits and its form of five.
type Abbreviation = u128;

fn abbreviation(tag: u8, children: bool, attributes: &[(u8, Value)], far: bool) -> Abbreviation {
    let start = u128::from(tag) << 1 | u128::from(children);
    attributes.iter().take(MAX_ATTRIBUTES).fold(start, |key, (attribute, value)| {
        key << 12 | u128::from(*attribute) << 5 | u128::from(value.form(far))
    })
}

/// Mixes a number of a few dozen that this module alone makes: no table of them can be made slow.
#[derive(Debug, Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, value: u128) {
        let mixed = value.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        self.0 = u64::try_from(mixed >> 64).unwrap_or(0);
    }
}

/// Entries, one behind the other, from the start of `.debug_info` on.
#[derive(Debug, Default)]
pub(super) struct Dies {
    bytes: Vec<u8>,
    abbreviations: HashMap<Abbreviation, u64, BuildHasherDefault<Mixer>>,
    /// `.debug_abbrev` without its end.
    table: Vec<u8>,
    /// Where each type begins; 0 where that is not known yet.
    places: Vec<u32>,
    /// Where each array without a number of elements begins.
    boundless: HashMap<TypeId, u32>,
    /// Where a type is to be written.
    open: Vec<(u32, TypeId, bool)>,
    /// Whether types are in another unit than this one.
    far: bool,
    /// Where strings and addresses are, if that is wanted.
    marks: Option<Marks>,
}

/// What is another number in the file: where it is in `.debug_info`.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) strings: Vec<u32>,
    pub(super) addresses: Vec<(u32, u64)>,
}

impl Dies {
    /// Entries of which it is remembered where strings and addresses are.
    pub(super) fn marked() -> Self {
        Self { marks: Some(Marks::default()), ..Self::default() }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    /// Begins a unit; returns where.
    pub(super) fn begin_unit(&mut self, far: bool) -> u32 {
        self.far = far;
        let start = self.len();
        // Length, DWARF 4, the only table of abbreviations, 8 bytes an address.
        self.bytes.extend([0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 8]);
        start
    }

    /// Ends the unit that begins at `start`.
    pub(super) fn end_unit(&mut self, start: u32) {
        self.end_children();
        let length = self.len().saturating_sub(start).saturating_sub(4);
        put(&mut self.bytes, to_usize(start.into()), &length.to_le_bytes());
    }

    /// Says that the next entry is this type.
    pub(super) fn place(&mut self, id: TypeId) {
        let place = self.len();
        let index = to_usize(id.0.into());
        if self.places.len() <= index {
            self.places.resize(index.saturating_add(1), 0);
        }
        if let Some(slot) = self.places.get_mut(index) {
            *slot = place;
        }
    }

    /// Says that the next entry is this array, with no number of elements.
    pub(super) fn place_boundless(&mut self, id: TypeId) {
        let place = self.len();
        self.boundless.insert(id, place);
    }

    /// Arrays that entries refer to without a number of elements, and that have no entry yet.
    pub(super) fn wanted(&self) -> Vec<TypeId> {
        let mut wanted: Vec<TypeId> = self
            .open
            .iter()
            .filter(|(_, id, boundless)| *boundless && !self.boundless.contains_key(id))
            .map(|(_, id, _)| *id)
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }

    /// Writes an entry.
    pub(super) fn entry(&mut self, tag: u8, children: bool, attributes: &[(u8, Value)]) {
        let key = abbreviation(tag, children, attributes, self.far);
        let next = u64::try_from(self.abbreviations.len()).unwrap_or(u64::MAX).saturating_add(1);
        let code = *self.abbreviations.entry(key).or_insert(next);
        if code == next {
            uleb(&mut self.table, code);
            self.table.extend([tag, u8::from(children)]);
            let forms = attributes.iter().map(|(attribute, value)| [*attribute, value.form(self.far)]);
            self.table.extend(forms.flatten().chain([0, 0]));
        }
        uleb(&mut self.bytes, code);
        for (_, value) in attributes {
            self.value(*value);
        }
    }

    fn value(&mut self, value: Value) {
        if let Some(marks) = &mut self.marks {
            let at = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
            match value {
                Value::String(_) => marks.strings.push(at),
                Value::Address(address) => marks.addresses.push((at, address)),
                _ => {}
            }
        }
        match value {
            Value::Flag => {}
            Value::U8(value) => self.bytes.push(value),
            Value::String(value) | Value::U32(value) => self.bytes.extend_from_slice(&value.to_le_bytes()),
            Value::U64(value) | Value::Address(value) => self.bytes.extend_from_slice(&value.to_le_bytes()),
            Value::Signed(value) => sleb(&mut self.bytes, value),
            Value::Unsigned(value) => uleb(&mut self.bytes, value),
            Value::Type(id) => self.reference(id, false),
            Value::Boundless(id) => self.reference(id, true),
            // A block of 9 bytes: DW_OP_addr.
            Value::At(address) => {
                self.bytes.extend_from_slice(&[9, 0x03]);
                self.bytes.extend_from_slice(&address.to_le_bytes());
            }
        }
    }

    fn reference(&mut self, id: TypeId, boundless: bool) {
        self.open.push((self.len(), id, boundless));
        self.bytes.extend_from_slice(&[0; 4]);
    }

    /// Ends the children of an entry.
    pub(super) fn end_children(&mut self) {
        self.bytes.push(0);
    }

    /// Writes where the types are that were referred to. A type without an entry cannot be, since all
    /// have one.
    pub(super) fn resolve(&mut self) {
        for (at, id, boundless) in std::mem::take(&mut self.open) {
            let place = self.places.get(to_usize(id.0.into())).copied();
            let place = if boundless { self.boundless.get(&id).copied().or(place) } else { place };
            put(&mut self.bytes, to_usize(at.into()), &place.unwrap_or(0).to_le_bytes());
        }
    }

    /// `.debug_info`, `.debug_abbrev` and what was remembered.
    pub(super) fn finish(mut self) -> (Vec<u8>, Vec<u8>, Marks) {
        self.resolve();
        self.table.push(0);
        (self.bytes, self.table, self.marks.unwrap_or_default())
    }
}

/// Appends a number without a sign in LEB128 (DWARF 4, section 7.6).
pub(super) fn uleb(out: &mut Vec<u8>, value: u64) {
    let mut rest = value;
    loop {
        let [low, ..] = (rest & 0x7f).to_le_bytes();
        rest >>= 7;
        if rest == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Appends a number with a sign in LEB128.
pub(super) fn sleb(out: &mut Vec<u8>, value: i64) {
    let mut rest = value;
    loop {
        let [low, ..] = (rest & 0x7f).to_le_bytes();
        rest >>= 7;
        let sign = low & 0x40 != 0;
        if (rest == 0 && !sign) || (rest == -1 && sign) {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}
