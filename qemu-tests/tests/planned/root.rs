//! `switch_root` as the final action: a real Debian, with systemd, in the capture kernel.

use crate::scenario;
use anyhow::{Context, Result, ensure};
use qemu_tests::cache::{cache, workspace};
use qemu_tests::extra_disk::{Content, ExtraDisk};
use qemu_tests::scenario::Target;
use std::path::PathBuf;
use std::process::Command;

/// The disk of a Debian system, made once.
fn debian() -> Result<PathBuf> {
    let image = cache()?.join("systemd-root.img");
    if !image.exists() {
        let script = workspace().join("scripts/make-systemd-root");
        let status = Command::new(&script).arg(&image).status().context("starting make-systemd-root")?;
        ensure!(status.success(), "{}: {status}", script.display());
    }
    Ok(image)
}

#[test]
fn systemd_starts_in_the_capture_kernel_and_finds_the_dump() -> Result<()> {
    let mut scenario = scenario("switch-root")?;
    let size = std::fs::metadata(debian()?)?.len();
    scenario.memory_mib = 1280;
    scenario.crashkernel = "512M".into();
    scenario.extra = vec![ExtraDisk::of("debian", size >> 20, Content::Image(debian()?))];
    scenario.config.targets =
        vec![Target::filesystem("LABEL=debian").key("fstype", "ext4").key("path", "/var/crash")];
    scenario.config.finish = "panic.success = \"switch_root\"".into();
    scenario.config.more = "[boot]\nroot = \"LABEL=debian\"\nfstype = \"ext4\"\n".into();
    let outcome = scenario.run()?;
    let line = outcome.line("debian: reached ")?.text.clone();
    ensure!(line.contains("pid1=systemd"), "{line}");
    ensure!(line.contains("vmcore=hidden") && line.contains("dumps=1"), "{line}");
    let dump = outcome.line("debian: dump /var/crash/")?.text.clone();
    ensure!(
        dump.contains("vmcore") && dump.contains("result.json") && !dump.contains("incomplete"),
        "{dump}"
    );
    outcome.discard()
}
