//! A dump into LUKS2 on LVM over two disks, made by lvm and cryptsetup in production and opened by
//! neither in the capture.

use anyhow::{Context, Result, bail, ensure};
use qemu_tests::accel::Accel;
use qemu_tests::binaries::Binaries;
use qemu_tests::command::{Run, command};
use qemu_tests::console::Line;
use qemu_tests::disk::Disk;
use qemu_tests::initramfs::{self, STACK_MODULES};
use qemu_tests::kernel::Kernel;
use qemu_tests::marker::{self, Kind};
use qemu_tests::readers;
use qemu_tests::scenario::{DISK_UUID, HOST};
use qemu_tests::stack::{COPY, FS_UUID, KEY_FILE, pass_phrase, volume_key};
use qemu_tests::vm::{Machine, Shape, Vm};
use qemu_tests::workdir::WorkDir;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MEMORY_MIB: u32 = 768;
/// The dump of all memory fits into the volume, the volume into neither disk alone.
const PART: u64 = 600 << 20;
const BOOT: Duration = Duration::from_mins(5);
const CAPTURE: Duration = Duration::from_mins(10);

#[test]
fn a_dump_goes_into_luks_on_lvm_of_6_1() -> Result<()> {
    dump_into_volume("6.1")
}

#[test]
#[ignore = "full: kernel 6.12"]
fn a_dump_goes_into_luks_on_lvm_of_6_12() -> Result<()> {
    dump_into_volume("6.12")
}

#[test]
fn a_volume_that_was_extended_after_the_load_is_refused_and_left_alone() -> Result<()> {
    let setup = Setup::new("stack-changed", "6.1")?;
    let mut vm = Vm::start(&setup.machine("change", "console.log"))?;
    vm.console.expect("production: loaded", BOOT)?;
    vm.console.expect("production: volume changed", BOOT)?;
    let before = setup.sums()?;
    vm.console.expect("Kernel panic", BOOT)?;
    let console = vm.wait_exit(CAPTURE)?.console;
    let text = text(&console);
    let refused =
        "LVM volume vg/crash has changed since the image was loaded: the metadata's seqno was 2 and is 3";
    ensure!(text.contains(refused), "the capture never said {refused:?}:\n{text}");
    ensure!(setup.sums()? == before, "the disks under the volume were written to");
    let back = setup.work.path().join("read-back");
    setup.disk.read_back("/var/crash", &back)?;
    let result = fs::read_to_string(only_dump(&back.join("crash"))?.join("result.json"))?;
    ensure!(result.contains(refused) && result.contains("\"complete\""), "result.json: {result}");
    setup.work.discard()
}

fn dump_into_volume(series: &str) -> Result<()> {
    let setup = Setup::new(&format!("stack-{series}"), series)?;
    let mut vm = Vm::start(&setup.machine("make", "console.log"))?;
    vm.console.expect("keys         went with the image", BOOT)?;
    vm.console.expect("production: loaded", BOOT)?;
    vm.console.expect("Kernel panic", BOOT)?;
    let console = vm.wait_exit(CAPTURE)?.console;
    let message = text(&console);
    for words in ["LVM volume vg/crash is /dev/dm-0", "LUKS device ", "afterimage: complete: "] {
        ensure!(message.contains(words), "the capture never said {words:?}:\n{message}");
    }
    ensure!(!message.contains("stays set up"), "the stack was not taken down:\n{message}");

    // lvm and cryptsetup open what the capture wrote through its own tables.
    let mut vm = Vm::start(&setup.machine("read", "console-read.log"))?;
    vm.console.expect("production: volume read", BOOT)?;
    let again = vm.wait_exit(BOOT)?.console;
    let back = setup.work.path().join("read-back");
    setup.disk.read_back(&format!("/{COPY}"), &back)?;
    let dump = only_dump(&back.join(COPY).join("var/crash"))?;
    let dmesg = fs::read_to_string(dump.join("dmesg.txt")).context("reading dmesg.txt")?;
    ensure!(dmesg.contains(&marker::text(&setup.seed, Kind::Log, 0)), "dmesg.txt is of another crash");
    let theirs = readers::makedumpfile_dmesg(&dump.join("vmcore"))?;
    ensure!(dmesg.as_bytes() == theirs, "makedumpfile finds another log in the dump");

    // The key is nowhere but in memory.
    let (key, pass) = (volume_key(&setup.seed), pass_phrase(&setup.seed));
    let nibbles = key.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let hex: String = nibbles.filter_map(|nibble| char::from_digit(u32::from(nibble), 16)).collect();
    let canaries: [&[u8]; 3] = [&key, hex.as_bytes(), pass.as_bytes()];
    let result = fs::read(dump.join("result.json")).context("reading result.json")?;
    let image = setup.work.path().join("content/boot/afterimage.img");
    let unpacked = command("zcat").arg(&image).run()?.stdout;
    let log = fs::read(setup.work.path().join("console.log")).context("reading the console")?;
    let places = [
        ("the image", unpacked),
        ("result.json", result),
        ("the console", log),
        ("the second console", text(&again).into_bytes()),
    ];
    for (place, bytes) in places {
        ensure!(!bytes.is_empty(), "{place} is empty");
        ensure!(canaries.iter().all(|canary| count(&bytes, canary) == 0), "a secret is in {place}");
    }
    // In the dump of everything it is: the running kernel works with it.
    let raw = setup.work.path().join("raw");
    command(&Binaries::get()?.afterimage.to_string_lossy())
        .args(["dump", "--level", "0", "--format", "raw"])
        .args([&dump.join("vmcore"), &raw])
        .run()?;
    let memory = fs::read(&raw).context("reading the raw dump")?;
    let [bytes, digits, phrase] = canaries.map(|canary| count(&memory, canary));
    eprintln!(
        "stack-{series}: in the level-0 dump: volume key {bytes} times as bytes, {digits} times as hex; pass \
         phrase {phrase} times"
    );
    setup.work.discard()
}

/// The disks and images of a run.
struct Setup {
    work: WorkDir,
    kernel: Kernel,
    seed: String,
    disk: Disk,
    parts: [Disk; 2],
}

impl Setup {
    fn new(name: &str, series: &str) -> Result<Self> {
        let work = WorkDir::new(name)?;
        let kernel = Kernel::of_series(series)?;
        let binaries = Binaries::get()?;
        let dir = work.path();
        let boot = dir.join("content/boot");
        fs::create_dir_all(&boot).context("making the boot directory")?;
        fs::create_dir_all(dir.join("content/var/crash")).context("making the dump directory")?;
        let config = dir.join("config.toml");
        fs::write(&config, config_toml()).context("writing the configuration")?;
        binaries.build_image(&kernel, &config, &boot.join("afterimage.img"))?;
        fs::copy(kernel.vmlinuz(), boot.join("vmlinuz")).context("copying the kernel")?;
        let disk = Disk::ext4(&dir.join("disk.img"), 2 << 30, "dump", DISK_UUID, &dir.join("content"))?;
        let parts = [Disk::raw(&dir.join("b.img"), PART)?, Disk::raw(&dir.join("c.img"), PART)?];
        let production = initramfs::with_stack_tools(initramfs::production(&kernel, binaries)?, &kernel)?;
        fs::write(dir.join("production.cpio"), production).context("writing the production image")?;
        let seed = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { work, kernel, seed, disk, parts })
    }

    fn machine(&self, stack: &str, log: &str) -> Machine {
        let dir = self.work.path();
        let [second, third] = self.parts.clone();
        let append = format!(
            "console=ttyS0 crashkernel=192M panic=10 prod.seed={} prod.host={HOST} prod.panic=cpu0 \
             prod.stack={stack} prod.run=status",
            self.seed
        );
        Machine {
            accel: Accel::detect(&self.kernel),
            kernel: self.kernel.vmlinuz(),
            initrd: Some(dir.join("production.cpio")),
            append,
            memory_mib: MEMORY_MIB,
            cpus: 1,
            shape: Shape::default(),
            disks: vec![self.disk.clone(), second, third],
            log: dir.join(log),
        }
    }

    /// Checksums of the disks under the volume.
    fn sums(&self) -> Result<String> {
        let output = command("sha256sum").args(self.parts.iter().map(|disk| &disk.path)).run()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn config_toml() -> String {
    let modules = [&["virtio_pci", "virtio_blk"], &STACK_MODULES[..]].concat();
    format!(
        "[dump]\nlevel = 0\ncompress = \"zstd:1\"\n\n\
         [[target]]\ntype = \"filesystem\"\ndevice = \"UUID={FS_UUID}\"\nkey_file = {KEY_FILE:?}\nfstype \
         = \"ext4\"\nwait = 10\n\n\
         [[target]]\ntype = \"filesystem\"\ndevice = \"LABEL=dump\"\nfstype = \"ext4\"\n\n\
         [capture]\nstall_timeout = 300\n\n[image]\ncompress = \"gzip\"\nmodules = {modules:?}\n"
    )
}

/// The only directory in a directory.
fn only_dump(directory: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.is_dir()); // beside it is the ledger
    match paths.as_slice() {
        [path] => Ok(path.clone()),
        _ => bail!("{} holds {paths:?} instead of one dump", directory.display()),
    }
}

fn count(bytes: &[u8], wanted: &[u8]) -> usize {
    let first = wanted.first().copied();
    let starts = bytes.iter().enumerate().filter(|(_, byte)| Some(**byte) == first);
    starts.filter(|(at, _)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(wanted))).count()
}

fn text(lines: &[Line]) -> String {
    lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
}
