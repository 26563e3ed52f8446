//! `docs/reference/config.md` and the types of the configuration say the same: each key of a section
//! is in its table and no other, and a default that is written as a value is the default.
//!
//! The page is written by hand, since it says more than a type can: units, what goes together, and
//! where to read on.
#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test that fails panics")]
#![expect(clippy::indexing_slicing, reason = "likewise")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use base::config::Config;

/// A row of a table: the keys in its first column, and the column "default".
struct Row {
    keys: Vec<String>,
    default: String,
}

/// Keys that have no value until the image is loaded: the default is chosen then.
const FILLED_IN_LATER: [&str; 1] = ["init"];

/// What stands between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The table of a section, by its heading.
fn table(page: &str, heading: &str) -> Vec<Row> {
    let section = page.split("\n## ").find(|section| section.starts_with(heading));
    let section = section.unwrap_or_else(|| panic!("there is no section {heading}"));
    let mut lines = section.lines().filter(|line| line.starts_with('|'));
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    let head = cells(lines.next().expect("a table"));
    let column = head.iter().position(|name| name == "default").expect("a column of defaults");
    lines
        .skip(1)
        .map(|line| {
            let cells = cells(line);
            Row { keys: quoted(&cells[0]), default: cells[column].clone() }
        })
        .collect()
}

/// The keys of a section, which the error about an unknown one lists.
fn keys_of(section: &str) -> BTreeSet<String> {
    let error = Config::parse(&format!("{section}\nno_such_key = 1\n")).unwrap_err().to_string();
    let (_, list) = error.split_once("expected ").unwrap_or_else(|| panic!("{section}: {error}"));
    quoted(list).into_iter().collect()
}

#[test]
fn each_key_is_in_the_reference_and_defaults_are_the_defaults() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/config.md");
    let page = fs::read_to_string(page).unwrap();
    let mut checked = 0;
    for (heading, section) in [
        ("`[dump]`", "[dump]"),
        ("`[triage]`", "[triage]"),
        ("`[evidence]`", "[evidence]"),
        ("`[[target]]`", "[[target]]"),
        ("`network`", "[[network]]"),
        ("`[capture]`", "[capture]"),
        ("`[[hook]]`", "[[hook]]"),
        ("`[planned]`", "[planned]"),
        ("`[[collector]]`", "[[collector]]"),
        ("`[finish]`", "[finish]"),
        ("`[boot]`", "[boot]"),
        ("`[image]`", "[image]"),
    ] {
        let rows = table(&page, heading);
        let written: BTreeSet<String> = rows
            .iter()
            .flat_map(|row| &row.keys)
            .map(|key| key.split('.').next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(keys_of(section), written, "{heading}");
        if section.starts_with("[[") {
            continue; // an entry of a list has no default of its own
        }
        for row in &rows {
            let Some(default) = quoted(&row.default).pop().or_else(|| Some(row.default.clone())) else {
                continue;
            };
            for key in row.keys.iter().filter(|key| !FILLED_IN_LATER.contains(&key.as_str())) {
                // What is described in words is no value.
                let text = format!("{section}\n{key} = {default}\n");
                let Ok(parsed) = toml::from_str::<toml::Table>(&text) else { continue };
                assert!(!parsed.is_empty());
                assert_eq!(Config::parse(&text).unwrap(), Config::default(), "{text}");
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "only {checked} defaults are written as values");
}
