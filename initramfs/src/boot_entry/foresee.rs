//! What is known in advance to keep a final action from its work. Values in, findings out.

use base::config::{Config, FinalAction};

use super::Next;
use crate::crashkernel::mib;

/// A root file system's services need more than a capture does; what was tested.
pub const ROOT_MEMORY: u64 = 512 << 20;

/// What a final action depends on beside the files.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// Lockdown mode of this kernel, `none` without. The capture kernel has the same.
    pub lockdown: &'a str,
    /// Whether there is a hardware watchdog.
    pub has_watchdog: bool,
    /// Bytes of the reservation.
    pub reservation: u64,
    /// CPUs that are online.
    pub cpus: u32,
}

/// Something to see to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concern {
    /// Name for scripts.
    pub id: &'static str,
    /// What it is.
    pub found: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Everything that would make a final action another one, or leaves it without its guard.
#[must_use]
pub fn concerns(config: &Config, next: &Next, circumstances: Circumstances<'_>) -> Vec<Concern> {
    let mut concerns = Vec::new();
    let mut concern = |id, found: String, remedy| concerns.push(Concern { id, found, remedy });
    let Circumstances { lockdown, has_watchdog, reservation, cpus } = circumstances;
    let finish = &config.finish;
    if finish.may(FinalAction::Kexec) {
        if let Some(Err(error)) = &next.boot {
            let found = format!("no kernel to go on to, a reboot instead of kexec: {error}");
            concern("finish-kernel", found, "name it in [boot] and load again");
        }
        if lockdown != "none" {
            let found = format!("lockdown mode {lockdown}: a reboot instead of kexec");
            concern("finish-lockdown", found, "set finish to reboot, or switch Secure Boot off");
        }
        if finish.guard > 0 && !has_watchdog {
            let found =
                "no hardware watchdog: a next kernel that hangs after a kexec stays hanging".to_owned();
            concern("finish-guard", found, "load the driver of one, or set finish.guard = 0 to take that");
        }
        if cpus < finish.min_cpus {
            let found = format!(
                "{cpus} CPUs, fewer than finish.min_cpus = {}: a reboot instead of kexec",
                finish.min_cpus
            );
            concern("finish-cpus", found, "lower finish.min_cpus");
        }
    }
    if let Some(Err(error)) = &next.root {
        let found = format!("no root file system to go on to, a reboot instead: {error}");
        concern("finish-root", found, "name it with boot.root and load again");
    }
    if finish.may(FinalAction::SwitchRoot) && reservation < ROOT_MEMORY {
        let found = format!(
            "the root's services run in the reservation of {} MiB; {} MiB are the least that was tested",
            mib(reservation),
            mib(ROOT_MEMORY)
        );
        concern("finish-memory", found, "boot with crashkernel=512M or more, or use kexec");
    }
    concerns
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Circumstances<'_> =
        Circumstances { lockdown: "none", has_watchdog: true, reservation: 1 << 30, cpus: 4 };

    fn ids(finish: &str, next: &Next, circumstances: Circumstances<'_>) -> Vec<&'static str> {
        let config = Config::parse(&format!("[finish]\n{finish}")).unwrap();
        concerns(&config, next, circumstances).into_iter().map(|concern| concern.id).collect()
    }

    #[test]
    fn what_would_become_of_a_kexec_is_said() {
        let kexec = "planned.success = \"kexec\"\nmin_cpus = 4\n";
        let (none, lost) = (Next::default(), Next { boot: Some(Err("x".into())), root: None });
        let of = |next: &Next, circumstances| ids(kexec, next, circumstances);
        assert_eq!(of(&none, GOOD), [""; 0]);
        assert_eq!(of(&lost, GOOD), ["finish-kernel"]);
        assert_eq!(of(&none, Circumstances { lockdown: "integrity", ..GOOD }), ["finish-lockdown"]);
        assert_eq!(of(&none, Circumstances { has_watchdog: false, ..GOOD }), ["finish-guard"]);
        assert_eq!(of(&none, Circumstances { cpus: 3, ..GOOD }), ["finish-cpus"]);
        let bad = Circumstances { lockdown: "integrity", has_watchdog: false, reservation: 1, cpus: 1 };
        assert_eq!(ids("action = \"reboot\"\nmin_cpus = 9", &none, bad), [""; 0], "it is not wanted");
        assert_eq!(
            ids(&format!("{kexec}guard = 0"), &none, Circumstances { has_watchdog: false, ..GOOD }),
            [""; 0]
        );
    }

    #[test]
    fn a_root_wants_memory() {
        let next = Next { boot: None, root: Some(Err("x".into())) };
        let small = Circumstances { reservation: 256 << 20, ..GOOD };
        assert_eq!(ids("action = \"switch_root\"", &next, small), ["finish-root", "finish-memory"]);
        assert_eq!(ids("failure = \"shell\"", &next, small), ["finish-root"]);
    }
}
