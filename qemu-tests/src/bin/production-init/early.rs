//! What every init does first: mounts, modules, the disk, the host name.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use std::fs::{self, File};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// Where the disk is mounted.
pub(crate) const DISK: &str = "/disk";

/// Mounts the kernel's file systems and a tmpfs.
pub(crate) fn mounts() -> Result<()> {
    kernel_mounts()?;
    // There lies what the kernel is locked down to.
    mount_at("securityfs", "/sys/kernel/security", "securityfs")?;
    mount_at("tmpfs", "/tmp", "tmpfs")
}

/// Mounts the kernel's file systems, on directories made where an image lacks them.
pub(crate) fn kernel_mounts() -> Result<()> {
    for (directory, kind) in [("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "devtmpfs")] {
        fs::create_dir_all(directory).with_context(|| format!("making {directory}"))?;
        mount_at(kind, directory, kind)?;
    }
    Ok(())
}

/// Loads the modules that the file `list` names, one path a line, in its order.
pub(crate) fn modules(list: &str) -> Result<()> {
    let order = fs::read_to_string(list).with_context(|| format!("reading {list}"))?;
    for line in order.lines().filter(|line| !line.is_empty()) {
        // One of several providers of the same thing, which may refuse to load.
        let (path, optional) = line.strip_prefix('-').map_or((line, false), |path| (path, true));
        let file = File::open(path).with_context(|| format!("opening {path}"))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(_) if optional => {}
            Err(error) => return Err(error).with_context(|| format!("loading {path}")),
        }
    }
    Ok(())
}

/// Mounts the first disk.
pub(crate) fn disk() -> Result<()> {
    wait_for(Path::new("/dev/vda"))?;
    mount_at("/dev/vda", DISK, "ext4")
}

/// Waits for a device node: a driver finds its disks a moment after it is loaded.
pub(crate) fn wait_for(path: &Path) -> Result<()> {
    for _ in 0..200 {
        if path.exists() {
            return Ok(());
        }
        sleep(Duration::from_millis(50));
    }
    anyhow::bail!("{} does not appear", path.display())
}

/// Names the machine.
pub(crate) fn host_name(name: &str) -> Result<()> {
    fs::write("/proc/sys/kernel/hostname", name).with_context(|| format!("setting the host name {name}"))
}

/// Tells this boot from all others.
pub(crate) fn boot_id() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the boot id")?;
    Ok(id.trim().to_owned())
}

/// Mounts a file system.
pub(crate) fn mount_at(source: &str, directory: &str, kind: &str) -> Result<()> {
    mount(Some(source), directory, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting {source} on {directory}"))
}

/// Copies the files and directories in `from` into `to`; links and devices stay behind.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else if entry.file_type()?.is_file() {
            fs::copy(entry.path(), &to).with_context(|| format!("copying to {}", to.display()))?;
        }
    }
    Ok(())
}
