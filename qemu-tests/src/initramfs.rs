//! The two images that are not the product: the production initramfs, and the capture image with a wrapper
//! around its `/init` that first copies `/proc/vmcore` as it is.

use crate::binaries::Binaries;
use crate::cpio::{self, Archive};
use crate::kernel::Kernel;
use crate::modules::{ModuleIndex, content};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// What the production system needs to see its disk.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];

/// Name under which the production PID 1 runs a sleeping copy of itself, for `ps` to show.
pub const SLEEPER: &str = "witness-sleeper"; // 15 bytes: the longest comm there is

/// The initramfs of the production system.
pub fn production(kernel: &Kernel, binaries: &Binaries) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["/dev", "/proc", "/sys", "/tmp", "/disk", "/modules"] {
        archive.directory(directory)?;
    }
    archive.character_device("/dev/console", 5, 1)?;
    archive.character_device("/dev/null", 1, 3)?;
    archive.file("/init", 0o755, &read(&binaries.production_init)?)?;
    archive.symlink(&format!("/{SLEEPER}"), "/init")?;
    archive.file("/afterimage", 0o755, &read(&binaries.afterimage)?)?;
    let mut order = String::new();
    for module in ModuleIndex::read(&kernel.modules())?.closure(&MODULES)? {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let path = format!("/modules/{}", name.trim_end_matches(".xz"));
        archive.file(&path, 0o644, &content(&module)?)?;
        order.push_str(&path);
        order.push('\n');
    }
    archive.file("/modules/order", 0o644, order.as_bytes())?;
    archive.finish()
}

/// A capture image followed by an archive that holds `/wrapper`. The kernel unpacks one after the other: a
/// compressed archive may be followed by a plain one that starts at a multiple of four.
pub fn with_wrapper(capture_image: &Path, binaries: &Binaries) -> Result<Vec<u8>> {
    let mut image = read(capture_image)?;
    cpio::pad(&mut image);
    let mut archive = Archive::default();
    archive.file("/wrapper", 0o755, &read(&binaries.production_init)?)?;
    image.extend(archive.finish()?);
    Ok(image)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}
