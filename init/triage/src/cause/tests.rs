//! Ends of real kernels, as their logs tell them: of guests that were brought to them, where nothing else is
//! said.

use super::{Cause, Kind, Search, Stuck};
use vmcore::kernel::dmesg::Line;

fn search(log: &str) -> Search {
    let mut search = Search::default();
    for text in log.lines() {
        search.line(&Line { nanoseconds: 0, by_kernel: true, text: text.to_owned() });
    }
    search
}

fn cause(log: &str) -> Cause {
    search(log).cause(None)
}

/// Kind, function with its module, task and title of a log.
fn said(log: &str) -> (Kind, String, String, String) {
    let cause = cause(log);
    let place = [cause.function, cause.module].into_iter().flatten().collect::<Vec<_>>().join(" ");
    (
        cause.kind,
        place,
        cause.task.map_or_else(String::new, |(pid, comm)| format!("{pid} {comm}")),
        cause.title,
    )
}

fn expect(log: &str, kind: Kind, place: &str, task: &str, title: &str) {
    assert_eq!(said(log), (kind, place.to_owned(), task.to_owned(), title.to_owned()), "{log}");
}

/// One that does not start the capture kernel before the panic: of a log, what follows the report.
const FATAL: &str =
    "\nKernel panic - not syncing: Fatal exception\nKernel Offset: 0x17200000 from 0xffffffff81000000";

#[test]
fn exceptions() {
    let null = "BUG: kernel NULL pointer dereference, address: 0000000000000000
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD 19efb067 P4D 0 
Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
Hardware name: QEMU Standard PC (Q35 + ICH9, 2009), BIOS 1.16.2-debian-1.16.2-1 04/01/2014
RIP: 0010:breaker_null+0xc/0x30 [breaker]
Call Trace:
 <TASK>
 breaker_write+0x9c/0xf2 [breaker]
 entry_SYSCALL_64_after_hwframe+0x6e/0xd8
RIP: 0033:0x7fe00acab23f";
    let title = "BUG: kernel NULL pointer dereference, address: 0000000000000000";
    expect(null, Kind::Oops, "breaker_null breaker", "92 breaks", title);
    expect(&format!("{null}{FATAL}"), Kind::Oops, "breaker_null breaker", "92 breaks", title);

    let protection =
        "general protection fault, probably for non-canonical address 0x5a5a5a5a5a5a5a5a: 0000 [#1] \
                      PREEMPT SMP NOPTI
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
RIP: 0010:breaker_protection+0x19/0x40 [breaker]";
    let title = "general protection fault, probably for non-canonical address 0x5a5a5a5a5a5a5a5a: 0000 [#1] PREEMPT SMP \
                 NOPTI";
    expect(protection, Kind::Oops, "breaker_protection breaker", "92 breaks", title);
    let divide = "divide error: 0000 [#1] PREEMPT SMP NOPTI
CPU: 0 PID: 93 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
RIP: 0010:breaker_divide+0x15/0x40 [breaker]";
    let title = "divide error: 0000 [#1] PREEMPT SMP NOPTI";
    expect(divide, Kind::Oops, "breaker_divide breaker", "93 breaks", title);
    let bug = "------------[ cut here ]------------
kernel BUG at /build/breaker.c:38!
invalid opcode: 0000 [#1] PREEMPT SMP NOPTI
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
RIP: 0010:breaker_bug+0x15/0x30 [breaker]";
    expect(bug, Kind::Oops, "breaker_bug breaker", "92 breaks", "kernel BUG at /build/breaker.c:38!");
    // Nothing was called: the log has no name for it, the stack has.
    let jump = "BUG: kernel NULL pointer dereference, address: 0000000000000000
#PF: supervisor instruction fetch in kernel mode
Oops: 0010 [#1] PREEMPT SMP NOPTI
RIP: 0010:0x0";
    assert_eq!((cause(jump).kind, cause(jump).function), (Kind::Oops, None));
}

#[test]
fn programs_cannot_say_it() {
    let mut search = Search::default();
    let text = "Kernel panic - not syncing: sysrq triggered crash".to_owned();
    search.line(&Line { nanoseconds: 0, by_kernel: false, text });
    assert_eq!(search.cause(None).kind, Kind::Unknown);
}

#[test]
fn what_does_not_get_on() {
    let soft = "watchdog: BUG: soft lockup - CPU#0 stuck for 8s! [breaks:92]
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
RIP: 0010:breaker_spin+0x9/0x30 [breaker]
Kernel panic - not syncing: softlockup: hung tasks
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G           OEL     6.1.0-57-cloud-amd64 #1
Call Trace:
 <IRQ>
 dump_stack_lvl+0x44/0x5c
 panic+0x118/0x2f4
 watchdog_timer_fn.cold+0xc/0x16";
    let title = "watchdog: BUG: soft lockup - CPU#0 stuck for 8s! [breaks:92]";
    expect(soft, Kind::SoftLockup, "breaker_spin breaker", "92 breaks", title);

    let hung = "INFO: task breaks:92 blocked for more than 3 seconds.
      Tainted: G           OE      6.1.0-57-cloud-amd64 #1 Debian 6.1.192-3
task:breaks          state:D stack:0     pid:92    ppid:0      flags:0x00004002
Kernel panic - not syncing: hung_task: blocked tasks
CPU: 0 PID: 23 Comm: khungtaskd Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1";
    expect(hung, Kind::HungTask, "", "92 breaks", "INFO: task breaks:92 blocked for more than 3 seconds.");
    assert_eq!(search(hung).stuck(&cause(hung)), Some(Stuck::Task(92)));

    let stall = "rcu: INFO: rcu_preempt self-detected stall on CPU
rcu: \t1-....: (424 ticks this GP) idle=55dc/1/0x4000000000000000 softirq=332/332 fqs=347
\t(t=1001 jiffies g=-519 q=8 ncpus=2)
CPU: 1 PID: 100 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
RIP: 0010:breaker_spin+0x9/0x30 [breaker]
Kernel panic - not syncing: RCU Stall";
    let title = "rcu: INFO: rcu_preempt self-detected stall on CPU";
    expect(stall, Kind::RcuStall, "breaker_spin breaker", "100 breaks", title);
    assert_eq!(search(stall).stuck(&cause(stall)), Some(Stuck::Cpu(1)));
    // As kernel/rcu/tree_stall.h has it: a task that was preempted while it read.
    let task = "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
rcu: \tTasks blocked on level-0 rcu_node (CPUs 0-1): P214/1:b..l
rcu: \t(detected by 1, t=5252 jiffies, g=1157, q=7 ncpus=2)
Kernel panic - not syncing: RCU Stall";
    assert_eq!(search(task).stuck(&cause(task)), Some(Stuck::Task(214)));

    // As kernel/watchdog.c of 6.5 and later has it: another CPU noticed.
    let hard = "CPU1: Watchdog detected hard LOCKUP on cpu 3
Kernel panic - not syncing: Hard LOCKUP";
    let said = cause(hard);
    assert_eq!((said.kind, search(hard).stuck(&said)), (Kind::HardLockup, Some(Stuck::Cpu(3))));
}

#[test]
fn memory_and_stacks() {
    let list =
        "list_add corruption. next->prev should be prev (ffffffffc02b9070), but was ffffffffc02b99a0. \
                (next=ffffffffc02b9990).
------------[ cut here ]------------
kernel BUG at lib/list_debug.c:27!
invalid opcode: 0000 [#1] PREEMPT SMP NOPTI
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
RIP: 0010:__list_add_valid.cold+0x4b/0x5b";
    let said = cause(list);
    assert_eq!(
        (said.kind, said.function.as_deref()),
        (Kind::MemoryCorruption, Some("__list_add_valid.cold"))
    );
    assert!(said.title.starts_with("list_add corruption. next->prev"), "{said:?}");

    let slab = "BUG kmalloc-192 (Tainted: G           OE     ): Poison overwritten
0xff2d8a02904954f8-0xff2d8a02904954ff @offset=1272. First byte 0x0 instead of 0x6b
general protection fault, probably for non-canonical address 0x6b6b6b6b6b6b6b6b: 0000 [#1] PREEMPT SMP NOPTI
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G    B      OE      6.1.0-57-cloud-amd64 #1
RIP: 0010:breaker_use_freed+0xc1/0x100 [breaker]";
    let title = "BUG kmalloc-192 (Tainted: G           OE     ): Poison overwritten";
    expect(slab, Kind::MemoryCorruption, "breaker_use_freed breaker", "92 breaks", title);
    let twice = "------------[ cut here ]------------
kernel BUG at mm/slub.c:419!
invalid opcode: 0000 [#1] PREEMPT SMP NOPTI
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
RIP: 0010:__kmem_cache_free+0x2a5/0x2e0";
    expect(twice, Kind::MemoryCorruption, "__kmem_cache_free", "92 breaks", "kernel BUG at mm/slub.c:419!");

    let smashed = "Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: \
                   breaker_smash+0x78/0x80 [breaker]
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1";
    let said = cause(smashed);
    assert_eq!((said.kind, said.function.as_deref()), (Kind::StackCorruption, Some("breaker_smash")));
    let copied = "usercopy: Kernel memory exposure attempt detected from SLUB object 'kmalloc-64' (offset 0, size 200)!
------------[ cut here ]------------
kernel BUG at mm/usercopy.c:101!
invalid opcode: 0000 [#1] PREEMPT SMP NOPTI
CPU: 0 PID: 93 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
RIP: 0010:usercopy_abort+0x6c/0x80";
    let said = cause(copied);
    assert_eq!((said.kind, said.function.as_deref()), (Kind::MemoryCorruption, Some("usercopy_abort")));
    assert!(said.title.starts_with("usercopy: Kernel memory exposure"), "{said:?}");

    let end = "Kernel panic - not syncing: corrupted stack end detected inside scheduler
CPU: 0 PID: 93 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1";
    let title = "Kernel panic - not syncing: corrupted stack end detected inside scheduler";
    expect(end, Kind::StackCorruption, "", "93 breaks", title);
}

#[test]
fn what_the_machine_says() {
    let nmi = "Uhhuh. NMI received for unknown reason 21 on CPU 0.
Kernel panic - not syncing: NMI: Not continuing
CPU: 0 PID: 0 Comm: swapper/0 Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1";
    let title = "Kernel panic - not syncing: NMI: Not continuing";
    expect(nmi, Kind::Nmi, "", "0 swapper/0", title);
}

#[test]
fn what_firmware_and_watchdogs_say() {
    let firmware = "{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 0
{1}[Hardware Error]: event severity: fatal
{1}[Hardware Error]:  Error 0, type: fatal
{1}[Hardware Error]:   section_type: memory error
{1}[Hardware Error]:   physical_address: 0x0000000012345000
Kernel panic - not syncing: GHES: Fatal hardware error
CPU: 0 PID: 0 Comm: swapper/0 Kdump: loaded Tainted: G   M       OE      6.1.0-57-cloud-amd64 #1";
    let title = "Kernel panic - not syncing: GHES: Fatal hardware error";
    expect(firmware, Kind::HardwareError, "", "0 swapper/0", title);
    let dog = "Kernel panic - not syncing: watchdog pretimeout event
CPU: 0 PID: 0 Comm: swapper/0 Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
 pretimeout_panic+0x11/0x11 [pretimeout_panic]";
    let title = "Kernel panic - not syncing: watchdog pretimeout event";
    expect(dog, Kind::WatchdogPretimeout, "", "0 swapper/0", title);
}

#[test]
fn what_the_kernel_gives_up_on() {
    let memory =
        "breaks invoked oom-killer: gfp_mask=0x140dca(GFP_HIGHUSER_MOVABLE|__GFP_COMP|__GFP_ZERO), order=0, \
                  oom_score_adj=0
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
Kernel panic - not syncing: Out of memory: system-wide panic_on_oom is enabled";
    let title = "Kernel panic - not syncing: Out of memory: system-wide panic_on_oom is enabled";
    expect(memory, Kind::OutOfMemory, "", "92 breaks", title);
    let warn = "------------[ cut here ]------------
breaker: a number is 0
WARNING: CPU: 0 PID: 92 at /build/breaker.c:182 breaker_warn+0x38/0x50 [breaker]
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
RIP: 0010:breaker_warn+0x38/0x50 [breaker]
Kernel panic - not syncing: kernel: panic_on_warn set ...";
    let title = "WARNING: CPU: 0 PID: 92 at /build/breaker.c:182 breaker_warn+0x38/0x50 [breaker]";
    expect(warn, Kind::Warning, "breaker_warn breaker", "92 breaks", title);
    let init = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000300
CPU: 0 PID: 1 Comm: init Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1";
    let title = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000300";
    expect(init, Kind::InitDied, "", "1 init", title);
    let module = "Kernel panic - not syncing: breaker: asked to
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x44/0x5c
 panic+0x118/0x2f4
 breaker_panic+0x11/0x11 [breaker]";
    let title = "Kernel panic - not syncing: breaker: asked to";
    expect(module, Kind::Module, "breaker_panic breaker", "92 breaks", title);
    let sysrq = "sysrq: Trigger a crash
Kernel panic - not syncing: sysrq triggered crash
CPU: 0 PID: 92 Comm: breaks Kdump: loaded Tainted: G           OE      6.1.0-57-cloud-amd64 #1";
    let title = "Kernel panic - not syncing: sysrq triggered crash";
    expect(sysrq, Kind::Sysrq, "", "92 breaks", title);
}

/// Messages that were not seen in a guest, each as the file of the kernel has it that its rule names.
#[test]
fn other_messages_of_panics() {
    let messages = [
        ("Watchdog pre-timeout", Kind::WatchdogPretimeout),
        ("pre-timeout", Kind::WatchdogPretimeout),
        ("An NMI occurred. Depending on your system the reason for the NMI is logged", Kind::Nmi),
        ("NMI IOCK error: Not continuing", Kind::Nmi),
        ("Timeout: Not all CPUs entered broadcast exception handler", Kind::MachineCheck),
        ("Fatal local machine check", Kind::MachineCheck),
        ("Machine check from unknown source", Kind::MachineCheck),
        ("System is deadlocked on memory", Kind::OutOfMemory),
        ("Out of memory: compulsory panic_on_oom is enabled", Kind::OutOfMemory),
        ("kernel: panic_on_warn set ...", Kind::Warning),
        ("kernel: system warned too often (kernel.warn_limit is 100)", Kind::Warning),
        ("KASAN: panic_on_warn set ...", Kind::MemoryCorruption),
        ("IRQ stack guard hit", Kind::StackCorruption),
        ("corrupted shadow stack detected inside scheduler", Kind::StackCorruption),
        ("No working init found.  Try passing init= option to kernel.", Kind::BootFailure),
        ("VFS: Unable to mount root fs on unknown-block(0,0)", Kind::BootFailure),
        ("Oopsed too often (kernel.oops_limit is 10000)", Kind::Oops),
        ("a message of somebody", Kind::Panic),
    ];
    for (message, kind) in messages {
        assert_eq!(cause(&format!("Kernel panic - not syncing: {message}")).kind, kind, "{message}");
    }
    let module = Some(("check".to_owned(), Some("driver".to_owned())));
    let said = search("Kernel panic - not syncing: a message of somebody").cause(module);
    assert_eq!((said.kind, said.module.as_deref()), (Kind::Module, Some("driver")));
}

#[test]
fn a_planned_switch_of_a_kernel_that_had_an_oops_is_planned() {
    let log = "BUG: kernel NULL pointer dereference, address: 0000000000000000
Oops: 0002 [#1] PREEMPT SMP NOPTI
kexec_core: Starting new kernel";
    assert_eq!(cause(log).kind, Kind::Planned);
}

#[test]
fn words_of_7_2() {
    let cpu = "CPU: 0 UID: 0 PID: 109 Comm: breaks Kdump: loaded Tainted: G           OE       7.2.13+deb14-cloud-amd64";
    let warn = format!(
        "WARNING: breaker.c:182 at breaker_warn+0x34/0x50 [breaker], CPU#0: breaks/109
{cpu}
RIP: 0010:breaker_warn+0x34/0x50 [breaker]
Kernel panic - not syncing: kernel: panic_on_warn set ..."
    );
    let title = "WARNING: breaker.c:182 at breaker_warn+0x34/0x50 [breaker], CPU#0: breaks/109";
    expect(&warn, Kind::Warning, "breaker_warn breaker", "109 breaks", title);
    let overflow = format!(
        "BUG: TASK stack guard page was hit at ff67d8e4805e7e48 (stack is ff67d8e4805e8000..ff67d8e4805ec000)
Oops: stack guard page: 0000 [#1] SMP NOPTI
{cpu}
RIP: 0010:breaker_recurse+0x10/0x80 [breaker]"
    );
    let said = cause(&overflow);
    assert_eq!((said.kind, said.function.as_deref()), (Kind::StackCorruption, Some("breaker_recurse")));
    let copy = format!("memcpy: detected buffer overflow: 28 byte write of buffer size 16\n{cpu}");
    assert_eq!(
        cause(&format!("{copy}\nkernel BUG at lib/string_helpers.c:1048!")).kind,
        Kind::MemoryCorruption
    );
    let check = "mce: [Hardware Error]: CPU 0: Machine Check Exception: 5 Bank 1: b200000000000134
mce: [Hardware Error]: Machine check: Processor Context Corrupt
Kernel panic - not syncing: Fatal local machine check";
    let title = "Kernel panic - not syncing: Fatal local machine check";
    expect(check, Kind::MachineCheck, "", "", title);
    let hard = format!(
        "watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 0\n{cpu}
RIP: 0010:breaker_spin+0x9/0x30 [breaker]
Kernel panic - not syncing: Hard LOCKUP"
    );
    let title = "watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 0";
    expect(&hard, Kind::HardLockup, "breaker_spin breaker", "109 breaks", title);
}
