//! What `afterimage` is to refuse (`prod.refuse=CASE,CASE`), one case after the other on a system
//! that goes on.
//!
//! Each case ends in a line `production: refused CASE: WORDS`. Cases that are no refusal prepare
//! the next: `load`, `unload`, `status`, `shrink`, `free`; `other-loader`, which loads something else
//! behind our back, and `emptied` and `edited`, which unload it so and change the record.

use crate::early::DISK;
use crate::say::say;
use crate::steps;
use crate::user_memory::set;
use anyhow::{Context, Result, bail, ensure};
use kexec::sys::load;
use qemu_tests::trigger::Trigger;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Bytes that a reservation shrinks to: no kernel fits.
const SMALL: &str = "33554432";
const RESERVATIONS: [&str; 2] = ["/sys/kernel/kexec/crash_size", "/sys/kernel/kexec_crash_size"];
const RECORD: &str = "/run/afterimage/loaded.toml";

/// Runs the cases.
pub(crate) fn run<'a>(cases: impl Iterator<Item = &'a str>) -> Result<()> {
    say("production: refusing");
    for case in cases {
        match case {
            "load" | "unload" | "status" => steps::afterimage(case)?,
            "shrink" => set(reservation(), SMALL)?,
            "free" => set(reservation(), "0")?,
            "other-loader" => other_loader()?,
            "emptied" => load::unload_panic_kernel().context("unloading")?,
            "edited" => edited()?,
            _ => refuse(case).with_context(|| format!("the refusal {case}"))?,
        }
    }
    say(format!("production: still running, {} processes", processes()?));
    Ok(())
}

fn refuse(case: &str) -> Result<()> {
    let boot = Path::new(DISK).join("boot");
    let (image, kernel) = (boot.join("afterimage.img"), boot.join("vmlinuz"));
    let output = match case {
        "switch" | "switch-unarmed" | "switch-other" | "switch-edited" | "switch-emptied" => switch(&why())?,
        "panic-other" => switch(&[why(), vec!["--via".into(), "panic".into()]].concat())?,
        "stage-other" => switch(&["--stage".to_owned()])?,
        "status-other" | "status-emptied" | "status-edited" => ours(&["status"])?,
        "check-other" | "check-edited" => ours(&["check"])?,
        "again-other" => ours(&["load", "--again"])?,
        "no-reason" => switch(&[])?,
        "second-switch" => second_switch()?,
        "kernel-truncated" => {
            let copy = copied(&kernel)?;
            File::options().write(true).open(&copy)?.set_len(size(&copy)?.wrapping_div(2))?;
            load_ours(&image, &copy)?
        }
        "kernel-flipped" => load_ours(&image, &flipped(&kernel)?)?,
        "image-truncated" => {
            let copy = copied(&image)?;
            File::options().write(true).open(&copy)?.set_len(size(&copy)?.wrapping_div(2))?;
            load_ours(&copy, &kernel)?
        }
        "image-flipped" => load_ours(&flipped(&image)?, &kernel)?,
        "too-small" | "no-reservation" | "no-signature" | "unsigned" => load_ours(&image, &kernel)?,
        _ => bail!("there is no such case"),
    };
    // Reports are on standard output, and end with the verdict.
    let all = [output.stdout.as_slice(), &output.stderr].concat();
    let message = String::from_utf8_lossy(&all).trim().replace('\n', " | ");
    ensure!(!output.status.success(), "it was not refused: {message}");
    ensure!(output.status.code().is_some(), "{}: {message}", output.status);
    say(format!("production: refused {case}: {message}"));
    Ok(())
}

fn load_ours(image: &Path, kernel: &Path) -> Result<Output> {
    let mut command = Command::new("/afterimage");
    command.arg("load").arg("--image").arg(image).arg("--kernel-image").arg(kernel);
    command.output().context("starting /afterimage load")
}

fn reservation() -> &'static str {
    let [new, old] = RESERVATIONS;
    if Path::new(new).exists() { new } else { old }
}

/// What `kexec -p` and the like do.
fn other_loader() -> Result<()> {
    let boot = Path::new(DISK).join("boot");
    let open = |name: &str| File::open(boot.join(name)).with_context(|| format!("opening {name}"));
    let (kernel, initrd) = (open("vmlinuz")?, open("afterimage.img")?);
    load::load_panic_kernel(kernel.as_fd(), initrd.as_fd(), c"console=ttyS0 reset_devices")
        .context("kexec -p")
}

/// Changes the place that is entered, in the record.
fn edited() -> Result<()> {
    let text = fs::read_to_string(RECORD).context("reading the record")?;
    let line = text.lines().find(|line| line.starts_with("entry = ")).context("the record has no entry")?;
    fs::write(RECORD, text.replacen(line, "entry = 16777216", 1)).context("writing the record")
}

fn ours(arguments: &[&str]) -> Result<Output> {
    Command::new("/afterimage")
        .args(arguments)
        .output()
        .with_context(|| format!("starting /afterimage {arguments:?}"))
}

fn why() -> Vec<String> {
    match Trigger::planned() {
        Trigger::Planned(arguments) => arguments,
        _ => Vec::new(),
    }
}

fn switch(arguments: &[String]) -> Result<Output> {
    Command::new("/afterimage").arg("switch").args(arguments).output().context("starting /afterimage switch")
}

/// A switch while another one is held up by its collector.
fn second_switch() -> Result<Output> {
    let mut first = Command::new("/afterimage")
        .arg("switch")
        .args(why())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting /afterimage switch")?;
    // It says what is intended before it runs its collectors.
    let message = BufReader::new(first.stdout.take().context("no standard output")?);
    let collecting = message.lines().map_while(Result::ok).any(|line| line.starts_with("intent"));
    ensure!(collecting, "the first switch never came to its collectors");
    let output = switch(&why());
    first.kill().context("ending the first switch")?;
    first.wait().context("waiting for the first switch")?;
    output
}

/// A copy in memory.
fn copied(file: &Path) -> Result<PathBuf> {
    let copy = Path::new("/tmp").join(file.file_name().context("a file without a name")?);
    fs::copy(file, &copy).with_context(|| format!("copying {}", file.display()))?;
    Ok(copy)
}

/// A copy with another bit in the middle.
fn flipped(file: &Path) -> Result<PathBuf> {
    let copy = copied(file)?;
    let middle = size(&copy)?.wrapping_div(2);
    let handle = File::options().read(true).write(true).open(&copy)?;
    let mut byte = [0];
    handle.read_exact_at(&mut byte, middle).context("reading the middle")?;
    handle.write_all_at(&byte.map(|byte| byte ^ 0x10), middle).context("writing the middle")?;
    Ok(copy)
}

fn size(file: &Path) -> Result<u64> {
    Ok(fs::metadata(file).with_context(|| format!("looking at {}", file.display()))?.len())
}

fn processes() -> Result<usize> {
    let entries = fs::read_dir("/proc").context("reading /proc")?.flatten();
    Ok(entries.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok()).count())
}
