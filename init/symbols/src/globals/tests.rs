//! Which declaration a variable gets.

use super::*;
use crate::kallsyms::Builder;
use crate::testing::types;

/// Symbols in a row: address, name.
fn symbols(all: &[(u64, &str)]) -> SymbolTable {
    let mut builder = Builder::with_capacity(all.len());
    for (address, name) in all {
        builder.push(VirtAddr(*address), b'D', name.as_bytes());
    }
    builder.finish()
}

/// What a name is found to be, and the bytes of it.
fn resolved(table: &SymbolTable, name: &str) -> Option<(String, Option<u64>)> {
    let mut types = Types::parse(&types().blob()).unwrap();
    let found = resolve(&mut types, table);
    let variable = found.variables.iter().find(|variable| variable.name == name)?;
    let plain = types.strip(variable.of);
    let element = types.get(plain).and_then(|found| found.elements()).map(|(element, _)| element);
    let name = types.name(types.strip(element.unwrap_or(plain)));
    Some((name.to_owned(), types.size(variable.of)))
}

#[test]
fn a_declaration_that_fits_is_taken() {
    let table = symbols(&[(0x1000, "modules"), (0x1010, "next"), (0x2000, "init_task"), (0x2030, "last")]);
    assert_eq!(resolved(&table, "modules"), Some(("list_head".to_owned(), Some(16))));
    assert_eq!(resolved(&table, "init_task"), Some(("task_struct".to_owned(), Some(48))));
    assert_eq!(resolved(&table, "next"), None);
}

#[test]
fn a_declaration_that_has_no_room_is_not() {
    let table = symbols(&[(0x1000, "modules"), (0x1008, "next"), (0x2000, "init_task")]);
    assert_eq!(resolved(&table, "modules"), None, "8 bytes for 16");
    assert_eq!(resolved(&table, "init_task"), None, "nothing tells where it ends");
    let mut types = Types::parse(&types().blob()).unwrap();
    let found = resolve(&mut types, &table);
    assert!(["modules", "init_task"].iter().all(|name| found.unresolved.iter().any(|lost| lost == name)));
}

#[test]
fn of_several_symbols_of_a_name_none_is_known() {
    let table = symbols(&[(0x1000, "modules"), (0x1010, "next"), (0x2000, "modules"), (0x2010, "last")]);
    assert_eq!(resolved(&table, "modules"), None);
}

#[test]
fn arrays_end_where_the_next_symbol_begins() {
    let of = |room: u64| {
        resolved(&symbols(&[(0x1000, "linux_banner"), (0x1000 + room, "next")]), "linux_banner")
            .and_then(|(_, len)| len)
    };
    assert_eq!(of(100), Some(100));
    assert_eq!(of(1), Some(1));
}

#[test]
fn per_cpu_variables_are_where_both_tables_have_them() {
    let at = |start, counter, next| {
        resolved(&symbols(&[(start, "__per_cpu_start"), (counter, "counter"), (next, "next")]), "counter")
    };
    assert_eq!(at(0, 16, 24), Some(("long unsigned int".to_owned(), Some(8))));
    assert_eq!(at(0x1000, 0x1010, 0x1018), Some(("long unsigned int".to_owned(), Some(8))));
    assert_eq!(at(0, 24, 32), None, "the types have it 16 bytes behind the start");
    assert_eq!(at(0, 16, 20), None, "8 bytes do not fit");
    // Of two of a name it is the one at the place.
    let table = symbols(&[(0, "__per_cpu_start"), (16, "counter"), (24, "counter"), (0x100, "last")]);
    assert!(resolved(&table, "counter").is_some());
}
