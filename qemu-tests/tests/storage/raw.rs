//! A raw device as target: what comes off it, what is refused, and what a power cut leaves.

use crate::{ensure_back, ensure_log, scenario};
use anyhow::{Context, Result, ensure};
use qemu_tests::binaries::Binaries;
use qemu_tests::command::{Run, command};
use qemu_tests::evidence;
use qemu_tests::extra_disk::{Content, ExtraDisk, hash};
use qemu_tests::kernel::Kernel;
use qemu_tests::outcome::{Dump, Outcome};
use qemu_tests::readers;
use qemu_tests::scenario::{HOST, Scenario};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 256;
const VITAL: &str = "the vital part is saved";

/// An image that `afterimage prepare` has made a target, and the name for `device`.
fn prepared(path: &Path) -> Result<String> {
    File::create(path).and_then(|file| file.set_len(MIB << 20)).context("making the raw device")?;
    let message = command(&Binaries::get()?.afterimage.to_string_lossy()).arg("prepare").arg(path).run()?;
    Ok(String::from_utf8_lossy(&message.stdout).trim().to_owned())
}

/// A crash that is saved to a raw device of 256 MiB that holds `content`.
fn to_raw(name: &str, content: Content, device: &str, keys: &[(&str, &[&str])]) -> Result<Scenario> {
    let mut scenario = scenario(name)?;
    let target = qemu_tests::scenario::Target::raw(device);
    let keys = keys.iter();
    scenario.config.targets = vec![keys.fold(target, |target, (key, value)| target.key(key, value.to_vec()))];
    scenario.extra = vec![ExtraDisk::of("raw", MIB, content)];
    Ok(scenario)
}

/// What `afterimage recover` makes of the device that a run left; and whether it found all of it
/// whole.
fn recover(outcome: &Outcome, into: &str) -> Result<(bool, Dump)> {
    let dir = outcome.scratch(into);
    let mut recover = Command::new(&Binaries::get()?.afterimage);
    let message = recover.arg("recover").args([&outcome.disk("raw")?.image, &dir]).output()?;
    let text = String::from_utf8_lossy(&message.stderr).into_owned();
    ensure!(matches!(message.status.code(), Some(0 | 3)), "recover: {}: {text}", message.status);
    let mut found: Vec<PathBuf> =
        fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let path = found.pop().context("recover made nothing")?;
    ensure!(found.is_empty(), "recover made more than one directory: {found:?}");
    Ok((message.status.success(), Dump { path }))
}

#[test]
fn what_comes_off_a_raw_device_is_what_a_file_system_would_hold() -> Result<()> {
    let kernel = Kernel::with_symbols("6.1")?;
    let work = tempfile::tempdir()?;
    let image = work.path().join("image");
    let device = prepared(&image)?;
    let mut scenario = to_raw("raw", Content::Image(image), &device, &[])?;
    scenario.kernel = kernel.clone();
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;

    // The second crash finds a capture that nobody has collected.
    let first = hash(&outcome.disk("raw")?.image, 0..MIB << 20)?;
    let outcome = scenario.run_again(outcome)?;
    ensure_back(&outcome)?;
    outcome.ensure_said("uncollected")?;
    ensure!(hash(&outcome.disk("raw")?.image, 0..MIB << 20)? == first, "the first capture was touched");

    let (whole, dump) = recover(&outcome, "recovered")?;
    ensure!(whole, "recover finds damage on a healthy device");
    crate::ensure_complete(&dump)?;
    evidence::ensure_holds(&dump.path, "complete")?;
    let message = readers::crash(&kernel.vmlinux(), &dump.file("vmcore"), &["sys", "bt"])?;
    let [sys, bt] = message.as_slice() else { anyhow::bail!("crash said {} things", message.len()) };
    ensure!(sys.contains(HOST) && bt.contains("sysrq_handle_crash"), "crash:\n{sys}\n{bt}");

    // Collected, it takes the third one.
    let outcome = scenario.run_again(outcome)?;
    ensure_back(&outcome)?;
    let (whole, dump) = recover(&outcome, "recovered-again")?;
    ensure!(whole && dump.result()?.get("sequence").is_some_and(|it| it == 2), "{:#}", dump.result()?);
    outcome.discard()
}

#[test]
fn a_power_cut_leaves_a_raw_device_that_can_be_recovered() -> Result<()> {
    let kernel = Kernel::with_symbols("6.1")?;
    let work = tempfile::tempdir()?;
    let image = work.path().join("image");
    let device = prepared(&image)?;
    let mut scenario = to_raw("raw-cut", Content::Image(image), &device, &[])?;
    scenario.kernel = kernel.clone();
    scenario.power_cut = Some(VITAL.into());
    let outcome = scenario.run()?;
    let (whole, dump) = recover(&outcome, "recovered")?;
    ensure!(!whole, "a dump cut short is called whole");
    ensure_log(&dump)?;
    evidence::ensure_honest(&dump.path)?;
    ensure!(!dump.file("vmcore").exists(), "{:?}", dump.files());
    let message = readers::crash(&kernel.vmlinux(), &dump.file("vmcore-incomplete"), &["bt", "log"])?;
    ensure!(
        message.iter().all(|text| text.contains("Kernel panic") || text.contains("crash_kexec")),
        "{message:?}"
    );
    outcome.discard()
}

#[test]
fn what_is_foreign_is_not_written_over_unless_it_is_named() -> Result<()> {
    // Swap of the production system, which the configuration does not name; and then one that it
    // names.
    let uuid = "5a17c0de-0000-4000-8000-00000000543a";
    let work = tempfile::tempdir()?;
    let image = work.path().join("swap");
    File::create(&image).and_then(|file| file.set_len(MIB << 20)).context("making the swap device")?;
    command("mkswap").args(["-U", uuid]).arg(&image).run()?;
    let device = format!("UUID={uuid}");
    let before = hash(&image, 0..MIB << 20)?;

    let scenario = to_raw("raw-foreign", Content::Image(image.clone()), &device, &[])?;
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    outcome.ensure_said("swap")?;
    ensure!(hash(&outcome.disk("raw")?.image, 0..MIB << 20)? == before, "swap was written over");
    outcome.discard()?;

    let named: &[&str] = &[&device];
    let scenario = to_raw("raw-named", Content::Image(image), &device, &[("overwrite", named)])?;
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    let (whole, dump) = recover(&outcome, "recovered")?;
    ensure!(whole, "recover finds damage on a healthy device");
    crate::ensure_complete(&dump)?;
    outcome.discard()
}
