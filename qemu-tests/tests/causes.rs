//! Why a kernel came to its end, as `afterimage summary` tells it: of ends of all kinds, each with its
//! function, its module, its task and a signature that is the same after each boot.

use anyhow::{Context, Result, ensure};
use qemu_tests::end::{Said, Way, scenario, way_called};
use qemu_tests::kernel::Kernel;
use qemu_tests::scenario::Scenario;
use qemu_tests::trigger::Trigger;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Instant;

/// In these the kernel itself sees what went wrong.
const OOPSES: &[&str] =
    &["null", "bug", "protection", "divide", "jump", "interrupt", "warn", "panic", "exit", "sysrq"];
/// In these something does not get on.
const LOCKUPS: &[&str] =
    &["busy", "retry", "lock-twice", "irqs-off", "wait", "take", "stall", "stall-2", "memory", "deadlock"];
/// The only CPU of a kernel that cannot take it away does not let RCU begin, so there is nothing to stall.
const LOCKUPS_OLD: &[&str] =
    &["busy", "retry", "lock-twice", "irqs-off", "wait", "take", "stall-2", "memory", "deadlock"];
const CORRUPTION: &[&str] =
    &["smash", "overflow", "stack-end", "list", "usercopy", "copy", "use-freed", "free-twice"];
/// In these the machine itself says it. Cloud kernels before 6.12 know no machine checks.
const MACHINE: &[&str] = &["nmi", "pretimeout", "firmware", "machine-check"];
const MACHINE_OLD: &[&str] = &["nmi", "pretimeout", "firmware"];

/// Crashes a guest so, and judges what its summary says.
fn crash(way: &'static Way, series: &str) -> Result<Said> {
    let started = Instant::now();
    let kernel = Kernel::of_series(series)?;
    let outcome = scenario(way, &kernel, series)?.run()?;
    let said = Said::of_dump(outcome.dump()?)?;
    let seconds = started.elapsed().as_secs();
    eprintln!("{} on {series}: {} of {:?}, {seconds} s", way.name, said.hash, said.functions);
    said.judge(way)?;
    outcome.discard()?;
    Ok(said)
}

/// Comes to these ends, to each so many times: all are told, signatures of one are one, and those of
/// different ones differ.
fn judge(series: &str, names: &[&str], times: usize) -> Result<()> {
    let (mut wrong, mut hashes) = (Vec::new(), BTreeMap::<String, &str>::new());
    for name in names {
        let way = way_called(name)?;
        for _ in 0..times {
            let said = match crash(way, series) {
                Ok(said) => said,
                Err(error) => {
                    wrong.push(format!("{name} on {series}: {error:?}"));
                    continue;
                }
            };
            // On two CPUs it is the same crash as on one.
            let crash_of = |name: &str| name.trim_end_matches("-2").to_owned();
            let is_same = |other: &str| crash_of(other) == crash_of(name);
            let other = hashes.iter().find(|(hash, other)| (**hash == said.hash) != is_same(other));
            if let Some((hash, other)) = other.filter(|_| !way.told.signature.is_empty()) {
                wrong.push(format!("{name} has {said:?}, and {other} has {hash}"));
            }
            hashes.insert(said.hash, name);
        }
    }
    ensure!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

#[test]
#[ignore = "full: modules are built in a folder that only root can enter"]
fn an_oops_in_a_module_is_told() -> Result<()> {
    crash(way_called("null")?, "6.1").map(drop)
}

/// By the dump alone: nobody tells the reader that the switch was planned.
#[test]
#[ignore = "full: not an end of a kernel"]
fn a_planned_switch_is_told() -> Result<()> {
    let mut scenario = Scenario::new("end-planned", &Kernel::of_series("6.1")?);
    scenario.trigger = Trigger::planned();
    let outcome = scenario.run()?;
    let said = Said::of_dump(outcome.dump()?)?;
    ensure!(said.cause.get("kind").and_then(Value::as_str) == Some("planned"), "{said:#?}");
    ensure!(said.functions.is_empty(), "{said:#?}");
    outcome.discard()
}

/// Ends of several kinds on a kernel.
macro_rules! told {
    ($($name:ident: $series:literal, $ways:expr;)*) => {
        $(
            #[test]
            #[ignore = "full: all ends on all kernels"]
            fn $name() -> Result<()> {
                judge($series, $ways, 1).context($series)
            }
        )*
    };
}

told! {
    oopses_of_5_10_are_told: "5.10", OOPSES;
    oopses_of_6_1_are_told: "6.1", OOPSES;
    oopses_of_6_12_are_told: "6.12", OOPSES;
    oopses_of_7_2_are_told: "7.2", OOPSES;
    lockups_of_5_10_are_told: "5.10", LOCKUPS_OLD;
    lockups_of_6_1_are_told: "6.1", LOCKUPS;
    lockups_of_6_12_are_told: "6.12", LOCKUPS;
    lockups_of_7_2_are_told: "7.2", LOCKUPS;
    corruption_of_5_10_is_told: "5.10", CORRUPTION;
    corruption_of_6_1_is_told: "6.1", CORRUPTION;
    corruption_of_6_12_is_told: "6.12", CORRUPTION;
    corruption_of_7_2_is_told: "7.2", CORRUPTION;
    words_of_the_machine_on_5_10_are_told: "5.10", MACHINE_OLD;
    words_of_the_machine_on_6_1_are_told: "6.1", MACHINE_OLD;
    words_of_the_machine_on_6_12_are_told: "6.12", MACHINE;
    words_of_the_machine_on_7_2_are_told: "7.2", MACHINE;
}

#[test]
#[ignore = "full: ten crashes of each of five kinds"]
fn ten_oopses_of_a_kind_have_one_signature() -> Result<()> {
    judge("6.1", &["null", "list"], 10)
}

#[test]
#[ignore = "full: ten crashes of each of five kinds"]
fn ten_lockups_of_a_kind_have_one_signature() -> Result<()> {
    judge("6.1", &["retry", "take", "stall-2"], 10)
}
