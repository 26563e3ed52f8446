//! Types of every kind, and what is refused.

use super::*;
use crate::testing::{Btf, Encoding, MadeUp, types, with_kernel};
use base::fields::put;

/// All kinds, behind the types of the made-up kernel.
fn every_kind() -> Btf {
    let mut btf = types();
    let int = 1;
    let [red, green, value] = ["red", "green", "value"].map(|name| btf.string(name));
    btf.add(6, "color", 2, 4, &[red, 0, green, 7]);
    btf.add(6, "signed_color", 1 << 31 | 1, 4, &[red, u32::MAX]);
    btf.add(19, "wide", 2, 8, &[red, u32::MAX, u32::MAX, green, 1, 1]);
    btf.add(7, "hidden", 1 << 31, 0, &[]);
    let alias = btf.add(8, "u32", 0, int, &[]);
    let volatile = btf.add(9, "", 0, alias, &[]);
    let constant = btf.add(10, "", 0, volatile, &[]);
    btf.add(11, "", 0, constant, &[]);
    btf.add(5, "either", 2, 4, &[value, constant, 0, red, int, 0]);
    let inner = btf.add(4, "", 1 << 31 | 2, 4, &[red, int, 3 << 24, green, int, 29 << 24 | 3]);
    btf.add(4, "outer", 2, 8, &[value, int, 0, 0, inner, 32]);
    btf.add(16, "double", 0, 8, &[]);
    btf.add(17, "a_tag", 0, int, &[u32::MAX]);
    let tag = btf.add(18, "user", 0, int, &[]);
    btf.add(2, "", 0, tag, &[]);
    btf
}

#[test]
fn every_kind_is_read() {
    let types = Types::parse(&every_kind().blob()).unwrap();
    let kinds: std::collections::BTreeSet<u32> =
        types.ids().filter_map(|id| types.get(id)).map(|found| found.kind.number()).collect();
    assert_eq!(kinds, (1..=19).collect());
    assert_eq!(types.size_of("task_struct"), Some(48));
    assert_eq!(types.offset("task_struct", "tasks.prev"), Some(16));
    assert_eq!(types.offset("task_struct", "tasks.nothing"), None);
    assert_eq!(types.offset("outer", "red"), Some(4), "a member of a member without a name");
    assert_eq!(types.offset("outer", "green"), None, "a bit field within a byte");
    let named = |space, name| types.get(types.named(space, name).unwrap()).unwrap();
    let values = |name| named(Space::Enum, name).enumerators().map(|(_, value)| value).collect::<Vec<_>>();
    assert_eq!(values("color"), [0, 7]);
    assert_eq!(values("signed_color"), [-1]);
    assert_eq!(values("wide"), [u64::MAX.into(), (1 << 32) + 1]);
    let either = types.named(Space::Union, "either").unwrap();
    assert_eq!((types.size(either), types.named(Space::Struct, "either")), (Some(4), None));
    let u32 = types.named(Space::Plain, "u32").unwrap();
    assert_eq!(types.name(types.strip(u32)), "int");
    let bits: Vec<(u32, u8)> = types
        .ids()
        .filter_map(|id| types.get(id))
        .filter(|found| found.kind == Kind::Struct && found.name == 0)
        .flat_map(|found| found.members())
        .map(|member| (member.bit, member.bits))
        .collect();
    assert_eq!(bits, [(0, 3), (3, 29)]);
    let section =
        types.ids().filter_map(|id| types.get(id)).find(|found| found.kind == Kind::Section).unwrap();
    let (id, offset, len) = section.variables().next().unwrap();
    assert_eq!((types.name(id), offset, len), ("counter", 16, 8));
    assert_eq!(types.get(TypeId::VOID).map(|found| found.kind), None);
}

#[test]
fn types_of_modules_go_on_where_the_kernel_s_end() {
    let kernel = types();
    let mut types = Types::parse(&kernel.blob()).unwrap();
    let len = types.len();
    for (module, size) in [("one", 8), ("two", 16)] {
        let mut split = Btf::split(&kernel);
        let list = split.structure(module, size, &[("value", 3, 0)]);
        split.add(8, &format!("{module}_t"), 0, list, &[]);
        types.add_split(&split.blob()).unwrap();
    }
    types.index();
    assert_eq!(types.len(), len + 4);
    for (module, size) in [("one", 8), ("two", 16)] {
        assert_eq!(types.size_of(module), Some(size));
        let alias = types.named(Space::Plain, &format!("{module}_t")).unwrap();
        assert_eq!(types.name(types.strip(alias)), module);
        let (_, of) = types.member(alias, "value").unwrap();
        assert_eq!(types.name(of), "long unsigned int", "a type of the kernel");
    }
    assert_eq!(types.kernel_ids().count() + 1, usize::try_from(len).unwrap());
}

#[test]
fn names_of_modules_are_sorted_into_those_of_the_kernel() {
    let mut kernel = Btf::default();
    let int = kernel.int("int", 4, 1);
    for name in ["b", "d", "common_prefix_2"] {
        kernel.structure(name, 4, &[("x", int, 0)]);
    }
    let mut types = Types::parse(&kernel.blob()).unwrap();
    let kernel_end = types.len();
    let mut module = Btf::split(&kernel);
    for name in ["a", "common_prefix_1", "d", "common_prefix_3", "e"] {
        module.structure(name, 8, &[("x", int, 0)]);
    }
    module.add(8, "b", 0, int, &[]);
    types.add_split(&module.blob()).unwrap();
    types.index();
    let is_kernel_s = |space, name| types.named(space, name).map(|id| (types.name(id), id.0 < kernel_end));
    for name in ["b", "d", "common_prefix_2"] {
        assert_eq!(is_kernel_s(Space::Struct, name), Some((name, true)));
    }
    for name in ["a", "common_prefix_1", "common_prefix_3", "e"] {
        assert_eq!(is_kernel_s(Space::Struct, name), Some((name, false)));
    }
    assert_eq!(is_kernel_s(Space::Plain, "b"), Some(("b", false)));
    assert_eq!(is_kernel_s(Space::Struct, "common_prefix"), None);
    assert_eq!(is_kernel_s(Space::Union, "d"), None);
    let all = types.by_name.clone();
    types.index();
    assert_eq!(types.by_name, all, "nothing is new");
}

#[test]
fn of_a_damaged_module_nothing_is_added() {
    let kernel = types();
    let mut types = Types::parse(&kernel.blob()).unwrap();
    let before = (types.len(), types.memory_use());
    let mut split = Btf::split(&kernel);
    split.structure("good", 8, &[("value", 3, 0)]);
    split.add(8, "bad", 0, 1000, &[]);
    let error = types.add_split(&split.blob()).unwrap_err();
    assert_eq!((types.len(), types.memory_use()), before);
    assert!(error.to_string().contains("a reference to type 0x3e8"), "{error}");
}

/// Why a blob with another type, of an `int` (1), a `char` (2) and what `change` adds, is refused.
fn refused(change: impl FnOnce(&mut Btf)) -> String {
    let mut btf = types();
    change(&mut btf);
    Types::parse(&btf.blob()).unwrap_err().to_string()
}

#[test]
fn types_that_lead_back_to_themselves_are_refused() {
    let next = types().add(8, "x", 0, 0, &[]);
    let name = |btf: &mut Btf| btf.string("member");
    let cycles: [&dyn Fn(&mut Btf); 7] = [
        &|btf| _ = btf.add(8, "itself", 0, next, &[]),
        &|btf| _ = btf.add(2, "", 0, next, &[]),
        &|btf| _ = (btf.add(10, "", 0, next + 1, &[]), btf.add(9, "", 0, next, &[])),
        &|btf| _ = btf.add(3, "", 0, 0, &[next, 1, 1]),
        &|btf| {
            let name = name(btf);
            btf.add(4, "itself", 1, 8, &[name, next, 0]);
        },
        &|btf| {
            let name = name(btf);
            btf.add(5, "around", 1, 8, &[name, next + 1, 0]);
            btf.add(3, "", 0, 0, &[next, 1, 1]);
        },
        &|btf| {
            let name = name(btf);
            btf.add(13, "", 1, 0, &[name, next + 1]);
            btf.add(2, "", 0, next, &[]);
        },
    ];
    for cycle in cycles {
        let error = refused(cycle);
        assert!(error.contains("a way back to itself"), "{error}");
    }
    // By a structure is how lists are.
    Types::parse(&types().blob()).unwrap();
    let error = refused(|btf| {
        for number in 0..40 {
            btf.add(2, "", 0, next + number - 1, &[]);
        }
    });
    assert!(error.contains("a wrong reference") || error.contains("too many types in it"), "{error}");
}

#[test]
fn members_that_cannot_lie_where_they_do_are_refused() {
    let structure = |size, members: &[(&str, u32, u32)]| {
        let mut btf = types();
        btf.structure("odd", size, members);
        Types::parse(&btf.blob()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(structure(8, &[("a", 1, 0), ("b", 1, 32)]), Ok(()));
    assert_eq!(structure(4096, &[("a", 1, 0)]), Ok(()), "aligned to a page");
    for (size, members, reason) in [
        (4, &[("a", 1, 0), ("b", 1, 32)][..], "a member at bit 0x20"),
        (8, &[("a", 1, 0), ("b", 1, 16)], "a member at bit 0x10"),
        (8, &[("a", 1, 32), ("b", 1, 0)], "a member at bit 0x0"),
        (8, &[("a", 1, 4)], "a member at bit 0x4"),
        (80, &[("a", 1, 0), ("b", 1, 0x120)], "a member at bit 0x120"),
        (1 << 20 | 8, &[("a", 1, 0)], "the size 0x100008"),
        (1 << 30, &[("a", 1, 0)], "the size 0x40000000"),
        (8, &[("a", 0, 0)], "a wrong reference to type 0x0"),
    ] {
        let error = structure(size, members).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    let error = refused(|btf| {
        let name = btf.string("field");
        btf.add(4, "odd", 1 << 31 | 1, 4, &[name, 1, 33 << 24]);
    });
    assert!(error.contains("a bit field of bits 0x21"), "{error}");
}

#[test]
fn sizes_and_references_that_no_type_has_are_refused() {
    for size in [0, 3, 5, 32, 256] {
        assert!(refused(|btf| _ = btf.int("odd", size, 0)).contains("the size"));
        assert!(refused(|btf| _ = btf.add(16, "odd", 0, size.max(3) | 1, &[])).contains("the size"));
    }
    assert!(refused(|btf| _ = btf.add(1, "odd", 0, 4, &[31])).contains("the bits"));
    let [function, variable] = [types().next() - 3, types().next() - 2];
    for id in [function, variable] {
        for change in [
            &(|btf: &mut Btf| _ = btf.add(2, "", 0, id, &[])) as &dyn Fn(&mut Btf),
            &|btf| _ = btf.add(8, "odd", 0, id, &[]),
            &|btf| _ = btf.add(3, "", 0, 0, &[id, 1, 1]),
            &|btf| _ = btf.structure("odd", 8, &[("a", id, 0)]),
            &|btf| _ = btf.add(14, "odd", 0, id, &[1]),
            &|btf| _ = btf.add(13, "", 0, id, &[]),
        ] {
            let error = refused(change);
            assert!(error.contains("a wrong reference to type"), "{error}");
        }
    }
    assert!(
        refused(|btf| _ = btf.add(12, "odd", 1, 1, &[])).contains("a wrong reference"),
        "not a prototype"
    );
    assert!(refused(|btf| _ = btf.add(15, ".odd", 1, 8, &[1, 0, 8])).contains("a wrong reference"));
    let error = refused(|btf| _ = btf.add(3, "", 0, 0, &[3, 1, u32::MAX]));
    assert!(error.contains("the number of elements"), "{error}");
    let error = refused(|btf| _ = btf.add(8, "", 0, 1, &[]));
    assert!(error.contains("no name"), "{error}");
    let error = refused(|btf| _ = btf.add(2, "named", 0, 1, &[]));
    assert!(error.contains("a name"), "{error}");
    for unknown in [0, 20, 31] {
        assert!(refused(|btf| _ = btf.add(unknown, "odd", 0, 1, &[])).contains("the kind"));
    }
    assert!(
        refused(|btf| _ = btf.add(1, "odd", 1 << 16, 4, &[32])).contains("the kind"),
        "a bit of no meaning"
    );
}

#[test]
fn names_that_a_terminal_acts_upon_are_refused() {
    for name in ["\u{1b}[2J", "a\nb", "\u{9b}31m", "\u{202e}abc", "\u{7f}", &"x".repeat(513)] {
        let error = refused(|btf| _ = btf.add(8, name, 0, 1, &[]));
        assert!(error.contains("the length of a name"), "{name:?}: {error}");
    }
    let mut blob = types().blob();
    let last = blob.len() - 2;
    put(&mut blob, last, &[0xff]);
    assert!(Types::parse(&blob).is_err(), "not UTF-8");
    put(&mut blob, last, b"xx");
    assert!(Types::parse(&blob).unwrap_err().to_string().contains("the last byte of its strings"));
}

#[test]
fn headers_that_make_no_sense_are_refused() {
    let blob = types().blob();
    for (at, value, what) in [
        (0, 0x9feb_u32, "the magic number"),
        (0, 0x0002_eb9f, "the version"),
        (4, 23, "the size of its header"),
        (4, u32::MAX, "the size of its types"),
        (12, u32::MAX, "the size of its types"),
        (20, u32::MAX, "the size of its strings"),
        (16, 1, "the place of its strings"),
    ] {
        let mut blob = blob.clone();
        put(&mut blob, at, &value.to_le_bytes());
        let error = Types::parse(&blob).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    for len in 0..blob.len() {
        assert!(Types::parse(&blob[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn any_bit_may_be_wrong() {
    let blob = every_kind().blob();
    for bit in 0..blob.len() * 8 {
        let mut blob = blob.clone();
        blob[bit / 8] ^= 1 << (bit % 8);
        let Ok(types) = Types::parse(&blob) else { continue };
        for id in types.ids() {
            let found = types.get(id).unwrap();
            for member in found.members() {
                let len = types.size(member.of).unwrap();
                assert!(
                    u64::from(member.bit / 8) + if member.bits == 0 { len } else { 0 } <= found.size().into()
                );
            }
            assert!(types.strip(id) <= id || types.get(types.strip(id)).is_some());
        }
    }
}

#[test]
fn a_search_for_a_member_in_a_thicket_ends() {
    let mut btf = Btf::default();
    let int = btf.int("int", 4, 1);
    let name = btf.string("value");
    let mut of = btf.add(5, "", 1, 4, &[name, int, 0]);
    for _ in 0..28 {
        of = btf.add(5, "", 3, 4, &[0, of, 0, 0, of, 0, 0, of, 0]);
    }
    btf.add(5, "thicket", 1, 4, &[0, of, 0]);
    let types = Types::parse(&btf.blob()).unwrap();
    let thicket = types.named(Space::Union, "thicket").unwrap();
    assert_eq!(types.member(thicket, "value"), Some((0, TypeId(int))));
    assert_eq!(types.member(thicket, "nothing"), None, "3^28 ways lead to it");
}

#[test]
fn types_that_vmcoreinfo_has_otherwise_are_refused() {
    for (key, ours) in
        [("SIZE(list_head)", "16"), ("OFFSET(list_head.prev)", "8"), ("OFFSET(task_struct.comm)", "24")]
    {
        let mut made = MadeUp::new(Encoding::Relative, true, &types().blob(), 4);
        made.info = format!("{}{key}=12\n", made.info);
        let error =
            with_kernel(&made.info, &made.bytes, |kernel| crate::model::Model::read(kernel).unwrap_err());
        let error = base::log::chain(&error);
        assert!(error.contains(&format!("has {ours} for {key}, VMCOREINFO 12")), "{error}");
    }
    let mut made = MadeUp::new(Encoding::Relative, true, &types().blob(), 4);
    made.info
        .push_str("SIZE(nothing)=1\nOFFSET(list_head.nothing)=1\nSIZE(list_head.prev)=x\nOFFSET(odd)=3\n");
    with_kernel(&made.info, &made.bytes, |kernel| crate::model::Model::read(kernel).map(|_| ())).unwrap();
}
