//! Types out of a blob that anybody may have written, all that is asked of them, and the files that
//! are made of a kernel that has them.
//!
//! Input: a length, a declaration of that many bytes; another length, the types of a module of that
//! many bytes; the types of the kernel.

use crate::{take, take_u16};
use symbols::btf::{Kind, Space, TypeId, Types};
use symbols::declaration::Declarations;
use symbols::testing::{Btf, Encoding, MadeUp, types};

use super::symbols::read;

/// Bits of the largest type that is believed.
const MAX_BITS: u64 = 64 << 23;

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let mut input = data;
    let text_len = usize::from(take_u16(&mut input));
    let text = take(&mut input, text_len);
    let split_len = usize::from(take_u16(&mut input));
    let split = take(&mut input, split_len);
    let Ok(mut types) = Types::parse(input) else { return };
    check_types(&types);
    let before = (types.len(), types.memory_use(), types.strings().to_vec());
    if types.add_split(split).is_ok() {
        check_types(&types);
    } else {
        assert_eq!(before, (types.len(), types.memory_use(), types.strings().to_vec()), "nothing is added");
    }
    let mut declarations = Declarations::new(&mut types);
    if let Ok((name, of)) = declarations.declare(&String::from_utf8_lossy(text)) {
        assert!(!name.is_empty());
        let _ = declarations.types().size(of);
    }
    let made = MadeUp::new(Encoding::Relative, true, input, 4);
    read(made.info.as_bytes(), &made.bytes);
}

fn check_types(types: &Types) {
    let text = std::str::from_utf8(types.strings()).expect("names are text");
    assert!(text.split('\0').all(|name| !name.contains(base::text::is_unsafe)), "a terminal shows them");
    for id in types.ids() {
        let found = types.get(id).expect("each number has a type");
        assert!(!types.get(types.strip(id)).is_some_and(|found| is_alias(found.kind)), "names end");
        match found.kind {
            Kind::Struct | Kind::Union => {
                let bits = u64::from(found.size()) * 8;
                assert!(bits <= MAX_BITS);
                for member in found.members() {
                    let len = match member.bits {
                        0 => types.size(member.of).expect("members have a size") * 8,
                        bits => bits.into(),
                    };
                    assert!(u64::from(member.bit) + len <= bits, "{member:?} of {id:?}");
                    // A path of several names looks the same as a name with a dot; of two members of one
                    // name the first is found.
                    let name = types.string(member.name);
                    let first = found.members().find(|other| types.string(other.name) == name);
                    let is_found = !name.contains('.') && first == Some(member) && member.bit % 8 == 0;
                    assert!(name.is_empty() || !is_found || types.member(id, name).is_some());
                }
            }
            Kind::Array => assert!(types.size(id).is_some_and(|size| size <= u32::MAX.into())),
            Kind::Pointer => assert_eq!(types.size(id), Some(8)),
            _ => {
                let all =
                    (found.enumerators().count(), found.parameters().count(), found.variables().count());
                assert!(all.0 + all.1 + all.2 <= 0xffff);
            }
        }
    }
    for space in [Space::Plain, Space::Struct, Space::Union, Space::Enum] {
        for id in types.kernel_ids() {
            let name = types.name(id);
            if let Some(named) = types.named(space, name) {
                assert_eq!(types.name(named), name);
            }
        }
    }
    assert_eq!(types.get(TypeId(types.len())).map(|found| found.kind), None);
}

fn is_alias(kind: Kind) -> bool {
    matches!(kind, Kind::Typedef | Kind::Const | Kind::Volatile | Kind::Restrict | Kind::TypeTag)
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let seed = |text: &str, split: &[u8], blob: &[u8]| {
        let len = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_le_bytes();
        [&len(text.as_bytes())[..], text.as_bytes(), &len(split), split, blob].concat()
    };
    let kernel = types();
    let mut module = Btf::split(&kernel);
    module.structure("of_module", 8, &[("first", 1, 0), ("second", 1, 32)]);
    let (blob, split) = (kernel.blob(), module.blob());
    let mut types = Types::parse(&blob).expect("the fuzzer starts from types that can be read");
    types.add_split(&split).expect("the same of a module");
    let texts = [
        "struct task_struct *one",
        "int (*two[3][#state])(struct list_head *, const char *const, ...)",
        "static const struct { next; prev; } three[N]",
        "unsigned long long *(*volatile *four)(void)",
        "((((((((((((((((((((",
    ];
    let mut seeds: Vec<Vec<u8>> = texts.into_iter().map(|text| seed(text, &split, &blob)).collect();
    seeds.push(seed("", &[], &every_kind().blob()));
    seeds
}

/// Types of all kinds.
fn every_kind() -> Btf {
    let mut btf = types();
    let int = 1;
    let name = btf.string("value");
    let names = [btf.string("red"), btf.string("green")];
    let [red, green] = names;
    btf.add(6, "color", 2, 4, &[red, 0, green, 7]);
    btf.add(19, "wide", 1 << 31 | 2, 8, &[red, u32::MAX, u32::MAX, green, 1, 1]);
    let forward = btf.add(7, "hidden", 1 << 31, 0, &[]);
    btf.add(2, "", 0, forward, &[]);
    let alias = btf.add(8, "u32", 0, int, &[]);
    let volatile = btf.add(9, "", 0, alias, &[]);
    let constant = btf.add(10, "", 0, volatile, &[]);
    btf.add(11, "", 0, constant, &[]);
    btf.add(5, "either", 2, 4, &[name, constant, 0, red, int, 0]);
    btf.add(4, "", 1 << 31 | 2, 4, &[red, int, 3 << 24, green, int, 29 << 24 | 3]);
    btf.add(16, "double", 0, 8, &[]);
    btf.add(17, "a_tag", 0, int, &[u32::MAX]);
    btf.add(18, "user", 0, int, &[]);
    btf
}
