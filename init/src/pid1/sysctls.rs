//! Settings of the capture kernel that could turn something harmless into its end. The loader leaves
//! the host's out of the command line; here go the kernel's own defaults, which its builder chose.

use std::fs;
use std::path::Path;

/// File below /proc/sys or /sys, and what it is to hold. What a kernel does not have is left alone.
const SETTINGS: &[(&str, &str)] = &[
    // An NMI may come from whoever asked for the dump, and ask again.
    ("/proc/sys/kernel/unknown_nmi_panic", "0"),
    ("/proc/sys/kernel/panic_on_unrecovered_nmi", "0"),
    ("/proc/sys/kernel/panic_on_io_nmi", "0"),
    // PID 1 knows best what takes too long.
    ("/proc/sys/kernel/softlockup_panic", "0"),
    ("/proc/sys/kernel/hardlockup_panic", "0"),
    ("/proc/sys/kernel/hung_task_panic", "0"),
    ("/proc/sys/kernel/panic_on_rcu_stall", "0"),
    ("/proc/sys/kernel/max_rcu_stall_to_panic", "0"),
    ("/sys/module/workqueue/parameters/panic_on_stall", "0"),
    ("/sys/module/workqueue/parameters/panic_on_stall_time", "0"),
    ("/proc/sys/kernel/panic_on_warn", "0"),
    ("/proc/sys/kernel/warn_limit", "0"),
    // A child that takes too much memory costs an attempt, not the machine.
    ("/proc/sys/vm/panic_on_oom", "0"),
    // Broken memory of the old kernel is left out, page by page.
    ("/proc/sys/vm/memory_failure_recovery", "1"),
    ("/proc/sys/vm/memory_failure_early_kill", "0"),
    ("/sys/module/edac_core/parameters/edac_mc_panic_on_ue", "0"),
    // What a dying capture kernel prints goes to a slow console before it restarts.
    ("/proc/sys/kernel/panic_print", "0"),
    ("/proc/sys/kernel/panic_sys_info", ""),
    ("/proc/sys/kernel/ftrace_dump_on_oops", "0"),
    ("/proc/sys/kernel/printk_delay", "0"),
];

/// Makes the settings, but for those that the capture's own command line names: what stands there is
/// from the configuration, since nothing of the host's goes there (`sysctl.kernel.panic_on_warn=1`).
/// Returns what was changed, as text, since there is no log yet.
pub(super) fn make() -> Vec<String> {
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    make_in(Path::new("/"), &cmdline)
}

fn make_in(root: &Path, cmdline: &str) -> Vec<String> {
    let mut changed = Vec::new();
    for (path, wanted) in SETTINGS.iter().filter(|(path, _)| !is_named(path, cmdline)) {
        let file = root.join(path.trim_start_matches('/'));
        let Ok(before) = fs::read_to_string(&file) else { continue };
        if before.trim() == *wanted {
            continue;
        }
        changed.push(match fs::write(&file, format!("{wanted}\n")) {
            Ok(()) => format!("{path}: {} is {wanted:?} now", before.trim()),
            Err(error) => format!("{path} stays {}: {error}", before.trim()),
        });
    }
    changed
}

/// Whether a command line has `sysctl.kernel.NAME=` or `MODULE.NAME=` for it.
fn is_named(path: &str, cmdline: &str) -> bool {
    let key = match path.strip_prefix("/proc/sys/") {
        Some(name) => format!("sysctl.{}", name.replace('/', ".")),
        None => path.trim_start_matches("/sys/module/").replace("/parameters/", "."),
    };
    let mut words = cmdline.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    words.any(|(name, _)| name.replace('/', ".") == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_made_unless_the_configuration_says_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let file = |path: &str| dir.path().join(path.trim_start_matches('/'));
        let strict = |wanted: &str| if wanted == "1" { "0" } else { "1" };
        for (path, wanted) in SETTINGS {
            fs::create_dir_all(file(path).parent().unwrap()).unwrap();
            fs::write(file(path), strict(wanted)).unwrap();
        }
        let cmdline =
            "console=ttyS0 sysctl.vm.panic_on_oom=1 sysctl.kernel/panic_on_warn=1 workqueue.panic_on_stall=1";
        let changed = make_in(dir.path(), cmdline);
        let kept = ["panic_on_oom", "panic_on_warn", "panic_on_stall"];
        assert_eq!(changed.len(), SETTINGS.len() - kept.len(), "{changed:#?}");
        for (path, wanted) in SETTINGS {
            let is_kept = kept.iter().any(|name| path.ends_with(name));
            let expected = if is_kept { strict(wanted) } else { wanted };
            assert_eq!(fs::read_to_string(file(path)).unwrap().trim(), expected, "{path}");
        }
        assert!(make_in(dir.path(), cmdline).is_empty(), "made already");
    }

    #[test]
    fn what_a_kernel_does_not_have_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(make_in(dir.path(), "").is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
