//! Dumps go to real servers: OpenSSH, knfsd, nginx, s3s-fs, in a second guest at the other end of a
//! cable.
//!
//! One case of each kind by default; scripts/test --full runs all.

mod faults;
mod links;
mod peer;
mod protocols;

use anyhow::{Context, Result, ensure};
use qemu_tests::collector;
pub(crate) use qemu_tests::collector::{clear, disk, https, nfs, remote, s3, ssh};
use qemu_tests::command::{Run, command};
use qemu_tests::kernel::Kernel;
use qemu_tests::outcome::{Dump, Outcome};
use qemu_tests::peer::Peer;
pub(crate) use qemu_tests::scenario::Target;
use qemu_tests::scenario::{HOST, Scenario};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The kernel of most tests; `AFTERIMAGE_SERIES` names another.
const SERIES: &str = "6.1";

fn series() -> String {
    std::env::var("AFTERIMAGE_SERIES").unwrap_or_else(|_| SERIES.to_owned())
}

fn scenario(name: &str, peer: &Peer) -> Result<Scenario> {
    collector::scenario(name, &Kernel::of_series(&series())?, peer)
}

/// The only capture in a directory of the peer.
fn collected(peer: &mut Peer, path: &str) -> Result<Dump> {
    let mut dumps = peer.dumps(&format!("{path}/{HOST}"))?;
    ensure!(dumps.len() == 1, "{dumps:?}");
    dumps.pop().context("no capture")
}

/// A dump that was collected.
struct Received {
    file: PathBuf,
    /// What `afterimage dump` calls its format.
    format: &'static str,
}

impl Received {
    /// What `result.json` calls it.
    fn artifact(&self) -> &'static str {
        if self.format == "kdump" { "vmcore" } else { "vmcore.flat" }
    }

    /// The same as readers like it best.
    fn rearranged(&self, outcome: &Outcome, name: &str) -> Result<PathBuf> {
        if self.format == "kdump" {
            return Ok(self.file.clone());
        }
        let rearranged = outcome.scratch(name);
        qemu_tests::readers::reassemble(&self.file, &rearranged)?;
        Ok(rearranged)
    }
}

/// The dump that was collected; of parts, all in one file.
fn received(dump: &Dump, outcome: &Outcome) -> Result<Received> {
    let file = dump.file("vmcore");
    if file.exists() {
        return Ok(Received { file, format: "kdump" });
    }
    // Objects and parts sort as they follow each other: vmcore.flat, vmcore.flat.2, …;
    // vmcore.flat.part00001, ….
    let names = dump.files().into_iter().map(|(name, _)| name);
    let mut names: Vec<String> =
        names.filter(|name| name.starts_with("vmcore.flat") && !name.contains(".json")).collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    ensure!(!names.is_empty(), "there is no dump: {:?}", dump.files());
    let file = outcome.scratch("received");
    let mut all = fs::File::create(&file)?;
    for name in names {
        std::io::copy(&mut fs::File::open(dump.file(&name))?, &mut all)?;
    }
    Ok(Received { file, format: "flattened" })
}

/// Memory that a capture may take: 16 MiB of parts at the most, and what it takes for a disk.
const MEMORY: u64 = 40 << 20;

fn ensure_complete(dump: &Dump) -> Result<()> {
    let result = dump.result()?;
    ensure!(result.pointer("/outcome").is_some_and(|outcome| outcome == "complete"), "{result:#}");
    let peak = result.pointer("/peak_memory_bytes").and_then(Value::as_u64).context("no peak of memory")?;
    eprintln!("peak memory {} KiB", peak >> 10);
    ensure!(peak <= MEMORY, "{peak} bytes of memory: {result:#}");
    let log = dump.dmesg()?;
    ensure!(log.contains("Kernel panic"), "{log}");
    Ok(())
}

/// SHA-256 of some bytes of a file.
fn sha256(path: &Path, offset: u64, bytes: u64) -> Result<String> {
    let (path, from) = (path.display(), offset.saturating_add(1));
    let some = format!("tail -c +{from} '{path}' | head -c {bytes} | sha256sum");
    let message = command("sh").args(["-c", &some]).run()?.stdout;
    Ok(String::from_utf8_lossy(&message).split(' ').next().unwrap_or_default().to_owned())
}

/// What result.json says was sent is what is there, all of it.
fn ensure_sums(result: &Value, artifact: &str, file: &Path) -> Result<()> {
    let all = result.pointer("/sent").and_then(Value::as_array).context("nothing was sent")?;
    let sent = all.iter().find(|sent| sent["artifact"] == artifact).with_context(|| artifact.to_owned())?;
    let len = fs::metadata(file)?.len();
    ensure!(sent["bytes"] == len, "{len} bytes are there of {sent:#}");
    let whole = vec![serde_json::json!({ "offset": 0, "bytes": len, "sha256": sent["sha256"] })];
    let pieces = sent["pieces"].as_array().unwrap_or(&whole);
    let mut at = 0;
    for piece in pieces {
        let bytes = piece["bytes"].as_u64().context("no length")?;
        ensure!(piece["offset"] == at && piece["sha256"] == sha256(file, at, bytes)?.as_str(), "{sent:#}");
        at = at.saturating_add(bytes);
    }
    ensure!(at == len, "the sums are of {at} bytes: {sent:#}");
    Ok(())
}
