//! Whether the evidence of a capture holds: by `afterimage verify`, and by minisign and coreutils.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::binaries::Binaries;
use crate::command::{Run, command};

fn read(dir: &Path, name: &str) -> Result<Value> {
    let text = fs::read_to_string(dir.join(name)).with_context(|| format!("reading {name}"))?;
    Ok(serde_json::from_str(&text)?)
}

/// The key of the host in the capture's arm record.
fn host_key(dir: &Path) -> Result<String> {
    let record = read(dir, "arm.json")?;
    Ok(record.pointer("/host_key").and_then(Value::as_str).context("no host key")?.to_owned())
}

/// Checks the capture in a directory as it was fetched; `verdict` is that of its manifest, which is returned.
pub fn ensure_holds(dir: &Path, verdict: &str) -> Result<Value> {
    let (key, manifest) = (host_key(dir)?, read(dir, "manifest.json")?);
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

/// Checks that what is there of a capture that may have been cut anywhere is taken neither for damaged
/// evidence, nor for a whole capture if it is none.
pub fn ensure_honest(dir: &Path) -> Result<()> {
    let keys = if dir.join("arm.json").exists() { vec![host_key(dir)?] } else { Vec::new() };
    let mut verify = command(&Binaries::get()?.afterimage.to_string_lossy());
    verify.args(["verify", "--json", "--no-custody"]).arg(dir);
    for key in keys {
        verify.args(["--key", &key]);
    }
    let output = verify.output()?;
    let report: Value = serde_json::from_slice(&output.stdout).context("verify prints no JSON")?;
    let has_manifest = dir.join("manifest.json").exists();
    // A disk that gives nothing back leaves pieces of which nobody can say what they are.
    let code = output.status.code();
    ensure!(code == Some(2) || (has_manifest && code == Some(0)), "verify: {code:?}\n{report:#}");
    let verdict = report.pointer("/0/verdict").and_then(Value::as_str);
    let is_complete = verdict == Some("complete");
    ensure!(is_complete == (has_manifest && dir.join("vmcore").exists()), "{report:#}");
    Ok(())
}

/// Checks that the secret half of the load key is not in a file: no 64 hex digits behind the name that it
/// has in the facts.
pub fn ensure_no_seed(file: &Path) -> Result<()> {
    let mut grep = command("grep");
    grep.args(["--text", "--only-matching", "--extended-regexp", "--max-count=1"]).env("LC_ALL", "C");
    let found = grep.arg("seed *= *[\"'][0-9a-f]{64}").arg(file).output()?;
    // 1: not found; anything else is a fault of grep's.
    ensure!(found.status.code() == Some(1), "{}: {found:?}", file.display());
    Ok(())
}
