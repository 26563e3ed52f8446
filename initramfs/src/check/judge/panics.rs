//! Findings about which faults become panics, and about what happens between a panic and the capture.

use crate::check::finding::Finding;
use crate::check::observe::host::Host;
use crate::watchdog::Watchdog;

/// Seconds from a panic to PID 1 of the capture kernel that a watchdog should leave: the boot takes 2
/// to 10 on hardware, and reading the firmware's tables of a large machine some more.
const BOOT: u32 = 30;
/// What the kernel waits at a panic for devices that still write to a reservation of `cma` kind
/// (CMA_DMA_TIMEOUT_SEC, kernel/crash_core.c).
pub(super) const CMA_WAIT: u32 = 10;

pub(super) fn findings(host: &Host) -> Vec<Finding> {
    let always = [nmi(host), lockups(host)];
    let sometimes = [notifiers(host), force_cpu(host), slow_watchdog(host), live_update(host), paging(host)];
    always.into_iter().chain(sometimes.into_iter().flatten()).collect()
}

fn nmi(host: &Host) -> Finding {
    let id = "nmi";
    let seen = &host.panics;
    let panics = [&seen.unknown_nmi, &seen.unrecovered_nmi].iter().any(|value| value.as_str() == "1");
    match (seen.nmi_sender, panics) {
        (_, true) => Finding::ok(id, "an NMI that nobody expects is a panic, and is saved"),
        (None, false) => {
            Finding::ok(id, "an NMI that nobody expects is no panic; nobody is known to send one here")
        }
        (Some(sender), false) => Finding::warning(
            id,
            format!(
                "{sender} can send an NMI to get a dump of a host that hangs, and kernel.unknown_nmi_panic is 0: \
                 it would be logged and no more"
            ),
            "sysctl -w kernel.unknown_nmi_panic=1, and the same in /etc/sysctl.d",
        ),
    }
}

fn lockups(host: &Host) -> Finding {
    let id = "lockups";
    let seen = &host.panics;
    let all = [
        ("softlockup_panic", &seen.softlockup),
        ("hardlockup_panic", &seen.hardlockup),
        ("hung_task_panic", &seen.hung_task),
    ];
    let names = |value: &str| -> Vec<&str> {
        all.iter().filter(|(_, seen)| seen.as_str() == value).map(|(name, _)| *name).collect()
    };
    let off = names("0");
    if off.is_empty() {
        return Finding::ok(
            id,
            "CPUs that hang and tasks that hang are panics, as far as this kernel looks for them",
        );
    }
    // A task that hangs may only wait for a slow server; CPUs that hang are gone.
    let found = format!("not a panic, so not saved: {}", off.join(", "));
    if off == ["hung_task_panic"] {
        return Finding::ok(id, found);
    }
    let remedy = "sysctl -w kernel.softlockup_panic=1 kernel.hardlockup_panic=1, and the same in /etc/sysctl.d, if a \
                  host that hangs is to be saved and restarted";
    Finding::warning(id, found, remedy)
}

fn notifiers(host: &Host) -> Option<Finding> {
    let seen = &host.panics;
    seen.post_notifiers.then(|| {
        let prints = !matches!(seen.print.as_str(), "" | "0") || !seen.sys_info.is_empty();
        let more =
            if prints { ", and what kernel.panic_print and panic_sys_info ask for is printed" } else { "" };
        let found = format!(
            "crash_kexec_post_notifiers is on: code of drivers runs between a panic and the capture{more}; \
             where that hangs, nothing is saved"
        );
        let remedy = "take crash_kexec_post_notifiers off the kernel command line, unless a hypervisor or a \
                      cluster needs to be told of panics";
        Finding::warning("panic-notifiers", found, remedy)
    })
}

fn force_cpu(host: &Host) -> Option<Finding> {
    let id = "panic-cpu";
    let mut words = host.cmdline.split_ascii_whitespace();
    let forced = words.find_map(|word| word.strip_prefix("panic_force_cpu="));
    match (forced, host.panics.knows_force_cpu) {
        (Some("0"), true) => Some(Finding::ok(
            id,
            "panic_force_cpu=0: the capture kernel starts on the boot CPU, and can use all CPUs",
        )),
        (Some(cpu), true) => Some(Finding::warning(
            id,
            format!("panic_force_cpu={cpu}: a panic goes on CPU {cpu}, and is lost if that one hangs"),
            "panic_force_cpu=0, or none",
        )),
        (Some(_), false) => Some(Finding::warning(
            id,
            "panic_force_cpu= is on the command line, and this kernel does not know it",
            "take it away, or boot a kernel that has it (7.0)",
        )),
        (None, true) => Some(Finding::ok(
            id,
            "a panic may be on any CPU; with panic_force_cpu=0 the capture kernel would start on the boot CPU and \
             could use all CPUs",
        )),
        (None, false) => None,
    }
}

fn slow_watchdog(host: &Host) -> Option<Finding> {
    let waits = if host.cma.is_empty() { 0 } else { CMA_WAIT };
    let need = BOOT.saturating_add(waits);
    let runs = |watchdog: &&Watchdog| watchdog.is_hardware && watchdog.is_active;
    let short = host
        .watchdogs
        .iter()
        .filter(runs)
        .find(|watchdog| watchdog.timeout.is_some_and(|time| time < need))?;
    let found = format!(
        "{} ({}) resets the machine {} s after it was last fed, and the capture kernel may take \
         {need} s to come so far",
        short.name,
        short.identity,
        short.timeout.unwrap_or(0)
    );
    let remedy = format!(
        "give it {need} s or more: RuntimeWatchdogSec= in /etc/systemd/system.conf, or its daemon's timeout"
    );
    Some(Finding::warning("watchdog-time", found, remedy))
}

fn live_update(host: &Host) -> Option<Finding> {
    let sessions = host.panics.live_update_sessions;
    (sessions > 0).then(|| {
        let found = format!(
            "{sessions} sessions of the live update orchestrator are open: neither a capture nor a planned switch hands \
             them on, so what they keep is lost"
        );
        let remedy = "end them, or do the live update first, before a planned switch";
        Finding::warning("live-update", found, remedy)
    })
}

fn paging(host: &Host) -> Option<Finding> {
    host.panics.five_levels.then(|| {
        Finding::ok(
            "paging",
            "page tables have five levels: crash and drgn read that, volatility3 (as of 2.28) does not; with no5lvl on \
             the command line they have four",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;
    use crate::check::observe::host::testing::healthy;

    fn spoiled(id: &str, spoil: impl FnOnce(&mut Host)) -> Option<Finding> {
        let mut host = healthy();
        spoil(&mut host);
        findings(&host).into_iter().find(|finding| finding.id == id)
    }

    fn warns(id: &str, words: &str, spoil: impl FnOnce(&mut Host)) {
        let found = spoiled(id, spoil).unwrap();
        assert!(found.level == Level::Warning && found.found.contains(words), "{found:?}");
        assert!(found.remedy.is_some());
    }

    #[test]
    fn an_nmi_matters_where_somebody_sends_it() {
        let off = |host: &mut Host| {
            (host.panics.unknown_nmi, host.panics.unrecovered_nmi) = ("0".into(), "0".into());
        };
        warns("nmi", "the BMC can send", |host| {
            off(host);
            host.panics.nmi_sender = Some("the BMC");
        });
        let nobody = spoiled("nmi", |host| {
            off(host);
            host.panics.nmi_sender = None;
        });
        assert_eq!(nobody.unwrap().level, Level::Ok);
        let other = spoiled("nmi", |host| {
            (host.panics.unknown_nmi, host.panics.unrecovered_nmi) = ("0".into(), "1".into());
        });
        assert_eq!(other.unwrap().level, Level::Ok);
    }

    #[test]
    fn lockups_that_are_no_panics_are_named() {
        warns("lockups", "softlockup_panic, hardlockup_panic", |host| {
            (host.panics.softlockup, host.panics.hardlockup) = ("0".into(), "0".into());
        });
        let slow = spoiled("lockups", |host| host.panics.hung_task = "0".into()).unwrap();
        assert!(slow.level == Level::Ok && slow.found.contains("hung_task_panic"), "{slow:?}");
        let none = spoiled("lockups", |host| host.panics.hardlockup.clear()).unwrap();
        assert_eq!(none.level, Level::Ok, "a kernel without the detector");
    }

    #[test]
    fn what_runs_before_the_capture_is_told() {
        assert_eq!(spoiled("panic-notifiers", |_| ()), None);
        warns("panic-notifiers", "code of drivers", |host| host.panics.post_notifiers = true);
        warns("panic-notifiers", "panic_sys_info", |host| {
            host.panics.post_notifiers = true;
            host.panics.sys_info = "tasks,mem".into();
        });
    }

    #[test]
    fn the_cpu_of_a_panic_may_be_chosen() {
        assert_eq!(spoiled("panic-cpu", |_| ()), None);
        let knows = |cmdline: &'static str, knows| {
            move |host: &mut Host| (host.cmdline, host.panics.knows_force_cpu) = (cmdline.into(), knows)
        };
        assert!(spoiled("panic-cpu", knows("", true)).unwrap().found.contains("could use all CPUs"));
        assert_eq!(spoiled("panic-cpu", knows("panic_force_cpu=0", true)).unwrap().level, Level::Ok);
        warns("panic-cpu", "CPU 3", knows("panic_force_cpu=3", true));
        warns("panic-cpu", "does not know it", knows("panic_force_cpu=0", false));
    }

    #[test]
    fn a_watchdog_leaves_time_for_the_boot() {
        assert_eq!(spoiled("watchdog-time", |_| ()), None);
        warns("watchdog-time", "10 s after", |host| host.watchdogs[0].timeout = Some(10));
        warns("watchdog-time", "may take 40 s", |host| {
            host.watchdogs[0].timeout = Some(35);
            host.cma = "100000000-107ffffff".into();
        });
        assert_eq!(spoiled("watchdog-time", |host| host.watchdogs[0].timeout = Some(35)), None);
        let idle = spoiled("watchdog-time", |host| {
            (host.watchdogs[0].timeout, host.watchdogs[0].is_active) = (Some(10), false);
        });
        assert_eq!(idle, None);
    }

    #[test]
    fn live_updates_and_five_levels_are_told() {
        assert_eq!([spoiled("live-update", |_| ()), spoiled("paging", |_| ())], [None, None]);
        warns("live-update", "2 sessions", |host| host.panics.live_update_sessions = 2);
        let paging = spoiled("paging", |host| host.panics.five_levels = true).unwrap();
        assert!(paging.found.contains("volatility3") && paging.found.contains("no5lvl"), "{paging:?}");
    }
}
