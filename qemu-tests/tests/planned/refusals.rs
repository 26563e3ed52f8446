//! Every refusal has words of its own and leaves the host running.

use crate::{scenario, series};
use anyhow::{Result, ensure};
use qemu_tests::kernel::Kernel;
use qemu_tests::outcome::Outcome;
use qemu_tests::trigger::Trigger;

/// `status` has proved what is loaded: not only does nothing speak against it, but the kernel's own
/// description and the memory say so.
fn ensure_proved(outcome: &Outcome) -> Result<()> {
    let armed = outcome.console.iter().find(|line| line.text.contains("armed        yes"));
    ensure!(armed.is_some_and(|line| !line.text.contains("not proved")), "{armed:?}");
    outcome.ensure_said("saved        yes")
}

fn ensure_refused(outcome: &Outcome, case: &str, words: &str) -> Result<()> {
    let line = &outcome.line(&format!("production: refused {case}: "))?.text;
    ensure!(line.contains(words), "{words:?} is not in {line}");
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_and_the_host_runs_on() -> Result<()> {
    refusals("refusals", &Kernel::of_series(&series())?)
}

#[test]
#[ignore = "full: what the newest kernel refuses"]
fn what_cannot_be_is_refused_by_7_2() -> Result<()> {
    refusals("refusals-7.2", &Kernel::of_series("7.2")?)
}

fn refusals(name: &str, kernel: &Kernel) -> Result<()> {
    let mut scenario = scenario(name)?;
    scenario.kernel = kernel.clone();
    // A collector that takes its time keeps the first capture busy.
    scenario.config.more = "[planned]\nevidence = true\n\n[[collector]]\nname = \"slow\"\nclass = \"time\"\n\
                            command = [\"/witness-sleeper\"]\ntimeout = 60\n"
        .into();
    let cases = [
        ("switch-unarmed", "no panic kernel is loaded"),
        ("kernel-truncated", "the file ends early"),
        ("kernel-flipped", "the file is damaged"),
        ("image-truncated", "afterimage.img"),
        ("image-flipped", "afterimage.img"),
        ("load", ""),
        ("status", ""),
        ("other-loader", ""),
        ("status-other", "another image was loaded since"),
        ("check-other", "another image was loaded since"),
        ("switch-other", "another image was loaded since"),
        ("again-other", "another image was loaded since"),
        ("load", ""),
        ("edited", ""),
        ("status-edited", "was changed since the load"),
        ("check-edited", "was changed since the load"),
        ("switch-edited", "was changed since the load"),
        ("load", ""),
        ("no-reason", "give a reason with --why"),
        ("second-switch", "another planned switch is under way"),
        ("emptied", ""),
        ("status-emptied", "NO: a panic will not be captured"),
        ("switch-emptied", "no panic kernel is loaded"),
        ("load", ""),
        ("unload", ""),
        ("shrink", ""),
        ("too-small", "this image needs at least"),
        ("free", ""),
        ("no-reservation", "no memory is reserved"),
    ];
    scenario.trigger = Trigger::Refusals(cases.map(|(case, _)| case.to_owned()).into());
    let outcome = scenario.run()?;
    for (case, words) in cases.into_iter().filter(|(_, words)| !words.is_empty()) {
        ensure_refused(&outcome, case, words)?;
    }
    outcome.ensure_said("production: still running")?;
    ensure_proved(&outcome)?;
    ensure!(outcome.dumps.is_empty(), "{:?}", outcome.dumps);
    outcome.discard()
}

/// The kernel tells nobody where it puts what it loads itself, but its memory does.
#[test]
#[ignore = "full: an image that the kernel has loaded"]
fn an_image_that_the_kernel_has_loaded_is_proved_too() -> Result<()> {
    for series in ["6.1", "7.2"] {
        let mut scenario = scenario(&format!("file-load-{series}"))?;
        scenario.kernel = Kernel::of_series(series)?;
        scenario.config.capture = "loader = \"kexec_file_load\"".into();
        let cases = [
            ("load", ""),
            ("status", ""),
            ("other-loader", ""),
            ("status-other", "another image was loaded since"),
            ("panic-other", "another image was loaded since"),
        ];
        scenario.trigger = Trigger::Refusals(cases.map(|(case, _)| case.to_owned()).into());
        let outcome = scenario.run()?;
        for (case, words) in cases.into_iter().filter(|(_, words)| !words.is_empty()) {
            ensure_refused(&outcome, case, words)?;
        }
        ensure_proved(&outcome)?;
        outcome.discard()?;
    }
    Ok(())
}

/// Debian's kernels are signed, but with a key that only Secure Boot itself would have this kernel
/// trust.
#[test]
fn under_lockdown_nothing_unsigned_is_loaded() -> Result<()> {
    under_lockdown("never", "lockdown mode integrity")
}

#[test]
#[ignore = "full: modules without signatures under lockdown"]
fn under_lockdown_modules_without_signatures_are_refused() -> Result<()> {
    under_lockdown("always", "wants signed modules")
}

fn under_lockdown(strip: &str, words: &str) -> Result<()> {
    let mut scenario = scenario(&format!("lockdown-{strip}"))?;
    scenario.append = "lockdown=integrity".into();
    scenario.config.strip = strip.into();
    scenario.trigger = Trigger::Refusals(["no-signature", "switch-unarmed"].map(str::to_owned).into());
    let outcome = scenario.run()?;
    ensure_refused(&outcome, "no-signature", words)?;
    ensure_refused(&outcome, "switch-unarmed", "no panic kernel is loaded")?;
    outcome.ensure_said("production: still running")?;
    outcome.discard()
}
