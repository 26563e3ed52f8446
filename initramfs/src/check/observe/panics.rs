//! What of the running kernel decides which faults become panics, and what happens between a panic
//! and the capture.

use std::fs;
use std::path::Path;

use vmcore::source::{Access, Core as _, Vmcore};

use crate::host::read;

/// What was seen. Texts are those of the files, empty where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Panics {
    /// sysctl kernel.unknown_nmi_panic.
    pub unknown_nmi: String,
    /// sysctl kernel.panic_on_unrecovered_nmi.
    pub unrecovered_nmi: String,
    /// sysctl kernel.softlockup_panic.
    pub softlockup: String,
    /// sysctl kernel.hardlockup_panic.
    pub hardlockup: String,
    /// sysctl kernel.hung_task_panic.
    pub hung_task: String,
    /// Who may send an NMI to get a dump: a hypervisor, a BMC; none if nobody is known to.
    pub nmi_sender: Option<&'static str>,
    /// Whether notifiers run before the capture kernel (parameter crash_kexec_post_notifiers).
    pub post_notifiers: bool,
    /// sysctl kernel.panic_print.
    pub print: String,
    /// sysctl kernel.panic_sys_info (6.17).
    pub sys_info: String,
    /// Whether this kernel knows `panic_force_cpu=`.
    pub knows_force_cpu: bool,
    /// Sessions of the live update orchestrator that are open (6.19), which only a kexec of its own
    /// hands on.
    pub live_update_sessions: usize,
    /// Whether page tables have five levels.
    pub five_levels: bool,
}

impl Panics {
    /// Looks.
    #[must_use]
    pub fn read() -> Self {
        let sysctl = |name: &str| read(&format!("/proc/sys/kernel/{name}"));
        Self {
            unknown_nmi: sysctl("unknown_nmi_panic"),
            unrecovered_nmi: sysctl("panic_on_unrecovered_nmi"),
            softlockup: sysctl("softlockup_panic"),
            hardlockup: sysctl("hardlockup_panic"),
            hung_task: sysctl("hung_task_panic"),
            nmi_sender: nmi_sender(&read("/proc/cpuinfo"), Path::new("/")),
            post_notifiers: read("/sys/module/kernel/parameters/crash_kexec_post_notifiers") == "Y",
            print: sysctl("panic_print"),
            sys_info: sysctl("panic_sys_info"),
            knows_force_cpu: knows(
                &fs::read_to_string("/proc/kallsyms").unwrap_or_default(),
                "panic_force_cpu",
            ),
            live_update_sessions: sessions(Path::new("/proc")),
            five_levels: five_levels(),
        }
    }
}

fn nmi_sender(cpuinfo: &str, root: &Path) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let bmc = ["dev/ipmi0", "dev/ipmi/0", "dev/ipmidev/0", "sys/firmware/dmi/entries/38-0"];
    if flags.split_ascii_whitespace().any(|flag| flag == "hypervisor") {
        Some("the hypervisor or cloud")
    } else if bmc.iter().any(|path| root.join(path).exists()) {
        Some("the BMC")
    } else {
        None
    }
}

fn knows(symbols: &str, name: &str) -> bool {
    symbols
        .lines()
        .any(|line| line.split_ascii_whitespace().nth(2).is_some_and(|symbol| symbol.starts_with(name)))
}

/// Open files that are sessions (kernel/liveupdate/luo_session.c names them so).
fn sessions(proc: &Path) -> usize {
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    let files =
        processes.flat_map(|process| fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten());
    let is_session = |link: &Path| link.to_string_lossy().contains("luo_session");
    files.filter(|file| fs::read_link(file.path()).is_ok_and(|link| is_session(&link))).count()
}

fn five_levels() -> bool {
    let core = Vmcore::open(Path::new("/proc/kcore"), Access::Pread);
    core.is_ok_and(|core| core.info().to_text().contains("NUMBER(pgtable_l5_enabled)=1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn who_may_send_an_nmi() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(nmi_sender("flags\t\t: fpu hypervisor lm\n", dir.path()), Some("the hypervisor or cloud"));
        assert_eq!(nmi_sender("flags\t\t: fpu lm\nbugs: hypervisor\n", dir.path()), None);
        fs::create_dir_all(dir.path().join("dev")).unwrap();
        fs::write(dir.path().join("dev/ipmi0"), "").unwrap();
        assert_eq!(nmi_sender("flags\t\t: fpu lm\n", dir.path()), Some("the BMC"));
    }

    #[test]
    fn sessions_are_counted_by_their_files() {
        let dir = tempfile::tempdir().unwrap();
        for (process, file, to) in [
            ("1", "0", "/dev/null"),
            ("7", "3", "anon_inode:[luo_session]"),
            ("7", "4", "anon_inode:[luo_session]"),
            ("9", "3", "socket:[1]"),
        ] {
            let fd = dir.path().join(process).join("fd");
            fs::create_dir_all(&fd).unwrap();
            symlink(to, fd.join(file)).unwrap();
        }
        assert_eq!(sessions(dir.path()), 2);
        assert!(
            knows("0 t panic_force_cpu_setup\n", "panic_force_cpu")
                && !knows("0 t panic\n", "panic_force_cpu")
        );
    }
}
