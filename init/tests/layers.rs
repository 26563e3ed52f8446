//! The order of the modules, as `init/src/lib.rs` states it: a module uses only what stands left of it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::fs;
use std::path::{Path, PathBuf};

const ORDER: &[&str] = &[
    "addr", "sys", "format", "sink", "source", "kernel", "filter", "dump", "setup", "target", "kexec", "run",
    "pid1",
];
/// Used by all. They hold values and text; what they use in turn is listed here.
const LEAVES: &[(&str, &[&str])] = &[
    ("log", &[]),
    ("config", &[]),
    ("budget", &[]),
    ("facts", &[]),
    ("beat", &["addr", "facts"]),
    ("attempt", &[]),
    ("report", &["addr", "kernel", "source", "filter"]), // the figures that result.json shows
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let nested = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    nested.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// `crate::name` in code (comments and tests left out) and the module that the file belongs to.
fn uses(path: &Path, root: &Path) -> (String, Vec<String>) {
    let relative = path.strip_prefix(root).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_string_lossy();
    let module = first.trim_end_matches(".rs").to_owned();
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = code.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let used = lines.flat_map(|line| line.split("crate::").skip(1).map(name).collect::<Vec<_>>());
    (module, used.collect())
}

fn name(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

#[test]
fn modules_use_only_what_stands_left_of_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut seen = 0;
    for path in sources(&root) {
        let (module, used) = uses(&path, &root);
        if matches!(module.as_str(), "lib" | "main")
            || path.ends_with("testing.rs")
            || path.ends_with("tests.rs")
        {
            continue;
        }
        for other in used.into_iter().filter(|other| *other != module && !other.is_empty()) {
            seen += 1;
            let leaf = LEAVES.iter().find(|(name, _)| *name == module);
            let allowed = LEAVES.iter().any(|(name, _)| *name == other)
                || match leaf {
                    Some((_, extra)) => extra.contains(&other.as_str()),
                    None => place(&other) < place(&module),
                };
            if !allowed {
                wrong.push(format!("{} uses crate::{other}", path.display()));
            }
        }
    }
    assert!(seen > 50, "only {seen} uses found: does this test still read the sources?");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn place(module: &str) -> usize {
    ORDER
        .iter()
        .position(|name| *name == module)
        .unwrap_or_else(|| panic!("{module} has no place in the order"))
}

#[test]
fn unsafe_code_has_one_room() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let guilty: Vec<_> = sources(&root)
        .into_iter()
        .filter(|path| !path.starts_with(root.join("sys")))
        .filter(|path| {
            fs::read_to_string(path)
                .unwrap()
                .lines()
                .any(|l| l.contains("unsafe ") && !l.trim().starts_with("//"))
        })
        .collect();
    assert!(guilty.is_empty(), "{guilty:?}");
}
