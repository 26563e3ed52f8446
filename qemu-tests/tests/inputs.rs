//! Every kind of dump that makedumpfile makes, read by the product: on the raw core that scripts/bench keeps.

use anyhow::Result;
use qemu_tests::cache::cache;
use qemu_tests::inputs;

#[test]
fn every_dump_of_makedumpfile_reads_as_the_core() -> Result<()> {
    let raw = cache()?.join("bench/vmcore-1");
    if !raw.exists() {
        eprintln!("not run: there is no {}; scripts/bench makes it", raw.display());
        return Ok(());
    }
    let work = tempfile::tempdir()?;
    for found in inputs::compare_all(&raw, work.path())? {
        eprintln!("{found:?}");
    }
    Ok(())
}
