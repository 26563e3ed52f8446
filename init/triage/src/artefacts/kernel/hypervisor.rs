//! The hypervisor that the kernel knows to be below it.

use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;

use super::super::{Ground, Row};
use crate::mounts;

/// `enum x86_hypervisor_type` (arch/x86/include/asm/hypervisor.h), with the names in kernel messages.
const KINDS: [(&str, &str); 9] = [
    ("none", "X86_HYPER_NATIVE"),
    ("VMware", "X86_HYPER_VMWARE"),
    ("Microsoft Hyper-V", "X86_HYPER_MS_HYPERV"),
    ("Xen PV", "X86_HYPER_XEN_PV"),
    ("Xen HVM", "X86_HYPER_XEN_HVM"),
    ("KVM", "X86_HYPER_KVM"),
    ("Jailhouse", "X86_HYPER_JAILHOUSE"),
    ("ACRN", "X86_HYPER_ACRN"),
    ("bhyve", "X86_HYPER_BHYVE"),
];

pub(super) struct Hypervisor {
    /// `x86_hyper_type`, and what it may be.
    kind: Option<VirtAddr>,
    kinds: Vec<(&'static str, u64)>,
    /// `pv_info.name`: what the kernel calls the machine that it is booted on.
    machine: Option<VirtAddr>,
}

impl Hypervisor {
    pub(super) fn ask(known: &dyn Knowledge) -> Self {
        let value =
            |&(name, item): &(&'static str, &str)| Some((name, known.value("x86_hypervisor_type", item)?));
        let name = known.symbol("pv_info").zip(known.offset("pv_info", "name"));
        Self {
            kind: known.symbol("x86_hyper_type"),
            kinds: KINDS.iter().filter_map(value).collect(),
            machine: name.and_then(|(at, offset)| at.checked_add(offset)),
        }
    }

    pub(super) fn of(&self, ground: &Ground<'_>, row: &mut Row) {
        let system = ground.system;
        if let Some(at) = self.kind {
            let kind = system.half(at, 0, "x86_hyper_type");
            let name = |kind: u32| {
                let known = self.kinds.iter().find(|(_, number)| *number == u64::from(kind));
                known.map_or_else(|| kind.to_string(), |(name, _)| (*name).to_owned())
            };
            row.read("linux.kernel.hypervisor", kind.map(name));
        }
        if let Some(at) = self.machine {
            row.read("linux.kernel.machine", mounts::text(system, at, 0));
        }
    }
}
