//! Tables of all encodings, healthy and damaged, in made-up kernels.

use std::fmt::Write as _;

use base::addr::VirtAddr;
use base::fields::put;

use super::*;
use crate::testing::{Encoding, MadeUp, START, types, with_kernel};

const ALL: [Encoding; 4] = [Encoding::Absolute, Encoding::Relative, Encoding::PerCpu, Encoding::FromPlace];

fn made(encoding: Encoding) -> MadeUp {
    MadeUp::new(encoding, true, &types().blob(), 600)
}

fn table(made: &MadeUp) -> Result<SymbolTable, KallsymsError> {
    with_kernel(&made.info, &made.bytes, read)
}

/// What a kernel with other bytes at a part of its image is refused for.
fn refused(encoding: Encoding, part: &str, offset: usize, bytes: &[u8]) -> String {
    let mut made = made(encoding);
    let at = made.place(part) + offset;
    assert_ne!(&made.bytes[at..at + bytes.len()], bytes, "it is damage");
    put(&mut made.bytes, at, bytes);
    base::log::chain(&table(&made).unwrap_err())
}

#[test]
fn all_encodings_are_read() {
    for encoding in ALL {
        let made = made(encoding);
        let table = table(&made).unwrap();
        let read: Vec<(u64, char, &str)> = table
            .all()
            .iter()
            .map(|symbol| (symbol.address.0, char::from(symbol.kind), table.name(symbol)))
            .collect();
        let expected: Vec<(u64, char, &str)> =
            made.symbols.iter().map(|(address, kind, name)| (*address, *kind, name.as_str())).collect();
        assert_eq!(read, expected, "{encoding:?}");
        let long = "long_name_".repeat(40);
        assert!(table.find(&long).is_some(), "a length of two bytes");
    }
}

#[test]
fn a_table_that_vmcoreinfo_does_not_name_is_found() {
    let made = MadeUp::new(Encoding::Relative, false, &types().blob(), 1000);
    // Without the name that 5.10 could not have.
    let table = table(&made);
    assert!(table.is_err(), "a length of two bytes is not of a kernel whose table is searched for");
    let made = MadeUp::short(Encoding::Relative, false, &types().blob(), 1000);
    let table = with_kernel(&made.info, &made.bytes, read).unwrap();
    assert_eq!(table.all().len(), made.symbols.len());
    assert_eq!(table.find("init_task").map(|at| at.0), made.address("init_task"));
    let few = MadeUp::short(Encoding::Relative, false, &types().blob(), 10);
    let error = with_kernel(&few.info, &few.bytes, read).unwrap_err();
    assert!(matches!(error, KallsymsError::NotFound), "{error}");
}

#[test]
fn a_search_among_imitations_ends() {
    // Digits of a token table with an index behind them, and the base of names, as often as they fit.
    let made = MadeUp::short(Encoding::Relative, false, &types().blob(), 1000);
    let digits = made.place("tokens") + 2 * 0x30;
    let imitation = made.bytes[digits..made.place("index") + 512].to_vec();
    let mut image = made.bytes[..made.place("addresses")].to_vec();
    for _ in 0..2000 {
        image.extend([&START.to_le_bytes()[..], &2_000_000_u64.to_le_bytes(), &[1; 64]].concat());
    }
    for _ in 0..2000 {
        image.extend(&imitation);
    }
    let error = with_kernel(&made.info, &image, read).unwrap_err();
    assert!(matches!(error, KallsymsError::NotFound), "{error}");
}

#[test]
fn symbols_are_found_by_name_and_by_address() {
    let made = made(Encoding::PerCpu);
    let table = table(&made).unwrap();
    let do_it = VirtAddr(made.address("do_it").unwrap());
    let (symbol, behind) = table.at(VirtAddr(do_it.0 + 5)).unwrap();
    assert_eq!((table.name(symbol), behind, symbol.is_global()), ("do_it", 5, true));
    assert_eq!(table.gap(do_it), Some(32));
    assert_eq!(table.find("no_such_name"), None);
    assert_eq!(table.only("do_it"), Some(do_it));
    assert_eq!(table.at(VirtAddr(u64::MAX)).map(|(symbol, _)| table.name(symbol)), Some("__stop_orc_unwind"));
    assert_eq!(table.gap(VirtAddr(u64::MAX)), None);
    // Of symbols that share an address the first one of the table.
    assert_eq!(table.at(VirtAddr(START)).map(|(symbol, _)| table.name(symbol)), Some("_text"));
    assert_eq!(
        table.at(VirtAddr(20)).map(|(symbol, behind)| (table.name(symbol), behind)),
        Some(("counter", 4))
    );
}

#[test]
fn names_that_several_symbols_have_are_counted_once() {
    let mut builder = Builder::with_capacity(4);
    for (address, kind) in [(8, b't'), (16, b'T'), (24, b't')] {
        builder.push(VirtAddr(address), kind, b"same");
    }
    builder.push(VirtAddr(32), b't', b"samer");
    let table = builder.finish();
    assert_eq!(table.find("same"), Some(VirtAddr(16)), "the global one");
    assert_eq!((table.only("same"), table.only("samer")), (None, Some(VirtAddr(32))));
    assert_eq!(table.all_named("same").count(), 3);
    assert_eq!(table.all_named("sam").count(), 0);
}

#[test]
fn addresses_out_of_order_are_refused() {
    for encoding in ALL {
        let size = if encoding == Encoding::Absolute { 8 } else { 4 };
        let error = refused(encoding, "addresses", 9 * size, &vec![0x11; size]);
        assert!(
            error.contains("below the one before it") || error.contains("VMCOREINFO"),
            "{encoding:?}: {error}"
        );
    }
}

#[test]
fn a_symbol_that_vmcoreinfo_has_elsewhere_is_refused() {
    // The base moves all symbols alike, so they stay in order.
    let base = (START + 0x1000).to_le_bytes();
    let error = refused(Encoding::Relative, "base", 0, &base);
    assert!(error.contains("has _stext at 0xffffffff83001000, VMCOREINFO at 0xffffffff83000000"), "{error}");
    let mut made = made(Encoding::Relative);
    made.info = made.info.replace("SYMBOL(_stext)", "SYMBOL(unknown)");
    let error = base::log::chain(&table(&made).unwrap_err());
    assert!(error.contains("number of known symbols"), "{error}");
}

#[test]
fn a_pointer_that_vmcoreinfo_tells_as_an_array_is_no_contradiction() {
    for (symbol, value, is_refused) in [
        ("mem_section", 0xff11_2233_4455_6000, false), // not in the table
        ("modules", 0xff11_2233_4455_6000, false),
        ("modules", START + 0x1000, true), // an address of the image: not what a pointer is made of
        ("do_it", 0xff11_2233_4455_6000, true), // a function is no pointer
    ] {
        let mut made = made(Encoding::Relative);
        writeln!(made.info, "SYMBOL({symbol})={value:x}").unwrap();
        let error = table(&made).err().map(|error| base::log::chain(&error));
        let is_named = error.as_ref().is_some_and(|error| error.contains(&format!("has {symbol} at")));
        assert_eq!(is_named, is_refused, "{symbol} {value:#x}: {error:?}");
        assert_eq!(error.is_some(), is_refused, "{symbol} {value:#x}: {error:?}");
    }
}

#[test]
fn a_banner_of_another_kernel_is_refused_safely() {
    let mut made = made(Encoding::Relative);
    made.info = made.info.replace("made-up", "made-up\u{1b}[2J");
    let error = base::log::chain(&table(&made).unwrap_err());
    assert!(error.contains("no banner of 6.1.0-made-up\\u{1b}[2J"), "{error}");
    made.info = made
        .info
        .lines()
        .filter(|line| !line.starts_with("OSRELEASE"))
        .fold(String::new(), |all, line| all + line + "\n");
    table(&made).unwrap();
}

#[test]
fn lengths_of_names_that_do_not_fit_to_the_marks_are_refused() {
    // Two names become one, and one becomes two.
    for length in [1, 3, 20] {
        let error = refused(Encoding::Relative, "names", 0, &[length]);
        assert!(error.contains("damaged"), "{error}");
    }
    let error = refused(Encoding::Relative, "marks", 4, &[0xff]);
    assert!(error.contains("marks"), "{error}");
    for length in [0, 0x80] {
        let error = refused(Encoding::Relative, "names", 0, &[length, 0]);
        assert!(error.contains("the length of a name"), "{error}");
    }
}

#[test]
fn tokens_that_are_not_in_a_row_are_refused() {
    for (part, offset, bytes) in
        [("index", 2, [9, 0]), ("index", 510, [3, 0]), ("tokens", 1, [0x1b, b'[']), ("tokens", 0, [b'x', 0])]
    {
        let error = refused(Encoding::Relative, part, offset, &bytes);
        assert!(error.contains("the place of a token"), "{part} {offset}: {error}");
    }
}

#[test]
fn counts_that_no_kernel_has_are_refused() {
    for count in [0, MAX_SYMBOLS + 1, u32::MAX] {
        let error = refused(Encoding::Relative, "count", 0, &count.to_le_bytes());
        assert!(error.contains("the number of symbols"), "{error}");
    }
    // More than there are: the table ends, or is not what it should be.
    refused(Encoding::Relative, "count", 0, &MAX_SYMBOLS.to_le_bytes());
    refused(Encoding::Relative, "count", 0, &[1]);
}

#[test]
fn any_word_of_the_table_may_be_anything() {
    for encoding in ALL {
        let healthy = made(encoding);
        let (start, end) = (healthy.place("addresses"), healthy.bytes.len());
        for step in 0..150_usize {
            let mut made = healthy.clone();
            let at = start + (step * 7919) % (end - start - 8);
            let word = (u64::MAX >> (step % 64)).to_le_bytes();
            put(&mut made.bytes, at, &word);
            let Ok(table) = table(&made) else { continue };
            assert!(table.all().is_sorted_by_key(|symbol| symbol.address));
            assert_eq!(table.find("_stext"), Some(VirtAddr(START)));
        }
    }
}

#[test]
fn without_any_key_nothing_is_found() {
    let made = made(Encoding::Relative);
    for info in
        ["", "SYMBOL(_stext)=ffffffffffffffff\n", "SYMBOL(kallsyms_names)=0\nSYMBOL(kallsyms_num_syms)=0\n"]
    {
        let error = with_kernel(info, &made.bytes, read).unwrap_err();
        assert!(matches!(error, KallsymsError::NotFound), "{error}");
    }
}

#[test]
fn the_index_says_what_the_table_says() {
    for encoding in ALL {
        let made = made(encoding);
        let table = table(&made).unwrap();
        with_kernel(&made.info, &made.bytes, |kernel| {
            let index = index::read(kernel).unwrap();
            for symbol in table.all() {
                let name = table.name(symbol);
                assert_eq!(index.find(name), table.find(name), "{encoding:?} {name}");
                assert_eq!(index.is_only(name), table.only(name).is_some(), "{encoding:?} {name}");
                for address in [symbol.address.0.wrapping_sub(1), symbol.address.0, symbol.address.0 + 3] {
                    let (address, table) = (VirtAddr(address), &table as &dyn Symbols);
                    assert_eq!(index.at(address), table.at(address), "{encoding:?} {name}");
                }
            }
            assert_eq!(index.find("no_such_symbol"), None);
            assert!(!index.is_only("no_such_symbol"));
        });
    }
}

#[test]
fn an_index_must_have_what_is_known() {
    let made = made(Encoding::FromPlace);
    let known = VirtAddr(made.address("init_task").unwrap());
    with_kernel(&made.info, &made.bytes, |kernel| {
        let read = |known: &[(&str, VirtAddr)]| index::read_as_known(kernel, &Answers::default(), known);
        assert!(read(&[("init_task", known)]).is_ok());
        let moved = read(&[("init_task", VirtAddr(known.0 + 8))]).unwrap_err();
        assert!(moved.to_string().contains("init_task"), "{moved}");
        assert!(read(&[("other_task", known)]).is_err());
    });
}

#[test]
fn a_damaged_index_is_refused() {
    let made = made(Encoding::Relative);
    for (at, byte) in [(made.place("names"), 0), (made.place("marks") + 4, 0xff)] {
        let mut bytes = made.bytes.clone();
        bytes[at] = byte;
        let read = with_kernel(&made.info, &bytes, |kernel| index::read(kernel).map(|_| ()));
        assert!(read.is_err(), "{at}");
    }
}

#[test]
fn tables_that_were_searched_for_once_are_found_by_what_was_noted() {
    let short = MadeUp::short(Encoding::Relative, false, &types().blob(), 1000);
    with_kernel(&short.info, &short.bytes, |kernel| {
        let noted = index::locate(kernel).unwrap();
        assert!(!noted.is_empty());
        let noted = Answers::parse(&noted.to_text());
        let index = index::read_as_known(kernel, &noted, &[]).unwrap();
        assert_eq!(index.find("init_task").map(|at| at.0), short.address("init_task"));
    });
    for encoding in ALL {
        let made = made(encoding);
        let places = with_kernel(&made.info, &made.bytes, |kernel| named(kernel).unwrap().unwrap());
        let mut answers = Answers::default();
        places.note(&mut answers);
        assert_eq!(Places::noted(&answers), Some(places), "{encoding:?}");
        let noted = with_kernel(&made.info, &made.bytes, |kernel| index::locate(kernel).unwrap());
        assert!(noted.is_empty(), "VMCOREINFO names them");
    }
}
