//! Hosts that make the capture kernel stricter, and reservations of other kinds.
//!
//! One case by default; scripts/test --full runs all.

use anyhow::{Context, Result, ensure};
use qemu_tests::fault::Action;
use qemu_tests::kernel::Kernel;
use qemu_tests::outcome::Outcome;
use qemu_tests::scenario::Scenario;
use qemu_tests::trigger::Trigger;
use serde_json::Value;

/// What a hardened host may have on its command line that panics, hangs or refuses: none of it must
/// reach the capture kernel.
const STRICT: &str = "fips=1 unknown_nmi_panic panic_on_warn=1 softlockup_panic=1 hung_task_panic=1 \
                      nmi_watchdog=panic,1 panic_on_taint=0x1000 split_lock_detect=fatal init_on_free=1 \
                      ima_policy=tcb lsm=lockdown,yama,integrity,apparmor audit=1 slub_debug=FZ \
                      module_blacklist=ext4_of_nobody sysctl.kernel.panic_on_oops=1 \
                      sysctl.kernel.panic_on_io_nmi=1 sysctl.kernel.panic_on_unrecovered_nmi=1 \
                      hugepages=8 dhash_entries=1048576 memhp_default_state=online";

fn ensure_complete(outcome: &Outcome) -> Result<()> {
    let dump = outcome.dump()?;
    ensure!(dump.said_outcome()? == "complete", "{:#}\n{}", dump.result()?, outcome.text());
    Ok(())
}

/// An NMI panics the host, and others come while the capture runs: when its first program starts, and
/// in the middle of the dump.
fn strict(series: &str) -> Result<()> {
    let mut scenario = Scenario::new(&format!("strict-{series}"), &Kernel::of_series(series)?);
    scenario.append = STRICT.into();
    scenario.config.strip = "never".into();
    scenario.config.level = 1;
    scenario.trigger = Trigger::Nmi;
    let nmi = |message: &str| (message.to_owned(), Action::Nmi);
    scenario.actions = vec![nmi("final action will be"), nmi("% of ")];
    let outcome = scenario.run()?;
    ensure_complete(&outcome)?;
    outcome.ensure_said("NMI received for unknown reason")?;
    outcome.ensure_final_action("reboot")?;
    outcome.discard()
}

#[test]
fn a_strict_host_is_saved_and_more_nmis_do_no_harm() -> Result<()> {
    strict("6.1")
}

#[test]
#[ignore = "full: strict hosts of 5.10, 6.12 and 7.2"]
fn strict_hosts_of_all_kernels_are_saved() -> Result<()> {
    ["5.10", "6.12", "7.2"].into_iter().try_for_each(strict)
}

#[test]
#[ignore = "full: FIPS and modules without signatures"]
fn under_fips_modules_without_signatures_are_refused() -> Result<()> {
    let mut scenario = Scenario::new("fips-unsigned", &Kernel::of_series("6.1")?);
    scenario.append = "fips=1".into();
    scenario.config.strip = "always".into();
    scenario.trigger = Trigger::Refusals(vec!["unsigned".into()]);
    let outcome = scenario.run()?;
    outcome.ensure_said("the host is in FIPS mode")?;
    outcome.ensure_said("production: still running")?;
    outcome.discard()
}

#[test]
#[ignore = "full: no memory reserved below 4 GiB"]
fn a_reservation_above_4_gib_alone_is_enough() -> Result<()> {
    for series in ["5.10", "6.1", "6.12", "7.2"] {
        if std::env::var("AFTERIMAGE_SERIES").is_ok_and(|only| only != series) {
            continue;
        }
        let mut scenario = Scenario::new(&format!("no-low-{series}"), &Kernel::of_series(series)?);
        scenario.memory_mib = 5120;
        scenario.crashkernel = "256M,high crashkernel=0,low".into();
        let outcome = scenario.run()?;
        ensure_complete(&outcome)?;
        outcome.discard()?;
    }
    Ok(())
}

#[test]
#[ignore = "full: a reservation of the cma kind"]
fn memory_of_users_serves_the_capture_and_is_told() -> Result<()> {
    let mut scenario = Scenario::new("cma", &Kernel::of_series("7.2")?);
    scenario.memory_mib = 1536;
    scenario.crashkernel = "160M crashkernel=128M,cma".into();
    scenario.run = "status".into();
    let outcome = scenario.run()?;
    ensure_complete(&outcome)?;
    let result = outcome.dump()?.result()?;
    let lost = result.pointer("/user_pages_lost").and_then(Value::as_array).context("no pages of users")?;
    let pages: u64 = lost.iter().filter_map(|run| run.get("pages")?.as_u64()).sum();
    ensure!(pages == 128 << 8, "{pages} pages of users are lost: {result:#}");
    outcome.discard()
}

/// Where the kernel hides what it has loaded, a switch does not trust the record: it loads the image once
/// more, and enters that.
#[test]
#[ignore = "full: kernel.kptr_restrict=2"]
fn a_switch_in_doubt_loads_the_image_once_more() -> Result<()> {
    let mut scenario = Scenario::new("kptr-restrict", &Kernel::of_series("6.1")?);
    scenario.append = "sysctl.kernel.kptr_restrict=2".into();
    scenario.trigger = Trigger::planned();
    let outcome = scenario.run()?;
    ensure_complete(&outcome)?;
    outcome.ensure_said("kptr_restrict is 2")?;
    outcome.ensure_said("loading it again")?;
    let result = outcome.dump()?.result()?;
    ensure!(result["trigger"] == "planned", "{result:#}");
    outcome.discard()
}
