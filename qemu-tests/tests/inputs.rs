//! Every kind of dump that makedumpfile makes, read by the product.

use anyhow::Result;
use qemu_tests::{inputs, raw_core};

#[test]
fn every_dump_of_makedumpfile_reads_as_the_core() -> Result<()> {
    let work = tempfile::tempdir()?;
    for found in inputs::compare_all(&raw_core::of("6.1")?, work.path())? {
        eprintln!("{found:?}");
    }
    Ok(())
}
