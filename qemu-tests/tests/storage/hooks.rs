//! Programs of the user's in the capture kernel: what they are given, and that none of them stops a
//! dump.

use crate::{ensure_back, ensure_complete, only, scenario};
use anyhow::{Context, Result, ensure};
use qemu_tests::binaries::Binaries;
use qemu_tests::extra_disk::ExtraDisk;
use std::fs;

#[test]
fn a_hook_gets_the_result_and_a_failing_one_stops_nothing() -> Result<()> {
    let disk = ExtraDisk::ext4("target", 512);
    let mut scenario = scenario("hooks")?;
    scenario.config.targets = vec![disk.target()];
    scenario.extra = vec![disk];
    let program = &Binaries::get()?.production_init;
    let hook = |when: &str, what: &str| {
        format!(
            "[[hook]]\nwhen = {when:?}\npath = {program:?}\nargs = [{what:?}]\ntimeout = 3\nmemory \
             = \"48M\"\n"
        )
    };
    let hooks =
        [("before", "hang"), ("before", "fail"), ("before", "eat"), ("after", "note"), ("after", "hang")];
    scenario.config.more = hooks.map(|(when, what)| hook(when, what)).join("\n");
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    let dump = only(&outcome.disk("target")?.dumps)?;
    ensure_complete(dump)?;
    let note = fs::read_to_string(dump.file("note-of-a-hook.txt")).context("the hook's note")?;
    let told = note.strip_prefix("after\n").context("not told when it runs")?;
    let told: serde_json::Value = serde_json::from_str(told).context("the result that the hook was given")?;
    ensure!(told.get("outcome").is_some_and(|it| it == "complete"), "{told:#}");
    let result = dump.result()?;
    let all = result.get("degradations").and_then(serde_json::Value::as_array).context("no degradations")?;
    let causes: Vec<&str> = all
        .iter()
        .filter(|one| one.get("step").is_some_and(|step| step == "hook"))
        .filter_map(|one| one.get("cause")?.as_str())
        .collect();
    let killed = "took longer than 3 s and was killed";
    let failed = "ended with exit status: 7";
    ensure!(causes == [killed, failed, failed, killed], "{causes:?}");
    outcome.ensure_said("taking memory")?;
    outcome.discard()
}
