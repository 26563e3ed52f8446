//! Makes the input of scripts/bench: `/proc/vmcore` of a real crash, copied as it was, kept in the cache.
//!
//! The crashed system has 2 GiB of memory. Files of the cached kernel packages lie in its page cache: they come with
//! its initramfs, whose content the kernel keeps as pages of files, and whose own pages stay behind as free ones with
//! old content. Prints the path of the copy; one that is there is kept.

use afterimage::cpio::{self, Entry};
use anyhow::{Context, Result, bail};
use qemu_tests::accel::Accel;
use qemu_tests::binaries::Binaries;
use qemu_tests::cache::cache;
use qemu_tests::command::{Run, command};
use qemu_tests::disk::Disk;
use qemu_tests::initramfs;
use qemu_tests::kernel::Kernel;
use qemu_tests::vm::{Machine, Shape, Vm};
use qemu_tests::workdir::WorkDir;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SERIES: &str = "6.1";
const MEMORY_MIB: u32 = 2048;
/// Of the kernel with symbols: the rest would not leave the guest room to unpack it.
const SYMBOLS: usize = 400 << 20;
/// Names the content of the file: to be counted up when that changes.
const NAME: &str = "vmcore-1";
/// Emulated, on a loaded machine.
const BOOT: Duration = Duration::from_mins(5);
const COPY: Duration = Duration::from_mins(15);

/// No target appears, so the capture ends soon after the copy.
const CONFIG: &str = "[[target]]\ntype = \"filesystem\"\ndevice = \"LABEL=absent\"\npath = \"/\"\n\
    fstype = \"ext4\"\nwait = 1\n\n[capture]\ncpus = 1\ncmdline_append = \"rdinit=/wrapper\"\n\
    cmdline_remove = []\n\n[image]\ncompress = \"gzip\"\nmodules = [\"virtio_pci\", \"virtio_blk\"]\n";

fn main() -> Result<()> {
    let directory = cache()?.join("bench");
    let kept = directory.join(NAME);
    if !kept.exists() {
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        // Beside its final place: whole under this name or not there at all.
        let partial = directory.join(format!("{NAME}-partial"));
        crash(&partial)?;
        fs::rename(&partial, &kept).with_context(|| format!("publishing {}", kept.display()))?;
    }
    println!("{}", kept.display());
    Ok(())
}

/// Crashes a system and copies its `/proc/vmcore` to the file `copy`.
fn crash(copy: &Path) -> Result<()> {
    let kernel = Kernel::with_symbols(SERIES)?;
    let binaries = Binaries::get()?;
    let work = WorkDir::new("bench")?;
    let dir = work.path();

    let boot = dir.join("content/boot");
    fs::create_dir_all(&boot).context("making the boot directory")?;
    fs::copy(kernel.vmlinuz(), boot.join("vmlinuz")).context("copying the kernel")?;
    capture_image(dir, &boot.join("afterimage.img"), &kernel, binaries)?;
    let uuid = "5a17c0de-0000-4000-8000-00000000be4c";
    let system = Disk::ext4(&dir.join("disk.img"), 256 << 20, "system", uuid, &dir.join("content"))?;
    let raw = Disk::raw(copy, u64::from(MEMORY_MIB).saturating_add(64) << 20)?;

    let mut initrd = initramfs::production(&kernel, binaries)?;
    cpio::pad(&mut initrd);
    initrd.extend(ballast(&kernel)?);
    let initrd_path = dir.join("production.cpio");
    write(&initrd_path, &initrd)?;
    drop(initrd);

    let machine = Machine {
        accel: Accel::detect(&kernel),
        kernel: kernel.vmlinuz(),
        initrd: Some(initrd_path),
        append: "console=ttyS0 crashkernel=192M panic=10 prod.seed=bench prod.host=bench prod.panic=cpu0"
            .into(),
        memory_mib: MEMORY_MIB,
        cpus: 1,
        shape: Shape::default(),
        disks: vec![system, raw],
        log: dir.join("console.log"),
    };
    let mut vm = Vm::start(&machine)?;
    vm.console.expect("production: panicking", BOOT)?;
    let copied = vm.console.expect("wrapper: copied ", COPY)?.text;
    vm.wait_exit(COPY)?;
    let (_, rest) = copied.split_once("wrapper: copied ").context("the line that was waited for")?;
    let size = rest.split_whitespace().next().context("a size")?.parse().context("the size of the copy")?;
    let file = File::options().write(true).open(copy).context("opening the copy")?;
    file.set_len(size).context("cutting the copy to size")?;
    work.discard()
}

fn capture_image(dir: &Path, image: &Path, kernel: &Kernel, binaries: &Binaries) -> Result<()> {
    let config = dir.join("config.toml");
    write(&config, CONFIG.as_bytes())?;
    command(&binaries.afterimage.to_string_lossy())
        .args(["build", "--kernel", kernel.version(), "--modules-dir"])
        .arg(kernel.modules())
        .arg("--config")
        .arg(&config)
        .arg("--init")
        .arg(&binaries.init)
        .arg("-o")
        .arg(image)
        .run()?;
    write(image, &initramfs::with_wrapper(image, binaries)?)
}

/// The modules of the kernel and a large part of its symbols, as an archive for the page cache.
fn ballast(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut entries = Vec::new();
    let mut files = Vec::new();
    regular_files(&kernel.modules(), &mut files)?;
    files.sort();
    for (index, file) in files.iter().enumerate() {
        entries.push(Entry::file(&format!("/ballast/{index}"), 0o644, read(file)?));
    }
    let symbols = read(&kernel.vmlinux())?;
    let Some(part) = symbols.get(..SYMBOLS) else { bail!("{} is short", kernel.vmlinux().display()) };
    entries.push(Entry::file("/ballast/vmlinux", 0o644, part.to_vec()));
    Ok(cpio::write(&entries))
}

fn regular_files(directory: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    let context = || format!("reading {}", directory.display());
    for entry in fs::read_dir(directory).with_context(context)? {
        let entry = entry.with_context(context)?;
        let kind = entry.file_type().with_context(context)?;
        if kind.is_dir() {
            regular_files(&entry.path(), into)?;
        } else if kind.is_file() {
            into.push(entry.path());
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}
