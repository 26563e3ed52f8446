//! Core files of processes, out of dumps.

use anyhow::{Context, Result};
use qemu_tests::kernel::Kernel;
use qemu_tests::process_core::Cores;
use qemu_tests::raw_core;
use qemu_tests::scenario::Scenario;

#[test]
fn a_process_of_a_dump_opens_in_gdb() -> Result<()> {
    let work = tempfile::tempdir()?;
    let (raw, vmlinux) = (raw_core::of("6.1")?, Kernel::with_symbols("6.1")?.vmlinux());
    let cores = Cores::new(&raw, &vmlinux, work.path());
    cores.check()?;
    cores.check_dumps()
}

#[test]
#[ignore = "full: three more kernels"]
fn processes_of_more_kernels_open_in_gdb() -> Result<()> {
    for series in ["5.10", "6.12", "7.2"] {
        let work = tempfile::tempdir()?;
        let (raw, vmlinux) = (raw_core::of(series)?, Kernel::with_symbols(series)?.vmlinux());
        Cores::new(&raw, &vmlinux, work.path()).check().context(series)?;
    }
    Ok(())
}

#[test]
#[ignore = "full: a guest with two CPUs"]
fn a_thread_that_was_running_has_the_registers_of_its_cpu() -> Result<()> {
    let kernel = Kernel::with_symbols("6.1")?;
    let mut scenario = Scenario::new("gcore-running", &kernel);
    scenario.cpus = 2;
    scenario.raw_copy = true;
    scenario.append = "prod.spin".to_owned();
    let outcome = scenario.run()?;
    let (raw, vmlinux, work) = (outcome.raw()?, kernel.vmlinux(), tempfile::tempdir()?);
    Cores::new(raw, &vmlinux, work.path()).check_running()?;
    outcome.discard()
}
