//! Each form of declaration, against the types of a made-up kernel.

use super::*;
use crate::testing::{Btf, types};

/// Types with an enumeration, and structures without names.
fn all() -> Types {
    let mut btf: Btf = types();
    let [one, two, three] = ["ONE", "TWO", "NR_THINGS"].map(|name| btf.string(name));
    btf.add(6, "state", 3, 4, &[one, 0, two, 1, three, 7]);
    btf.structure("", 8, &[("a", 1, 0), ("b", 1, 32)]);
    for _ in 0..2 {
        btf.structure("", 8, &[("twice", 1, 0), ("c", 1, 32)]);
    }
    btf.int("unsigned int", 4, 0);
    btf.int("short int", 2, 1);
    btf.int("long long unsigned int", 8, 0);
    btf.int("_Bool", 1, 4);
    btf.add(8, "pid_t", 0, 1, &[]);
    Types::parse(&btf.blob()).unwrap()
}

/// A type as C spells it, from the outside to the inside.
fn spelled(types: &Types, id: TypeId) -> String {
    let Some(found) = types.get(id) else { return "void".to_owned() };
    let of = |id| spelled(types, id);
    match found.kind {
        Kind::Pointer => format!("pointer to {}", of(found.target())),
        Kind::Const => format!("const {}", of(found.target())),
        Kind::Volatile => format!("volatile {}", of(found.target())),
        Kind::Array => {
            let (element, length) = found.elements().unwrap();
            format!("{length} of {}", of(element))
        }
        Kind::Prototype => {
            let parameters: Vec<String> = found.parameters().map(|(_, id)| of(id)).collect();
            format!("function({}) returning {}", parameters.join(", "), of(found.target()))
        }
        Kind::Forward => format!("hidden {}", types.string(found.name)),
        Kind::Struct if found.name == 0 => {
            let names: Vec<&str> = found.members().map(|member| types.string(member.name)).collect();
            format!("{{{}}}", names.join(" "))
        }
        _ => types.string(found.name).to_owned(),
    }
}

fn declared(text: &str) -> Result<(String, String), DeclarationError> {
    let mut types = all();
    let (name, of) = Declarations::new(&mut types).declare(text)?;
    Ok((name, spelled(&types, of)))
}

#[test]
fn each_form_is_understood() {
    for (text, expected) in [
        ("int one", "int"),
        ("static const int one;", "const int"),
        ("unsigned one", "unsigned int"),
        ("unsigned long one", "long unsigned int"),
        ("long unsigned int one", "long unsigned int"),
        ("unsigned long long one", "long long unsigned int"),
        ("short one", "short int"),
        ("_Bool one", "_Bool"),
        ("pid_t one", "pid_t"),
        ("void *one", "pointer to void"),
        ("const char *const one", "const pointer to const char"),
        ("struct task_struct **one", "pointer to pointer to task_struct"),
        ("enum state one", "state"),
        ("struct task_struct *one[4]", "4 of pointer to task_struct"),
        ("int one[2][3]", "2 of 3 of int"),
        ("int one[]", "0 of int"),
        ("int one[NR_THINGS]", "7 of int"),
        ("int one[#state]", "3 of int"),
        ("int (*one)(void)", "pointer to function() returning int"),
        ("int (*one)(int, ...)", "pointer to function(int, void) returning int"),
        (
            "void (*one[2])(struct list_head *)",
            "2 of pointer to function(pointer to list_head) returning void",
        ),
        (
            "int (*(*one)(int))(char)",
            "pointer to function(int) returning pointer to function(char) returning int",
        ),
        ("int (*one)[3]", "pointer to 3 of int"),
        ("struct { a; b; } one", "{a b}"),
        ("struct { a; b; } *volatile one", "volatile pointer to {a b}"),
        ("struct nobody_knows *one", "pointer to hidden nobody_knows"),
    ] {
        assert_eq!(declared(text), Ok(("one".to_owned(), expected.to_owned())), "{text}");
    }
}

#[test]
fn what_this_kernel_does_not_have_is_not_believed() {
    for text in [
        "nothing_t one",
        "enum nothing one",
        "struct { a; } one",
        "struct { twice; c; } one",
        "double one",
        "int one[NOTHING]",
        "int one[#nothing]",
        "int one[99999999999999999999]",
        "int one[16777217]",
        "short unsigned int one",
    ] {
        assert!(matches!(declared(text), Err(DeclarationError::Unknown(_))), "{text}: {:?}", declared(text));
    }
}

#[test]
fn of_enumerators_of_one_name_the_first_counts() {
    let mut btf = Btf::default();
    let char = btf.int("char", 1, 0);
    btf.int("unsigned int", 4, 0);
    let [other, size] = ["OTHER", "SIZE"].map(|name| btf.string(name));
    btf.add(6, "one", 2, 4, &[other, 9, size, 3]);
    btf.add(6, "two", 1, 4, &[size, 5]);
    let mut types = Types::parse(&btf.blob()).unwrap();
    let mut declarations = Declarations::new(&mut types);
    for (text, length) in [("char a[SIZE]", 3), ("char b[OTHER]", 9), ("char c[SIZE+1]", 4)] {
        let (_, of) = declarations.declare(text).unwrap();
        let elements = declarations.types().get(of).and_then(|found| found.elements());
        assert_eq!(elements, Some((TypeId(char), length)), "{text}");
    }
    assert!(declarations.declare("char d[NONE]").is_err());
}

#[test]
fn what_is_no_declaration_is_refused() {
    let deep = format!("int {}one{}", "(*".repeat(40), ")".repeat(40));
    let long = "int ".repeat(300);
    for text in [
        "",
        "int",
        "one",
        "*",
        "int one two",
        "int one[3",
        "int one[3)",
        "int (*one",
        "int (*one)(int",
        "struct",
        "struct {",
        "struct { a",
        "int one = 3",
        "int \u{1b}one",
        "int one[-1]",
        &deep,
        &long,
    ] {
        assert!(declared(text).is_err(), "{text}");
    }
}

#[test]
fn any_text_ends() {
    let words = [
        "int",
        "struct",
        "{",
        "}",
        "(",
        ")",
        "*",
        "[",
        "]",
        ",",
        ";",
        "...",
        "list_head",
        "const",
        "#state",
        "7",
    ];
    let mut seed = 1_u64;
    for _ in 0..3000 {
        let mut text = String::new();
        for _ in 0..20 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.push_str(words[usize::try_from(seed >> 60).unwrap()]);
            text.push(' ');
        }
        let mut types = all();
        if let Ok((name, of)) = Declarations::new(&mut types).declare(&text) {
            assert!(!name.is_empty() && (of == TypeId::VOID || types.get(of).is_some()), "{text}");
        }
    }
}
