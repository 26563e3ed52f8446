//! Mounts of the first process's namespace.

use std::collections::BTreeSet;

use base::addr::VirtAddr;
use processes::names;
use processes::system::System;
use vmcore::kernel::KernelError;

use crate::findings::Mount;
use crate::wanted::Mounts;

/// Bytes of the name of a device or a type.
const NAME: usize = 256;

/// Calls `each` with the mounts of a task, from the root on, at most `limit`.
pub(crate) fn walk(
    system: &System<'_>,
    wanted: &Mounts,
    task: VirtAddr,
    limit: usize,
    each: &mut dyn FnMut(Mount),
) -> Result<(), KernelError> {
    let follow = |base: VirtAddr, offset: u64, what: &'static str| {
        system.pointer(base, offset, what)?.ok_or(KernelError::Absurd { what, value: 0 })
    };
    let proxy = follow(task, wanted.of_task, "task_struct.nsproxy")?;
    let namespace = follow(proxy, wanted.namespaces.mounts, "nsproxy.mnt_ns")?;
    let root = follow(namespace, wanted.namespace.root, "mnt_namespace.root")?;
    let mut seen = BTreeSet::new();
    let mut waiting = vec![root];
    while let Some(mount) = waiting.pop() {
        if seen.len() >= limit || !seen.insert(mount) {
            continue;
        }
        each(row(system, wanted, mount));
        // The children of a mount, in a list; those that cannot be reached are left out.
        let head = VirtAddr(mount.0.wrapping_add(wanted.mount.mounts));
        let mut children = Vec::new();
        let mut at = head;
        while let Ok(Some(next)) = system.pointer(at, 0, "mount.mnt_mounts") {
            if next == head || children.len() >= limit {
                break;
            }
            children.push(VirtAddr(next.0.wrapping_sub(wanted.mount.child)));
            at = next;
        }
        waiting.extend(children.into_iter().rev());
    }
    Ok(())
}

fn row(system: &System<'_>, wanted: &Mounts, mount: VirtAddr) -> Mount {
    let unknown = |error: KernelError| format!("? ({})", base::log::chain(&error));
    let path = names::of_mount(system, mount).map(|path| String::from_utf8_lossy(&path).into_owned());
    let source = text(system, mount, wanted.mount.device);
    let kind = || {
        let what = "vfsmount.mnt_sb";
        let superblock = system.pointer(mount, wanted.mount.superblock, what)?;
        let superblock = superblock.ok_or(KernelError::Absurd { what, value: 0 })?;
        let what = "super_block.s_type";
        let kind = system.pointer(superblock, wanted.superblock.kind, what)?;
        text(system, kind.ok_or(KernelError::Absurd { what, value: 0 })?, wanted.kind.name)
    };
    Mount {
        source: source.unwrap_or_else(unknown),
        path: path.unwrap_or_else(unknown),
        kind: kind().unwrap_or_else(unknown),
    }
}

/// The string that a member points to.
fn text(system: &System<'_>, base: VirtAddr, offset: u64) -> Result<String, KernelError> {
    let what = "a name";
    let mut at = system.pointer(base, offset, what)?.ok_or(KernelError::Absurd { what, value: 0 })?;
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
