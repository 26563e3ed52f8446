//! The two images that are not the product: the production initramfs, and the capture image with a
//! wrapper around its `/init` that first copies `/proc/vmcore` as it is.
//!
//! They are put together with the product's own module closure and cpio writer: a mistake there
//! keeps the production system from its disk, and the test from passing.

use crate::binaries::Binaries;
use crate::command::{Run, command};
use crate::kernel::Kernel;
use afterimage::cpio::{self, Entry, Kind};
use afterimage::modules::ModuleTree;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What the production system needs to see its disk.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];

/// What a zram disk needs, loaded on request only. Which compressor a kernel's zram uses, and
/// whether that is a module, varies: what a kernel lacks it does not need.
const ZRAM: [&str; 3] = ["lzo_rle", "lzo", "zram"];

/// Name under which the production PID 1 runs a sleeping copy of itself, for `ps` to show.
pub const SLEEPER: &str = "witness-sleeper"; // 15 bytes: the longest comm there is

/// The program that [`with_swapon`] adds.
pub const SWAPON: &str = "/usr/sbin/swapon";

/// What [`with_stack_tools`] adds.
const STACK_TOOLS: [&str; 3] = ["/usr/sbin/lvm", "/usr/sbin/cryptsetup", "/usr/sbin/mke2fs"];

/// Modules of LVM and LUKS in `aes-xts-plain64`.
pub const STACK_MODULES: [&str; 5] = ["dm_mod", "-crypto-aes", "-crypto-ecb", "-crypto-xts", "dm_crypt"];

/// What [`with_layout`] adds: file systems and what they ask for, and the tools of btrfs.
const LAYOUT_MODULES: [&str; 3] = ["btrfs", "-quota_v2", "-xfs"];
const LAYOUT_TOOLS: [&str; 3] = ["/usr/sbin/mkfs.btrfs", "/usr/bin/btrfs", "/usr/sbin/mke2fs"];

/// What production makes and mounts before it loads anything, a step a line.
pub const LAYOUT: &str = "/layout";

/// The program that [`with_network`] adds.
pub const IP: &str = "/usr/sbin/ip";

/// The file that [`with_links`] adds.
pub const IP_BATCH: &str = "/network";

/// The initramfs of the production system.
pub fn production(kernel: &Kernel, binaries: &Binaries) -> Result<Vec<u8>> {
    let entry = |path: &str, kind| Entry { path: path.into(), mode: 0o755, kind };
    let mut entries: Vec<Entry> =
        ["dev", "proc", "sys", "tmp", "disk"].map(|path| entry(path, Kind::Directory)).into();
    entries.push(entry("dev/console", Kind::CharDevice(5, 1)));
    entries.push(entry("dev/null", Kind::CharDevice(1, 3)));
    entries.push(Entry::file("init", 0o755, read(&binaries.production_init)?));
    entries.push(Entry::file(SLEEPER, 0o755, read(&binaries.production_init)?));
    entries.push(Entry::file("afterimage", 0o755, read(&binaries.afterimage)?));
    let tree = ModuleTree::read(&kernel.modules())?;
    let zram = ZRAM.into_iter().flat_map(|name| tree.closure(&[name.to_owned()]).unwrap_or_default());
    let lists = [("order", tree.closure(&MODULES.map(str::to_owned))?), ("zram", zram.collect())];
    for (list, modules) in lists {
        let mut order = String::new();
        for module in modules {
            // A module that stands in both lists is packed twice, which costs less than telling.
            let path = format!("/modules/{list}-{}.ko", module.name);
            order.extend([if module.optional { "-" } else { "" }, &path, "\n"]);
            entries.push(Entry::file(&path, 0o644, tree.load(&module)?.0));
        }
        entries.push(Entry::file(&format!("modules/{list}"), 0o644, order.into_bytes()));
    }
    Ok(cpio::write(&entries))
}

/// A capture image followed by an archive that holds `/wrapper`. The kernel unpacks one after the
/// other: a compressed archive may be followed by a plain one that starts at a multiple of four.
pub fn with_wrapper(capture_image: &Path, binaries: &Binaries) -> Result<Vec<u8>> {
    let mut image = read(capture_image)?;
    cpio::pad(&mut image);
    image.extend(cpio::write(&[Entry::file("wrapper", 0o755, read(&binaries.production_init)?)]));
    Ok(image)
}

/// An initramfs followed by the host's swapon(8) with its libraries: the system call has no safe
/// wrapper.
pub fn with_swapon(image: Vec<u8>) -> Result<Vec<u8>> {
    Ok(append(image, &programs(&[SWAPON])?))
}

/// An initramfs followed by the host's tools for LVM and LUKS with their libraries, and the modules
/// that they need in `/modules/stack`.
pub fn with_stack_tools(image: Vec<u8>, kernel: &Kernel) -> Result<Vec<u8>> {
    with(image, kernel, &STACK_TOOLS, "stack", &STACK_MODULES)
}

/// An initramfs followed by what production makes and mounts, and what it needs to do so.
pub fn with_layout(image: Vec<u8>, kernel: &Kernel, steps: &[String]) -> Result<Vec<u8>> {
    let image = with(image, kernel, &LAYOUT_TOOLS, "layout", &LAYOUT_MODULES)?;
    Ok(with_files(image, &[(LAYOUT.to_owned(), steps.join("\n").into_bytes())]))
}

/// An initramfs followed by the host's ip(8) with its libraries, and the driver of a virtio network
/// card in `/modules/net`.
pub fn with_network(image: Vec<u8>, kernel: &Kernel) -> Result<Vec<u8>> {
    with(image, kernel, &[IP], "net", &["virtio_net"])
}

/// The same with what VLANs and bonds need, and with what `ip -batch` is to do at [`IP_BATCH`].
pub fn with_links(image: Vec<u8>, kernel: &Kernel, batch: &[String]) -> Result<Vec<u8>> {
    let image = with(image, kernel, &[IP], "net", &["virtio_net", "8021q", "bonding"])?;
    let batch = batch.iter().flat_map(|line| [line, "\n"]).collect::<String>();
    Ok(with_files(image, &[(IP_BATCH.to_owned(), batch.into_bytes())]))
}

/// An initramfs followed by files.
#[must_use]
pub fn with_files(image: Vec<u8>, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let entry = |(path, bytes): &(String, Vec<u8>)| Entry::file(path, 0o600, bytes.clone());
    append(image, &files.iter().map(entry).collect::<Vec<_>>())
}

/// Modules with all that they need, as files for [`with_files`]; `/modules/LIST` names them.
pub fn modules(kernel: &Kernel, list: &str, modules: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let tree = ModuleTree::read(&kernel.modules())?;
    let (mut order, mut files) = (String::new(), Vec::new());
    let modules: Vec<String> = modules.iter().map(|&name| name.to_owned()).collect();
    for module in tree.closure(&modules)? {
        let path = format!("/modules/{list}-{}.ko", module.name);
        order.extend([if module.optional { "-" } else { "" }, &path, "\n"]);
        files.push((path, tree.load(&module)?.0));
    }
    files.push((format!("/modules/{list}"), order.into_bytes()));
    Ok(files)
}

/// An initramfs followed by programs of the host, and modules in `/modules/LIST`.
fn with(image: Vec<u8>, kernel: &Kernel, tools: &[&str], list: &str, modules: &[&str]) -> Result<Vec<u8>> {
    Ok(with_files(append(image, &programs(tools)?), &self::modules(kernel, list, modules)?))
}

fn append(mut image: Vec<u8>, entries: &[Entry]) -> Vec<u8> {
    cpio::pad(&mut image);
    image.extend(cpio::write(entries));
    image
}

/// The host's programs and the libraries that they need.
fn programs(programs: &[&str]) -> Result<Vec<Entry>> {
    let mut paths: BTreeSet<String> = BTreeSet::new();
    for program in programs {
        let message = command("ldd").arg(program).run()?.stdout;
        let message = String::from_utf8_lossy(&message).into_owned();
        // "libc.so.6 => /lib/…/libc.so.6 (0x…)", and the loader alone by its path.
        paths.extend(message.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
        paths.insert((*program).to_owned());
    }
    paths.iter().map(|path| Ok(Entry::file(path, 0o755, read(Path::new(path))?))).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}
