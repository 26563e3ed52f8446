//! Stacks that are unwound by what the kernel carries are those that drgn finds with the
//! distribution's debug file.

use anyhow::{Context, Result, ensure};
use base::addr::VirtAddr;
use qemu_tests::debug_files;
use qemu_tests::kernel::Kernel;
use qemu_tests::raw_core;
use std::collections::BTreeMap;
use symbols::model::Model;
use symbols::unwind::{How, Registers, SleeperLayout, Unwinder};
use vmcore::kernel::Kernel as OldKernel;
use vmcore::source::{Access, Core, Vmcore};

/// Tasks of a guest at most.
const MAX_TASKS: usize = 4096;

/// The name without what the compiler adds to parts and copies of a function.
fn plain(name: &str) -> String {
    let name = name.split('.').next().unwrap_or(name);
    name.strip_suffix("_after_hwframe").unwrap_or(name).to_owned()
}

/// Functions on the stack of each process, by PID, and how many frames were guessed.
fn ours(core: &Vmcore) -> Result<(BTreeMap<u32, Vec<String>>, usize)> {
    let kernel = OldKernel::new(core, core.info(), core.mappings());
    let model = Model::read(&kernel)?;
    let unwinder = Unwinder::new(&kernel, &model.symbols, &model.known());
    ensure!(!unwinder.modules().is_empty(), "no module was found");
    let sleeper = SleeperLayout::ask(&model.known()).context("no inactive_task_frame")?;
    let offset = |path: &str| model.types.offset("task_struct", path).with_context(|| format!("no {path}"));
    let (tasks, pid) = (offset("tasks")?, offset("pid")?);
    let first = model.symbols.find("init_task").context("no init_task")?;
    let at = |task: u64, offset: u64| VirtAddr(task.wrapping_add(offset));
    let mut task = kernel.read_u64(at(first.0, tasks), "a task")?.wrapping_sub(tasks);
    let (mut all, mut guessed) = (BTreeMap::new(), 0_usize);
    while task != first.0 && all.len() < MAX_TASKS {
        let registers = Registers::of_sleeper(&kernel, &sleeper, VirtAddr(task)).context("no registers")?;
        let frames = unwinder.stack(&registers);
        guessed = guessed.saturating_add(frames.iter().filter(|frame| frame.how == How::Scan).count());
        let names =
            frames.iter().filter_map(|frame| unwinder.function(frame)).map(|place| plain(&place.name));
        all.insert(kernel.read_u32(at(task, pid), "a PID")?, names.collect());
        task = kernel.read_u64(at(task, tasks), "a task")?.wrapping_sub(tasks);
    }
    Ok((all, guessed))
}

fn judge(series: &str) -> Result<()> {
    let kernel = Kernel::with_symbols(series)?;
    let path = raw_core::of(series)?;
    let theirs = debug_files::stacks(&path, &kernel.vmlinux())?;
    let (ours, guessed) = ours(&Vmcore::open(&path, Access::Mmap)?)?;
    ensure!(theirs.len() > 20, "only {} stacks", theirs.len());
    for (pid, names) in &theirs {
        // drgn goes on in user space, of which it knows no names.
        let names = names.iter().filter(|name| !name.starts_with("0x"));
        let names: Vec<_> = names.map(|name| plain(name)).collect();
        ensure!(ours.get(pid) == Some(&names), "PID {pid}: {:?} instead of {names:?}", ours.get(pid));
    }
    ensure!(guessed == 0, "{guessed} frames were guessed");
    eprintln!("{series}: {} stacks are the same", theirs.len());
    Ok(())
}

#[test]
fn stacks_of_6_1_are_those_of_drgn() -> Result<()> {
    judge("6.1")
}

#[test]
#[ignore = "full: a kernel of each other layout of ORC"]
fn stacks_of_other_kernels_are_those_of_drgn() -> Result<()> {
    ["7.2", "6.12", "5.10"].into_iter().try_for_each(judge)
}
