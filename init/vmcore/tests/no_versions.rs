//! What a kernel is like is told by keys, never by its version: stable trees carry changes back.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

use std::fs;
use std::path::{Path, PathBuf};

/// Where the release is read, with the reason that it decides nothing about the kernel's shape.
const MAY_READ_THE_RELEASE: [(&str, &str); 3] = [
    ("kernel/info.rs", "whether two VMCOREINFO are of one kernel"),
    ("kernel/uts.rs", "the name in the dump's header"),
    ("session.rs", "the name in result.json"),
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let nested = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    nested.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// A text such as `6.12` or `6.12.1` in a string literal.
fn names_a_version(line: &str) -> bool {
    line.split('"').skip(1).step_by(2).any(|literal| {
        literal.split(|c: char| !c.is_ascii_digit() && c != '.').any(|word| {
            let parts: Vec<&str> = word.split('.').collect();
            (2..=3).contains(&parts.len()) && parts.iter().all(|part| !part.is_empty() && part.len() < 4)
        })
    })
}

#[test]
fn no_decision_depends_on_a_kernel_version() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut wrong, mut lines) = (Vec::new(), 0);
    for path in sources(&root) {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        if name.ends_with("tests.rs") || name.ends_with("testing.rs") || name.contains("tests/") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for line in code.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            lines += 1;
            let reads = ["OSRELEASE", "KERNEL_VERSION", "version_code", ".release"];
            let reads = reads.iter().any(|word| line.contains(word));
            let may = MAY_READ_THE_RELEASE.iter().any(|(file, _)| *file == name);
            let kernel_side =
                ["kernel/", "filter/", "dump/", "source/"].iter().any(|dir| name.starts_with(dir));
            if (reads && !may && (kernel_side || line.contains("VERSION")))
                || (kernel_side && names_a_version(line))
            {
                wrong.push(format!("{name}: {line}"));
            }
        }
    }
    assert!(lines > 4000, "only {lines} lines found: does this test still read the sources?");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn versions_are_recognised() {
    assert!(names_a_version(r#"if release.starts_with("6.12") {"#));
    assert!(names_a_version(r#"let since = "5.10.3";"#));
    assert!(!names_a_version(r#"log::info!("{}.{:03} s", a, 6.1);"#));
}
