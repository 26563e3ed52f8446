//! Mounts of the first process's namespace.

use std::collections::BTreeSet;

use base::addr::VirtAddr;
use base::fields::Fields;
use processes::names;
use processes::system::System;
use symbols::list;
use vmcore::kernel::KernelError;

use crate::wanted::Mounts;

/// Bytes of `super_block.s_id`.
const ID: usize = 32;
/// Bytes of the name of a device or a type.
const NAME: usize = 256;

/// A mount, with what could not be read of it.
pub(crate) struct Found {
    /// Its `struct mount`.
    pub(crate) address: VirtAddr,
    /// What is mounted: a device, or a name.
    pub(crate) source: Result<String, String>,
    /// Where.
    pub(crate) path: Result<String, String>,
    /// The type of its file system.
    pub(crate) kind: Result<String, String>,
    /// The directory of the file system that is mounted.
    pub(crate) root: Option<VirtAddr>,
}

/// Calls `each` with the mounts of a task, from the root on, at most `limit`.
pub(crate) fn walk(
    system: &System<'_>,
    wanted: &Mounts,
    task: VirtAddr,
    limit: usize,
    each: &mut dyn FnMut(Found),
) -> Result<(), KernelError> {
    let proxy = system.follow(task, wanted.of_task, "task_struct.nsproxy")?;
    let namespace = system.follow(proxy, wanted.namespaces.mounts, "nsproxy.mnt_ns")?;
    let root = system.follow(namespace, wanted.namespace.root, "mnt_namespace.root")?;
    let mut seen = BTreeSet::new();
    let mut waiting = vec![root];
    while let Some(mount) = waiting.pop() {
        if seen.len() >= limit || !seen.insert(mount) {
            continue;
        }
        each(row(system, wanted, mount));
        // The children of a mount, in a list; those that cannot be reached are left out.
        let head = VirtAddr(mount.0.wrapping_add(wanted.mount.mounts));
        let (children, _) = list::all(system.kernel, head, limit);
        let mount_of = |entry: VirtAddr| VirtAddr(entry.0.wrapping_sub(wanted.mount.child));
        waiting.extend(children.into_iter().rev().map(mount_of));
    }
    Ok(())
}

fn row(system: &System<'_>, wanted: &Mounts, mount: VirtAddr) -> Found {
    let chain = |error: KernelError| base::log::chain(&error);
    let path = names::of_mount(system, mount).map(|path| String::from_utf8_lossy(&path).into_owned());
    let superblock = system.follow(mount, wanted.mount.superblock, "vfsmount.mnt_sb");
    let kind = |superblock: &VirtAddr| {
        let kind = system.follow(*superblock, wanted.superblock.kind, "super_block.s_type")?;
        text(system, kind, wanted.kind.name)
    };
    let root = system.follow(mount, system.layout.mount.root, "vfsmount.mnt_root");
    let kind = match &superblock {
        Ok(superblock) => kind(superblock).map_err(chain),
        Err(error) => Err(base::log::chain(error)),
    };
    let mut source = text(system, mount, wanted.mount.device).map_err(chain);
    // btrfs says itself what its device is (show_devname), where the mount does not say it: seen on 6.12.
    if let (Ok("none"), Ok("btrfs"), Ok(superblock)) = (source.as_deref(), kind.as_deref(), &superblock) {
        let id = system.bytes(*superblock, wanted.superblock.id, ID, "super_block.s_id");
        source = id.map(|id| format!("/dev/{}", Fields(&id).text(0, ID).unwrap_or_default())).map_err(chain);
    }
    Found { address: mount, source, path: path.map_err(chain), kind, root: root.ok() }
}

/// The string that a member points to.
pub(crate) fn text(system: &System<'_>, base: VirtAddr, offset: u64) -> Result<String, KernelError> {
    let what = "a name";
    let mut at = system.follow(base, offset, what)?;
    let mut text = Vec::new();
    while text.len() < NAME {
        let [byte] = *system.bytes(at, 0, 1, what)? else { break };
        if byte == 0 {
            break;
        }
        text.push(byte);
        at = VirtAddr(at.0.wrapping_add(1));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}
