//! The control group of a task, which also tells its container.

use ::processes::system::System;
use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::layouts;
use vmcore::kernel::KernelError;

/// Levels of a path of control groups.
const DEPTH: usize = 64;

layouts! {
    TaskLayout of "task_struct" {
        cgroups: "cgroups",
    }
    SetLayout of "css_set" {
        group: "dfl_cgrp",
    }
    GroupLayout of "cgroup" {
        node: "kn",
    }
    NodeLayout of "kernfs_node" {
        name: "name",
        parent: "__parent" | "parent",
    }
}

/// Where a task has its control group in the unified hierarchy.
pub(super) struct Groups {
    task: TaskLayout,
    set: SetLayout,
    group: GroupLayout,
    node: NodeLayout,
}

impl Groups {
    /// None where the kernel has no control groups.
    pub(super) fn ask(known: &dyn Knowledge) -> Option<Self> {
        Some(Self {
            task: TaskLayout::ask(known).ok()?,
            set: SetLayout::ask(known).ok()?,
            group: GroupLayout::ask(known).ok()?,
            node: NodeLayout::ask(known).ok()?,
        })
    }

    /// The `struct cgroup` of a task.
    pub(super) fn of(&self, system: &System<'_>, task: VirtAddr) -> Result<VirtAddr, KernelError> {
        let set = system.follow(task, self.task.cgroups, "task_struct.cgroups")?;
        system.follow(set, self.set.group, "css_set.dfl_cgrp")
    }

    /// Its path, as /proc/PID/cgroup has it.
    pub(super) fn path(&self, system: &System<'_>, group: VirtAddr) -> Result<String, KernelError> {
        let mut at = system.follow(group, self.group.node, "cgroup.kn")?;
        let mut names = Vec::new();
        for _ in 0..DEPTH {
            let Some(parent) = system.pointer(at, self.node.parent, "kernfs_node.parent")? else { break };
            names.push(crate::mounts::text(system, at, self.node.name)?);
            at = parent;
        }
        names.reverse();
        Ok(format!("/{}", names.join("/")))
    }
}

/// The id of a container in the path of a control group: 64 hex digits.
pub(super) fn container(path: &str) -> Option<String> {
    let mut words = path.split(|c: char| !c.is_ascii_hexdigit());
    words.find(|word| word.len() == 64).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_known_by_its_id() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(container(&format!("/system.slice/docker-{id}.scope")).as_ref(), Some(&id));
        assert_eq!(container(&format!("/kubepods/pod1/{id}")), Some(id));
        assert_eq!(container("/user.slice/user-1000.slice"), None);
    }
}
