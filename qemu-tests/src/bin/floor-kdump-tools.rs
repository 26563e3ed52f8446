//! What Debian's kdump-tools need for the job, and how long it takes, beside ours on the same
//! system: `cargo run --release -p qemu-tests --features bench --bin floor-kdump-tools [MIB...]`.
//!
//! Debian with systemd and the cached 6.1 kernel, 2 GiB of memory and one CPU, made by
//! `scripts/make-kdump-tools-root`, panics with each size of crashkernel= given; then the same disk
//! does so with an image of ours. One run per row. A capture without an end after [`HANGS`] counts
//! as hanging. Prints a table.

use anyhow::{Context, Result, ensure};
use qemu_tests::accel::Accel;
use qemu_tests::binaries::Binaries;
use qemu_tests::cache::workspace;
use qemu_tests::command::{Run, command};
use qemu_tests::crash_copy::kept;
use qemu_tests::disk::Disk;
use qemu_tests::kernel::Kernel;
use qemu_tests::vm::{Machine, Shape, Vm};
use qemu_tests::workdir::WorkDir;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SERIES: &str = "6.1";
const MEMORY_MIB: u32 = 2048;
/// The disk it runs on, as the script leaves it.
const ROOT: &str = "kdump-tools-root-1";
/// The same after its first boot, in which kdump-tools makes its initramfs.
const READY: &str = "kdump-tools-ready-1";
const SIZES: [u32; 4] = [192, 128, 104, 96];
/// Emulated, on a loaded machine.
const BOOT: Duration = Duration::from_mins(10);
const HANGS: Duration = Duration::from_secs(150);

/// Of ours: the target is the disk that the other one writes to.
const CONFIG: &str = "[dump]\nlevel = 31\n\n[[target]]\ntype = \"filesystem\"\ndevice = \"LABEL=system\"\n\
    path = \"/var/crash\"\nfstype = \"ext4\"\nwait = 30\n\n[image]\nmodules = \
    [\"virtio_pci\", \"virtio_blk\"]\n";

/// Who captures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Capture {
    KdumpTools,
    Afterimage,
}

fn main() -> Result<()> {
    let mut sizes: Vec<u32> =
        std::env::args().skip(1).map(|size| size.parse().context("a size in MiB")).collect::<Result<_>>()?;
    if sizes.is_empty() {
        sizes = SIZES.into();
    }
    let kernel = Kernel::of_series(SERIES)?;
    let ready = ready(&kernel)?;
    println!("| capture | crashkernel= | panic to reboot | dump |\n|---|---|---|---|");
    for size in sizes {
        row(&kernel, &ready, Capture::KdumpTools, size)?;
        row(&kernel, &ready, Capture::Afterimage, size)?;
    }
    Ok(())
}

/// The disk after its first boot.
fn ready(kernel: &Kernel) -> Result<PathBuf> {
    let root = kept(&format!("{ROOT}-{}", kernel.version()), |path| {
        let script = workspace().join("scripts/make-kdump-tools-root");
        command(&script.to_string_lossy()).arg(path).run()?;
        Ok(())
    })?;
    kept(&format!("{READY}-{}", kernel.version()), |path| {
        copy(&root, path)?;
        let work = WorkDir::new("kdump-tools-setup")?;
        let mut vm = Vm::start(&machine(kernel, work.path(), path, 256, "prod.setup")?)?;
        vm.console.expect("production: loaded", BOOT)?;
        vm.wait_exit(BOOT)?;
        work.discard()
    })
}

fn row(kernel: &Kernel, ready: &Path, capture: Capture, mib: u32) -> Result<()> {
    let name = match capture {
        Capture::KdumpTools => "kdump-tools",
        Capture::Afterimage => "afterimage",
    };
    let work = WorkDir::new(&format!("{name}-{mib}"))?;
    let disk = work.path().join("disk.img");
    copy(ready, &disk)?;
    if capture == Capture::Afterimage {
        install_ours(kernel, work.path(), &disk)?;
    }
    let mut vm = Vm::start(&machine(kernel, work.path(), &disk, mib, "")?)?;
    let loaded = vm.console.expect("production: ", BOOT)?.text;
    if loaded.contains("FAILED") {
        println!("| {name} | {mib}M | refuses to load | none |");
        return work.discard();
    }
    let panic = vm.console.expect("Kernel panic", BOOT)?.at;
    let took = match vm.wait_exit(HANGS) {
        Ok(ended) => format!("{:.1} s", ended.at.saturating_duration_since(panic).as_secs_f64()),
        Err(_) => format!("none within {} s", HANGS.as_secs()),
    };
    let left = dumps(work.path(), &disk)?;
    let message = if left.is_empty() { "none".into() } else { left.join("; ") };
    println!("| {name} | {mib}M | {took} | {message} |");
    // Without a dump the console says why.
    if left.is_empty() { Ok(()) } else { work.discard() }
}

fn machine(kernel: &Kernel, dir: &Path, disk: &Path, mib: u32, more: &str) -> Result<Machine> {
    // As a boot loader would, from the disk.
    let initrd = dir.join("initrd.img");
    let request = format!("dump /boot/initrd.img-{} {}", kernel.version(), initrd.display());
    debugfs(disk, &request)?;
    Ok(Machine {
        accel: Accel::detect(kernel),
        kernel: kernel.vmlinuz(),
        initrd: Some(initrd),
        append: format!(
            "root=LABEL=system ro console=ttyS0 panic=10 systemd.show_status=0 crashkernel={mib}M {more}"
        ),
        memory_mib: MEMORY_MIB,
        cpus: 1,
        shape: Shape::default(),
        disks: vec![Disk::existing(disk)],
        log: dir.join("console.log"),
    })
}

/// The image of ours, built on the host, and the program that loads it: the service crash of the
/// root prefers them.
fn install_ours(kernel: &Kernel, dir: &Path, disk: &Path) -> Result<()> {
    let binaries = Binaries::get()?;
    let (config, image) = (dir.join("config.toml"), dir.join("afterimage.img"));
    fs::write(&config, CONFIG).context("writing the configuration")?;
    binaries.build_image(kernel, &config, &image)?;
    debugfs(disk, &format!("write {} /boot/afterimage.img", image.display()))?;
    debugfs(disk, &format!("write {} /usr/local/sbin/afterimage", binaries.afterimage.display()))?;
    debugfs(disk, "set_inode_field /usr/local/sbin/afterimage mode 0100755")
}

/// What lies in /var/crash: files of a MiB and more, with their sizes and what our reader says of
/// their state.
fn dumps(dir: &Path, disk: &Path) -> Result<Vec<String>> {
    let back = dir.join("back");
    // A system that was cut off leaves a journal to be replayed.
    command("e2fsck").args(["-p", "-E", "journal_only"]).arg(disk).run()?;
    Disk::existing(disk).read_back("/var/crash", &back)?;
    let mut found = Vec::new();
    let mut directories = vec![back];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
            let entry = entry?;
            let about = entry.metadata()?;
            if about.is_dir() {
                directories.push(entry.path());
            } else if about.len() > 1 << 20 {
                found.push(format!("{} MiB, {}", about.len() >> 20, state(&entry.path())?));
            }
        }
    }
    Ok(found)
}

fn state(dump: &Path) -> Result<String> {
    let inspect =
        command(&Binaries::get()?.afterimage.to_string_lossy()).arg("inspect").arg(dump).output()?;
    let message = String::from_utf8_lossy(&inspect.stdout);
    let state = message.lines().find_map(|line| line.strip_prefix("state "));
    Ok(state.map_or_else(|| "not readable".into(), |state| state.trim().into()))
}

/// It exits with 0 whatever happens.
fn debugfs(disk: &Path, request: &str) -> Result<()> {
    let output = command("debugfs").args(["-w", "-R", request]).arg(disk).run()?;
    let message = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<_> = message.lines().filter(|line| !line.starts_with("debugfs ")).collect();
    ensure!(complaints.is_empty(), "debugfs {request:?}: {}", complaints.join("\n"));
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    command("cp").arg("--sparse=always").args([from, to]).run()?;
    Ok(())
}
