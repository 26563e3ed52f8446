//! The summary that a capture saves before the first page: what it says is what the machine was.

use anyhow::{Context, Result, ensure};
use qemu_tests::kernel::Kernel;
use qemu_tests::scenario::{HOST, Scenario};
use serde_json::Value;

/// Bytes that both files may have together.
const LIMIT: u64 = 256 << 10;

#[test]
fn a_summary_stands_beside_the_log() -> Result<()> {
    judge("6.1")
}

#[test]
#[ignore = "full: kernel 5.10, the oldest"]
fn a_summary_stands_beside_the_log_of_5_10() -> Result<()> {
    judge("5.10")
}

#[test]
#[ignore = "full: kernel 6.12"]
fn a_summary_stands_beside_the_log_of_6_12() -> Result<()> {
    judge("6.12")
}

#[test]
#[ignore = "full: kernel 7.2, the newest"]
fn a_summary_stands_beside_the_log_of_7_2() -> Result<()> {
    judge("7.2")
}

fn judge(series: &str) -> Result<()> {
    let kernel = Kernel::of_series(series)?;
    let mut scenario = Scenario::new(&format!("summary-{series}"), &kernel);
    scenario.memory_mib = 512;
    let outcome = scenario.run()?;
    let dump = outcome.dump()?;
    let names: Vec<String> = dump.files().into_iter().map(|(name, _)| name).collect();
    for name in ["dmesg.txt", "summary.txt", "summary.json", "vmcore", "result.json"] {
        ensure!(names.iter().any(|found| found == name), "no {name} in {names:?}");
    }
    let size =
        |wanted: &str| dump.files().iter().find(|(name, _)| name == wanted).map_or(0, |(_, size)| *size);
    ensure!(size("summary.txt") + size("summary.json") <= LIMIT, "{:?}", dump.files());
    let text = std::fs::read_to_string(dump.file("summary.json")).context("summary.json")?;
    let summary: Value = serde_json::from_str(&text)?;
    let is = |path: &str, wanted: &Value| {
        let found = summary.pointer(path);
        ensure!(found == Some(wanted), "{path} is {found:?} instead of {wanted}\n{text}");
        Ok(())
    };
    is("/complete", &true.into())?;
    is("/missing", &Value::Array(Vec::new()))?;
    is("/cause/kind", &"sysrq".into())?;
    is("/about/host", &HOST.into())?;
    is("/about/release", &kernel.version().into())?;
    is("/panicking/pid", &1.into())?;
    is("/panicking/argv/0", &"/init".into())?;
    is("/cpus/0/crashed", &true.into())?;
    let functions = summary.pointer("/cpus/0/stack").and_then(Value::as_array).context("no stack")?;
    let functions = functions.iter().filter_map(|frame| frame.get("function")?.as_str());
    ensure!(functions.clone().any(|name| name == "sysrq_handle_crash"), "{text}");
    ensure!(functions.clone().any(|name| name.starts_with("entry_SYSCALL_64")), "{text}");
    let result = dump.result()?;
    ensure!(result.pointer("/cause") == Some(&"sysrq".into()), "{result:#}");
    ensure!(result.pointer("/signature") == summary.pointer("/signature/hash"), "{result:#}");
    let seconds = result.pointer("/seconds/summary").and_then(Value::as_f64).context("no time")?;
    ensure!(seconds <= 2.0, "the summary took {seconds} s");
    eprintln!("{series}: the summary took {seconds} s");
    outcome.discard()
}
