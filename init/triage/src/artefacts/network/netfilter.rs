//! What filters packets: functions that are hooked into the path of packets, as far as the kernel itself
//! knows them (include/linux/netfilter.h). Tables of nftables and connections that are tracked belong to
//! modules, whose symbols and types are not read: rows say so where such a module is loaded.

use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::layouts;

use super::super::{Ground, Rows, Stop};
use super::{Namespace, failed};

/// Hooks of a family, and functions of a hook, that are believed.
const MAX_HOOKS: u64 = 16;
const MAX_ENTRIES: u16 = 1024;
/// Families with the members of `netns_nf` that have their hooks.
const FAMILIES: [(&str, &str); 5] = [
    ("ipv4", "nf.hooks_ipv4"),
    ("ipv6", "nf.hooks_ipv6"),
    ("arp", "nf.hooks_arp"),
    ("bridge", "nf.hooks_bridge"),
    ("decnet", "nf.hooks_decnet"),
];
/// `enum nf_inet_hooks`, include/uapi/linux/netfilter.h
const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];

layouts! {
    EntriesLayout of "nf_hook_entries" {
        count: "num_hook_entries",
        first: "hooks",
    }
    EntryLayout of "nf_hook_entry" {
        function: "hook",
    }
    OpsLayout of "nf_hook_ops" {
        priority: "priority",
    }
}

pub(super) struct Layout {
    entries: Option<(EntriesLayout, EntryLayout, OpsLayout)>,
    /// Bytes of a `nf_hook_entry`.
    size: u64,
    families: Vec<(&'static str, u64, u64)>,
}

impl Layout {
    pub(super) fn ask(known: &dyn Knowledge) -> Self {
        let entries = || {
            let entries = EntriesLayout::ask(known).ok()?;
            Some((entries, EntryLayout::ask(known).ok()?, OpsLayout::ask(known).ok()?))
        };
        let family = |&(name, member): &(&'static str, &'static str)| {
            let count = known.elements("net", member)?.min(MAX_HOOKS);
            Some((name, known.offset("net", member)?, count))
        };
        Self {
            entries: entries(),
            size: known.size_of("nf_hook_entry").unwrap_or(16),
            families: FAMILIES.iter().filter_map(family).collect(),
        }
    }

    /// Functions that see packets.
    pub(super) fn hooks(&self, ground: &Ground<'_>, at: Namespace, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let Some((entries, entry, ops)) = &self.entries else { return Ok(()) };
        let system = ground.system;
        for (family, offset, count) in &self.families {
            for hook in 0..*count {
                rows.in_time()?;
                let place = offset.saturating_add(hook.saturating_mul(8));
                let Ok(Some(list)) = system.pointer(at.net, place, "netns_nf.hooks") else { continue };
                let functions = match system.short(list, entries.count, "num_hook_entries") {
                    Ok(functions) => functions.min(MAX_ENTRIES),
                    Err(error) => {
                        rows.add(&at.failed("netfilter", &base::log::chain(&error)))?;
                        continue;
                    }
                };
                for number in 0..functions {
                    let offset = u64::from(number).saturating_mul(self.size);
                    let place = VirtAddr(list.0.wrapping_add(entries.first).wrapping_add(offset));
                    let mut row = at.row("netfilter", place);
                    row.set("linux.netfilter.family", *family);
                    let name = HOOKS.get(to_usize(hook)).filter(|_| matches!(*family, "ipv4" | "ipv6"));
                    row.set(
                        "linux.netfilter.hook",
                        name.map_or_else(|| hook.to_string(), |name| (*name).to_owned()),
                    );
                    let function = system.word(place, entry.function, "nf_hook_entry.hook");
                    row.read("linux.netfilter.function", function.map(|at| format!("{at:#x}")));
                    // Behind the functions: pointers to what they were registered with.
                    let behind = u64::from(functions).saturating_mul(self.size);
                    let behind = entries
                        .first
                        .saturating_add(behind)
                        .saturating_add(u64::from(number).saturating_mul(8));
                    if let Ok(Some(registered)) = system.pointer(list, behind, "nf_hook_entries") {
                        let priority = system.bytes(registered, ops.priority, 4, "nf_hook_ops.priority");
                        row.read(
                            "linux.netfilter.priority",
                            priority.map(|bytes| Fields(&bytes).i32(0).unwrap_or(0)),
                        );
                    }
                    rows.add(&row)?;
                }
            }
        }
        Ok(())
    }

    /// What modules have, and is not read.
    pub(super) fn modules(ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let loaded = ground.code.modules();
        for (module, kind) in
            [("nf_tables", "nftables"), ("nf_conntrack", "connection"), ("x_tables", "xtables")]
        {
            if loaded.iter().any(|other| other.name == module) {
                let why = format!(
                    "skipped: the module {module} is loaded, and symbols and types of modules are not read"
                );
                rows.add(&failed(kind, &why))?;
            }
        }
        Ok(())
    }
}
