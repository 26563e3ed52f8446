//! The file: `metadata`, `base_types`, `user_types`, `enums` and `symbols`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::{Isf, Symbol};
use crate::btf::{Kind, Member, Type, TypeId};

/// Arrays and pointers inside each other that are written.
const MAX_DEPTH: u32 = 16;
/// Numbers that volatility3 and enumerations ask for by these names, as gcc calls them: clang's
/// kernels have other names for some. Bytes, and whether they have a sign.
const NUMBERS: [(&str, u8, bool); 11] = [
    ("char", 1, true),
    ("int", 4, true),
    ("long int", 8, true),
    ("long long int", 8, true),
    ("long long unsigned int", 8, false),
    ("long unsigned int", 8, false),
    ("short int", 2, true),
    ("short unsigned int", 2, false),
    ("signed char", 1, true),
    ("unsigned char", 1, false),
    ("unsigned int", 4, false),
];

/// Writes all of it.
pub(super) fn write(isf: &Isf<'_>, out: &mut dyn Write) -> io::Result<()> {
    let file = File {
        metadata: serde_json::json!({
            "format": "6.2.0",
            "producer": { "name": "afterimage", "version": env!("CARGO_PKG_VERSION") },
            "linux": { "symbols": [], "types": [] },
        }),
        base_types: Numbers(isf),
        user_types: Structures(isf),
        enums: Enumerations(isf),
        symbols: Symbols(isf),
    };
    serde_json::to_writer(out, &file).map_err(io::Error::from)
}

#[derive(Serialize)]
struct File<'a> {
    metadata: serde_json::Value,
    base_types: Numbers<'a>,
    user_types: Structures<'a>,
    enums: Enumerations<'a>,
    symbols: Symbols<'a>,
}

struct Numbers<'a>(&'a Isf<'a>);

#[derive(Serialize)]
struct Number {
    size: u32,
    signed: bool,
    kind: &'static str,
    endian: &'static str,
}

impl Number {
    fn new(size: u32, signed: bool, kind: &'static str) -> Self {
        Self { size, signed, kind, endian: "little" }
    }
}

impl Serialize for Numbers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let isf = self.0;
        let mut all: BTreeMap<&str, Number> = BTreeMap::new();
        for (name, size, signed) in NUMBERS {
            all.insert(name, Number::new(size.into(), signed, if size == 1 { "char" } else { "int" }));
        }
        for (name, id) in &isf.names.numbers {
            let Some(found) = isf.types.get(*id) else { continue };
            let (signed, character, truth) = found.encoding();
            let (kind, signed) = match found.kind {
                Kind::Float => ("float", true),
                _ if truth => ("bool", false),
                // The compiler says of `char` that it is a number of one byte.
                _ if character || name.ends_with("char") => ("char", signed),
                _ => ("int", signed),
            };
            all.insert(name, Number::new(found.size(), signed, kind));
        }
        all.insert("void", Number::new(0, false, "void"));
        all.insert("pointer", Number::new(8, false, "int"));
        all.serialize(serializer)
    }
}

struct Structures<'a>(&'a Isf<'a>);

impl Serialize for Structures<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let isf = self.0;
        let rows = isf.names.structures.iter();
        serializer.collect_map(rows.filter_map(|(name, id)| {
            let found = isf.types.get(*id)?;
            let kind = if found.kind == Kind::Union { "union" } else { "struct" };
            Some((name, Structure { kind, size: found.size(), fields: Fields(isf, found) }))
        }))
    }
}

#[derive(Serialize)]
struct Structure<'a> {
    kind: &'static str,
    size: u32,
    fields: Fields<'a>,
}

struct Fields<'a>(&'a Isf<'a>, Type<'a>);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(isf, found) = self;
        let fields = found.members().enumerate().filter_map(|(number, member)| {
            let name = isf.types.string(member.name);
            let field = field(isf, member)?;
            Some(if name.is_empty() {
                (format!("unnamed_field_{number}"), field)
            } else {
                (name.to_owned(), field)
            })
        });
        serializer.collect_map(fields)
    }
}

#[derive(Serialize)]
struct Field<'a> {
    #[serde(rename = "type")]
    of: FieldType<'a>,
    offset: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    anonymous: Option<bool>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum FieldType<'a> {
    Plain(Reference<'a>),
    Bits {
        kind: &'static str,
        bit_position: u32,
        bit_length: u8,
        #[serde(rename = "type")]
        of: Reference<'a>,
    },
}

/// A member, if the form has a place for it.
fn field<'a>(isf: &'a Isf<'a>, member: Member) -> Option<Field<'a>> {
    let id = isf.types.strip(member.of);
    let of = Reference { isf, id, depth: 0 };
    let has_name = !isf.types.string(member.name).is_empty();
    if member.bits > 0 {
        let (byte, position) = bits(member, isf.types.size(id)?)?;
        let is_number = matches!(isf.types.get(id)?.kind, Kind::Int | Kind::Enum | Kind::Enum64) && has_name;
        let of = FieldType::Bits { kind: "bitfield", bit_position: position, bit_length: member.bits, of };
        return is_number.then_some(Field { of, offset: byte, anonymous: None });
    }
    // volatility3 follows members without a name to their ends; types have some (`btf::check`).
    let is_structure =
        || isf.types.get(id).is_some_and(|found| matches!(found.kind, Kind::Struct | Kind::Union));
    let is_written = has_name || is_structure();
    let anonymous = (!has_name).then_some(true);
    is_written.then_some(Field { of: FieldType::Plain(of), offset: member.bit / 8, anonymous })
}

/// From which byte on a bit field is read, and which bit of what is read there is its first one. Its
/// type lies where the compiler puts it; a packed field that goes past the end of it there is read
/// from its first byte on.
fn bits(member: Member, bytes: u64) -> Option<(u32, u32)> {
    let width = u32::try_from(bytes).ok()?.checked_mul(8)?;
    [width, 8].into_iter().find_map(|step| {
        let position = member.bit.checked_rem(step)?;
        let fits = position.checked_add(member.bits.into())? <= width;
        fits.then_some((member.bit.checked_sub(position)? / 8, position))
    })
}

/// A type where it is used.
#[derive(Clone, Copy)]
struct Reference<'a> {
    isf: &'a Isf<'a>,
    id: TypeId,
    depth: u32,
}

impl Reference<'_> {
    /// What this one consists of.
    fn inner(&self, id: TypeId) -> Self {
        Self { isf: self.isf, id, depth: self.depth.saturating_add(1) }
    }
}

impl Serialize for Reference<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Isf { types, names, .. } = self.isf;
        let id = types.strip(self.id);
        let found = types.get(id).filter(|_| self.depth < MAX_DEPTH);
        let mut map = serializer.serialize_map(None)?;
        let mut named = |kind: &str, name: &str| {
            map.serialize_entry("kind", kind)?;
            map.serialize_entry("name", name)
        };
        match found.map(|found| (found.kind, found)) {
            Some((Kind::Int | Kind::Float, _)) => named("base", names.of(types, id))?,
            Some((Kind::Struct, _)) => named("struct", names.of(types, id))?,
            Some((Kind::Union, _)) => named("union", names.of(types, id))?,
            Some((Kind::Enum | Kind::Enum64, _)) => named("enum", names.of(types, id))?,
            Some((Kind::Forward, found)) => match names.defined(types, &found) {
                Some(id) => named(if found.flag { "union" } else { "struct" }, names.of(types, id))?,
                None => named("base", "void")?,
            },
            Some((Kind::Pointer, found)) => {
                map.serialize_entry("kind", "pointer")?;
                map.serialize_entry("subtype", &self.inner(found.target()))?;
            }
            Some((Kind::Array, found)) => {
                let (element, length) = found.elements().unwrap_or_default();
                map.serialize_entry("kind", "array")?;
                map.serialize_entry("count", &length)?;
                map.serialize_entry("subtype", &self.inner(element))?;
            }
            Some((Kind::Prototype, _)) => map.serialize_entry("kind", "function")?,
            _ => named("base", "void")?,
        }
        map.end()
    }
}

struct Enumerations<'a>(&'a Isf<'a>);

#[derive(Serialize)]
struct Enumeration<'a> {
    size: u32,
    base: &'static str,
    constants: BTreeMap<&'a str, i128>,
}

impl Serialize for Enumerations<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Isf { types, names, .. } = self.0;
        serializer.collect_map(names.enumerations.iter().filter_map(|(name, id)| {
            let found = types.get(*id)?;
            let base = match (found.size(), found.flag) {
                (1, false) => "unsigned char",
                (1, true) => "signed char",
                (2, false) => "short unsigned int",
                (2, true) => "short int",
                (8, false) => "long unsigned int",
                (8, true) => "long int",
                (_, false) => "unsigned int",
                (_, true) => "int",
            };
            let constants = found.enumerators().map(|(name, value)| (types.string(name), value)).collect();
            Some((name, Enumeration { size: found.size(), base, constants }))
        }))
    }
}

struct Symbols<'a>(&'a Isf<'a>);

impl Serialize for Symbols<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let isf = self.0;
        serializer.collect_map(
            isf.symbols.iter().map(|(name, symbol)| (name, Entry { isf, name, symbol: *symbol })),
        )
    }
}

struct Entry<'a> {
    isf: &'a Isf<'a>,
    name: &'a str,
    symbol: Symbol,
}

impl Serialize for Entry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { isf, name, symbol } = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("address", &symbol.address)?;
        if let Some(id) = symbol.of {
            map.serialize_entry("type", &Reference { isf, id, depth: 0 })?;
        }
        if *name == "linux_banner" {
            let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &isf.banner);
            map.serialize_entry("constant_data", &text)?;
        }
        map.end()
    }
}
