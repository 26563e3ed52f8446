//! Whether the evidence of a capture holds: by `afterimage verify`, and by minisign and coreutils.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::binaries::Binaries;
use crate::command::{Run, command};

/// The key of the host in the capture's arm record, and the manifest.
fn manifest(dir: &Path) -> Result<(String, Value)> {
    let read = |name: &str| -> Result<Value> {
        let text = fs::read_to_string(dir.join(name)).with_context(|| format!("reading {name}"))?;
        Ok(serde_json::from_str(&text)?)
    };
    let key =
        read("arm.json")?.pointer("/host_key").and_then(Value::as_str).context("no host key")?.to_owned();
    Ok((key, read("manifest.json")?))
}

/// Checks the capture in a directory as it was fetched; `verdict` is that of its manifest, which is returned.
pub fn ensure_holds(dir: &Path, verdict: &str) -> Result<Value> {
    let (key, manifest) = manifest(dir)?;
    let report = command(&Binaries::get()?.afterimage.to_string_lossy())
        .args(["verify", "--json", "--no-custody", "--key", &key])
        .arg(dir)
        .run()?;
    let report: Value = serde_json::from_slice(&report.stdout)?;
    let found = report.pointer("/0/verdict").and_then(Value::as_str);
    ensure!(found == Some(verdict), "{report:#}");
    let signer = manifest.pointer("/public_key").and_then(Value::as_str).context("no key")?;
    for (signed, key) in [("manifest.json", signer), ("arm.json", &*key)] {
        command("minisign").args(["-Vm", signed, "-P", key]).current_dir(dir).run()?;
    }
    // What a server keeps in parts has no file of its own.
    command("sha256sum")
        .args(["--check", "--ignore-missing", "--strict", "SHA256SUMS"])
        .current_dir(dir)
        .run()?;
    let pages = manifest.pointer("/pages").and_then(Value::as_object).context("no account")?;
    let count = |name: &str| pages.get(name).and_then(Value::as_u64).unwrap_or_default();
    ensure!(verdict != "complete" || (count("written") > 0 && count("missing") == 0), "{pages:?}");
    Ok(manifest)
}
