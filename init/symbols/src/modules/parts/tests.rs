//! Sections of a made-up module, in both ways in which kernels have them.

use base::fields::put;

use super::*;
use crate::kallsyms::SymbolTable;
use crate::testing::{Btf, START, with_kernel};

/// Where things lie in the image.
const MODULE: u64 = START;
const ATTRIBUTES: usize = 0x100;
const NAMES: usize = 0x800;
const END: usize = 0x2000;
/// Where the module's memory lies.
const CODE: u64 = 0xffff_ffff_c000_0000;
const DATA: u64 = CODE + 0x4000;

/// Names and addresses; the last two are not in the module's memory any more.
const SECTIONS: [(&str, u64); 6] = [
    (".data", DATA + 0x40),
    (".text", CODE),
    (".exit.text", CODE + 0x180),
    (".note", CODE + 0x180),
    (".init.text", CODE + 0x10_0000),
    (".init.data", 0),
];

/// The image with these words, and the names of sections; the place of a name by its number.
fn image(words: &[(usize, u64)]) -> Vec<u8> {
    let mut image = vec![0; END];
    for (at, word) in words {
        put(&mut image, *at, &word.to_le_bytes());
    }
    for (number, (name, _)) in SECTIONS.iter().enumerate() {
        put(&mut image, NAMES + 32 * number, name.as_bytes());
    }
    image
}

fn name(number: usize) -> u64 {
    START + u64::try_from(NAMES + 32 * number).unwrap()
}

/// An array of attributes with their number (up to 6.13), one memory (up to 6.3).
fn old(count: u64) -> (Types, Vec<u8>) {
    let mut btf = Btf::default();
    let long = btf.int("long unsigned int", 8, 0);
    let int = btf.int("unsigned int", 4, 0);
    let attribute = btf.structure("attribute", 16, &[("name", long, 0), ("mode", int, 64)]);
    let binary = btf.structure("bin_attribute", 24, &[("attr", attribute, 0), ("size", long, 128)]);
    let section = btf.structure("module_sect_attr", 32, &[("battr", binary, 0), ("address", long, 192)]);
    let row = btf.add(3, "", 0, 0, &[section, int, 0]);
    btf.structure("module_sect_attrs", 8, &[("nsections", int, 0), ("attrs", row, 64)]);
    let layout = btf.structure("module_layout", 16, &[("base", long, 0), ("size", int, 64)]);
    btf.structure("module", 24, &[("sect_attrs", long, 0), ("core_layout", layout, 64)]);
    let mut words = vec![(0, START + 0x100), (8, CODE), (16, 0x5000), (ATTRIBUTES, count)];
    for (number, (_, address)) in SECTIONS.iter().enumerate() {
        let at = ATTRIBUTES + 8 + 32 * number;
        words.extend([(at, name(number)), (at + 24, *address)]);
    }
    (Types::parse(&btf.blob()).unwrap(), image(&words))
}

/// A list of pointers (from 6.14 on), memories by kind (from 6.4 on). Without an end the list goes on where
/// nothing can be read.
fn new(has_end: bool) -> (Types, Vec<u8>) {
    let mut btf = Btf::default();
    let long = btf.int("long unsigned int", 8, 0);
    let int = btf.int("unsigned int", 4, 0);
    let attribute = btf.structure("attribute", 16, &[("name", long, 0), ("mode", int, 64)]);
    btf.structure("bin_attribute", 24, &[("attr", attribute, 0), ("private", long, 128)]);
    let group = btf.structure("attribute_group", 8, &[("bin_attrs", long, 0)]);
    btf.structure("module_sect_attrs", 8, &[("grp", group, 0)]);
    let memory = btf.structure("module_memory", 16, &[("base", long, 0), ("size", int, 64)]);
    let row = btf.add(3, "", 0, 0, &[memory, int, 3]);
    btf.structure("module", 56, &[("sect_attrs", long, 0), ("mem", row, 64)]);
    // Code, data, and what was thrown away.
    let mut words = vec![(0, START + 0x100), (8, CODE), (16, 0x1000), (24, DATA), (32, 0x1000)];
    let list = if has_end { 0x200 } else { END - 8 * SECTIONS.len() };
    words.push((ATTRIBUTES, START + u64::try_from(list).unwrap()));
    for (number, (_, address)) in SECTIONS.iter().enumerate() {
        let entry = 0x400 + 24 * number;
        words.push((list + 8 * number, START + u64::try_from(entry).unwrap()));
        words.extend([(entry, name(number)), (entry + 16, *address)]);
    }
    (Types::parse(&btf.blob()).unwrap(), image(&words))
}

fn found((types, image): &(Types, Vec<u8>)) -> Vec<Part> {
    let text = (CODE, CODE + 0x1000);
    let module = Module {
        address: VirtAddr(MODULE),
        ..Module::made_up("made_up".to_owned(), text, SymbolTable::default())
    };
    with_kernel("", image, |kernel| parts(kernel, types, &module))
}

#[test]
fn sections_are_found_with_their_lengths() {
    // Up to the next one, or to the end of the memory.
    let expected = |end_of_code: u64| {
        [
            (".text", CODE, 0x180),
            (".exit.text", CODE + 0x180, 0),
            (".note", CODE + 0x180, end_of_code - 0x180),
            (".data", DATA + 0x40, 0xfc0),
        ]
        .map(|(name, address, len)| Part { name: name.to_owned(), address, len })
    };
    assert_eq!(found(&old(6)), expected(0x4040));
    assert_eq!(found(&new(true)), expected(0x1000));
}

#[test]
fn what_is_not_known_is_left_out() {
    assert_eq!(found(&old(0)), []);
    assert_eq!(found(&old(1)).len(), 1);
    // More than there are: what lies behind has no name.
    assert_eq!(found(&old(u64::from(u32::MAX))).len(), 4);
    // A list without an end is not believed.
    assert_eq!(found(&new(false)), []);
    // Without memory nothing lies in it.
    let (types, mut image) = old(6);
    put(&mut image, 16, &[0; 4]);
    assert_eq!(found(&(types, image)), []);
    // Neither structure is there.
    let (_, image) = old(6);
    assert_eq!(found(&(Types::parse(&Btf::default().blob()).unwrap(), image)), []);
}

#[test]
fn any_word_may_be_anything() {
    let mut seed = 11_u64;
    let mut random = |end: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % end
    };
    for case in 0..200 {
        let (types, mut image) = if case % 2 == 0 { old(6) } else { new(true) };
        for _ in 0..=random(4) {
            let at = random(0x500) & !7;
            let value = match random(4) {
                0 => START + u64::try_from(random(END)).unwrap(),
                1 => CODE + u64::try_from(random(0x5000)).unwrap(),
                2 => u64::MAX >> random(64),
                _ => u64::try_from(random(64)).unwrap(),
            };
            put(&mut image, at, &value.to_le_bytes());
        }
        let parts = found(&(types, image));
        let follow = |pair: &[Part]| {
            pair[0].address.checked_add(pair[0].len).is_some_and(|end| end <= pair[1].address)
        };
        assert!(parts.windows(2).all(follow), "case {case}: {parts:x?}");
    }
}
