//! Crashes whose `/proc/vmcore` is copied as it was, once, and kept in the cache: inputs of
//! benchmarks.

use crate::accel::Accel;
use crate::binaries::Binaries;
use crate::cache::cache;
use crate::command::{Run, command};
use crate::disk::Disk;
use crate::initramfs;
use crate::kernel::Kernel;
use crate::vm::{Machine, Shape, Vm};
use crate::workdir::WorkDir;
use afterimage::cpio;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

const COPY: Duration = Duration::from_mins(15);

/// No target appears, so the capture ends soon after the copy.
const CONFIG: &str = "[[target]]\ntype = \"filesystem\"\ndevice = \"LABEL=absent\"\npath = \"/\"\n\
    fstype = \"ext4\"\nwait = 1\n\n[capture]\ncpus = 1\ncmdline_append = \"rdinit=/wrapper \
    wrap.copy=vmcore\"\n\
    cmdline_remove = []\n\n[image]\ncompress = \"gzip\"\nmodules = [\"virtio_pci\", \"virtio_blk\"]\n";

/// A system to be crashed.
#[derive(Debug)]
pub struct CrashCopy<'a> {
    /// Its kernel.
    pub kernel: &'a Kernel,
    /// Size of its memory.
    pub memory_mib: u32,
    /// Number of its CPUs.
    pub cpus: u32,
    /// A cpio archive to be unpacked with the initramfs; may be empty.
    pub archive: Vec<u8>,
    /// An ext4 file system to be copied to /dev/vdc, which its production-init is to put to work.
    pub workload: Option<PathBuf>,
    /// How long it may take until it panics.
    pub boot: Duration,
}

/// The file `name` in the cache, made by `make` unless it is there.
pub fn kept(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let directory = cache()?.join("bench");
    let kept = directory.join(name);
    if !kept.exists() {
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        // Beside its final place: whole under this name or not there at all.
        let partial = directory.join(format!("{name}-partial"));
        make(&partial)?;
        fs::rename(&partial, &kept).with_context(|| format!("publishing {}", kept.display()))?;
    }
    Ok(kept)
}

impl CrashCopy<'_> {
    /// Crashes the system and copies its `/proc/vmcore` to the file `copy`.
    pub fn make(&self, copy: &Path) -> Result<()> {
        let binaries = Binaries::get()?;
        let work = WorkDir::new("bench")?;
        let dir = work.path();

        let boot = dir.join("content/boot");
        fs::create_dir_all(&boot).context("making the boot directory")?;
        fs::copy(self.kernel.vmlinuz(), boot.join("vmlinuz")).context("copying the kernel")?;
        capture_image(dir, &boot.join("afterimage.img"), self.kernel, binaries)?;
        let uuid = "5a17c0de-0000-4000-8000-00000000be4c";
        let system = Disk::ext4(&dir.join("disk.img"), 256 << 20, "system", uuid, &dir.join("content"))?;
        let raw = Disk::raw(copy, u64::from(self.memory_mib).saturating_add(64) << 20)?;
        let mut disks = vec![system, raw];
        let mut append: String =
            "console=ttyS0 crashkernel=192M panic=10 prod.seed=bench prod.host=bench prod.panic=cpu0".into();
        if let Some(workload) = &self.workload {
            let path = dir.join("workload.img");
            command("cp").arg("--sparse=always").args([workload, &path]).run()?;
            disks.push(Disk::existing(&path));
            append.push_str(" prod.workload=/dev/vdc");
        }

        let mut initrd = initramfs::production(self.kernel, binaries)?;
        cpio::pad(&mut initrd);
        initrd.extend(&self.archive);
        let initrd_path = dir.join("production.cpio");
        write(&initrd_path, &initrd)?;
        drop(initrd);

        let machine = Machine {
            accel: Accel::detect(self.kernel),
            kernel: self.kernel.vmlinuz(),
            initrd: Some(initrd_path),
            append,
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            shape: Shape::default(),
            disks,
            log: dir.join("console.log"),
        };
        let mut vm = Vm::start(&machine)?;
        vm.console.expect("production: panicking", self.boot)?;
        let copied = vm.console.expect("wrapper: copied ", COPY)?.text;
        vm.wait_exit(COPY)?;
        let (_, rest) = copied.split_once("wrapper: copied ").context("the line that was waited for")?;
        let size =
            rest.split_whitespace().next().context("a size")?.parse().context("the size of the copy")?;
        let file = File::options().write(true).open(copy).context("opening the copy")?;
        file.set_len(size).context("cutting the copy to size")?;
        work.discard()
    }
}

fn capture_image(dir: &Path, image: &Path, kernel: &Kernel, binaries: &Binaries) -> Result<()> {
    let config = dir.join("config.toml");
    write(&config, CONFIG.as_bytes())?;
    binaries.build_image(kernel, &config, image)?;
    write(image, &initramfs::with_wrapper(image, binaries)?)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}
