//! Stacks that are unwound by what the kernel carries are those that drgn finds with the
//! distribution's debug file.

use anyhow::{Context, Result, ensure};
use base::addr::VirtAddr;
use qemu_tests::debug_files;
use qemu_tests::kernel::Kernel;
use qemu_tests::raw_core;
use std::collections::BTreeMap;
use symbols::model::Model;
use symbols::unwind::{Frame, How, Registers, SleeperLayout, Unwinder};
use vmcore::kernel::Kernel as OldKernel;
use vmcore::source::{Access, Core, Vmcore};

/// Tasks of a guest at most.
const MAX_TASKS: usize = 4096;

/// The name without what the compiler adds to parts and copies of a function.
fn plain(name: &str) -> String {
    let name = name.split('.').next().unwrap_or(name);
    name.strip_suffix("_after_hwframe").unwrap_or(name).to_owned()
}

/// Functions on the stack of each process, by PID, and how each was found. Of one that runs it is what its
/// stack was when it last slept, and worth nothing.
fn ours(core: &Vmcore) -> Result<BTreeMap<u32, Vec<(String, How)>>> {
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
    let mut all = BTreeMap::new();
    while task != first.0 && all.len() < MAX_TASKS {
        let registers = Registers::of_sleeper(&kernel, &sleeper, VirtAddr(task)).context("no registers")?;
        let frames = unwinder.stack(&registers);
        // drgn knows no functions of modules without their debug files, but where they go on.
        let frame = |frame: &Frame| {
            let place = unwinder.function(frame)?;
            let address = || format!("{:#x}", frame.address.0);
            Some((place.module.map_or_else(|| plain(&place.name), |_| address()), frame.how))
        };
        all.insert(kernel.read_u32(at(task, pid), "a PID")?, frames.iter().filter_map(frame).collect());
        task = kernel.read_u64(at(task, tasks), "a task")?.wrapping_sub(tasks);
    }
    Ok(all)
}

fn judge(series: &str) -> Result<()> {
    let kernel = Kernel::with_symbols(series)?;
    let path = raw_core::of(series)?;
    let theirs = debug_files::stacks(&path, &kernel.vmlinux())?;
    let ours = ours(&Vmcore::open(&path, Access::Mmap)?)?;
    ensure!(theirs.len() > 20, "only {} stacks", theirs.len());
    for (pid, names) in &theirs {
        // drgn goes on in user space.
        let is_of_kernel = |name: &&String| !name.starts_with("0x") || name.starts_with("0xffff");
        let names = names.iter().filter(is_of_kernel);
        let names: Vec<_> = names.map(|name| plain(name)).collect();
        let ours = ours.get(pid).with_context(|| format!("no PID {pid}"))?;
        let is_same = ours.iter().map(|(name, _)| name).eq(&names);
        ensure!(is_same, "PID {pid}: {ours:?} instead of {names:?}");
        ensure!(ours.iter().all(|(_, how)| *how != How::Scan), "PID {pid}: frames were guessed: {ours:?}");
    }
    eprintln!("{series}: {} stacks are the same", theirs.len());
    Ok(())
}

#[test]
fn stacks_of_6_1_are_those_of_drgn() -> Result<()> {
    judge("6.1")
}

#[test]
#[ignore = "full: kernels of each other layout of ORC, and with PREEMPT_RT"]
fn stacks_of_other_kernels_are_those_of_drgn() -> Result<()> {
    ["7.3", "7.2", "6.12-rt", "6.12", "6.1-rt", "5.10"].into_iter().try_for_each(judge)
}
