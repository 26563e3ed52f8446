//! What a host has made and mounted before it loads anything, as a file in its root says.

use crate::early;
use crate::say::say;
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::unistd::sync;
use qemu_tests::initramfs::LAYOUT;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// Does what the file says, if there is one; whether production goes on behind it.
pub(crate) fn run() -> Result<bool> {
    let Ok(steps) = fs::read_to_string(LAYOUT) else { return Ok(true) };
    early::modules("/modules/layout")?;
    for line in steps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words == ["off"] {
            sync();
            return Ok(false);
        }
        step(&words).with_context(|| format!("layout: {line}"))?;
    }
    say("production: layout made");
    Ok(true)
}

fn step(words: &[&str]) -> Result<()> {
    match *words {
        ["mkdir", at] => Ok(fs::create_dir_all(at)?),
        ["link", to, at] => {
            let parent = Path::new(at).parent().context("a link needs a place")?;
            fs::create_dir_all(parent)?;
            Ok(symlink(to, at)?)
        }
        ["mount", device, at, kind, options] => {
            early::wait_for(Path::new(device))?;
            fs::create_dir_all(at)?;
            Ok(mount(Some(device), at, Some(kind), MsFlags::empty(), Some(options))?)
        }
        ["wait", device] => early::wait_for(Path::new(device)),
        ["umount", at] => Ok(nix::mount::umount(at)?),
        ["run", program, ref arguments @ ..] => {
            let output = Command::new(program).args(arguments).output()?;
            let message = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            ensure!(output.status.success(), "{}: {message}", output.status);
            Ok(())
        }
        ["copy", from, to] => {
            early::copy(Path::new(from), Path::new(to))?;
            sync();
            say("production: layout copied");
            Ok(())
        }
        _ => bail!("no such step"),
    }
}
