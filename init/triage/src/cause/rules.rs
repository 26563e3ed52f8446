//! What the kernel says when it dies: each text with the file that it comes from.

use super::Kind;

/// A text, and what it means.
pub(super) struct Rule {
    /// The line begins with it, or has it anywhere.
    text: &'static str,
    anywhere: bool,
    pub(super) kind: Kind,
}

impl Rule {
    pub(super) fn fits(&self, line: &str) -> bool {
        if self.anywhere { line.contains(self.text) } else { line.starts_with(self.text) }
    }
}

const fn start(text: &'static str, kind: Kind) -> Rule {
    Rule { text, anywhere: false, kind }
}

const fn has(text: &'static str, kind: Kind) -> Rule {
    Rule { text, anywhere: true, kind }
}

/// Messages of panic().
pub(super) const PANICS: &[Rule] = &[
    // drivers/tty/sysrq.c
    start("sysrq triggered crash", Kind::Sysrq),
    // kernel/watchdog.c, kernel/watchdog_perf.c
    start("softlockup: hung tasks", Kind::SoftLockup),
    start("Hard LOCKUP", Kind::HardLockup),
    // kernel/hung_task.c
    start("hung_task: ", Kind::HungTask),
    // kernel/rcu/tree_stall.h
    start("RCU Stall", Kind::RcuStall),
    // drivers/watchdog/pretimeout_panic.c, drivers/char/ipmi/ipmi_watchdog.c
    start("watchdog pretimeout event", Kind::WatchdogPretimeout),
    start("Watchdog pre-timeout", Kind::WatchdogPretimeout),
    start("pre-timeout", Kind::WatchdogPretimeout),
    start("IPMI watchdog pre-timeout", Kind::WatchdogPretimeout),
    // arch/x86/kernel/nmi.c, drivers/watchdog/hpwdt.c
    start("NMI", Kind::Nmi),
    start("An NMI occurred", Kind::Nmi),
    // drivers/acpi/apei/ghes.c
    has("Fatal hardware error", Kind::HardwareError),
    // arch/x86/kernel/cpu/mce/core.c
    has("achine check", Kind::MachineCheck),
    start("Timeout: Not all CPUs entered broadcast exception handler", Kind::MachineCheck),
    // mm/oom_kill.c
    start("Out of memory", Kind::OutOfMemory),
    start("out of memory", Kind::OutOfMemory),
    start("System is deadlocked on memory", Kind::OutOfMemory),
    // kernel/panic.c; mm/kasan/report.c and others call it with their own names
    start("KASAN: panic_on_warn set", Kind::MemoryCorruption),
    start("KFENCE: panic_on_warn set", Kind::MemoryCorruption),
    start("KMSAN: panic_on_warn set", Kind::MemoryCorruption),
    has("panic_on_warn set", Kind::Warning),
    has("system warned too often", Kind::Warning),
    // kernel/panic.c, kernel/sched/core.c, arch/x86/kernel/dumpstack.c
    start("stack-protector: ", Kind::StackCorruption),
    start("corrupted stack end detected", Kind::StackCorruption),
    start("corrupted shadow stack detected", Kind::StackCorruption),
    start("kernel stack overflow", Kind::StackCorruption),
    has(" stack guard hit", Kind::StackCorruption),
    // lib/list_debug.c, lib/string_helpers.c
    has("list corruption", Kind::MemoryCorruption),
    has("detected buffer overflow", Kind::MemoryCorruption),
    // kernel/exit.c, init/main.c, init/do_mounts.c
    start("Attempted to kill init!", Kind::InitDied),
    start("No working init found", Kind::BootFailure),
    start("No init found", Kind::BootFailure),
    start("Requested init ", Kind::BootFailure),
    start("VFS: Unable to mount root", Kind::BootFailure),
];

/// Messages that only say that something happened before (arch/x86/kernel/dumpstack.c, kernel/exit.c).
pub(super) const CONSEQUENCES: &[&str] =
    &["Fatal exception", "Aiee, killing interrupt handler!", "Attempted to kill the idle task!", "Oops"];

/// Kinds whose reports an exception of the kernel has; after them it may start the capture kernel without a
/// panic (oops_end(), arch/x86/kernel/dumpstack.c).
pub(super) const EXCEPTIONS: &[Kind] = &[Kind::Oops, Kind::MemoryCorruption, Kind::StackCorruption];

/// Lines with which a report begins.
pub(super) const HEADLINES: &[Rule] = &[
    // drivers/tty/sysrq.c
    start("sysrq: Trigger a crash", Kind::Sysrq),
    // kernel/kexec_core.c
    start("kexec_core: Starting new kernel", Kind::Planned),
    // mm/kasan/report.c, mm/kfence/report.c, mm/kmsan/report.c
    start("BUG: KASAN: ", Kind::MemoryCorruption),
    start("BUG: KFENCE: ", Kind::MemoryCorruption),
    start("BUG: KMSAN: ", Kind::MemoryCorruption),
    // mm/page_alloc.c, mm/memory.c, kernel/fork.c, mm/slub.c
    start("BUG: Bad page state", Kind::MemoryCorruption),
    start("BUG: Bad page map", Kind::MemoryCorruption),
    start("BUG: Bad rss-counter state", Kind::MemoryCorruption),
    // slab_bug(): `BUG kmalloc-192 (Tainted: …): Poison overwritten`. Others have a colon behind BUG.
    start("BUG ", Kind::MemoryCorruption),
    // What a hardened allocator finds in itself: an object that is freed twice.
    start("kernel BUG at mm/slub.c:", Kind::MemoryCorruption),
    start("kernel BUG at mm/usercopy.c:", Kind::MemoryCorruption),
    start("kernel BUG at lib/list_debug.c:", Kind::MemoryCorruption),
    // lib/list_debug.c, mm/usercopy.c, lib/string_helpers.c
    start("list_add corruption", Kind::MemoryCorruption),
    start("list_del corruption", Kind::MemoryCorruption),
    start("list_add double add", Kind::MemoryCorruption),
    start("usercopy: Kernel memory ", Kind::MemoryCorruption),
    has("detected buffer overflow", Kind::MemoryCorruption),
    has("detected field-spanning write", Kind::MemoryCorruption),
    // include/linux/thread_info.h
    start("Buffer overflow detected (", Kind::MemoryCorruption),
    // arch/x86/mm/fault.c, arch/x86/kernel/traps.c
    has("stack guard page was hit", Kind::StackCorruption),
    start("traps: PANIC: double fault", Kind::StackCorruption),
    has("kernel stack overflow", Kind::StackCorruption),
    // kernel/watchdog.c, kernel/watchdog_perf.c
    has("BUG: soft lockup", Kind::SoftLockup),
    has("Watchdog detected hard LOCKUP", Kind::HardLockup),
    // kernel/hung_task.c
    start("INFO: task ", Kind::HungTask),
    // kernel/rcu/tree_stall.h
    start("rcu: INFO: ", Kind::RcuStall),
    // arch/x86/kernel/nmi.c
    start("Uhhuh. NMI received", Kind::Nmi),
    start("NMI: PCI system error", Kind::Nmi),
    start("NMI: IOCK error", Kind::Nmi),
    // arch/x86/kernel/cpu/mce/core.c, drivers/firmware/efi/cper.c
    start("mce: [Hardware Error]", Kind::MachineCheck),
    has("[Hardware Error]: event severity: fatal", Kind::HardwareError),
    // mm/oom_kill.c
    start("Out of memory: ", Kind::OutOfMemory),
    has(" invoked oom-killer", Kind::OutOfMemory),
    // kernel/panic.c, kernel/sched/core.c
    start("WARNING: ", Kind::Warning),
    start("BUG: scheduling while atomic", Kind::Warning),
    // lib/bug.c, arch/x86/mm/fault.c, arch/x86/kernel/traps.c, arch/x86/kernel/dumpstack.c
    start("kernel BUG at ", Kind::Oops),
    start("BUG: kernel NULL pointer dereference", Kind::Oops),
    start("BUG: unable to handle ", Kind::Oops),
    start("general protection fault", Kind::Oops),
    start("Oops: ", Kind::Oops),
    start("invalid opcode: ", Kind::Oops),
    start("divide error: ", Kind::Oops),
    start("stack segment: ", Kind::Oops),
    start("int3: ", Kind::Oops),
];

/// Functions that a trace of panic() begins with.
pub(super) fn is_panic(name: &str) -> bool {
    let name = name.split('.').next().unwrap_or(name);
    ["panic", "vpanic", "nmi_panic", "dump_stack", "dump_stack_lvl", "show_stack"].contains(&name)
}
