//! Work as servers do it, in a Debian root on a disk of its own; what it starts goes on until the
//! panic.

use crate::early;
use anyhow::{Context, Result, ensure};
use nix::unistd::{chdir, chroot};
use std::fs;
use std::path::Path;
use std::process::Command;

const ROOT: &str = "/workload";
/// What to run in the root.
const SCRIPT: &str = "/srv/workload/run";

/// Enters the root on `device` for good and runs its script to the end.
pub(crate) fn run(device: &str) -> Result<()> {
    early::wait_for(Path::new(device))?;
    fs::create_dir_all(ROOT).with_context(|| format!("making {ROOT}"))?;
    early::mount_at(device, ROOT, "ext4")?;
    for (directory, kind) in [("proc", "proc"), ("sys", "sysfs"), ("dev", "devtmpfs")] {
        early::mount_at(kind, &format!("{ROOT}/{directory}"), kind)?;
    }
    chroot(ROOT).with_context(|| format!("entering {ROOT}"))?;
    chdir("/").context("changing to the new root")?;
    let status =
        Command::new("/bin/sh").arg(SCRIPT).status().with_context(|| format!("starting {SCRIPT}"))?;
    ensure!(status.success(), "{SCRIPT}: {status}");
    Ok(())
}
