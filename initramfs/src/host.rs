//! What the running host says about itself, where loading and building depend on it.

use std::fs;
use std::path::{Path, PathBuf};

use base::facts::parse_iomem;
use vmcore::source::{Access, Core, Vmcore};

/// Reads a small file of /proc or /sys; empty if it is not there.
#[must_use]
pub fn read(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim_end().to_owned()).unwrap_or_default()
}

/// The lockdown mode in force: `none`, `integrity` or `confidentiality`.
#[must_use]
pub fn lockdown() -> String {
    active_lockdown(&read("/sys/kernel/security/lockdown"))
}

/// What the kernel says of kexec, see [`kexec::machine::of_kexec`].
#[must_use]
pub fn kexec(name: &str) -> String {
    kexec::machine::of_kexec(name)
}

/// Number of CAP_SYS_BOOT (include/uapi/linux/capability.h).
const CAP_SYS_BOOT: u32 = 22;

/// Whether this process may load kernels: it has CAP_SYS_BOOT, and in the first user namespace.
#[must_use]
pub fn may_boot() -> bool {
    has_cap_sys_boot(&read("/proc/self/status"), &read("/proc/self/uid_map"))
}

fn has_cap_sys_boot(status: &str, uid_map: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let all = uid_map.split_whitespace().eq(["0", "0", "4294967295"]) || uid_map.is_empty();
    // Without /proc nothing can be said.
    effective.is_none_or(|set| set >> CAP_SYS_BOOT & 1 == 1) && all
}

/// The kind of container that this process is in, as far as that shows.
#[must_use]
pub fn container() -> Option<&'static str> {
    let there = |path: &str| Path::new(path).exists();
    match () {
        () if there("/.dockerenv") => Some("Docker"),
        () if there("/run/.containerenv") => Some("Podman"),
        () if there("/run/systemd/container") => Some("systemd-nspawn, or one that says so to systemd"),
        () if there("/var/run/secrets/kubernetes.io") => Some("Kubernetes"),
        () if read("/proc/1/cgroup").contains("/lxc/") => Some("LXC"),
        () if !read("/proc/self/uid_map").split_whitespace().eq(["0", "0", "4294967295"]) => {
            Some("a user namespace")
        }
        () => None,
    }
}

/// CPUs that are online.
#[must_use]
pub fn cpus() -> u32 {
    let cpuinfo = read("/proc/cpuinfo");
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    u32::try_from(count).unwrap_or(0)
}

/// Bytes of the crash kernel reservation.
#[must_use]
pub fn reservation() -> u64 {
    kexec("crash_size").parse().unwrap_or(0)
}

/// Whether /proc/iomem shows a reservation between 1 MiB and 4 GiB, for the devices of the capture
/// kernel that reach no further.
#[must_use]
pub fn has_low_reservation(iomem: &str) -> bool {
    let lines = iomem.lines().map(str::trim_start).filter(|line| line.ends_with("Crash kernel"));
    let mut ranges = lines.flat_map(parse_iomem);
    ranges.any(|range| range.last > range.start && range.start < 4 << 30)
}

/// Where distributions put the kernel of a release, the usual place first.
const KERNELS: &[&str] = &[
    "/boot/vmlinuz-{}",
    "/lib/modules/{}/vmlinuz",
    "/usr/lib/modules/{}/vmlinuz",
    "/boot/{}/vmlinuz",
    "/boot/kernel-{}",
    "/boot/bzImage-{}",
    "/boot/vmlinuz-linux-{}",
    "/boot/{machine}/{}/linux",
    "/boot/efi/{machine}/{}/linux",
    "/efi/{machine}/{}/linux",
];

/// The kernel file of a release, where distributions put it; the first of these places if it is in
/// none. Under ostree it is looked for in its deployments' folders of /boot.
#[must_use]
pub fn kernel_file(release: &str) -> PathBuf {
    kernel_file_in(Path::new("/"), release)
}

/// The places of [`kernel_file`], for a message.
#[must_use]
pub fn kernel_places(release: &str) -> String {
    let place = |place: &&str| place.replace("{machine}", "MACHINE-ID").replace("{}", release);
    KERNELS.iter().map(place).chain(["/boot/ostree/*".to_owned()]).collect::<Vec<_>>().join(", ")
}

fn kernel_file_in(root: &Path, release: &str) -> PathBuf {
    let machine = fs::read_to_string(root.join("etc/machine-id")).unwrap_or_default();
    let place = |place: &&str| {
        let place = place.replace("{machine}", machine.trim()).replace("{}", release);
        root.join(place.trim_start_matches('/'))
    };
    let deployments = fs::read_dir(root.join("boot/ostree")).into_iter().flatten().flatten();
    let mut deployments: Vec<PathBuf> =
        deployments.map(|entry| entry.path().join(format!("vmlinuz-{release}"))).collect();
    deployments.sort();
    let places: Vec<PathBuf> = KERNELS.iter().map(place).chain(deployments).collect();
    places.iter().find(|path| path.is_file()).or(places.first()).cloned().unwrap_or_default()
}

/// Bytes of memory (MemTotal).
#[must_use]
pub fn memory() -> u64 {
    let meminfo = read("/proc/meminfo");
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
    kib.saturating_mul(1024)
}

/// VMCOREINFO of the running kernel, which /proc/kcore has as a note (4.19); empty under lockdown,
/// which closes it.
#[must_use]
pub fn vmcoreinfo() -> String {
    let text = Vmcore::open(Path::new("/proc/kcore"), Access::Pread).map(|core| core.info().to_text());
    let text = text.map_err(|error| base::log::chain(&error));
    let text =
        text.and_then(|text| if text.is_empty() { Err("/proc/kcore has none".to_owned()) } else { Ok(text) });
    text.inspect_err(|cause| log::warn!("no copy of VMCOREINFO goes with the image: {cause}"))
        .unwrap_or_default()
}

/// Whether a panic kernel is loaded.
#[must_use]
pub fn is_loaded() -> bool {
    kexec("crash_loaded") == "1"
}

/// The mode between brackets in `[none] integrity confidentiality`; a kernel without lockdown has
/// none.
fn active_lockdown(text: &str) -> String {
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or("none", |(mode, _)| mode).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_of_a_container_may_not_load_kernels() {
        const HOST: &str = "         0          0 4294967295\n";
        let with = |set: &str| format!("Name:\tx\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\n");
        assert!(has_cap_sys_boot(&with("000001ffffffffff"), HOST));
        assert!(!has_cap_sys_boot(&with("00000000a80425fb"), HOST), "the set that Docker gives");
        assert!(!has_cap_sys_boot(&with("000001ffffffffff"), "0 100000 65536\n"), "rootless");
        assert!(!has_cap_sys_boot(&with("0000000000000000"), HOST));
        assert!(has_cap_sys_boot("", ""), "without /proc nothing can be said");
    }

    #[test]
    fn lockdown_is_the_word_in_brackets() {
        assert_eq!(active_lockdown("none [integrity] confidentiality"), "integrity");
        assert_eq!(active_lockdown(""), "none");
    }

    #[test]
    fn low_memory_is_a_reservation_that_begins_below_4_gib() {
        let low = "00100000-7fffffff : System RAM\n  10000000-1fffffff : Crash kernel\n";
        let high = "100000000-17fffffff : System RAM\n  130000000-13fffffff : Crash kernel\n";
        assert!(has_low_reservation(low) && has_low_reservation(&format!("{low}{high}")));
        assert!(!has_low_reservation(high));
        assert!(!has_low_reservation("00000000-00000000 : Crash kernel\n"), "that is what others see");
    }

    #[test]
    fn kernels_are_found_where_distributions_put_them() {
        for place in [
            "boot/vmlinuz-6.1",
            "lib/modules/6.1/vmlinuz",
            "usr/lib/modules/6.1/vmlinuz",
            "boot/6.1/vmlinuz",
            "boot/kernel-6.1",
            "boot/efi/4711/6.1/linux",
            "efi/4711/6.1/linux",
            "boot/4711/6.1/linux",
            "boot/ostree/debian-abc/vmlinuz-6.1",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::create_dir_all(dir.path().join("etc")).unwrap();
            fs::write(dir.path().join("etc/machine-id"), "4711\n").unwrap();
            assert_eq!(kernel_file_in(dir.path(), "6.1"), dir.path().join("boot/vmlinuz-6.1"));
            fs::write(&path, "").unwrap();
            assert_eq!(kernel_file_in(dir.path(), "6.1"), path, "{place}");
        }
        assert!(kernel_places("6.1").contains("/usr/lib/modules/6.1/vmlinuz"));
    }
}
