//! The debug file of made-up kernels, read back: by goblin as ELF, and its DWARF entry by entry.

use std::collections::BTreeMap;
use std::io::Cursor;

use base::fields::{Fields, put};
use goblin::elf::Elf;

use super::*;
use crate::testing::{Encoding, LINK, MadeUp, OFFSET, types, with_kernel};

fn made(encoding: Encoding) -> MadeUp {
    MadeUp::new(encoding, true, &types().blob(), 20)
}

fn file(made: &MadeUp) -> Result<(Vec<u8>, Report), DebuginfoError> {
    with_kernel(&made.info, &made.bytes, |kernel| {
        let mut out = Cursor::new(Vec::new());
        let report = write(kernel, &mut out)?;
        Ok((out.into_inner(), report))
    })
}

fn link(made: &MadeUp, name: &str) -> u64 {
    let address = made.address(name).unwrap();
    if address < OFFSET { address } else { address - OFFSET }
}

pub(super) fn section<'a>(file: &'a [u8], elf: &Elf<'_>, name: &str) -> &'a [u8] {
    let all = elf.section_headers.iter();
    let found = all.clone().find(|section| elf.shdr_strtab.get_at(section.sh_name) == Some(name)).unwrap();
    &file[found.file_range().unwrap()]
}

/// An attribute's number, or the place of what it refers to or is called.
pub(super) type Entry = (u8, BTreeMap<u8, u64>);

/// A number in LEB128, of which the sign is lost.
fn leb(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}

fn fixed(bytes: &mut &[u8], len: usize) -> u64 {
    let (head, rest) = bytes.split_at(len);
    *bytes = rest;
    head.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// All entries by their place, and by that of the unit's start.
fn entries(info: &[u8], abbrev: &[u8]) -> BTreeMap<u64, Entry> {
    let mut table = BTreeMap::new();
    let mut rest = abbrev;
    loop {
        let code = leb(&mut rest);
        if code == 0 {
            break;
        }
        let tag = rest[0];
        rest = &rest[2..];
        let mut forms = Vec::new();
        loop {
            let pair = (leb(&mut rest), leb(&mut rest));
            if pair == (0, 0) {
                break;
            }
            forms.push(pair);
        }
        table.insert(code, (tag, forms));
    }
    assert!(rest.is_empty());
    let mut all = BTreeMap::new();
    let mut unit = 0;
    while unit < info.len() {
        let end = unit + 4 + usize::try_from(Fields(info).u32(unit).unwrap()).unwrap();
        let mut rest = &info[unit + 11..end];
        while !rest.is_empty() {
            let place = end - rest.len();
            let code = leb(&mut rest);
            if code == 0 {
                continue;
            }
            let (tag, forms) = &table[&code];
            let attributes = forms.iter().map(|&(attribute, form)| {
                let value = match form {
                    0x01 | 0x07 => fixed(&mut rest, 8),
                    0x06 | 0x0e | 0x10 => fixed(&mut rest, 4),
                    0x13 => fixed(&mut rest, 4) + u64::try_from(unit).unwrap(),
                    0x0b => fixed(&mut rest, 1),
                    0x0d | 0x0f => leb(&mut rest),
                    0x18 => {
                        assert_eq!((leb(&mut rest), fixed(&mut rest, 1)), (9, 3));
                        fixed(&mut rest, 8)
                    }
                    0x19 => 1,
                    form => panic!("form {form:#x}"),
                };
                (u8::try_from(attribute).unwrap(), value)
            });
            let attributes = attributes.collect();
            all.insert(u64::try_from(place).unwrap(), (*tag, attributes));
        }
        unit = end;
    }
    all
}

/// The entries of a file, each with its name.
pub(super) fn named(file: &[u8]) -> (BTreeMap<u64, Entry>, impl Fn(&Entry) -> String) {
    let elf = Elf::parse(file).unwrap();
    let strings = section(file, &elf, ".debug_str").to_vec();
    let name = move |entry: &Entry| {
        let at = usize::try_from(entry.1.get(&dies::at::NAME).copied().unwrap_or(0)).unwrap();
        String::from_utf8(strings[at..].split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap()
    };
    (entries(section(file, &elf, ".debug_info"), section(file, &elf, ".debug_abbrev")), name)
}

#[test]
fn the_file_s_sections_and_symbols_are_read_back() {
    for encoding in [Encoding::Absolute, Encoding::Relative, Encoding::PerCpu, Encoding::FromPlace] {
        let made = made(encoding);
        let (file, report) = file(&made).unwrap();
        assert_eq!(report.bytes, u64::try_from(file.len()).unwrap());
        assert_eq!(report.symbols, made.symbols.len());
        assert!(report.missing.is_empty(), "{report:?}");
        let elf = Elf::parse(&file).unwrap();
        let symbols: BTreeMap<&str, u64> = elf
            .syms
            .iter()
            .filter(|symbol| symbol.st_name != 0)
            .map(|symbol| (elf.strtab.get_at(symbol.st_name).unwrap(), symbol.st_value))
            .collect();
        for (_, _, name) in &made.symbols {
            assert_eq!(symbols.get(name.as_str()), Some(&link(&made, name)), "{encoding:?}: {name}");
        }
        let text = &elf.section_headers[1];
        assert_eq!((text.sh_addr, text.sh_size), (LINK, 4096));
        assert!(section(&file, &elf, ".rodata").starts_with(b"Linux version 6.1.0-made-up "));
        assert_eq!(&section(&file, &elf, ".notes")[16..36], [0x5a; 20]);
        assert_eq!(section(&file, &elf, ".orc_unwind_ip").len(), 16);
        let do_it =
            elf.syms.iter().find(|symbol| elf.strtab.get_at(symbol.st_name) == Some("do_it")).unwrap();
        assert_eq!((do_it.st_size, do_it.st_info), (32, 0x12), "a global function");
        let counter =
            elf.syms.iter().find(|symbol| elf.strtab.get_at(symbol.st_name) == Some("counter")).unwrap();
        let home = &elf.section_headers[counter.st_shndx];
        assert_eq!(elf.shdr_strtab.get_at(home.sh_name), Some(".data..percpu"), "{encoding:?}");
        assert_eq!(home.sh_type, 1, "crash knows per-CPU variables in a section with room in the file only");
        for header in &elf.program_headers {
            assert!(header.p_offset + header.p_filesz <= report.bytes);
        }
    }
}

#[test]
fn types_variables_and_functions_are_read_back() {
    let made = made(Encoding::PerCpu);
    let (file, report) = file(&made).unwrap();
    let (entries, name) = named(&file);
    let find = |tag: u8, wanted: &str| {
        let found: Vec<_> =
            entries.iter().filter(|(_, entry)| entry.0 == tag && name(entry) == wanted).collect();
        assert_eq!(found.len(), 1, "{wanted}");
        found[0]
    };
    let (place, task) = find(dies::tag::STRUCTURE, "task_struct");
    assert_eq!(task.1[&dies::at::BYTE_SIZE], 48);
    let members: Vec<(String, u64, String)> = entries
        .range(place + 1..)
        .take_while(|(_, entry)| entry.0 == dies::tag::MEMBER)
        .map(|(_, entry)| {
            let of = &entries[&entry.1[&dies::at::TYPE]];
            (name(entry), entry.1[&dies::at::MEMBER_LOCATION], name(of))
        })
        .collect();
    let members: Vec<(&str, u64, &str)> =
        members.iter().map(|(name, at, of)| (name.as_str(), *at, of.as_str())).collect();
    assert_eq!(
        members,
        [("state", 0, "int"), ("pid", 4, "int"), ("tasks", 8, "list_head"), ("comm", 24, "")]
    );
    for (variable, of) in
        [("init_task", "task_struct"), ("modules", "list_head"), ("counter", "long unsigned int")]
    {
        let (_, found) = find(dies::tag::VARIABLE, variable);
        assert_eq!(found.1[&dies::at::LOCATION], link(&made, variable), "{variable}");
        assert_eq!(name(&entries[&found.1[&dies::at::TYPE]]), of, "{variable}");
    }
    assert_eq!(link(&made, "counter"), 16, "a per-CPU variable is not moved");
    let (place, function) = find(dies::tag::FUNCTION, "do_it");
    assert_eq!((function.1[&dies::at::LOW_PC], function.1[&dies::at::HIGH_PC]), (link(&made, "do_it"), 32));
    let parameters: Vec<String> = entries
        .range(place + 1..)
        .take_while(|(_, entry)| entry.0 == dies::tag::PARAMETER)
        .map(|(_, entry)| name(entry))
        .collect();
    assert_eq!(parameters, ["task", "flags"]);
    // What is referred to is there.
    for entry in entries.values() {
        assert!(entry.1.get(&dies::at::TYPE).is_none_or(|of| entries.contains_key(of)), "{entry:?}");
    }
    assert_eq!((report.functions, report.variables), (1, 4), "the banner, too");
}

#[test]
fn the_same_kernel_gives_the_same_bytes() {
    let made = made(Encoding::Relative);
    let (one, other) = (file(&made).unwrap().0, file(&made).unwrap().0);
    assert!(one == other);
    // What is not read does not show.
    let mut changed = made.clone();
    let at = usize::try_from(made.address("a_byte").unwrap() - crate::testing::START).unwrap();
    changed.bytes[at] ^= 0xff;
    assert!(one == file(&changed).unwrap().0);
}

#[test]
fn frames_are_those_of_orc() {
    let made = made(Encoding::Relative);
    let (file, report) = file(&made).unwrap();
    let elf = Elf::parse(&file).unwrap();
    let frame = section(&file, &elf, ".debug_frame");
    // The common entry, then one of `do_it`: 4 bytes with a stack of 8, then 16.
    let fields = Fields(frame);
    let at = usize::try_from(fields.u32(0).unwrap()).unwrap() + 4;
    let all: Vec<(u64, u64)> =
        std::iter::successors(Some(at), |at| Some(at + 4 + usize::try_from(fields.u32(*at)?).unwrap()))
            .map_while(|at| Some((fields.u64(at + 8)?, fields.u64(at + 16)?)))
            .collect();
    assert!(all.contains(&(link(&made, "do_it"), 32)), "{all:x?}");
    assert_eq!(report.frames, u64::try_from(all.len()).unwrap());
}

/// What is said to be missing if these bytes are at a part of the image.
fn missing(part: &str, offset: usize, bytes: &[u8]) -> Vec<String> {
    let mut made = made(Encoding::Relative);
    let at = made.place(part) + offset;
    put(&mut made.bytes, at, bytes);
    let (file, report) = file(&made).unwrap();
    assert!(Elf::parse(&file).is_ok());
    report.missing
}

#[test]
fn orc_tables_out_of_order_are_left_out_and_said() {
    for (offset, bytes) in [(4, [0xff; 4]), (0, [0x80; 4]), (12, [0x7f; 4])] {
        let missing = missing("orc", offset, &bytes);
        assert!(missing.len() == 1 && missing[0].contains("not in order"), "{missing:?}");
    }
}

#[test]
fn a_build_id_that_vmcoreinfo_does_not_have_is_said() {
    let mut made = made(Encoding::Relative);
    made.info = made.info.replace("5a5a", "5b5a");
    let (_, report) = file(&made).unwrap();
    assert!(report.missing.len() == 1 && report.missing[0].contains("build id"), "{:?}", report.missing);
}

#[test]
fn parts_that_overlap_are_refused() {
    let mut made = made(Encoding::Absolute);
    let number = made.symbols.iter().position(|(_, _, name)| name == "_etext").unwrap();
    // The code ends where data begins; the symbols stay in order.
    let data = made.address("__end_rodata").unwrap();
    for number in number..made.symbols.len() {
        let (address, _, _) = made.symbols[number];
        let at = made.place("addresses") + 8 * number;
        put(&mut made.bytes, at, &address.max(data).to_le_bytes());
    }
    let error = file(&made).unwrap_err();
    assert!(
        matches!(
            error,
            DebuginfoError::Overlap { .. } | DebuginfoError::Symbols(_) | DebuginfoError::Types(_)
        ),
        "{error:?}"
    );
}

#[test]
fn a_kernel_without_variables_is_refused() {
    let mut made = made(Encoding::Relative);
    let renamed = |made: &mut MadeUp, name: &[u8], new: &[u8]| {
        let at = made.bytes.windows(name.len()).position(|bytes| bytes == name).unwrap();
        put(&mut made.bytes, at, new);
    };
    renamed(&mut made, b"Dinit_task", b"Dinit_tusk");
    assert!(matches!(file(&made).unwrap_err(), DebuginfoError::NoInitTask), "it has other variables");
    // As without CONFIG_KALLSYMS_ALL: nothing but functions.
    made.symbols
        .iter_mut()
        .filter(|symbol| symbol.2 == "init_task")
        .for_each(|symbol| symbol.2 = "init_tusk".into());
    for (_, kind, name) in made.symbols.clone() {
        if "dDbB".contains(kind) {
            renamed(&mut made, format!("{kind}{name}").as_bytes(), format!("t{name}").as_bytes());
        }
    }
    assert!(matches!(file(&made).unwrap_err(), DebuginfoError::NoVariables));
}

#[test]
fn a_variable_that_does_not_fit_has_no_type() {
    // `modules` is in the table as a list of 16 bytes; here the next symbol is 8 bytes behind it.
    let mut made = made(Encoding::Absolute);
    let number = made.symbols.iter().position(|(_, _, name)| name == "a_byte").unwrap();
    let at = made.place("addresses") + 8 * number;
    let address = made.address("modules").unwrap() + 8;
    put(&mut made.bytes, at, &address.to_le_bytes());
    let (file, report) = file(&made).unwrap();
    let (entries, name) = named(&file);
    let variables: Vec<String> =
        entries.values().filter(|entry| entry.0 == dies::tag::VARIABLE).map(name).collect();
    assert!(!variables.contains(&"modules".to_owned()), "{variables:?}");
    assert!(report.unresolved.contains(&"modules".to_owned()), "{:?}", report.unresolved);
}

/// Damages images and VMCOREINFO; AFTERIMAGE_CASES=N how often.
#[test]
fn any_part_of_the_image_may_be_anything() {
    let cases = std::env::var("AFTERIMAGE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let mut seed = 7_u64;
    let mut random = |end: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % end
    };
    let all = [Encoding::Absolute, Encoding::Relative, Encoding::PerCpu, Encoding::FromPlace].map(made);
    let mut made_files = 0;
    for number in 0..cases {
        let mut made = all[number % 4].clone();
        for _ in 0..=random(4) {
            // What is behind the code is read; half of the damage is in the types.
            let (start, end) = match random(2) {
                0 => (made.place("btf"), made.place("orc")),
                _ => (4096, made.bytes.len()),
            };
            let at = start + random(end - start - 8);
            match random(4) {
                0 => made.bytes[at] ^= 1 << random(8),
                1 => made.bytes[at] = u8::try_from(random(256)).unwrap(),
                2 => put(&mut made.bytes, at & !3, &u32::try_from(random(1 << 31)).unwrap().to_le_bytes()),
                _ => put(&mut made.bytes, at & !7, &(u64::MAX >> random(64)).to_le_bytes()),
            }
        }
        if random(8) == 0 {
            let at = random(made.info.len());
            made.info.replace_range(at..=at, ["0", "f", "\n", "="][random(4)]);
        }
        let Ok((one, _)) = file(&made) else { continue };
        made_files += 1;
        assert!(one == file(&made).unwrap().0, "case {number}");
        let elf = Elf::parse(&one).unwrap();
        let info = section(&one, &elf, ".debug_info");
        let entries = entries(info, section(&one, &elf, ".debug_abbrev"));
        for entry in entries.values() {
            let of = entry.1.get(&dies::at::TYPE);
            assert!(of.is_none_or(|of| entries.contains_key(of)), "case {number}: {entry:?}");
        }
        let mut json = Vec::new();
        with_kernel(&made.info, &made.bytes, |kernel| crate::isf::write(kernel, &mut json)).unwrap();
        let json = String::from_utf8(json).unwrap();
        assert!(!json.contains(base::text::is_unsafe), "case {number}");
    }
    assert!(made_files > cases / 50, "{made_files} of {cases} make a file");
    eprintln!("{made_files} of {cases} make a file");
}
