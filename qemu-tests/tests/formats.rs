//! Every format of a dump, judged by drgn, volatility3, crash and makedumpfile.

use anyhow::{Context, Result, ensure};
use qemu_tests::formats::Dumps;
use qemu_tests::kernel::Kernel;
use qemu_tests::{raw_core, readers};

#[test]
fn every_format_has_the_pages_of_its_level() -> Result<()> {
    formats_at(&[31])
}

#[test]
#[ignore = "full: levels 0, 1 and 17"]
fn every_format_has_the_pages_of_more_levels() -> Result<()> {
    formats_at(&[0, 1, 17])
}

fn formats_at(levels: &[u8]) -> Result<()> {
    let kernel = Kernel::with_symbols("6.1")?;
    let raw = raw_core::of("6.1")?;
    let work = tempfile::tempdir()?;
    let dumps = Dumps::new(&raw, work.path());
    let mut kept = Vec::new();
    for &level in levels {
        kept.push(dumps.check_level(level).with_context(|| format!("level {level}"))?);
    }
    eprintln!("pages kept: {kept:?}");
    ensure!(kept.is_sorted_by(|more, fewer| more > fewer), "a stricter level leaves out nothing");
    // What the last level left: all formats that crash reads, and the same words for each.
    let message = ["kdump", "elf", "flattened"].map(|format| {
        readers::crash(&kernel.vmlinux(), &dumps.path(format), &["log", "bt", "ps"]).context(format)
    });
    let [kdump, elf, flattened] = message;
    let kdump = kdump?;
    let system = readers::symbols(&kernel.vmlinux(), &dumps.path("kdump"))?;
    let ps = kdump.last().context("ps")?;
    readers::ensure_tasks(ps, &system.tasks).context("tasks of 6.1")?;
    ensure!(kdump == elf? && kdump == flattened?, "crash finds something else in ELF or flattened");
    dumps.check_conversions()
}
