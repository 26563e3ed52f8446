//! DWARF of types, variables and functions.
//!
//! One unit holds all types and variables and has no addresses; functions are in units of 128, by
//! address. A reader that looks for the function of an address then reads a few entries, not all:
//! with one unit for all, drgn's stack traces take ten times as long.

use super::dies::{Attributes, Dies, Value, at, tag};
use crate::btf::{Kind, Space, Type, TypeId, Types};
use crate::globals::Variable;
use crate::image::Image;

/// Functions in a unit.
pub(super) const FUNCTIONS: usize = 128;
/// A typedef or qualifier of a type tag, and arrays of arrays, that are followed.
const MAX_DEPTH: u32 = 32;
/// `DW_LANG_C99`
const C99: u8 = 0x0c;
const PRODUCER: &str = "afterimage: made of the BTF and kallsyms in a dump";

/// The sections that [`write()`] makes.
#[derive(Debug)]
pub(super) struct Sections {
    pub(super) info: Vec<u8>,
    pub(super) abbrev: Vec<u8>,
    pub(super) aranges: Vec<u8>,
    /// Functions that have an entry.
    pub(super) functions: usize,
}

/// A function with its type.
pub(super) struct Function {
    pub(super) address: u64,
    pub(super) len: u64,
    pub(super) name: u32,
    pub(super) is_global: bool,
    pub(super) prototype: Option<TypeId>,
}

/// Writes all of it. Strings are added to those of `types`, which become `.debug_str`.
pub(super) fn write(types: &mut Types, variables: &[Variable], image: &Image<'_>) -> Sections {
    let names = Names::add(types, variables, "vmlinux");
    let functions = functions(types, image);
    let types = &*types;
    let mut dies = Dies::default();
    let start = dies.begin_unit(false);
    dies.entry(tag::UNIT, true, &names.unit());
    for id in types.ids() {
        entry(&mut dies, types, id, &names);
    }
    for (variable, name) in variables.iter().zip(&names.variables) {
        describe(&mut dies, types, variable, *name, image);
    }
    if let Some(hertz) = image.hertz(types) {
        let five = i64::from(hertz).saturating_mul(5);
        let int = Value::Type(names.int);
        dies.entry(
            tag::VARIABLE,
            false,
            &[
                (at::NAME, Value::String(names.expire)),
                (at::TYPE, int),
                (at::CONST_VALUE, Value::Signed(five)),
            ],
        );
    }
    end_types(&mut dies, types, start, &names);
    let mut aranges = Vec::new();
    for unit in functions.chunks(FUNCTIONS) {
        let start = dies.begin_unit(true);
        if let Some((low, len)) = write_functions(&mut dies, types, unit, &names) {
            range(&mut aranges, start, low, len);
        }
        dies.end_unit(start);
    }
    let (info, abbrev, _) = dies.finish();
    Sections { info, abbrev, aranges, functions: functions.len() }
}

/// Ends the unit of types that begins at `start`: behind all others are arrays without a number of elements.
pub(super) fn end_types(dies: &mut Dies, types: &Types, start: u32, names: &Names) {
    for id in dies.wanted() {
        let Some((element, _)) = types.get(id).and_then(|found| found.elements()) else { continue };
        dies.place_boundless(id);
        dies.entry(tag::ARRAY, true, &[(at::TYPE, Value::Type(plain(types, element)))]);
        dies.entry(tag::SUBRANGE, false, &[(at::TYPE, Value::Type(names.index))]);
        dies.end_children();
    }
    dies.end_unit(start);
    dies.resolve();
}

/// Strings and types that entries need beside those of BTF.
pub(super) struct Names {
    producer: u32,
    unit: u32,
    directory: u32,
    /// crash reads the frequency of the clock from a constant of this name: five seconds in ticks.
    expire: u32,
    variables: Vec<u32>,
    int: TypeId,
    /// What arrays are indexed by.
    index: TypeId,
    /// What enumerations of a size and sign are made of.
    enumerations: Vec<((u32, bool), TypeId)>,
}

impl Names {
    pub(super) fn add(types: &mut Types, variables: &[Variable], unit: &str) -> Self {
        let integers = [
            ("unsigned int", 4, false),
            ("int", 4, true),
            ("unsigned char", 1, false),
            ("signed char", 1, true),
            ("short unsigned int", 2, false),
            ("short int", 2, true),
            ("long unsigned int", 8, false),
            ("long int", 8, true),
        ];
        let enumerations: Vec<((u32, bool), TypeId)> = integers
            .into_iter()
            .map(|(name, size, signed)| {
                let id =
                    types.named(Space::Plain, name).unwrap_or_else(|| types.add_integer(name, size, signed));
                ((u32::from(size), signed), id)
            })
            .collect();
        let of =
            |key| enumerations.iter().find(|(found, _)| *found == key).map_or(TypeId::VOID, |(_, id)| *id);
        Self {
            producer: types.add_string(PRODUCER),
            unit: types.add_string(unit),
            directory: types.add_string("/"),
            expire: types.add_string("write_expire"),
            variables: variables.iter().map(|variable| types.add_string(&variable.name)).collect(),
            int: of((4, true)),
            index: of((8, false)),
            enumerations,
        }
    }

    pub(super) fn unit(&self) -> [(u8, Value); 4] {
        [
            (at::PRODUCER, Value::String(self.producer)),
            (at::LANGUAGE, Value::U8(C99)),
            (at::NAME, Value::String(self.unit)),
            (at::COMP_DIR, Value::String(self.directory)),
        ]
    }

    /// The types that entries need.
    pub(super) fn types(&self) -> impl Iterator<Item = TypeId> {
        self.enumerations.iter().map(|(_, id)| *id)
    }

    fn enumeration(&self, size: u32, signed: bool) -> TypeId {
        let found = self.enumerations.iter().find(|(key, _)| *key == (size, signed));
        found.map_or(self.int, |(_, id)| *id)
    }
}

/// The type without type tags, which C does not have.
fn plain(types: &Types, id: TypeId) -> TypeId {
    let mut id = id;
    for _ in 0..MAX_DEPTH {
        match types.get(id) {
            Some(found) if found.kind == Kind::TypeTag => id = found.target(),
            _ => return id,
        }
    }
    TypeId::VOID
}

/// The attribute that names a type; none for `void`.
fn of(types: &Types, id: TypeId) -> Option<(u8, Value)> {
    let id = plain(types, id);
    (id != TypeId::VOID).then_some((at::TYPE, Value::Type(id)))
}

/// The attribute for a name, if there is one.
fn name(offset: u32) -> Option<(u8, Value)> {
    (offset != 0).then_some((at::NAME, Value::String(offset)))
}

/// Writes the entry of a structure or union that says only that there is one.
pub(super) fn declaration(dies: &mut Dies, types: &Types, id: TypeId) {
    let Some(found) = types.get(id) else { return };
    dies.place(id);
    let tag = if found.kind == Kind::Union { tag::UNION } else { tag::STRUCTURE };
    dies.entry(tag, false, &Attributes::new([name(found.name), Some((at::DECLARATION, Value::Flag))]));
}

/// Writes the entry of a type.
pub(super) fn entry(dies: &mut Dies, types: &Types, id: TypeId, names: &Names) {
    let Some(found) = types.get(id) else { return };
    let is_type = !matches!(
        found.kind,
        Kind::Function | Kind::Variable | Kind::Section | Kind::DeclarationTag | Kind::TypeTag
    );
    if !is_type {
        return;
    }
    dies.place(id);
    let mut attributes = Attributes::new([name(found.name)]);
    match found.kind {
        Kind::Int | Kind::Float => base(dies, types, found),
        Kind::Pointer => {
            attributes.add(Some((at::BYTE_SIZE, Value::U8(8))));
            attributes.add(of(types, found.target()));
            dies.entry(tag::POINTER, false, &attributes);
        }
        Kind::Array => array(dies, types, found, names),
        Kind::Struct | Kind::Union => structure(dies, types, found),
        Kind::Enum | Kind::Enum64 => enumeration(dies, found, names),
        Kind::Forward => {
            let tag = if found.flag { tag::UNION } else { tag::STRUCTURE };
            attributes.add(Some((at::DECLARATION, Value::Flag)));
            dies.entry(tag, false, &attributes);
        }
        Kind::Prototype => {
            attributes.add(Some((at::PROTOTYPED, Value::Flag)));
            attributes.add(of(types, found.target()));
            dies.entry(tag::PROTOTYPE, found.parameters().next().is_some(), &attributes);
            parameters(dies, types, found);
        }
        _ => {
            let tag = match found.kind {
                Kind::Const => tag::CONST,
                Kind::Volatile => tag::VOLATILE,
                Kind::Restrict => tag::RESTRICT,
                _ => tag::TYPEDEF,
            };
            attributes.add(of(types, found.target()));
            dies.entry(tag, false, &attributes);
        }
    }
}

/// An integer or floating-point number. The signs of characters are those of GCC on x86: BTF leaves
/// them out.
fn base(dies: &mut Dies, types: &Types, found: Type<'_>) {
    let (signed, character, truth) = found.encoding();
    // DW_ATE_*
    let encoding = match (found.kind, types.string(found.name)) {
        (Kind::Float, _) => 4,
        _ if truth => 2,
        (_, "char" | "signed char") => 6,
        (_, "unsigned char") => 8,
        _ if character => {
            if signed {
                6
            } else {
                8
            }
        }
        _ if signed => 5,
        _ => 7,
    };
    let [size, ..] = found.size().to_le_bytes();
    let attributes = [
        (at::NAME, Value::String(found.name)),
        (at::BYTE_SIZE, Value::U8(size)),
        (at::ENCODING, Value::U8(encoding)),
    ];
    dies.entry(tag::BASE, false, &attributes);
}

/// An array, with all its dimensions.
fn array(dies: &mut Dies, types: &Types, found: Type<'_>, names: &Names) {
    let mut lengths = Vec::new();
    let mut inner = found;
    let mut element = TypeId::VOID;
    for _ in 0..MAX_DEPTH {
        let Some((next, length)) = inner.elements() else { break };
        lengths.push(length);
        element = plain(types, next);
        match types.get(element) {
            Some(next) if next.kind == Kind::Array => inner = next,
            _ => break,
        }
    }
    dies.entry(tag::ARRAY, true, &Attributes::new([of(types, element)]));
    for length in lengths {
        let attributes = [(at::TYPE, Value::Type(names.index)), (at::COUNT, Value::U32(length))];
        dies.entry(tag::SUBRANGE, false, &attributes);
    }
    dies.end_children();
}

/// Whether a type is an array with no elements: `[0]` and `[]` look the same in BTF.
fn is_boundless(types: &Types, id: TypeId) -> bool {
    types.get(id).and_then(|found| found.elements()).is_some_and(|(_, length)| length == 0)
}

fn structure(dies: &mut Dies, types: &Types, found: Type<'_>) {
    let (tag, is_union) = match found.kind {
        Kind::Union => (tag::UNION, true),
        _ => (tag::STRUCTURE, false),
    };
    let attributes = Attributes::new([name(found.name), Some((at::BYTE_SIZE, Value::U32(found.size())))]);
    let members = found.members().count();
    dies.entry(tag, members > 0, &attributes);
    for (number, member) in (1_usize..).zip(found.members()) {
        let id = plain(types, member.of);
        let at_end = is_union || number == members;
        let mut attributes = Attributes::new([name(member.name)]);
        if at_end && is_boundless(types, id) {
            attributes.add(Some((at::TYPE, Value::Boundless(id))));
        } else {
            attributes.add(of(types, id));
        }
        if member.bits != 0 {
            attributes.add(Some((at::BIT_SIZE, Value::U8(member.bits))));
            attributes.add(Some((at::DATA_BIT_OFFSET, Value::U32(member.bit))));
        } else if !is_union || member.bit != 0 {
            attributes.add(Some((at::MEMBER_LOCATION, Value::U32(member.bit / 8))));
        }
        dies.entry(tag::MEMBER, false, &attributes);
    }
    if members > 0 {
        dies.end_children();
    }
}

fn enumeration(dies: &mut Dies, found: Type<'_>, names: &Names) {
    let mut attributes = Attributes::new([name(found.name)]);
    if found.enumerators().next().is_none() {
        attributes.add(Some((at::DECLARATION, Value::Flag)));
        dies.entry(tag::ENUMERATION, false, &attributes);
        return;
    }
    let [size, ..] = found.size().to_le_bytes();
    attributes.add(Some((at::BYTE_SIZE, Value::U8(size))));
    attributes.add(Some((at::TYPE, Value::Type(names.enumeration(found.size(), found.flag)))));
    dies.entry(tag::ENUMERATION, true, &attributes);
    for (name, value) in found.enumerators() {
        // What has no sign and needs all 64 bits has a form of its own.
        let value = match (i64::try_from(value), u64::try_from(value)) {
            (Ok(value), _) => Value::Signed(value),
            (_, Ok(value)) => Value::Unsigned(value),
            _ => Value::Signed(0),
        };
        dies.entry(tag::ENUMERATOR, false, &[(at::NAME, Value::String(name)), (at::CONST_VALUE, value)]);
    }
    dies.end_children();
}

/// The parameters of a prototype, and the end of them if there are any.
fn parameters(dies: &mut Dies, types: &Types, found: Type<'_>) {
    let mut any = false;
    for (parameter, id) in found.parameters() {
        any = true;
        match of(types, id) {
            Some(of) => {
                let attributes = Attributes::new([name(parameter), Some(of)]);
                dies.entry(tag::PARAMETER, false, &attributes);
            }
            None => dies.entry(tag::ANY_PARAMETERS, false, &[]),
        }
    }
    if any {
        dies.end_children();
    }
}

fn describe(dies: &mut Dies, types: &Types, variable: &Variable, offset: u32, image: &Image<'_>) {
    let id = plain(types, variable.of);
    let Some(of) = of(types, id) else { return };
    let of = if is_boundless(types, id) { (at::TYPE, Value::Boundless(id)) } else { of };
    let mut attributes = vec![(at::NAME, Value::String(offset)), of];
    if variable.is_global {
        attributes.push((at::EXTERNAL, Value::Flag));
    }
    attributes.push((at::LOCATION, Value::At(image.link(variable.address))));
    dies.entry(tag::VARIABLE, false, &attributes);
}

/// The functions that BTF has a type of and whose name is one symbol's, by address. One that readers
/// look up although BTF may not have it (it belongs to memory hotplug) is among them without a type.
fn functions(types: &mut Types, image: &Image<'_>) -> Vec<Function> {
    let bare = ["vmemmap_populate"].map(|name| (types.add_string(name), None));
    let of_btf =
        types.kernel_ids().filter_map(|id| types.get(id)).filter(|found| found.kind == Kind::Function);
    let named = of_btf.map(|found| (found.name, Some(found.target()))).chain(bare);
    let mut functions: Vec<Function> = named
        .filter_map(|(name, prototype)| {
            let symbol = image.only(types.string(name))?;
            image.is_text(symbol.address).then(|| Function {
                address: image.link(symbol.address),
                len: image.function_len(symbol.address),
                name,
                is_global: symbol.is_global(),
                prototype,
            })
        })
        .collect();
    // BTF has some functions twice.
    functions.sort_by_key(|function| (function.address, function.prototype.is_none(), function.name));
    functions.dedup_by_key(|function| function.address);
    functions
}

/// Writes a unit of functions; returns its lowest address and its length.
pub(super) fn write_functions(
    dies: &mut Dies,
    types: &Types,
    unit: &[Function],
    names: &Names,
) -> Option<(u64, u64)> {
    let (first, last) = (unit.first()?, unit.last()?);
    let low = first.address;
    let len = last.address.saturating_add(last.len).saturating_sub(low);
    let mut attributes = names.unit().to_vec();
    attributes.extend([(at::LOW_PC, Value::Address(low)), (at::HIGH_PC, Value::U64(len))]);
    dies.entry(tag::UNIT, true, &attributes);
    for function in unit {
        let prototype = function.prototype.and_then(|id| types.get(id));
        let attributes = Attributes::new([
            Some((at::NAME, Value::String(function.name))),
            prototype.map(|_| (at::PROTOTYPED, Value::Flag)),
            prototype.and_then(|prototype| of(types, prototype.target())),
            function.is_global.then_some((at::EXTERNAL, Value::Flag)),
            Some((at::LOW_PC, Value::Address(function.address))),
            Some((at::HIGH_PC, Value::U64(function.len))),
        ]);
        let has_parameters = prototype.is_some_and(|found| found.parameters().next().is_some());
        dies.entry(tag::FUNCTION, has_parameters, &attributes);
        if let Some(prototype) = prototype {
            parameters(dies, types, prototype);
        }
    }
    Some((low, len))
}

/// Adds the addresses of the unit at `start` to `.debug_aranges` (DWARF 4, section 6.1.2).
pub(super) fn range(aranges: &mut Vec<u8>, start: u32, low: u64, len: u64) {
    aranges.extend(44_u32.to_le_bytes());
    aranges.extend(2_u16.to_le_bytes());
    aranges.extend(start.to_le_bytes());
    aranges.extend([8, 0, 0, 0, 0, 0]);
    for word in [low, len, 0, 0] {
        aranges.extend(word.to_le_bytes());
    }
}
