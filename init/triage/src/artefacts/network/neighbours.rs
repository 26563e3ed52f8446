//! Neighbours: whose address is whose on a link (ARP, ND; include/net/neighbour.h).

use base::addr::{VirtAddr, to_usize};
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;

use super::super::links::{Seen, Table};
use super::super::{Ground, Row, Rows, Stop};
use super::interfaces::hexadecimal;
use super::{Devices, failed, ipv4, ipv6, row, text};

/// Chains of the table: a power of two.
const MAX_SHIFT: u32 = 20;
/// Bytes of a link's address that are shown.
const MAC: usize = 6;

layouts! {
    TableLayout of "neigh_table" {
        hash: "nht",
    }
    HashLayout of "neigh_hash_table" {
        // Pointers before 6.13.
        chains: "hash_heads" | "hash_buckets",
        shift: "hash_shift",
    }
    NeighbourLayout of "neighbour" {
        next: "hash" | "next",
        device: "dev",
        mac: "ha",
        state: "nud_state",
        key: "primary_key",
    }
}

pub(super) struct Layout {
    table: TableLayout,
    hash: HashLayout,
    neighbour: NeighbourLayout,
    /// `net_device.addr_len`
    mac_len: Option<u64>,
    tables: [Option<VirtAddr>; 2],
}

impl Layout {
    pub(super) fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            table: TableLayout::ask(known)?,
            hash: HashLayout::ask(known)?,
            neighbour: NeighbourLayout::ask(known)?,
            mac_len: known.offset("net_device", "addr_len"),
            tables: ["arp_tbl", "nd_tbl"].map(|name| known.symbol(name)),
        })
    }

    pub(super) fn walk(
        &self,
        ground: &Ground<'_>,
        devices: &Devices,
        rows: &mut Rows<'_>,
    ) -> Result<(), Stop> {
        for (table, is_v6) in self.tables.into_iter().zip([false, true]) {
            let Some(at) = table else {
                rows.add(&failed("neighbour", &"the kernel has no symbol of the table"))?;
                continue;
            };
            let system = ground.system;
            let chains = || {
                let hash = system.follow(at, self.table.hash, "neigh_table.nht")?;
                let chains = system.follow(hash, self.hash.chains, "neigh_hash_table.hash_heads")?;
                let shift = system.half(hash, self.hash.shift, "neigh_hash_table.hash_shift")?;
                Ok::<_, vmcore::kernel::KernelError>((chains, 1_u64 << shift.min(MAX_SHIFT)))
            };
            let (chains, count) = match chains() {
                Ok(found) => found,
                Err(error) => {
                    rows.add(&failed("neighbour", &base::log::chain(&error)))?;
                    continue;
                }
            };
            let table = Table { next: self.neighbour.next, ..Table::of(chains, count) };
            let mut seen = Seen::new();
            let fault = table.walk(system, rows, &mut seen, &mut |neighbour, rows| {
                rows.add(&self.row(ground, neighbour, is_v6, devices))
            })?;
            if let Some(fault) = fault {
                rows.add(&failed("neighbour", &fault))?;
            }
        }
        Ok(())
    }

    fn row(&self, ground: &Ground<'_>, at: VirtAddr, is_v6: bool, devices: &Devices) -> Row {
        let (system, layout) = (ground.system, &self.neighbour);
        let mut row = row("neighbour", at);
        let device = system.pointer(at, layout.device, "neighbour.dev");
        let len = device.as_ref().ok().copied().flatten().zip(self.mac_len);
        let len = len.and_then(|(device, at)| system.byte(device, at, "net_device.addr_len").ok());
        devices.name(device, &mut row);
        row.set("network.type", if is_v6 { "ipv6" } else { "ipv4" });
        let ip = || {
            if is_v6 { text(ipv6(system, at, layout.key)) } else { text(ipv4(system, at, layout.key)) }
        };
        row.read("destination.ip", ip());
        let len = len.map_or(MAC, |len| to_usize(u64::from(len).min(32)));
        let mac = system.bytes(at, layout.mac, len, "neighbour.ha");
        row.read("destination.mac", mac.map(|bytes| hexadecimal(&bytes, "-")));
        let state = system.byte(at, layout.state, "neighbour.nud_state");
        row.read("linux.neighbour.state", state.map(state_name));
        row
    }
}

/// `NUD_*`, include/uapi/linux/neighbour.h
fn state_name(state: u8) -> &'static str {
    match state {
        0 => "none",
        0x01 => "incomplete",
        0x02 => "reachable",
        0x04 => "stale",
        0x08 => "delay",
        0x10 => "probe",
        0x20 => "failed",
        0x40 => "noarp",
        0x80 => "permanent",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_names() {
        assert_eq!((state_name(0x80), state_name(3)), ("permanent", "unknown"));
    }
}
