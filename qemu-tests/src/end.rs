//! Ways in which a production system can come to its end, each with what a summary has to say of it.
//! The kernel modules in `breaker/` do what user space has no means for.

use crate::binaries::Binaries;
use crate::cache::workspace;
use crate::capture_config::Target;
use crate::command::{Run, command};
use crate::fault::Action;
use crate::initramfs;
use crate::kernel::Kernel;
use crate::outcome::Dump;
use crate::scenario::Scenario;
use crate::trigger::Trigger;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of the task that does it.
pub const TASK: &str = "breaks";
/// The list of modules that production loads before.
pub const MODULES: &str = "/modules/end";
/// Where the table of [`firmware_table`] says that errors are told; as in `breaker/breaker.c`.
const FIRMWARE: u64 = 0x1800_0000;

/// What the task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It writes a word to `/proc/breaker`.
    Breaker(&'static str),
    /// It writes a letter to `/proc/sysrq-trigger`.
    Sysrq,
    /// It takes memory until there is none.
    Memory,
    /// The first process exits.
    Exit,
    /// It waits for what comes from outside.
    Wait,
    /// It hands a watchdog over to the governor that panics, which then is about to bite.
    Watchdog,
}

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Its name.
    pub name: &'static str,
    /// What the task does.
    pub step: Step,
    /// Files in /proc/sys with what is written to them before.
    pub sysctls: &'static [(&'static str, &'static str)],
    /// Words for the kernel's command line.
    pub append: &'static str,
    /// Number of CPUs; the task runs on the last one.
    pub cpus: u32,
    /// Modules of the distribution, loaded before ours.
    pub modules: &'static [&'static str],
    /// What is done to the machine, one after the other, once it is ready.
    pub outside: &'static [Action],
    /// What a summary has to say.
    pub told: Told,
}

/// What a summary has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The kind of the cause.
    pub kind: &'static str,
    /// The function of our module in which it was; none where the kernel names none or one of its own.
    pub function: Option<&'static str>,
    /// Whether it names [`TASK`].
    pub task: bool,
    /// Functions that the signature has, in this order; none where it has to be without.
    pub signature: &'static [&'static str],
}

const SOON: Action = Action::Pause(Duration::from_secs(2));
const PANIC_ON_OOPS: &[(&str, &str)] = &[("kernel/panic_on_oops", "1")];
const PANIC_ON_WARN: &[(&str, &str)] = &[("kernel/panic_on_warn", "1")];
const LOCKUP: &[(&str, &str)] = &[("kernel/watchdog_thresh", "3"), ("kernel/softlockup_panic", "1")];
const HARD: &[(&str, &str)] = &[("kernel/watchdog_thresh", "1"), ("kernel/hardlockup_panic", "1")];
const HUNG: &[(&str, &str)] = &[("kernel/hung_task_panic", "1"), ("kernel/hung_task_timeout_secs", "3")];
const STALL: &[(&str, &str)] = &[("kernel/watchdog", "0"), ("kernel/panic_on_rcu_stall", "1")];
/// Seconds in which RCU does not get on.
const STALLS: &str = "rcupdate.rcu_cpu_stall_timeout=4";

/// A word for the breaker.
const fn way(name: &'static str, kind: &'static str, signature: &'static [&'static str]) -> Way {
    let told = Told { kind, function: None, task: true, signature };
    Way {
        name,
        step: Step::Breaker(name),
        sysctls: &[],
        append: "",
        cpus: 1,
        modules: &[],
        outside: &[],
        told,
    }
}

/// One that ends an oops in a function of ours.
const fn oops(name: &'static str, kind: &'static str, signature: &'static [&'static str]) -> Way {
    way(name, kind, signature).sysctls(PANIC_ON_OOPS)
}

impl Way {
    const fn step(mut self, step: Step) -> Self {
        self.step = step;
        self
    }

    const fn sysctls(mut self, sysctls: &'static [(&'static str, &'static str)]) -> Self {
        self.sysctls = sysctls;
        self
    }

    const fn append(mut self, append: &'static str) -> Self {
        self.append = append;
        self
    }

    const fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    const fn modules(mut self, modules: &'static [&'static str]) -> Self {
        self.modules = modules;
        self
    }

    const fn at(mut self, function: &'static str) -> Self {
        self.told.function = Some(function);
        self
    }

    /// It strikes whatever runs.
    const fn any_task(mut self) -> Self {
        self.told.task = false;
        self
    }

    const fn outside(mut self, outside: &'static [Action]) -> Self {
        self.outside = outside;
        self.any_task()
    }
}

/// All of them.
pub const WAYS: &[Way] = &[
    oops("null", "oops", &["breaker_null", "breaker_write"]).at("breaker_null"),
    oops("bug", "oops", &["breaker_bug", "breaker_write"]).at("breaker_bug"),
    oops("protection", "oops", &["breaker_protection", "breaker_write"]).at("breaker_protection"),
    oops("divide", "oops", &["breaker_divide", "breaker_write"]).at("breaker_divide"),
    oops("jump", "oops", &["breaker_jump", "breaker_write"]).at("breaker_jump"),
    oops("interrupt", "oops", &["breaker_null", "breaker_expired", "call_timer_fn"])
        .at("breaker_null")
        .any_task(),
    way("sysrq", "sysrq", &["sysrq_handle_crash", "__handle_sysrq"]).step(Step::Sysrq),
    way("busy", "soft-lockup", &["breaker_spin", "breaker_busy", "breaker_write"])
        .at("breaker_spin")
        .sysctls(LOCKUP),
    way("retry", "soft-lockup", &["breaker_retry", "breaker_write"]).sysctls(LOCKUP),
    way("lock-twice", "soft-lockup", &["breaker_lock_twice", "breaker_write"]).sysctls(LOCKUP),
    way("irqs-off", "hard-lockup", &["breaker_spin", "breaker_irqs_off", "breaker_write"])
        .at("breaker_spin")
        .sysctls(HARD)
        .outside(&[SOON, Action::Nmi, SOON, Action::Nmi, SOON, Action::Nmi]),
    way("wait", "hung-task", &["breaker_wait", "breaker_write"]).sysctls(HUNG),
    way("take", "hung-task", &["breaker_take", "breaker_write"]).sysctls(HUNG),
    way("stall", "rcu-stall", &["breaker_spin", "breaker_busy", "breaker_write"])
        .step(Step::Breaker("stall"))
        .sysctls(STALL)
        .append(STALLS),
    way("stall-2", "rcu-stall", &["breaker_spin", "breaker_busy", "breaker_write"])
        .step(Step::Breaker("stall"))
        .sysctls(STALL)
        .append(STALLS)
        .any_task()
        .cpus(2),
    way("nmi", "nmi", &[]).step(Step::Wait).append("unknown_nmi_panic").outside(&[SOON, Action::Nmi]),
    way("pretimeout", "watchdog-pretimeout", &[])
        .step(Step::Watchdog)
        .modules(&["watchdog", "pretimeout_panic"])
        .any_task(),
    way("machine-check", "machine-check", &[]).step(Step::Wait).outside(&[SOON, Action::MachineCheck]),
    way("firmware", "hardware-error", &[]).append("memmap=64K$0x18000000").any_task(),
    way("memory", "out-of-memory", &[]).step(Step::Memory).sysctls(&[("vm/panic_on_oom", "1")]).any_task(),
    way("deadlock", "out-of-memory", &[]).step(Step::Memory).any_task(),
    way("warn", "warning", &["breaker_warn", "breaker_write"]).at("breaker_warn").sysctls(PANIC_ON_WARN),
    way("smash", "stack-corruption", &["breaker_smash"]).at("breaker_smash"),
    oops("overflow", "stack-corruption", &["breaker_recurse"]).at("breaker_recurse"),
    way("stack-end", "stack-corruption", &["breaker_stack_end", "breaker_write"]),
    oops("list", "memory-corruption", &["breaker_list", "breaker_write"]),
    oops("usercopy", "memory-corruption", &["breaker_usercopy", "breaker_write"]),
    oops("copy", "memory-corruption", &["breaker_copy", "breaker_write"]),
    oops("use-freed", "memory-corruption", &["breaker_use_freed", "breaker_write"])
        .at("breaker_use_freed")
        .append("slub_debug=FZPU"),
    oops("free-twice", "memory-corruption", &["breaker_free_twice", "breaker_write"]),
    way("panic", "module", &["breaker_panic", "breaker_write"]).at("breaker_panic"),
    way("exit", "init-died", &["do_exit"]).step(Step::Exit).any_task(),
];

/// The way with this name.
pub fn way_called(name: &str) -> Result<&'static Way> {
    WAYS.iter().find(|way| way.name == name).with_context(|| format!("there is no end {name:?}"))
}

/// A short guest that comes to this end.
pub fn scenario(way: &'static Way, kernel: &Kernel, series: &str) -> Result<Scenario> {
    let mut scenario = Scenario::new(&format!("end-{}-{series}", way.name), kernel);
    scenario.memory_mib = 512;
    scenario.crashkernel = "128M".into();
    scenario.cpus = way.cpus;
    scenario.trigger = Trigger::End(way);
    // Nobody looks at the dump, which takes most of the time: the target has no room for it.
    let target = Target::filesystem("LABEL=dump").key("fstype", "ext4");
    scenario.config.targets = vec![target.key("reserve", "1T").key("when_full", "log")];
    way.append.clone_into(&mut scenario.append);
    scenario.files = initramfs::modules(kernel, "end", way.modules)?;
    let ours = ours(series)?;
    for name in ["breaker", "breaker_dog"] {
        let module = ours.join(format!("{name}.ko"));
        let bytes = fs::read(&module).with_context(|| format!("reading {}", module.display()))?;
        scenario.files.push((format!("/modules/{name}.ko"), bytes));
    }
    if way.told.kind == "hardware-error" {
        let table = std::env::temp_dir().join(format!("afterimage-hest-{}", std::process::id()));
        fs::write(&table, firmware_table()).with_context(|| format!("writing {}", table.display()))?;
        scenario.shape.more = vec!["-acpitable".into(), format!("file={}", table.display())];
    }
    Ok(scenario)
}

/// The folder with the modules in `breaker/`, built for a kernel.
fn ours(series: &str) -> Result<PathBuf> {
    let script = workspace().join("scripts/make-breaker");
    let output = command(&script.to_string_lossy()).arg(series).run()?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// An ACPI table by which the firmware tells of errors where the kernel looks every second: HEST with a
/// generic hardware error source (ACPI 6.5, 18.3.2.7), with the header that QEMU takes from a file.
fn firmware_table() -> Vec<u8> {
    let mut source = Vec::new();
    let mut put = |bytes: &[u8]| source.extend_from_slice(bytes);
    put(&9_u16.to_le_bytes()); // type
    put(&0_u16.to_le_bytes()); // its number
    put(&0xffff_u16.to_le_bytes()); // no related one
    put(&[0, 1]); // flags, enabled
    for number in [1_u32, 1, 4096] {
        put(&number.to_le_bytes()); // records, sections, bytes of data
    }
    // A word of 64 bits in memory.
    put(&[0, 64, 0, 4]);
    put(&FIRMWARE.to_le_bytes());
    // Notification: to be polled, this long, each 1000 ms.
    put(&[0, 28]);
    put(&0_u16.to_le_bytes());
    for number in [1000_u32, 0, 0, 0, 0, 0] {
        put(&number.to_le_bytes());
    }
    put(&4096_u32.to_le_bytes()); // bytes of a block
    let mut table = b"HEST".to_vec();
    let length = source.len().saturating_add(40);
    table.extend(u32::try_from(length).unwrap_or(0).to_le_bytes());
    table.extend([1, 0]); // revision; QEMU puts the checksum
    table.extend(b"TESTS ENDS    ");
    table.extend([1, 0, 0, 0]);
    table.extend(b"ENDS");
    table.extend([1, 0, 0, 0]);
    table.extend([1, 0, 0, 0]); // sources
    table.extend(source);
    table
}

/// What a summary says, as far as it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The whole of it.
    pub cause: Value,
    /// The signature.
    pub hash: String,
    /// Its functions.
    pub functions: Vec<String>,
}

impl Said {
    /// Takes it out of the JSON of a summary.
    pub fn of(summary: &Value) -> Result<Self> {
        let functions = summary.pointer("/signature/functions").and_then(Value::as_array);
        let functions = functions.with_context(|| format!("no signature: {summary:#}"))?;
        let hash = summary.pointer("/signature/hash").and_then(Value::as_str).context("no hash")?;
        Ok(Self {
            cause: summary.get("cause").context("no cause")?.clone(),
            hash: hash.to_owned(),
            functions: functions.iter().filter_map(|name| Some(name.as_str()?.to_owned())).collect(),
        })
    }

    /// Of a dump: of its own `summary.json`, or made from its vmcore.
    pub fn of_dump(dump: &Dump) -> Result<Self> {
        let saved = dump.file("summary.json");
        if saved.exists() {
            return Self::of(&serde_json::from_slice(&fs::read(saved)?)?);
        }
        Self::of_file(&dump.file("vmcore"))
    }

    /// Of a vmcore.
    pub fn of_file(vmcore: &Path) -> Result<Self> {
        let program = &Binaries::get()?.afterimage;
        let output = command(&program.to_string_lossy()).arg("summary").arg(vmcore).arg("--json").run()?;
        Self::of(&serde_json::from_slice(&output.stdout)?)
    }

    /// Fails unless it is right.
    pub fn judge(&self, way: &Way) -> Result<()> {
        let told = &way.told;
        let text = |key: &str| self.cause.get(key).and_then(Value::as_str);
        ensure!(text("kind") == Some(told.kind), "not {}: {self:#?}", told.kind);
        if let Some(function) = told.function {
            ensure!(text("function") == Some(function), "not in {function}: {self:#?}");
            ensure!(text("module") == Some("breaker"), "not in a module: {self:#?}");
        }
        let task = self.cause.pointer("/task/1").and_then(Value::as_str);
        ensure!(!told.task || task == Some(TASK), "not by {TASK}: {self:#?}");
        ensure!(!told.signature.is_empty() || self.functions.is_empty(), "a stack: {self:#?}");
        let mut found = self.functions.iter();
        let all = told.signature.iter().all(|name| found.any(|function| function == name));
        ensure!(all, "not {:?}: {self:#?}", told.signature);
        Ok(())
    }
}
