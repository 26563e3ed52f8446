//! libFuzzer over one target, which `AFTERIMAGE_FUZZ_TARGET` names: `scripts/fuzz` builds it with
//! marks on each edge and starts it.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use afterimage_fuzz::targets::{self, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&Target> = OnceLock::new();

fuzz_target!(
    init: choose(),
    |data: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.check)(data);
        }
    }
);

/// Chooses the target, and writes its seeds into the corpus that `AFTERIMAGE_FUZZ_SEEDS` names
/// before libFuzzer reads it.
fn choose() {
    let name = std::env::var("AFTERIMAGE_FUZZ_TARGET").expect("AFTERIMAGE_FUZZ_TARGET names a target");
    let target = targets::named(&name).unwrap_or_else(|| panic!("there is no target {name}"));
    TARGET.set(target).expect("libFuzzer starts once");
    let Some(dir) = std::env::var_os("AFTERIMAGE_FUZZ_SEEDS") else { return };
    for (number, input) in (target.seeds)().iter().enumerate() {
        let path = Path::new(&dir).join(format!("seed-{number}"));
        fs::write(&path, input).unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
    }
}
