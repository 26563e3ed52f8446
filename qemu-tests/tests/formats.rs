//! Every format of a dump, judged by drgn, volatility3, crash and makedumpfile.

use anyhow::{Context, Result, ensure};
use qemu_tests::formats::Dumps;
use qemu_tests::kernel::Kernel;
use qemu_tests::{raw_core, readers};
use std::env;

#[test]
fn every_format_has_the_pages_of_its_level() -> Result<()> {
    let kernel = Kernel::with_symbols("6.1")?;
    let raw = raw_core::of("6.1")?;
    let full = env::var("AFTERIMAGE_FULL").is_ok_and(|full| full == "1");
    let work = tempfile::tempdir()?;
    let dumps = Dumps::new(&raw, work.path());
    let mut kept = Vec::new();
    for &level in if full { &[0, 1, 17, 31][..] } else { &[1, 31] } {
        kept.push(dumps.check_level(level).with_context(|| format!("level {level}"))?);
    }
    eprintln!("pages kept: {kept:?}");
    ensure!(kept.first() > kept.last(), "level 31 leaves out nothing");
    // What level 31 left: all formats that crash reads, and the same words for each.
    let said = ["kdump", "elf", "flattened"].map(|format| {
        readers::crash(&kernel.vmlinux(), &dumps.path(format), &["log", "bt", "ps"]).context(format)
    });
    let [kdump, elf, flattened] = said;
    let kdump = kdump?;
    ensure!(kdump == elf? && kdump == flattened?, "crash finds something else in ELF or flattened");
    dumps.check_conversions()
}
