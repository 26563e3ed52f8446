//! Tests, on small made-up types.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::names::Names;
use super::{Isf, Symbol, json};
use crate::btf::{Kind, TypeId, Types};

const BIT_FIELDS: u32 = 1 << 31;
const SIGNED: u32 = 1 << 24;
const TRUTH: u32 = 4 << 24;

/// Types as a kernel carries them.
#[derive(Default)]
struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Btf {
    /// One with an `int` (1) and an `unsigned int` (2).
    fn new() -> Self {
        let mut btf = Self { strings: vec![0], ..Self::default() };
        assert_eq!((btf.integer("int", 4, SIGNED), btf.integer("unsigned int", 4, 0)), (1, 2));
        btf
    }

    fn name(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        at
    }

    fn add(&mut self, name: &str, kind: Kind, info: u32, word: u32, more: &[u32]) -> u32 {
        let words = [self.name(name), info | (kind as u32) << 24, word];
        for word in words.iter().chain(more) {
            self.types.extend(word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    fn integer(&mut self, name: &str, size: u32, encoding: u32) -> u32 {
        self.add(name, Kind::Int, 0, size, &[encoding | (size * 8)])
    }

    /// A structure or union of members: name, type, bits from the start, bits of a bit field.
    fn aggregate(&mut self, name: &str, kind: Kind, size: u32, members: &[(&str, u32, u32, u32)]) -> u32 {
        let rows = members.iter().flat_map(|(name, of, bit, bits)| [self.name(name), *of, bits << 24 | bit]);
        let rows: Vec<u32> = rows.collect();
        self.add(name, kind, BIT_FIELDS | u32::try_from(members.len()).unwrap(), size, &rows)
    }

    fn types(&self) -> Types {
        let (types, strings) =
            (u32::try_from(self.types.len()).unwrap(), u32::try_from(self.strings.len()).unwrap());
        let mut blob = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, types, types, strings] {
            blob.extend(word.to_le_bytes());
        }
        Types::parse(&[blob.as_slice(), &self.types, &self.strings].concat()).unwrap()
    }

    /// What is written of them and of these symbols.
    fn written(&self, symbols: &[(&str, u64, Option<u32>)]) -> Value {
        let types = self.types();
        let symbols: BTreeMap<&str, Symbol> = symbols
            .iter()
            .map(|(name, address, of)| (*name, Symbol { address: *address, of: of.map(TypeId) }))
            .collect();
        let isf = Isf {
            types: &types,
            names: Names::new(&types),
            symbols,
            banner: b"Linux version 6\n\0".to_vec(),
        };
        let (mut bytes, mut again) = (Vec::new(), Vec::new());
        json::write(&isf, &mut bytes).unwrap();
        json::write(&isf, &mut again).unwrap();
        assert_eq!(bytes, again);
        serde_json::from_slice(&bytes).unwrap()
    }
}

fn int() -> Value {
    json!({"kind": "base", "name": "int"})
}

#[test]
fn the_parts_are_those_of_the_schema() {
    let file = Btf::new().written(&[("linux_banner", 0xffff_ffff_8200_0000, None), ("jiffies", 16, Some(2))]);
    let names: Vec<&String> = file.as_object().unwrap().keys().collect();
    assert_eq!(names, ["base_types", "enums", "metadata", "symbols", "user_types"]);
    assert_eq!(file["metadata"]["format"], "6.2.0");
    let banner = json!({"address": 0xffff_ffff_8200_0000_u64, "constant_data": "TGludXggdmVyc2lvbiA2CgA="});
    assert_eq!(file["symbols"]["linux_banner"], banner);
    assert_eq!(
        file["symbols"]["jiffies"],
        json!({"address": 16, "type": {"kind": "base", "name": "unsigned int"}})
    );
}

#[test]
fn numbers_have_the_names_that_volatility3_asks_for() {
    let mut btf = Btf::new();
    btf.integer("unsigned long", 8, 0);
    btf.integer("_Bool", 1, TRUTH);
    btf.add("double", Kind::Float, 0, 8, &[]);
    let other = btf.integer("int", 8, SIGNED);
    let stolen = btf.integer("pointer", 4, 0);
    let of = |id| Some(id);
    let file = btf.written(&[("other", 0, of(other)), ("stolen", 0, of(stolen))]);
    let number =
        |size, signed, kind| json!({"size": size, "signed": signed, "kind": kind, "endian": "little"});
    for (name, expected) in [
        ("void", number(0, false, "void")),
        ("pointer", number(8, false, "int")),
        ("int", number(4, true, "int")),
        ("int.6", number(8, true, "int")),
        ("unsigned long", number(8, false, "int")),
        ("long unsigned int", number(8, false, "int")),
        ("unsigned char", number(1, false, "char")),
        ("_Bool", number(1, false, "bool")),
        ("double", number(8, true, "float")),
        ("unnamed_7", number(4, false, "int")),
    ] {
        assert_eq!(file["base_types"][name], expected, "{name}");
    }
    assert_eq!(file["symbols"]["other"]["type"]["name"], "int.6");
    assert_eq!(file["symbols"]["stolen"]["type"]["name"], "unnamed_7");
}

#[test]
fn members_lose_their_typedefs_and_qualifiers() {
    let mut btf = Btf::new();
    let constant = btf.add("", Kind::Const, 0, 1, &[]);
    let alias = btf.add("alias_t", Kind::Typedef, 0, constant, &[]);
    let pointer = btf.add("", Kind::Pointer, 0, alias, &[]);
    let array = btf.add("", Kind::Array, 0, 0, &[pointer, 2, 3]);
    let prototype = btf.add("", Kind::Prototype, 0, 1, &[]);
    let call = btf.add("", Kind::Pointer, 0, prototype, &[]);
    let nothing = btf.add("", Kind::Pointer, 0, 0, &[]);
    let members = [("all", array, 0, 0), ("call", call, 192, 0), ("private", nothing, 256, 0)];
    btf.aggregate("thing", Kind::Struct, 40, &members);
    let thing = &btf.written(&[])["user_types"]["thing"];
    let pointer = |to: Value| json!({"kind": "pointer", "subtype": to});
    let all = json!({"kind": "array", "count": 3, "subtype": pointer(int())});
    assert_eq!(
        *thing,
        json!({"kind": "struct", "size": 40, "fields": {
            "all": {"type": all, "offset": 0},
            "call": {"type": pointer(json!({"kind": "function"})), "offset": 24},
            "private": {"type": pointer(json!({"kind": "base", "name": "void"})), "offset": 32},
        }})
    );
}

#[test]
fn members_without_a_name_are_marked_if_volatility3_can_follow_them() {
    let mut btf = Btf::new();
    let inner = btf.aggregate("", Kind::Union, 4, &[("a", 1, 0, 0), ("b", 2, 0, 0)]);
    // A number without a name is padding.
    let members = [("", inner, 0, 0), ("", 1, 32, 0), ("", inner, 64, 0), ("c", 1, 96, 0)];
    btf.aggregate("outer", Kind::Struct, 16, &members);
    let file = btf.written(&[]);
    let union = json!({"kind": "union", "name": format!("unnamed_{inner}")});
    assert_eq!(
        file["user_types"]["outer"]["fields"],
        json!({
            "unnamed_field_0": {"type": union, "offset": 0, "anonymous": true},
            "unnamed_field_2": {"type": union, "offset": 8, "anonymous": true},
            "c": {"type": int(), "offset": 12},
        })
    );
    assert_eq!(file["user_types"][format!("unnamed_{inner}")]["kind"], "union");
}

#[test]
fn bit_fields_lie_in_their_type() {
    let mut btf = Btf::new();
    let (byte, wide) = (btf.integer("unsigned char", 1, 0), btf.integer("long unsigned int", 8, 0));
    let members = [
        ("first", 2, 0, 3),
        ("last", 2, 29, 3),
        ("second", 2, 35, 4),
        ("small", byte, 77, 2),
        // Packed: over the end of an `unsigned int`, and over that of any number.
        ("across", 2, 124, 12),
        ("beyond", wide, 161, 64),
    ];
    btf.aggregate("flags", Kind::Struct, 32, &members);
    let fields = &btf.written(&[])["user_types"]["flags"]["fields"];
    let bits = |name: &str| {
        let field = &fields[name];
        let number = |value: &Value| value.as_u64().unwrap();
        let of = &field["type"];
        assert_eq!(of["kind"], "bitfield");
        (number(&field["offset"]), number(&of["bit_position"]), number(&of["bit_length"]))
    };
    assert_eq!((bits("first"), bits("last"), bits("second")), ((0, 0, 3), (0, 29, 3), (4, 3, 4)));
    assert_eq!((bits("small"), bits("across")), ((9, 5, 2), (15, 4, 12)));
    assert_eq!(fields.get("beyond"), None);
}

#[test]
fn each_type_has_a_name_of_its_own() {
    let mut btf = Btf::new();
    let first = btf.aggregate("file", Kind::Struct, 4, &[("a", 1, 0, 0)]);
    let second = btf.aggregate("file", Kind::Struct, 8, &[("b", 1, 0, 0)]);
    let union = btf.aggregate("file", Kind::Union, 4, &[]);
    let unnamed = btf.aggregate("", Kind::Struct, 8, &[]);
    btf.add("kernel_cap_t", Kind::Typedef, 0, unnamed, &[]);
    let hidden = btf.aggregate("", Kind::Struct, 16, &[]);
    btf.add("file", Kind::Typedef, 0, hidden, &[]);
    let hostile = btf.aggregate("a!b", Kind::Struct, 2, &[]);
    let claimed = btf.aggregate("unnamed_3", Kind::Struct, 1, &[]);
    let (declared, missing) =
        (btf.add("file", Kind::Forward, 0, 0, &[]), btf.add("gone", Kind::Forward, 0, 0, &[]));
    let all = [first, second, union, unnamed, hidden, hostile, claimed, declared, missing];
    let names: Vec<String> = all.iter().map(|id| format!("s{id:02}")).collect();
    let symbols: Vec<_> = names.iter().zip(all).map(|(name, id)| (name.as_str(), 0, Some(id))).collect();
    let file = btf.written(&symbols);
    let seen: Vec<Value> = names.iter().map(|name| file["symbols"][name]["type"].clone()).collect();
    let structure = |name: String| json!({"kind": "struct", "name": name});
    assert_eq!(
        seen,
        [
            structure("file".into()),
            structure(format!("file.{second}")),
            json!({"kind": "union", "name": format!("file.{union}")}),
            structure("kernel_cap_t".into()),
            structure(format!("unnamed_{hidden}")),
            structure(format!("unnamed_{hostile}")),
            structure(format!("unnamed_{claimed}")),
            structure("file".into()),
            json!({"kind": "base", "name": "void"}),
        ]
    );
    let sizes = |name: &str| file["user_types"][name]["size"].as_u64();
    assert_eq!((sizes("file"), sizes(&format!("file.{second}"))), (Some(4), Some(8)));
    assert_eq!(file["user_types"].as_object().unwrap().len(), 7);
}

#[test]
fn enumerations_have_the_number_that_they_are_made_of() {
    let mut btf = Btf::new();
    let (low, high) = (btf.name("LOW"), btf.name("HIGH"));
    btf.add("signs", Kind::Enum, BIT_FIELDS | 2, 4, &[low, u32::MAX, high, 7]);
    btf.add("small", Kind::Enum, 1, 1, &[low, 1]);
    btf.add("wide", Kind::Enum64, 1, 8, &[high, 1, 1 << 31]);
    let pending = btf.add("pending", Kind::Enum, 0, 4, &[]);
    let file = btf.written(&[("pending", 0, Some(pending))]);
    let of = |size, base: &str, constants| json!({"size": size, "base": base, "constants": constants});
    assert_eq!(file["enums"]["signs"], of(4, "int", json!({"LOW": -1, "HIGH": 7})));
    assert_eq!(file["enums"]["small"], of(1, "unsigned char", json!({"LOW": 1})));
    assert_eq!(file["enums"]["wide"], of(8, "long unsigned int", json!({"HIGH": (1_u64 << 63) + 1})));
    // Declared only: it is a number all the same, and volatility3 wants to find the enumeration.
    assert_eq!(file["enums"]["pending"], of(4, "unsigned int", json!({})));
    assert_eq!(file["symbols"]["pending"]["type"], json!({"kind": "enum", "name": "pending"}));
}
