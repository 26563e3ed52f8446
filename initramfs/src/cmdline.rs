//! The capture kernel's command line: of the host's what is known to be wanted, plus what must come.

pub mod table;

use table::{Reason, normal, reason_to_leave_out};

/// Longest command line of x86 (COMMAND_LINE_SIZE), with its NUL.
pub const MAX_LEN: usize = 2048;
/// What the kernel itself adds (`elfcorehdr=0x…`).
const RESERVED: usize = 32;

/// Left out where no memory below 4 GiB is reserved; see [`Changes::low_memory`].
const NO_ACCOUNTING: &str = "cgroup_disable=memory";

/// What every capture kernel gets, each with its reason.
const APPEND: &[&str] = &[
    "reset_devices",      // drivers reset hardware that the crash left running
    "irqpoll",            // an interrupt line may have been lost
    "panic=10",           // a capture kernel that dies must not stay dead
    "oops=panic",         // and an oops there is a death
    "panic_on_warn=0",    // but a warning is not
    "nokaslr",            // room in a small region; nothing to hide from
    "novmcoredd",         // device dumps are made of memory that is needed
    "softlockup_panic=0", // nor is a slow step, whatever the kernel's defaults are
    "hung_task_panic=0",
    "nmi_watchdog=0",
    "numa=off",                               // one node is enough
    NO_ACCOUNTING,                            // accounting costs memory per page
    "transparent_hugepage=never",             // so do huge pages
    "acpi_no_memhotplug",                     // the old kernel's memory must not be plugged in
    "mce=off", // a machine check of parked CPUs would panic us; the price: one in old memory resets the machine
    "hest_disable", // nor are its firmware error records
    "pcie_ports=compat", // no AER storms from devices in the middle of something
    "initcall_blacklist=tracer_init_tracefs", // 8.6 MB on 6.1
    "mitigations=off", // nobody runs here; page table copies cost 2 MB
    "audit=0", // no rules, no daemon
];

/// Why there is no command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the capture kernel's command line has {len} bytes, more than the kernel's {MAX_LEN}: shorten \
     capture.cmdline_append or add to capture.cmdline_remove"
)]
pub struct TooLong {
    len: usize,
}

/// What the configuration changes.
#[derive(Clone, Copy, Debug)]
pub struct Changes<'a> {
    /// CPUs to start.
    pub cpus: u32,
    /// APIC id of the boot CPU: with several CPUs it must stay off, since starting it resets the
    /// machine.
    pub boot_apic_id: Option<u32>,
    /// Whether memory between 1 MiB and 4 GiB is reserved. Without, some kernels with
    /// `cgroup_disable=memory` die while they set up their zones.
    pub low_memory: bool,
    /// More parameters to take out, by name.
    pub remove: &'a [String],
    /// More parameters to put in.
    pub append: &'a str,
}

/// The command line for a capture kernel on a host that was started with `host`.
pub fn build(host: &str, changes: Changes<'_>) -> Result<String, TooLong> {
    // What stands behind "--" is for the host's init, and would swallow what we append.
    let host = split(host).into_iter().take_while(|word| word != "--");
    let stays = |word: &String| reason_to_leave_out(word).is_none() && !is_named(word, changes.remove);
    let mut words: Vec<String> = host.filter(stays).collect();
    let fits = |word: &&&str| changes.low_memory || **word != NO_ACCOUNTING;
    let ours = APPEND.iter().filter(fits).filter(|word| !is_named(word, changes.remove));
    words.extend(ours.map(|&word| word.to_owned()));
    words.push(format!("nr_cpus={}", changes.cpus));
    if let (2.., Some(id)) = (changes.cpus, changes.boot_apic_id) {
        words.push(format!("disable_cpu_apicid={id}"));
    }
    words.extend(split(changes.append));
    let line = words.join(" ");
    let len = line.len().saturating_add(RESERVED);
    if len >= MAX_LEN { Err(TooLong { len }) } else { Ok(line) }
}

/// The host's parameters that do not go on to the capture kernel, each with the reason, in the order
/// of reasons.
#[must_use]
pub fn left_out(host: &str) -> Vec<(String, Reason)> {
    let host = split(host).into_iter().take_while(|word| word != "--");
    let mut out: Vec<_> = host.filter_map(|word| Some((reason_to_leave_out(&word)?, word))).collect();
    out.sort_by_key(|(reason, _)| *reason);
    out.into_iter().map(|(reason, word)| (word, reason)).collect()
}

fn is_named(word: &str, names: &[String]) -> bool {
    let key = normal(key_of(word));
    names.iter().any(|name| normal(name) == key)
}

fn key_of(word: &str) -> &str {
    word.split('=').next().unwrap_or(word)
}

/// Words of a command line; a space between double quotes does not part them (lib/cmdline.c,
/// next_arg).
pub(crate) fn split(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        quoted ^= c == '"';
        if c.is_ascii_whitespace() && !quoted {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The boot CPU's APIC id in `/proc/cpuinfo`.
#[must_use]
pub fn boot_apic_id(cpuinfo: &str) -> Option<u32> {
    let first = cpuinfo.split("\n\n").find(|cpu| {
        cpu.lines()
            .any(|line| line.split_once(':').is_some_and(|(k, v)| k.trim() == "processor" && v.trim() == "0"))
    })?;
    let fields = first.lines().filter_map(|line| line.split_once(':'));
    fields.filter(|(key, _)| key.trim() == "initial apicid").find_map(|(_, value)| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "BOOT_IMAGE=/vmlinuz root=UUID=1 ro quiet console=ttyS0,115200 crashkernel=256M,high \
                        crashkernel=72M,low hugepagesz=1G hugepages=4 rd.luks.uuid=x systemd.unit=y \
                        foo.dyndbg=\"file a.c +p\" slub-debug=FZ nvme.poll_queues=2";

    fn changes<'a>(remove: &'a [String], append: &'a str) -> Changes<'a> {
        Changes { cpus: 1, boot_apic_id: Some(0), low_memory: true, remove, append }
    }

    #[test]
    fn hurtful_parameters_go_and_others_stay() {
        let line = build(HOST, changes(&[], "")).unwrap();
        assert!(
            line.starts_with(
                "console=ttyS0,115200 foo.dyndbg=\"file a.c +p\" nvme.poll_queues=2 reset_devices "
            ),
            "{line}"
        );
        assert!(line.ends_with(" nr_cpus=1"), "{line}");
        for gone in ["crashkernel", "root=", "quiet", "hugepages", "slub", "rd.luks", "systemd"] {
            assert!(!line.contains(gone), "{gone}: {line}");
        }
    }

    #[test]
    fn nothing_of_the_host_swallows_what_is_appended() {
        let line =
            build("console=tty0 sysctl.kernel.panic=0 -- emergency panic=0", changes(&[], "")).unwrap();
        assert!(line.starts_with("console=tty0 reset_devices"), "{line}");
        assert!(line.contains(" panic=10 ") && !line.contains("emergency"), "{line}");
    }

    #[test]
    fn the_configuration_has_the_last_word() {
        let remove = ["irqpoll".to_owned(), "nvme.poll-queues".to_owned()];
        let line = build(HOST, changes(&remove, "panic=1 rdinit=/x")).unwrap();
        assert!(!line.contains("irqpoll") && !line.contains("nvme"), "{line}");
        assert!(line.ends_with("panic=1 rdinit=/x"), "{line}");
    }

    #[test]
    fn accounting_stays_on_where_no_low_memory_is_reserved() {
        let line = |low_memory| build("", Changes { low_memory, ..changes(&[], "") }).unwrap();
        assert!(line(true).contains(" cgroup_disable=memory "));
        assert!(!line(false).contains("cgroup_disable"));
    }

    #[test]
    fn what_is_left_out_is_listed_with_the_reason() {
        let words = left_out("unknown_nmi_panic console=ttyS0 crashkernel=1G xyzzy -- panic_on_warn");
        let words: Vec<_> = words.iter().map(|(word, reason)| (word.as_str(), *reason)).collect();
        let expected = [
            ("crashkernel=1G", Reason::Memory),
            ("unknown_nmi_panic", Reason::Strict),
            ("xyzzy", Reason::Unknown),
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn several_cpus_leave_the_boot_cpu_out() {
        let line = build("", Changes { cpus: 2, boot_apic_id: Some(8), ..changes(&[], "") }).unwrap();
        assert!(line.ends_with("nr_cpus=2 disable_cpu_apicid=8"), "{line}");
    }

    #[test]
    fn a_line_that_the_kernel_would_cut_is_refused() {
        let error = build(&format!("console={}", "x".repeat(3000)), changes(&[], "")).unwrap_err();
        assert!(error.to_string().contains("cmdline_append"), "{error}");
    }

    #[test]
    fn the_boot_cpu_is_processor_0() {
        let cpuinfo =
            "processor\t: 1\ninitial apicid\t: 4\n\nprocessor\t: 0\napicid\t\t: 2\ninitial apicid\t: 2\n\n";
        assert_eq!(boot_apic_id(cpuinfo), Some(2));
        assert_eq!(boot_apic_id(""), None);
    }
}
