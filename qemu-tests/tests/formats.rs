//! Every format of a dump, judged by drgn, volatility3, crash and makedumpfile: on the raw core that scripts/bench keeps,
//! or the one that AFTERIMAGE_CORE names, with its vmlinux in AFTERIMAGE_VMLINUX.

use anyhow::{Context, Result, ensure};
use qemu_tests::cache::cache;
use qemu_tests::formats::Dumps;
use qemu_tests::readers;
use std::env;
use std::path::PathBuf;

#[test]
fn every_format_has_the_pages_of_its_level() -> Result<()> {
    let raw = match env::var_os("AFTERIMAGE_CORE") {
        Some(path) => PathBuf::from(path),
        None => cache()?.join("bench/vmcore-1"),
    };
    if !raw.exists() {
        eprintln!("not run: there is no {}; scripts/bench makes it", raw.display());
        return Ok(());
    }
    let full = env::var("AFTERIMAGE_FULL").is_ok_and(|full| full == "1");
    let work = tempfile::tempdir()?;
    let dumps = Dumps::new(&raw, work.path());
    let mut kept = Vec::new();
    for &level in if full { &[0, 1, 17, 31][..] } else { &[1, 31] } {
        kept.push(dumps.check_level(level).with_context(|| format!("level {level}"))?);
    }
    eprintln!("pages kept: {kept:?}");
    ensure!(kept.first() > kept.last(), "level 31 leaves out nothing");
    if let Some(vmlinux) = env::var_os("AFTERIMAGE_VMLINUX") {
        // What level 31 left: all formats that crash reads, and the same words for each.
        let said = ["kdump", "elf", "flattened"].map(|format| {
            readers::crash(vmlinux.as_ref(), &dumps.path(format), &["log", "bt", "ps"]).context(format)
        });
        let [kdump, elf, flattened] = said;
        let kdump = kdump?;
        ensure!(kdump == elf? && kdump == flattened?, "crash finds something else in ELF or flattened");
    } else {
        eprintln!("not run: crash, AFTERIMAGE_VMLINUX is not set");
    }
    dumps.check_conversions()
}
