//! Names of files, as /proc/PID/maps has them (`d_path`, fs/d_path.c).

use base::addr::{VirtAddr, to_usize};
use vmcore::kernel::KernelError;

use crate::system::System;

/// `PATH_MAX`
const MAX_PATH: usize = 4096;
/// `NAME_MAX`
const MAX_NAME: u32 = 255;
/// Steps up: a path has half as many names as characters, and mounts lie on each other.
const MAX_STEPS: usize = 4096;

/// The path of the `struct file` at `file`, from the root of all mounts.
pub fn path(system: &System<'_>, file: VirtAddr) -> Result<Vec<u8>, KernelError> {
    let layout = &system.layout;
    let first = system.follow(file, layout.file.dentry, "file.f_path.dentry")?;
    let inner = system.follow(file, layout.file.mount, "file.f_path.mnt")?;
    // struct vfsmount is a member of struct mount.
    let mount = VirtAddr(inner.0.wrapping_sub(layout.mount.inner));
    let mut path = of(system, mount, first)?;
    // Files without a name in any directory are roots: "memfd:NAME", "dev/zero", "SYSV00000000".
    if path.is_empty() {
        path = [b"/".as_slice(), &name(system, first)?].concat();
    }
    let unhashed = layout.dentry.hash_back.map(|offset| system.word(first, offset, "dentry.d_hash.pprev"));
    if unhashed.transpose()? == Some(0) {
        path.extend_from_slice(b" (deleted)");
    }
    Ok(path)
}

/// The path of a directory that is told by two pointers: to its dentry and to its vfsmount, each by the
/// structure and the offset that it lies at.
pub fn in_mount(
    system: &System<'_>,
    dentry: (VirtAddr, u64),
    mount: (VirtAddr, u64),
) -> Result<Vec<u8>, KernelError> {
    let dentry = system.follow(dentry.0, dentry.1, "path.dentry")?;
    let inner = system.follow(mount.0, mount.1, "path.mnt")?;
    let path = of(system, VirtAddr(inner.0.wrapping_sub(system.layout.mount.inner)), dentry)?;
    Ok(if path.is_empty() { b"/".to_vec() } else { path })
}

/// Where the `struct mount` at `mount` is mounted; "/" for the root of all mounts.
pub fn of_mount(system: &System<'_>, mount: VirtAddr) -> Result<Vec<u8>, KernelError> {
    let root = system.follow(mount, system.layout.mount.root, "vfsmount.mnt_root")?;
    let path = of(system, mount, root)?;
    Ok(if path.is_empty() { b"/".to_vec() } else { path })
}

/// The path of a directory entry in a mount; empty for the root of all mounts.
fn of(system: &System<'_>, mount: VirtAddr, dentry: VirtAddr) -> Result<Vec<u8>, KernelError> {
    let layout = &system.layout;
    let (mut mount, mut dentry) = (mount, dentry);
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut len = 0_usize;
    for _ in 0..MAX_STEPS {
        let parent = system.follow(dentry, layout.dentry.parent, "dentry.d_parent")?;
        let root = system.follow(mount, layout.mount.root, "vfsmount.mnt_root")?;
        if dentry == root || dentry == parent {
            let above = system.follow(mount, layout.mount.parent, "mount.mnt_parent")?;
            if above == mount {
                break;
            }
            dentry = system.follow(mount, layout.mount.mountpoint, "mount.mnt_mountpoint")?;
            mount = above;
            continue;
        }
        let name = name(system, dentry)?;
        len = len.saturating_add(name.len()).saturating_add(1);
        if len > MAX_PATH {
            return Err(KernelError::Absurd { what: "the length of a path", value: base::addr::to_u64(len) });
        }
        names.push(name);
        dentry = parent;
    }
    Ok(names.iter().rev().flat_map(|name| [b"/".as_slice(), name]).flatten().copied().collect())
}

/// The name of the `struct dentry` at `dentry`: no NUL and no line end is left in it.
pub fn name(system: &System<'_>, dentry: VirtAddr) -> Result<Vec<u8>, KernelError> {
    let layout = &system.layout.dentry;
    let len = system.half(dentry, layout.name_len, "dentry.d_name.len")?;
    if len == 0 || len > MAX_NAME {
        return Err(KernelError::Absurd { what: "dentry.d_name.len", value: len.into() });
    }
    let what = "dentry.d_name.name";
    let at = system.follow(dentry, layout.name, what)?;
    let mut name = system.bytes(at, 0, to_usize(len.into()), what)?;
    for byte in &mut name {
        if matches!(*byte, 0 | b'\n') {
            *byte = b'?';
        }
    }
    Ok(name)
}
