//! The control group of a task, which also tells its container, and how many groups there are.

use ::processes::system::System;
use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::layouts;
use vmcore::kernel::KernelError;

use super::Row;

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
    ControllerLayout of "cgroup_subsys" {
        root: "root",
    }
    RootLayout of "cgroup_root" {
        living: "cgrp.nr_descendants",
        dying: "cgrp.nr_dying_descendants",
    }
}

/// How many control groups the hierarchy of the memory controller has: those that are gone stay as long as
/// pages of theirs do.
pub(super) struct Totals {
    controller: VirtAddr,
    layout: ControllerLayout,
    root: RootLayout,
}

impl Totals {
    /// None where the kernel has no such controller.
    pub(super) fn ask(known: &dyn Knowledge) -> Option<Self> {
        Some(Self {
            controller: known.symbol("memory_cgrp_subsys")?,
            layout: ControllerLayout::ask(known).ok()?,
            root: RootLayout::ask(known).ok()?,
        })
    }

    pub(super) fn row(&self, system: &System<'_>) -> Row {
        let root = match system.follow(self.controller, self.layout.root, "cgroup_subsys.root") {
            Ok(root) => root,
            Err(error) => {
                let mut row = Row::at(self.controller);
                row.error("linux.cgroups", &base::log::chain(&error));
                return row;
            }
        };
        let mut row = Row::at(root);
        let living = system.half(root, self.root.living, "cgroup.nr_descendants");
        // The first group is no descendant.
        row.read("linux.cgroups.living", living.map(|count| u64::from(count).saturating_add(1)));
        let dying = system.half(root, self.root.dying, "cgroup.nr_dying_descendants");
        row.read("linux.cgroups.dying", dying);
        row
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
