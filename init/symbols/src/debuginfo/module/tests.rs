//! The file of a made-up module, read back.

use base::addr::VirtAddr;
use goblin::elf::Elf;

use super::super::checks::Orc;
use super::super::dies;
use super::super::tests::{named, section};
use super::*;
use crate::kallsyms::{self, Builder};
use crate::orc::{Layout, Tables};
use crate::testing::{Btf, Encoding, MadeUp, types, with_kernel};

/// Where the module lies.
const CODE: u64 = 0xffff_ffff_c000_0000;
const DATA: u64 = CODE + 0x2000;

/// The kernel's types and those of the module, and the numbers of these.
fn all_types() -> (Types, Range<u32>) {
    let kernel = types();
    let mut module = Btf::split(&kernel);
    let mut types = Types::parse(&kernel.blob()).unwrap();
    let named = |name| types.named(crate::btf::Space::Struct, name).unwrap().0;
    let (list, task) = (named("list_head"), named("task_struct"));
    let int = types.named(crate::btf::Space::Plain, "int").unwrap().0;
    let pointer = module.add(2, "", 0, task, &[]);
    let own = module.structure("own", 24, &[("list", list, 0), ("task", pointer, 128)]);
    let to_own = module.add(2, "", 0, own, &[]);
    let parameter = module.string("what");
    let prototype = module.add(13, "", 1, int, &[parameter, to_own]);
    for name in ["own_function", "twice", "cold_function"] {
        module.add(12, name, 0, prototype, &[]);
    }
    let first = types.len();
    types.add_split(&module.blob()).unwrap();
    let end = types.len();
    (types, first..end)
}

fn module() -> Module {
    let mut symbols = Builder::with_capacity(8);
    for (address, kind, name) in [
        (CODE, b't', "helper"),
        (CODE + 0x40, b'T', "own_function"),
        (CODE + 0x100, b't', "twice"),
        (CODE + 0x180, b't', "twice"),
        (CODE + 0x1000, b't', "cold_function"),
        (DATA + 8, b't', "a_variable"),
        (5, b't', "a_number"),
    ] {
        symbols.push(VirtAddr(address), kind, name.as_bytes());
    }
    let (name, text) = ("made_up".to_owned(), (CODE, CODE + 0x2000));
    Module::made_up(name, text, symbols.finish())
}

fn all_parts() -> Vec<Part> {
    let all = [
        (".text", CODE, 0x1000),
        (".empty", CODE + 0x1000, 0),
        (".text.unlikely", CODE + 0x1000, 0x80),
        (".data", DATA, 0x100),
    ];
    all.map(|(name, address, len)| Part { name: name.to_owned(), address, len }).into()
}

/// Stacks of 8 bytes, of 16 behind the first instruction of `own_function`; in `cold_function` again 8.
fn orc() -> Orc {
    let at = CODE + 0x8000;
    let rows = [(CODE, 8_u16), (CODE + 0x41, 16), (CODE + 0x1000, 8)];
    let places = (0_u64..).map(|index| at + 4 * index);
    let distance = |(place, (address, _)): (u64, (u64, u16))| {
        i32::try_from(address.wrapping_sub(place).cast_signed()).unwrap().to_le_bytes()
    };
    let ip: Vec<u8> = places.zip(rows).flat_map(distance).collect();
    let entries: Vec<u8> =
        rows.iter().flat_map(|(_, sp)| [*sp, 0, 5].map(u16::to_le_bytes)).flatten().collect();
    let tables = Tables {
        ip: (VirtAddr(at), VirtAddr(at + 12)),
        entries: (VirtAddr(at), VirtAddr(at + 18)),
        header: None,
        layout: Some(Layout::TwoBits),
    };
    Orc { tables, ip, entries }
}

fn made() -> (Vec<u8>, ModuleReport) {
    let kernel = MadeUp::new(Encoding::Relative, true, &types().blob(), 3);
    with_kernel(&kernel.info, &kernel.bytes, |kernel| {
        let symbols = kallsyms::read(kernel).unwrap();
        let image = Image::new(kernel, &symbols);
        let (mut types, ids) = all_types();
        let (module, parts, orc) = (module(), all_parts(), orc());
        let source = Source { module: &module, parts: &parts, types: ids, orc: Some(&orc) };
        write(&image, &mut types, &source).unwrap()
    })
}

#[test]
fn sections_and_symbols_are_those_of_the_module() {
    let (file, report) = made();
    assert!(file == made().0, "the same module, the same bytes");
    let elf = Elf::parse(&file).unwrap();
    assert_eq!((elf.header.e_type, elf.header.e_machine), (goblin::elf::header::ET_REL, 0x3e));
    assert!(elf.program_headers.is_empty());
    let sections: Vec<(&str, u32, u64)> = elf
        .section_headers
        .iter()
        .skip(1)
        .take(4)
        .map(|section| (elf.shdr_strtab.get_at(section.sh_name).unwrap(), section.sh_type, section.sh_size))
        .collect();
    let expected = [(".text", 8, 0x1000), (".empty", 8, 0), (".text.unlikely", 8, 0x80), (".data", 8, 0x100)];
    assert_eq!(sections, expected);
    let symbol = |name: &str| {
        let found = elf.syms.iter().find(|symbol| elf.strtab.get_at(symbol.st_name) == Some(name)).unwrap();
        (found.st_shndx, found.st_value, found.st_size, found.st_info)
    };
    assert_eq!(symbol("own_function"), (1, 0x40, 0xc0, 0x12));
    assert_eq!(symbol("cold_function"), (3, 0, 0x80, 0x02), "up to the end of its section");
    assert_eq!(symbol("a_variable"), (4, 8, 0xf8, 0x01));
    assert_eq!(symbol("a_number").0, usize::from(ABSOLUTE));
    let table = elf.section_headers.iter().find(|section| section.sh_type == 2).unwrap();
    let first_global = elf.syms.iter().position(|symbol| symbol.st_info >> 4 == 1).unwrap();
    let info = usize::try_from(table.sh_info).unwrap();
    assert!(info <= first_global && elf.syms.iter().skip(info).all(|symbol| symbol.st_info >> 4 == 1));
    assert_eq!((report.name.as_str(), report.symbols, report.functions), ("made_up", 7, 2));
}

#[test]
fn types_of_the_module_are_whole_and_those_behind_pointers_are_names() {
    let (file, report) = made();
    let (entries, name) = named(&file);
    let find = |tag: u8, wanted: &str| {
        let all: Vec<_> = entries.values().filter(|entry| entry.0 == tag && name(entry) == wanted).collect();
        assert_eq!(all.len(), 1, "{wanted}");
        all[0]
    };
    let is_declaration = |name| find(tag::STRUCTURE, name).1.contains_key(&dies::at::DECLARATION);
    assert_eq!(["own", "list_head", "task_struct"].map(is_declaration), [false, false, true]);
    for entry in entries.values() {
        assert!(entry.1.get(&dies::at::TYPE).is_none_or(|of| entries.contains_key(of)), "{entry:?}");
    }
    // A name that gdb would take for a type is no file's.
    let units: Vec<String> = entries.values().filter(|entry| entry.0 == tag::UNIT).map(&name).collect();
    assert_eq!(units, ["made_up.ko"; 3], "types, functions of two sections");
    let parameters = entries.values().filter(|entry| entry.0 == tag::PARAMETER && name(entry) == "what");
    assert_eq!(parameters.count(), 3, "of the prototype and two functions");
    let elf = Elf::parse(&file).unwrap();
    let strings = section(&file, &elf, ".debug_str");
    assert!(!strings.windows(5).any(|text| text == b"do_it"), "only what is used");
    assert_eq!(report.types, 7);
}

#[test]
fn addresses_are_relocated_by_the_section_that_they_are_in() {
    let (file, report) = made();
    let elf = Elf::parse(&file).unwrap();
    let relocations = |name: &str| -> Vec<(u64, u64, u64)> {
        let words = section(&file, &elf, name).chunks_exact(8).map(|word| Fields(word).u64(0).unwrap());
        let words: Vec<u64> = words.collect();
        words.chunks_exact(3).map(|row| (row[0], row[1], row[2])).collect()
    };
    let (entries, name) = named(&file);
    let own = |wanted: &str| {
        let mut all = entries.values().filter(|entry| entry.0 == tag::FUNCTION);
        all.find(|entry| name(entry) == wanted).unwrap().1[&dies::at::LOW_PC]
    };
    assert_eq!((own("own_function"), own("cold_function")), (0, 0), "what is relocated is zero");
    let text = |within: u64| (1 << 32 | 1, within);
    let cold = |within: u64| (3 << 32 | 1, within);
    let of_info: Vec<_> =
        relocations(".rela.debug_info").into_iter().map(|(_, symbol, within)| (symbol, within)).collect();
    // Each section has a unit: its lowest address, and that of its function.
    assert_eq!(of_info, [text(0x40), text(0x40), cold(0), cold(0)]);
    let of_ranges: Vec<_> =
        relocations(".rela.debug_aranges").into_iter().map(|(at, symbol, _)| (at, symbol >> 32)).collect();
    assert_eq!(of_ranges, [(16, 1), (64, 3)]);
    let frames = section(&file, &elf, ".debug_frame");
    let of_frames = relocations(".rela.debug_frame");
    assert_eq!(u64::try_from(of_frames.len()).unwrap(), report.frames);
    let (first, _, within) = of_frames[0];
    assert_eq!(within, 0);
    let first = usize::try_from(first).unwrap();
    assert_eq!(Fields(frames).u64(first + 8), Some(0x40), "bytes of `helper`");
    // `own_function`: 8 bytes of stack, then 16 from the second byte on.
    let (at, symbol, _) =
        *of_frames.iter().find(|(_, symbol, within)| (*symbol, *within) == text(0x40)).unwrap();
    let at = usize::try_from(at).unwrap() + 16;
    assert_eq!((symbol >> 32, &frames[at..at + 3]), (1, &[0x0c, 7, 8][..]));
    assert!(
        frames[at..at + 12].windows(4).any(|bytes| bytes == [0x41, 0x0c, 7, 16]),
        "{:x?}",
        &frames[at..at + 12]
    );
}

#[test]
fn a_module_of_which_little_is_known_has_a_file_all_the_same() {
    let kernel = MadeUp::new(Encoding::Relative, true, &types().blob(), 3);
    let (file, report) = with_kernel(&kernel.info, &kernel.bytes, |kernel| {
        let symbols = kallsyms::read(kernel).unwrap();
        let image = Image::new(kernel, &symbols);
        let (mut types, _) = all_types();
        let module = Module { symbols: kallsyms::SymbolTable::default(), ..module() };
        let parts = all_parts();
        write(&image, &mut types, &Source { module: &module, parts: &parts[..1], types: 0..0, orc: None })
            .unwrap()
    });
    let elf = Elf::parse(&file).unwrap();
    assert_eq!((report.symbols, report.types, report.functions, report.frames), (0, 0, 0, 0));
    assert!(section(&file, &elf, ".debug_frame").is_empty());
}

#[test]
fn notes_end_where_they_end() {
    let note = [&b"\x04\0\0\0\x05\0\0\0\x03\0\0\0GNU\0"[..], &[7, 7, 7, 7, 7, 0, 0, 0]].concat();
    let padded = [&note[..], &[0; 40]].concat();
    assert_eq!(without_padding(padded), note);
    assert_eq!(without_padding([note.clone(), note.clone()].concat()).len(), 48);
    assert!(without_padding(vec![0xff; 64]).is_empty());
    assert!(without_padding(note[..20].to_vec()).is_empty());
}

#[test]
fn any_symbol_part_and_table_may_be_anything() {
    let mut seed = 5_u64;
    let mut random = move |end: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 16) % end
    };
    let kernel = MadeUp::new(Encoding::Relative, true, &types().blob(), 3);
    with_kernel(&kernel.info, &kernel.bytes, |kernel| {
        let symbols = kallsyms::read(kernel).unwrap();
        let image = Image::new(kernel, &symbols);
        for case in 0..300 {
            let mut place = |base: u64| match random(8) {
                0 => random(u64::MAX),
                1 => u64::MAX - random(16),
                _ => base.wrapping_add(random(0x3000)),
            };
            let mut builder = Builder::with_capacity(8);
            for name in ["own_function", "cold_function", "twice", "other", "own_function.cold"] {
                builder.push(VirtAddr(place(CODE)), b't', name.as_bytes());
            }
            let text = (place(CODE), place(CODE));
            let module = Module { symbols: builder.finish(), text, ..module() };
            let mut starts = [0; 4].map(|_| place(CODE));
            starts.sort_unstable();
            let ends = starts.iter().skip(1).chain([&u64::MAX]);
            let mut parts = all_parts();
            for ((part, start), end) in parts.iter_mut().zip(starts).zip(ends) {
                (part.address, part.len) = (start, (end - start).min(0x1000));
            }
            let mut orc = orc();
            for bytes in [&mut orc.ip, &mut orc.entries] {
                let at = usize::try_from(place(0)).unwrap() % bytes.len();
                bytes[at] = u8::try_from(place(0) & 0xff).unwrap();
            }
            let (mut types, ids) = all_types();
            let source = Source { module: &module, parts: &parts, types: ids, orc: Some(&orc) };
            let (file, report) = write(&image, &mut types, &source).unwrap();
            let elf = Elf::parse(&file).unwrap();
            assert_eq!(elf.syms.len(), 1 + parts.len() + report.symbols, "case {case}");
            let (entries, _) = named(&file);
            for entry in entries.values() {
                let of = entry.1.get(&dies::at::TYPE);
                assert!(of.is_none_or(|of| entries.contains_key(of)), "case {case}: {entry:?}");
            }
        }
    });
}
