//! First inputs for a target, made by the target itself: no binary files in the repository.

use std::fs;
use std::path::Path;

/// Writes `inputs` as `seed-N` into the directory that scripts/fuzz names in
/// `AFTERIMAGE_FUZZ_SEEDS`, so that a run with an empty corpus starts behind the magic numbers.
/// Called before libFuzzer reads the corpus.
pub fn seed(inputs: &[Vec<u8>]) {
    let Some(dir) = std::env::var_os("AFTERIMAGE_FUZZ_SEEDS") else { return };
    for (number, input) in inputs.iter().enumerate() {
        let path = Path::new(&dir).join(format!("seed-{number}"));
        fs::write(&path, input).unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
    }
}
