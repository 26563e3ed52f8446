//! Network namespaces (include/net/net_namespace.h).

use ::processes::system::System;
use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::{layouts, list};
use vmcore::kernel::KernelError;

/// Namespaces that are believed.
const MAX: usize = 100_000;

layouts! {
    NetLayout of "net" {
        list: "list",
        number: "ns.inum",
    }
}

/// Where they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Namespaces {
    layout: NetLayout,
    head: Option<VirtAddr>,
}

impl Namespaces {
    pub(super) fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self { layout: NetLayout::ask(known)?, head: known.symbol("net_namespace_list") })
    }

    /// All of them, and whether the list could be read to its end.
    pub(super) fn all(&self, system: &System<'_>) -> (Vec<VirtAddr>, bool) {
        let Some(head) = self.head else { return (Vec::new(), false) };
        let (entries, is_whole) = list::all(system.kernel, head, MAX);
        let net = |entry: VirtAddr| VirtAddr(entry.0.wrapping_sub(self.layout.list));
        (entries.into_iter().map(net).collect(), is_whole)
    }

    /// The number of one: that of its inode, as /proc/PID/ns/net shows it.
    pub(super) fn number(&self, system: &System<'_>, net: VirtAddr) -> Result<u32, KernelError> {
        system.half(net, self.layout.number, "net.ns.inum")
    }
}
