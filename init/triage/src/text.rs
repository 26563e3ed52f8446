//! A summary as text, for a person at 3 a.m.: what happened comes first.

use std::fmt::Write as _;

use base::text::line;
use base::time::utc;

use crate::findings::{Cpu, Findings, Frame, Task};

/// Names of tasks that share a stack.
const NAMES: usize = 12;

/// The text.
#[must_use]
pub(crate) fn of(findings: &Findings) -> String {
    let mut out = String::new();
    head(findings, &mut out);
    if let Some(first) = findings.cpus.first() {
        cpu(first, &mut out);
    }
    blocked(findings, &mut out);
    findings.cpus.iter().skip(1).for_each(|other| cpu(other, &mut out));
    rows(findings, &mut out);
    if !findings.missing.is_empty() || !findings.complete {
        out.push_str("\nNot in this summary:\n");
        for missing in &findings.missing {
            let _ = writeln!(out, "  {}: {}", line(&missing.what), line(&missing.why));
        }
        if !findings.complete {
            out.push_str("  what would follow: the walk through the memory was ended before its end\n");
        }
    }
    if !findings.log.is_empty() {
        let _ = writeln!(out, "\nThe last {} lines of the log:", findings.log.len());
        findings.log.iter().for_each(|text| {
            let _ = writeln!(out, "{}", line(text));
        });
    }
    out
}

fn head(findings: &Findings, out: &mut String) {
    let mut row = |name: &str, text: String| {
        if !text.is_empty() {
            let _ = writeln!(out, "{name:<10} {text}");
        }
    };
    if let Some(cause) = &findings.cause {
        row("cause", format!("{}: {}", cause.kind.text(), line(&cause.title)));
        let module = cause.module.as_ref().map(|module| format!(" of module {}", line(module)));
        let place = cause.function.as_ref().map(|function| line(function) + &module.unwrap_or_default());
        row("in", place.unwrap_or_default());
    }
    let named = findings.cause.as_ref().and_then(|cause| cause.task.clone());
    let named = named.map(|(pid, comm)| Task { pid, tgid: pid, comm, ..Task::default() });
    row("task", findings.panicking.as_ref().or(named.as_ref()).map(task).unwrap_or_default());
    if let Some(about) = &findings.about {
        let uptime = findings.numbers.as_ref().and_then(|numbers| numbers.uptime);
        let up = uptime.map(|seconds| format!("up {}", duration(seconds)));
        let when: Vec<String> = about.time.and_then(utc).into_iter().chain(up).collect();
        row("when", when.join(", "));
        row("host", line(&about.host));
        row("kernel", line(&format!("{} {} {}", about.release, about.version, about.machine)));
        row("cmdline", line(about.cmdline.as_deref().unwrap_or_default()));
    }
    let hash = findings.signature.as_ref().map(|found| found.hash.clone());
    row("signature", hash.unwrap_or_else(|| "none: the stack was not reached".to_owned()));
    let Some(numbers) = &findings.numbers else { return };
    row("tainted", numbers.taints.join(", "));
    let load = numbers.load.map(|load| load.map(|value| format!("{value:.2}")).join(" "));
    let counts = [
        numbers.cpus.map(|cpus| format!("{cpus} CPUs")),
        numbers.tasks.map(|tasks| format!("{tasks} tasks")),
        load.map(|load| format!("load {load}")),
    ];
    row("machine", counts.into_iter().flatten().collect::<Vec<_>>().join(", "));
    for (kind, count, last) in &numbers.hardware_errors {
        let last = utc(*last).unwrap_or_default();
        row(
            "hardware",
            format!("{count} errors of {}, from which the kernel recovered; the last {last}", line(kind)),
        );
    }
    let memory = numbers.memory.iter().map(|(name, kib)| format!("{name} {} MiB", kib >> 10));
    row("memory", memory.collect::<Vec<_>>().join(", "));
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes} min {} s", seconds % 60),
        (0, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} days {hours} h"),
    }
}

fn task(task: &Task) -> String {
    let mut text = format!("PID {} ({})", task.pid, line(&task.comm));
    if task.tgid != task.pid {
        let _ = write!(text, ", a thread of {}", task.tgid);
    }
    if let Some(argv) = &task.argv {
        let _ = write!(text, ": {}", line(&argv.join(" ")));
    }
    text
}

fn stack(frames: &[Frame], out: &mut String) {
    for frame in frames {
        let module = frame.module.as_ref().map(|module| format!(" [{}]", line(module)));
        let mark = match frame.how.as_str() {
            "scan" => "? ",
            "frame-pointer" => "~ ",
            _ => "  ",
        };
        let _ = writeln!(
            out,
            "  {mark}{}+{:#x}{}",
            line(&frame.function),
            frame.offset,
            module.unwrap_or_default()
        );
    }
}

fn cpu(cpu: &Cpu, out: &mut String) {
    let what = cpu.task.as_ref().map_or_else(|| "not known what it ran".to_owned(), task);
    let idle = cpu.task.as_ref().is_some_and(|task| task.pid == 0) && !cpu.crashed;
    let state = match (cpu.crashed, cpu.user) {
        (true, _) => " — here the kernel panicked",
        _ if idle => " — idle",
        (false, true) => " — in user space",
        _ => "",
    };
    let _ = writeln!(out, "\nCPU {}: {what}{state}", cpu.number);
    if idle {
        return;
    }
    if cpu.crashed {
        let registers = cpu.registers.iter().map(|(name, value)| format!("{name}={value}"));
        for row in registers.collect::<Vec<_>>().chunks(4) {
            let _ = writeln!(out, "    {}", row.join(" "));
        }
    }
    stack(&cpu.stack, out);
}

/// Tasks that wait; those with one stack together.
fn blocked(findings: &Findings, out: &mut String) {
    let mut groups: Vec<(&[Frame], Vec<&Task>)> = Vec::new();
    for blocked in &findings.blocked {
        match groups.iter_mut().find(|(stack, _)| *stack == blocked.stack) {
            Some((_, tasks)) => tasks.push(&blocked.task),
            None => groups.push((&blocked.stack, vec![&blocked.task])),
        }
    }
    for (frames, tasks) in groups {
        let names = tasks.iter().take(NAMES).map(|task| format!("{} ({})", task.pid, line(&task.comm)));
        let names: Vec<String> = names.collect();
        let more = tasks.len().saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let _ = writeln!(out, "\nWaits and cannot be interrupted: PID {}{more}", names.join(", "));
        stack(frames, out);
    }
    if findings.blocked_more > 0 {
        let _ = writeln!(out, "\n{} more tasks wait and cannot be interrupted", findings.blocked_more);
    }
}

fn rows(findings: &Findings, out: &mut String) {
    if !findings.modules.is_empty() {
        let names = findings.modules.iter().map(|module| {
            let taints =
                if module.taints.is_empty() { String::new() } else { format!("({})", module.taints) };
            line(&module.name) + &taints
        });
        let _ = writeln!(out, "\nModules: {}", names.collect::<Vec<_>>().join(" "));
    }
    if !findings.mounts.is_empty() {
        out.push_str("\nMounts:\n");
        for mount in &findings.mounts {
            let _ = writeln!(
                out,
                "  {} on {} type {}",
                line(&mount.source),
                line(&mount.path),
                line(&mount.kind)
            );
        }
    }
}
