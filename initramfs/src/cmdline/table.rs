//! Which of the host's parameters go on to the capture kernel.
//!
//! Those that are known to be wanted there stay: consoles, and what makes this machine's hardware
//! work (Documentation/admin-guide/kernel-parameters.txt, of 7.2). Parameters of modules
//! (`nvme_core.admin_timeout=9`) stay as well, but for those of the kernel's own parts. All others
//! go, whether they are known to hurt or not known at all: a host that is stricter than others must
//! not cost its dumps.

/// Why a parameter does not go on to the capture kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It chooses or sizes memory that the capture kernel does not have.
    Memory,
    /// It is about the CPUs of the whole machine.
    Cpus,
    /// It makes a panic, a halt or a refusal of something harmless.
    Strict,
    /// It waits, or takes long: debuggers, tracing, tests of memory, much output.
    Slow,
    /// It is for the host's own start: its root, its initramfs, its service manager.
    Boot,
    /// The capture kernel gets a value of its own.
    Own,
    /// It is for security modules that have no policy in the image.
    Policy,
    /// Nobody knows it to be wanted.
    Unknown,
}

impl Reason {
    /// For messages: `left out because …`.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Memory => "is about memory that the capture kernel does not have",
            Self::Cpus => "is about the CPUs of the whole machine",
            Self::Strict => "would turn something harmless into a panic or a refusal",
            Self::Slow => "would make the capture wait or slow",
            Self::Boot => "is for the start of the host",
            Self::Own => "has another value in the capture kernel",
            Self::Policy => "is for security modules that have no policy in the image",
            Self::Unknown => "is not known to be wanted in a capture kernel",
        }
    }
}

/// Names that stay; one that ends in `*` stands for all that begin so.
const WANTED: &[&str] = &[
    // Where messages go.
    "console",
    "earlycon",
    "earlyprintk",
    "keep_bootcon",
    "nomodeset",
    "vga",
    // What the firmware says of the machine, and what of that is wrong.
    "acpi*",
    "noacpi",
    "pnp*",
    "efi",
    "noefi",
    "edd",
    "reserve",
    "reboot",
    // Interrupts and clocks.
    "apic",
    "lapic",
    "noapic",
    "nolapic",
    "nolapic_timer",
    "noapictimer",
    "x2apic_phys",
    "nox2apic",
    "intremap",
    "no_timer_check",
    "noirqdebug",
    "irqfixup",
    "clocksource",
    "tsc",
    "notsc",
    "hpet",
    "nohpet",
    "lpj",
    "idle",
    // Processors.
    "clearcpuid",
    "no5lvl",
    "nopcid",
    "noinvpcid",
    "nopat",
    "nopku",
    "nosmap",
    "nosmep",
    "noxsave",
    "noxsaveopt",
    "noxsaves",
    "nofsgsbase",
    "nogbpages",
    "nopv",
    "nopvspin",
    "no_kvmclock",
    "xen*",
    "hv_nopvspin",
    "mem_encrypt", // a kernel without it reads only ciphers of one that had it
    "mtrr*",
    "enable_mtrr_cleanup",
    "disable_mtrr_cleanup",
    // Buses.
    "pci",
    "pcie_aspm",
    "pcie_port_pm",
    "pcie_bus*",
    "iommu",
    "intel_iommu",
    "amd_iommu*",
    "libata*",
    "nousb",
    // Security that holds for all kernels of this machine; `load` proves that the image stands it.
    "fips",
    "lockdown",
    "module.sig_enforce",
    // A driver that must not start here must not start there either.
    "initcall_blacklist",
];

/// Names and beginnings of names that go, each with its reason; whatever stands above or has a dot
/// in it goes as well if it stands here.
const UNWANTED: &[(Reason, &[&str])] = &[
    (
        Reason::Memory,
        &[
            "crashkernel",
            "cma*",
            "numa*",
            "hugepages*",
            "hugetlb*",
            "default_hugepagesz",
            "kernelcore",
            "movablecore",
            "movable_node",
            "mem",
            "memmap",
            "memhp*",
            "memblock",
            "memory_hotplug.*",
            "add_efi_memmap",
            "efi_fake_mem",
            "log_buf_len",
            "trace_buf_size",
            "swiotlb",
            "thash_entries",
            "dhash_entries",
            "ihash_entries",
            "mhash_entries",
            "mphash_entries",
            "rhash_entries",
            "uhash_entries",
            "thp_*",
            "zswap.*",
            "kho*",
            "liveupdate",
            "elfcorehdr",
            "page_alloc.*",
            "percpu_alloc",
        ],
    ),
    (
        Reason::Cpus,
        &[
            "isolcpus",
            "nohz*",
            "rcu_nocb*",
            "rcutree.*",
            "srcutree.*",
            "irqaffinity",
            "kthread_cpus",
            "maxcpus",
            "nr_cpus",
            "possible_cpus",
            "nosmp",
            "nosmt",
            "disable_cpu_apicid",
            "cpu0_hotplug",
            "skew_tick",
        ],
    ),
    (
        Reason::Strict,
        &[
            "panic*",
            "oops",
            "pause_on_oops",
            "unknown_nmi_panic",
            "softlockup*",
            "hardlockup*",
            "hung_task*",
            "nowatchdog",
            "nosoftlockup",
            "watchdog_thresh",
            "watchdog.*",
            "softdog.*",
            "ipmi_watchdog.*",
            "rcupdate.*",
            "workqueue.*",
            "edac_core.*",
            "ghes.*",
            "mce.*",
            "kfence.*",
            "kasan*",
            "kcsan.*",
            "split_lock_detect",
            "module_blacklist",
            "modprobe.*",
            "nomodule",
            "noinitrd",
            "iomem",
            "fail*",
            "crash_kexec_post_notifiers",
            "printk.*",
        ],
    ),
    (
        Reason::Slow,
        &[
            "kgdb*",
            "nokgdbroundup",
            "kdb*",
            "debug*",
            "dyndbg",
            "initcall_debug",
            "ignore_loglevel",
            "boot_delay",
            "memtest",
            "slub_debug",
            "slab_debug",
            "init_on_alloc",
            "init_on_free",
            "page_owner",
            "page_poison",
            "kmemleak",
            "ftrace*",
            "trace*",
            "tp_printk*",
            "stacktrace*",
            "kprobe_event",
            "rcutorture.*",
            "locktorture.*",
            "iommu.strict",
        ],
    ),
    (
        Reason::Boot,
        &[
            "BOOT_IMAGE",
            "afterimage.handoff",
            "bootconfig",
            "init",
            "initrd*",
            "rdinit",
            "retain_initrd",
            "ramdisk_size",
            "ip",
            "netroot",
            "nfsroot",
            "nfsaddrs",
            "resume*",
            "noresume",
            "hibernate",
            "root*",
            "ro",
            "rw",
            "boot",
            "single",
            "quiet",
            "splash",
            "loglevel",
            "sysctl.*",
            "rd.*",
            "systemd.*",
            "ignition.*",
            "dm_mod.*",
            "plymouth.*",
            "md",
            "raid",
        ],
    ),
    (
        Reason::Own,
        &[
            "reset_devices",
            "irqpoll",
            "kaslr",
            "nokaslr",
            "mce",
            "nomce",
            "hest_disable",
            "erst_disable",
            "pcie_ports",
            "mitigations",
            "pti",
            "nopti",
            "nmi_watchdog",
            "transparent_hugepage*",
            "cgroup_disable",
            "audit*",
            "sysrq_always_enabled",
            "acpi_no_memhotplug",
        ],
    ),
    (
        Reason::Policy,
        &[
            "lsm*",
            "security",
            "selinux",
            "enforcing",
            "checkreqprot",
            "apparmor*",
            "tomoyo*",
            "landlock*",
            "ima*",
            "evm*",
            "integrity_audit",
            "ipe.*",
            "loadpin.*",
            "keyring*",
            "trusted.*",
        ],
    ),
];

/// Why a parameter of the host does not go on; `None` if it does.
#[must_use]
pub fn reason_to_leave_out(word: &str) -> Option<Reason> {
    let (name, value) = word.split_once('=').unwrap_or((word, ""));
    let name = normal(name);
    let unwanted = UNWANTED.iter().find(|(_, names)| names.iter().any(|entry| stands_for(entry, &name)));
    let wanted = WANTED.iter().any(|entry| stands_for(entry, &name));
    match (unwanted, wanted) {
        (Some((reason, _)), _) => Some(*reason),
        // These wait for a debugger, or write through what the firmware no longer maps.
        (None, true) if name.starts_with("early") && !is_serial(value) => Some(Reason::Slow),
        // The initcalls by which the kernel shows the old memory, and unpacks the image.
        (None, true) if name == "initcall_blacklist" && is_vital_initcall(value) => Some(Reason::Strict),
        (None, true) => None,
        (None, false) if name.contains('.') => None, // of a module
        (None, false) => Some(Reason::Unknown),
    }
}

/// Whether an early console is a serial line, or whatever the firmware's tables name.
fn is_serial(value: &str) -> bool {
    let kinds = ["ttyS", "serial", "uart", "pciserial", "mmio", "vga"];
    value.is_empty() || kinds.iter().any(|kind| value.starts_with(kind))
}

fn is_vital_initcall(value: &str) -> bool {
    let vital = ["vmcore_init", "populate_rootfs", "chr_dev_init", "proc_cmdline_init", "tty_init"];
    value.split(',').any(|name| vital.contains(&name))
}

fn stands_for(entry: &str, name: &str) -> bool {
    let entry = normal(entry);
    entry.strip_suffix('*').map_or(entry == name, |start| name.starts_with(start))
}

/// The kernel takes `-` and `_` in names as the same.
pub(super) fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every parameter of kernel-parameters.txt and every word of sysctl/kernel.rst on a command
    /// line that can turn something harmless into a panic, a hang or a refusal.
    #[test]
    fn nothing_that_panics_hangs_or_refuses_goes_on() {
        let hurtful = "panic=0 panic panic_on_warn panic_on_warn=1 panic_on_oops=1 panic_on_io_nmi=1 \
            panic_on_unrecovered_nmi panic_on_taint=0x2000,nousertaint panic_on_rcu_stall=1 panic_print=0x7f \
            panic_sys_info=tasks,mem panic_force_cpu=3 panic_console_replay oops=panic pause_on_oops=60 \
            unknown_nmi_panic nmi_watchdog=panic nmi_watchdog=1 softlockup_panic=1 \
            softlockup_all_cpu_backtrace=1 hardlockup_panic=1 hardlockup_all_cpu_backtrace=1 hung_task_panic=1 \
            nowatchdog watchdog_thresh=1 watchdog.open_timeout=1 watchdog.handle_boot_enabled=0 \
            softdog.soft_panic=1 ipmi_watchdog.preop=preop_panic rcupdate.rcu_cpu_stall_timeout=3 \
            workqueue.panic_on_stall=1 workqueue.watchdog_thresh=1 edac_core.edac_mc_panic_on_ue=1 mce=0 mce=2 \
            mce.check_interval=1 kfence.fault=panic kfence.sample_interval=1 kasan.fault=panic kasan_multi_shot \
            kasan=on split_lock_detect=fatal module_blacklist=virtio_blk modprobe.blacklist=nvme nomodule \
            noinitrd iomem=strict failslab=1,1,0,-1 fail_page_alloc=1,1,0,-1 fail_make_request=1,1,0,-1 \
            crash_kexec_post_notifiers printk.devkmsg=off printk_delay=100 kgdbwait kgdboc=ttyS0 \
            kgdboc_earlycon kdb debug debug_pagealloc=on debug_guardpage_minorder=1 dyndbg=file+p \
            initcall_debug ignore_loglevel boot_delay=100 memtest=4 slub_debug=FZPU slab_debug init_on_alloc=1 \
            init_on_free=1 page_owner=on page_poison=1 kmemleak=on ftrace=function ftrace_dump_on_oops \
            trace_event=sched trace_buf_size=10M traceoff_on_warning tp_printk tp_printk_stop_on_boot \
            stacktrace kprobe_event=p rcutorture.shutdown_secs=1 iommu.strict=1 earlyprintk=xdbc \
            earlyprintk=dbgp earlyprintk=efi,keep earlycon=efifb initcall_blacklist=vmcore_init \
            initcall_blacklist=a,populate_rootfs bootconfig init=/bin/sh rdinit=/bin/sh initrd=/x \
            initrdmem=1,2 resume=/dev/sda2 resume_offset=5 hibernate=no root=/dev/sda1 rootwait rootdelay=5 \
            rootflags=x ro rw single quiet ip=dhcp nfsroot=x rd.break rd.luks.uuid=x systemd.unit=rescue \
            sysctl.kernel.panic_on_warn=1 sysctl.kernel.modules_disabled=1 dm-mod.create=x md=0 crashkernel=1G \
            crashkernel=256M,high hugepages=9 hugepagesz=1G default_hugepagesz=1G hugetlb_cma=4G \
            hugetlb_free_vmemmap=on cma=1G cma_pernuma=1G numa_cma=0:1G numa=fake=4 numa_balancing=enable \
            kernelcore=1G movablecore=1G movable_node mem=4G memmap=1G!4G memhp_default_state=online \
            memory_hotplug.memmap_on_memory=1 add_efi_memmap efi_fake_mem=1G@4G:0x10000 log_buf_len=1G \
            swiotlb=force thash_entries=9999999 dhash_entries=99999999 ihash_entries=99999999 \
            uhash_entries=999999 transparent_hugepage=always thp_anon=16K:always zswap.enabled=1 kho=on \
            kho_scratch=1G liveupdate=on page_alloc.shuffle=1 isolcpus=1-7 nohz_full=1-7 nohz=off rcu_nocbs=1-7 \
            rcu_nocb_poll rcutree.kthread_prio=1 irqaffinity=7 maxcpus=0 nr_cpus=0 possible_cpus=999 nosmp \
            disable_cpu_apicid=3 lsm=selinux security=selinux selinux=1 enforcing=1 apparmor=1 \
            ima_policy=appraise_tcb ima_appraise=enforce ima_hash=sha512 evm=fix integrity_audit=1 \
            ipe.enforce=1 loadpin.enforce=1 audit=1 audit_backlog_limit=1 cgroup_disable=io \
            cgroup_no_v1=all mitigations=auto,nosmt tsx=off pcie_ports=native hest_disable nokaslr \
            sysrq_always_enabled lockdep_something=1 what_a_future_kernel_knows=1";
        for word in hurtful.split_ascii_whitespace() {
            assert!(reason_to_leave_out(word).is_some(), "{word} goes on");
        }
    }

    #[test]
    fn what_the_hardware_needs_goes_on() {
        let wanted = "console=ttyS0,115200n8 console=tty0 earlyprintk=ttyS0,115200 earlyprintk=serial,ttyS0 \
            earlycon earlycon=uart8250,io,0x3f8 acpi=off acpi_osi=Linux acpi_enforce_resources=lax pci=nomsi \
            pci=noaer pcie_aspm=off pcie_port_pm=off pcie_bus_perf intel_iommu=on iommu=pt \
            amd_iommu=fullflush clocksource=tsc tsc=reliable hpet=disable nolapic_timer noapic nox2apic \
            x2apic_phys reboot=pci efi=noruntime noefi clearcpuid=rdrand no5lvl mem_encrypt=on nomodeset \
            nopcid noxsaves libata.force=noncq nvme_core.admin_timeout=9 nvme.poll_queues=2 scsi_mod.scan=sync \
            virtio_mmio.device=4K@0x1:5 iommu.passthrough=1 usbcore.autosuspend=-1 random.trust_cpu=off \
            afterimage.level=31 fips=1 lockdown=integrity module.sig_enforce=1 \
            initcall_blacklist=simpledrm_platform_driver_init xen_nopv no-kvmclock";
        for word in wanted.split_ascii_whitespace() {
            assert_eq!(reason_to_leave_out(word), None, "{word}");
        }
    }

    #[test]
    fn each_reason_is_told() {
        let of = |word| reason_to_leave_out(word).unwrap();
        assert_eq!(of("unknown-nmi-panic"), Reason::Strict);
        assert_eq!(of("dm-mod.waitfor=x"), Reason::Boot);
        assert_eq!(of("xyzzy"), Reason::Unknown);
        assert_eq!(of("memmap=4G!12G"), Reason::Memory);
        assert!(of("kgdbwait").text().contains("wait"));
    }
}
