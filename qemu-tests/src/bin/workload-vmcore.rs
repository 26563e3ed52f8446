//! Makes an input for scripts/bench that has what servers have in memory: `/proc/vmcore` of a real
//! crash, copied as it was, kept in the cache.
//!
//! The crashed system is Debian with 4.5 GiB of memory and 2 CPUs. At the time of the crash a
//! compiler, a database, a web server with its application, and a key-value store have worked for
//! minutes and still do: see `src/workload`. Prints the path of the copy; one that is there is
//! kept. The first run takes root, for `scripts/make-workload-root`, and about half an hour where
//! guests are emulated.

use anyhow::{Context, Result};
use qemu_tests::cache::workspace;
use qemu_tests::command::{Run, command};
use qemu_tests::crash_copy::{CrashCopy, kept};
use qemu_tests::kernel::Kernel;
use std::path::Path;
use std::time::Duration;

const SERIES: &str = "6.1";
const MEMORY_MIB: u32 = 4608;
/// Names the content of the file: to be counted up when that changes.
const NAME: &str = "workload-1";
/// The disk it runs on, of the same content in each run but for its packages' versions.
const ROOT: &str = "workload-root-1";
/// Emulated, on a loaded machine.
const WORK: Duration = Duration::from_mins(40);

fn main() -> Result<()> {
    println!("{}", kept(NAME, crash)?.display());
    Ok(())
}

fn crash(copy: &Path) -> Result<()> {
    // The symbols are for those who look at the copy.
    let kernel = Kernel::with_symbols(SERIES)?;
    let root = kept(ROOT, |path| {
        let script = workspace().join("scripts/make-workload-root");
        command(&script.to_string_lossy()).arg(path).run().context("making the root")?;
        Ok(())
    })?;
    CrashCopy {
        kernel: &kernel,
        memory_mib: MEMORY_MIB,
        cpus: 2,
        archive: Vec::new(),
        workload: Some(root),
        boot: WORK,
    }
    .make(copy)
}
