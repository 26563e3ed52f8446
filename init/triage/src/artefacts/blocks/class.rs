//! All devices of a class (`struct class`, include/linux/device/class.h), as /sys/class shows them.

use ::processes::system::System;
use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::{layouts, list};
use vmcore::kernel::KernelError;

/// Classes, and devices of one, that are believed.
const MAX_CLASSES: usize = 10_000;
const MAX_DEVICES: usize = 100_000;
/// What a `klist_node` has in its first word besides a pointer (`KNODE_DEAD`, lib/klist.c).
const DEAD: u64 = 1;

layouts! {
    PrivateLayout of "subsys_private" {
        class: "class",
        object: "subsys.kobj.entry",
        devices: "klist_devices.k_list",
    }
    NodeLayout of "klist_node" {
        list: "n_klist",
        node: "n_node",
    }
    DeviceLayout of "device_private" {
        of_class: "knode_class",
        device: "device",
    }
    SetLayout of "kset" {
        list: "list",
    }
}

/// Where the devices of a class are.
pub(super) struct Class {
    /// The class of block devices.
    pub(super) symbol: Option<VirtAddr>,
    private: PrivateLayout,
    node: NodeLayout,
    device: DeviceLayout,
    set: SetLayout,
    /// `class.p`; since 6.4 it is found among all (`class_kset`).
    direct: Option<u64>,
    all: Option<VirtAddr>,
}

impl Class {
    pub(super) fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            symbol: known.symbol("block_class"),
            private: PrivateLayout::ask(known)?,
            node: NodeLayout::ask(known)?,
            device: DeviceLayout::ask(known)?,
            set: SetLayout::ask(known)?,
            direct: known.offset("class", "p"),
            all: known.symbol("class_kset"),
        })
    }

    /// Devices of the class at `class`, and why they may be not all.
    pub(super) fn devices(&self, system: &System<'_>, class: VirtAddr) -> (Vec<VirtAddr>, Option<String>) {
        let private = match self.private(system, class) {
            Ok(Some(private)) => private,
            Ok(None) => return (Vec::new(), Some("their class cannot be found".to_owned())),
            Err(error) => return (Vec::new(), Some(base::log::chain(&error))),
        };
        let head = VirtAddr(private.0.wrapping_add(self.private.devices));
        let (entries, whole) = list::all(system.kernel, head, MAX_DEVICES);
        let mut why = (!whole).then(|| "their list cannot be read to its end".to_owned());
        let mut all = Vec::new();
        for entry in entries {
            let node = VirtAddr(entry.0.wrapping_sub(self.node.node));
            match self.device(system, node) {
                Ok(Some(device)) => all.push(device),
                Ok(None) => {}
                Err(error) => why = why.or_else(|| Some(base::log::chain(&error))),
            }
        }
        (all, why)
    }

    fn device(&self, system: &System<'_>, node: VirtAddr) -> Result<Option<VirtAddr>, KernelError> {
        // One that was taken away stays as long as somebody walks along the list.
        if system.word(node, self.node.list, "klist_node.n_klist")? & DEAD != 0 {
            return Ok(None);
        }
        let private = VirtAddr(node.0.wrapping_sub(self.device.of_class));
        system.follow(private, self.device.device, "device_private.device").map(Some)
    }

    /// The `subsys_private` of a class.
    fn private(&self, system: &System<'_>, class: VirtAddr) -> Result<Option<VirtAddr>, KernelError> {
        if let Some(direct) = self.direct {
            return system.pointer(class, direct, "class.p");
        }
        let Some(all) = self.all else { return Ok(None) };
        let set = system.follow(all, 0, "class_kset")?;
        let (entries, _) = list::all(system.kernel, VirtAddr(set.0.wrapping_add(self.set.list)), MAX_CLASSES);
        let private = entries.into_iter().map(|entry| VirtAddr(entry.0.wrapping_sub(self.private.object)));
        let is_it = |private: &VirtAddr| {
            system.word(*private, self.private.class, "subsys_private.class").is_ok_and(|of| of == class.0)
        };
        Ok(private.into_iter().find(is_it))
    }
}
