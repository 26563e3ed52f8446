//! Symbols and types in volatility3's form (ISF 6.2.0, volatility3's `schema-6.2.0.json`), for the
//! kernel in a dump.
//!
//! Typedefs and qualifiers are followed, since the form has none. Structures without a name are
//! called `unnamed_` and their number. Of several types of one name the kernel's own is written: the
//! form has one space of names, and a module's structure of the same name is another one.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use vmcore::kernel::Kernel;

use crate::btf::{Kind, Member, Type, TypeId, Types};
use crate::debuginfo::DebuginfoError;
use crate::globals::Variable;
use crate::image::Image;
use crate::model::Model;

/// Arrays and pointers inside each other that are written.
const MAX_DEPTH: u32 = 16;
/// Bytes of `linux_banner`.
const MAX_BANNER: u64 = 1024;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Symbols.
    pub symbols: usize,
    /// Structures and unions.
    pub structures: usize,
}

/// Writes the symbols of the kernel in a dump.
pub fn write(kernel: &Kernel<'_>, out: &mut dyn Write) -> Result<Written, DebuginfoError> {
    let model = Model::read(kernel)?;
    let image = Image::new(kernel, &model.symbols);
    let isf = Isf::new(&model, &image);
    let written = Written { symbols: isf.symbols.len(), structures: isf.structures.len() };
    let mut serializer = serde_json::Serializer::new(out);
    isf.write(&mut serializer).map_err(io::Error::from)?;
    Ok(written)
}

/// All that is written, by name.
struct Isf<'a> {
    types: &'a Types,
    structures: BTreeMap<String, TypeId>,
    enumerations: BTreeMap<String, TypeId>,
    integers: BTreeMap<&'a str, TypeId>,
    /// Link-time address, and type if it is known.
    symbols: BTreeMap<&'a str, (u64, Option<TypeId>)>,
    banner: Vec<u8>,
}

impl<'a> Isf<'a> {
    fn new(model: &'a Model, image: &Image<'_>) -> Self {
        let types = &model.types;
        let (mut structures, mut enumerations, mut integers) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for id in types.ids() {
            let Some(found) = types.get(id) else { continue };
            match found.kind {
                Kind::Struct | Kind::Union => {
                    structures.entry(name(types, id)).or_insert(id);
                }
                Kind::Enum | Kind::Enum64 if found.enumerators().next().is_some() => {
                    enumerations.entry(name(types, id)).or_insert(id);
                }
                Kind::Int | Kind::Float => {
                    integers.entry(types.string(found.name)).or_insert(id);
                }
                _ => {}
            }
        }
        let declared: BTreeMap<&str, &Variable> =
            model.globals.variables.iter().map(|variable| (variable.name.as_str(), variable)).collect();
        let mut symbols = BTreeMap::new();
        for symbol in model.symbols.all() {
            let name = model.symbols.name(symbol);
            let chosen = model.symbols.find(name) == Some(symbol.address);
            if chosen {
                let of =
                    declared.get(name).filter(|typed| typed.address == symbol.address).map(|typed| typed.of);
                symbols.entry(name).or_insert((image.link(symbol.address), of));
            }
        }
        let banner =
            model.symbols.find("linux_banner").map(|at| image.bytes(at.0, at.0.saturating_add(MAX_BANNER)));
        let banner =
            banner.unwrap_or_default().split_inclusive(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        Self { types, structures, enumerations, integers, symbols, banner }
    }

    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(5))?;
        map.serialize_entry(
            "metadata",
            &serde_json::json!({
                "format": "6.2.0",
                "producer": { "name": "afterimage", "version": env!("CARGO_PKG_VERSION") },
                "linux": { "symbols": [], "types": [] },
            }),
        )?;
        map.serialize_entry("base_types", &BaseTypes(self))?;
        map.serialize_entry("user_types", &Structures(self))?;
        map.serialize_entry("enums", &Enumerations(self))?;
        map.serialize_entry("symbols", &Symbols(self))?;
        map.end()
    }
}

/// The name under which a structure, union or enumeration is written.
fn name(types: &Types, id: TypeId) -> String {
    match types.name(id) {
        "" => format!("unnamed_{}", id.0),
        name => name.to_owned(),
    }
}

struct BaseTypes<'a>(&'a Isf<'a>);

impl Serialize for BaseTypes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let base = |size: u32, signed: bool, kind: &str| serde_json::json!({ "size": size, "signed": signed, "kind": kind, "endian": "little" });
        map.serialize_entry("void", &base(0, false, "void"))?;
        map.serialize_entry("pointer", &base(8, false, "int"))?;
        for (name, id) in &self.0.integers {
            let Some(found) = self.0.types.get(*id) else { continue };
            let (signed, character, truth) = found.encoding();
            let (kind, signed) = match (found.kind, *name) {
                (Kind::Float, _) => ("float", true),
                _ if truth => ("bool", false),
                (_, "char" | "signed char") => ("char", true),
                (_, "unsigned char") => ("char", false),
                _ if character => ("char", signed),
                _ => ("int", signed),
            };
            map.serialize_entry(name, &base(found.size(), signed, kind))?;
        }
        map.end()
    }
}

struct Structures<'a>(&'a Isf<'a>);

impl Serialize for Structures<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let types = self.0.types;
        let rows =
            self.0.structures.iter().filter_map(|(name, id)| Some((name, Structure(types, types.get(*id)?))));
        serializer.collect_map(rows)
    }
}

struct Structure<'a>(&'a Types, Type<'a>);

impl Serialize for Structure<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(types, found) = self;
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("kind", if found.kind == Kind::Union { "union" } else { "struct" })?;
        map.serialize_entry("size", &found.size())?;
        map.serialize_entry("fields", &Members(types, *found))?;
        map.end()
    }
}

struct Members<'a>(&'a Types, Type<'a>);

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(types, found) = self;
        let named = |(number, member): (usize, Member)| match types.string(member.name) {
            "" => (format!("unnamed_field_{number}"), AMember(types, member)),
            name => (name.to_owned(), AMember(types, member)),
        };
        serializer.collect_map(found.members().enumerate().map(named))
    }
}

struct AMember<'a>(&'a Types, Member);

impl Serialize for AMember<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(types, member) = self;
        let mut map = serializer.serialize_map(None)?;
        let of = Reference { types, id: member.of, depth: 0 };
        if member.bits == 0 {
            map.serialize_entry("type", &of)?;
            map.serialize_entry("offset", &(member.bit / 8))?;
        } else {
            // Counted from the last place before it where its type may lie.
            let bits = types.size(member.of).unwrap_or(4).saturating_mul(8).max(8);
            let position = u64::from(member.bit).checked_rem(bits).unwrap_or(0);
            let field = BitField { of, position, len: member.bits };
            map.serialize_entry("type", &field)?;
            map.serialize_entry("offset", &(u64::from(member.bit).saturating_sub(position) / 8))?;
        }
        if member.name == 0 {
            map.serialize_entry("anonymous", &true)?;
        }
        map.end()
    }
}

struct BitField<'a> {
    of: Reference<'a>,
    position: u64,
    len: u8,
}

impl Serialize for BitField<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("kind", "bitfield")?;
        map.serialize_entry("bit_position", &self.position)?;
        map.serialize_entry("bit_length", &self.len)?;
        map.serialize_entry("type", &self.of)?;
        map.end()
    }
}

/// A type where it is used.
#[derive(Clone, Copy)]
struct Reference<'a> {
    types: &'a Types,
    id: TypeId,
    depth: u32,
}

impl Reference<'_> {
    /// What this one consists of.
    fn inner(&self, id: TypeId) -> Self {
        Self { types: self.types, id, depth: self.depth.saturating_add(1) }
    }
}

impl Serialize for Reference<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let id = self.types.strip(self.id);
        let found = self.types.get(id).filter(|_| self.depth < MAX_DEPTH);
        let mut map = serializer.serialize_map(None)?;
        let mut named = |kind: &str, name: &str| {
            map.serialize_entry("kind", kind)?;
            map.serialize_entry("name", name)
        };
        match found.map(|found| (found.kind, found)) {
            Some((Kind::Int | Kind::Float, found)) => named("base", self.types.string(found.name))?,
            Some((Kind::Struct, _)) => named("struct", &name(self.types, id))?,
            Some((Kind::Union, _)) => named("union", &name(self.types, id))?,
            Some((Kind::Enum | Kind::Enum64, found)) if found.enumerators().next().is_some() => {
                named("enum", &name(self.types, id))?;
            }
            // A structure that the kernel only declares has no members to look at.
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

impl Serialize for Enumerations<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let types = self.0.types;
        serializer.collect_map(self.0.enumerations.iter().filter_map(|(name, id)| {
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
            let constants: BTreeMap<&str, i128> =
                found.enumerators().map(|(name, value)| (types.string(name), value)).collect();
            Some((name, AnEnumeration { size: found.size(), base, constants }))
        }))
    }
}

#[derive(Serialize)]
struct AnEnumeration<'a> {
    size: u32,
    base: &'static str,
    constants: BTreeMap<&'a str, i128>,
}

struct Symbols<'a>(&'a Isf<'a>);

impl Serialize for Symbols<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let isf = self.0;
        let mut map = serializer.serialize_map(None)?;
        for (name, (address, of)) in &isf.symbols {
            let constant = (*name == "linux_banner").then_some(isf.banner.as_slice());
            let of = of.map(|id| Reference { types: isf.types, id, depth: 0 });
            map.serialize_entry(name, &ASymbol { of, address: *address, constant })?;
        }
        map.end()
    }
}

struct ASymbol<'a> {
    of: Option<Reference<'a>>,
    address: u64,
    constant: Option<&'a [u8]>,
}

impl Serialize for ASymbol<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("address", &self.address)?;
        if let Some(of) = &self.of {
            map.serialize_entry("type", of)?;
        }
        if let Some(bytes) = self.constant {
            let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
            map.serialize_entry("constant_data", &text)?;
        }
        map.end()
    }
}
