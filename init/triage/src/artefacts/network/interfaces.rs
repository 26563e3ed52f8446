//! Interfaces (`struct net_device`, include/linux/netdevice.h) and their addresses.

use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::{layouts, list};

use super::super::links::{self, Seen};
use super::super::{Ground, Row, Rows, Stop};
use super::{Devices, Namespace, ipv4, ipv6, text};

/// Interfaces of a namespace, and addresses of an interface, that are believed.
const MAX: usize = 100_000;
/// `IFNAMSIZ`, `MAX_ADDR_LEN`
const NAME: usize = 16;
const MAX_MAC: u64 = 32;
/// Flags of an interface (include/uapi/linux/if.h), lowest bit first.
const FLAGS: [&str; 16] = [
    "up",
    "broadcast",
    "debug",
    "loopback",
    "point-to-point",
    "notrailers",
    "running",
    "noarp",
    "promiscuous",
    "allmulticast",
    "master",
    "slave",
    "multicast",
    "portsel",
    "automedia",
    "dynamic",
];

layouts! {
    NetLayout of "net" {
        devices: "dev_base_head",
    }
    DeviceLayout of "net_device" {
        list: "dev_list",
        name: "name",
        index: "ifindex",
        flags: "flags",
        mtu: "mtu",
        mac: "dev_addr",
        mac_len: "addr_len",
        kind: "type",
    } [
        above: "adj_list.upper",
        v4: "ip_ptr",
        v6: "ip6_ptr",
        operations: "rtnl_link_ops",
        state: "operstate",
    ]
    AdjacentLayout of "netdev_adjacent" {
        device: "dev",
        is_master: "master",
        list: "list",
    }
    V4DeviceLayout of "in_device" {
        first: "ifa_list",
    }
    V4Layout of "in_ifaddr" {
        next: "ifa_next",
        local: "ifa_local",
        peer: "ifa_address",
        prefix: "ifa_prefixlen",
        label: "ifa_label",
        scope: "ifa_scope",
    }
    V6DeviceLayout of "inet6_dev" {
        list: "addr_list",
    }
    V6Layout of "inet6_ifaddr" {
        list: "if_list",
        address: "addr",
        prefix: "prefix_len",
        scope: "scope",
        flags: "flags",
    }
}

pub(super) struct Layout {
    net: NetLayout,
    device: DeviceLayout,
    adjacent: Option<AdjacentLayout>,
    v4: Option<(V4DeviceLayout, V4Layout)>,
    v6: Option<(V6DeviceLayout, V6Layout)>,
    /// `rtnl_link_ops.kind`
    kind: Option<u64>,
}

impl Layout {
    pub(super) fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let (v4, v6) = (V4Layout::ask(known).ok(), V6Layout::ask(known).ok());
        Ok(Self {
            net: NetLayout::ask(known)?,
            device: DeviceLayout::ask(known)?,
            adjacent: AdjacentLayout::ask(known).ok(),
            v4: V4DeviceLayout::ask(known).ok().zip(v4),
            v6: V6DeviceLayout::ask(known).ok().zip(v6),
            kind: known.offset("rtnl_link_ops", "kind"),
        })
    }

    pub(super) fn walk(
        &self,
        ground: &Ground<'_>,
        at: Namespace,
        devices: &mut Devices,
        rows: &mut Rows<'_>,
    ) -> Result<(), Stop> {
        let head = VirtAddr(at.net.0.wrapping_add(self.net.devices));
        let (entries, is_whole) = list::all(ground.system.kernel, head, MAX);
        let all: Vec<VirtAddr> =
            entries.iter().map(|entry| VirtAddr(entry.0.wrapping_sub(self.device.list))).collect();
        for device in &all {
            let name = ground.system.bytes(*device, self.device.name, NAME, "net_device.name");
            let name = name.ok().and_then(|name| Fields(&name).text(0, NAME)).unwrap_or_default();
            devices.0.insert(*device, (name, at.number));
        }
        for device in all {
            rows.add(&self.interface(ground, at, device, devices))?;
            self.addresses(ground, at, device, devices, rows)?;
        }
        if !is_whole {
            rows.add(&at.failed("interface", &"the list of interfaces cannot be read to its end"))?;
        }
        Ok(())
    }

    fn interface(&self, ground: &Ground<'_>, at: Namespace, device: VirtAddr, devices: &Devices) -> Row {
        let (system, layout) = (ground.system, &self.device);
        let mut row = at.row("interface", device);
        devices.name(Ok(Some(device)), &mut row);
        row.read("linux.interface.index", system.half(device, layout.index, "net_device.ifindex"));
        row.read("linux.interface.mtu", system.half(device, layout.mtu, "net_device.mtu"));
        let flags = system.half(device, layout.flags, "net_device.flags");
        row.read("linux.interface.flags", flags.map(flag_names));
        if let Some(state) = layout.state {
            // A byte before 6.10.
            let state = system.byte(device, state, "net_device.operstate");
            row.read("linux.interface.state", state.map(state_name));
        }
        row.read("linux.interface.type", system.short(device, layout.kind, "net_device.type"));
        let mac = || {
            let len = system.byte(device, layout.mac_len, "net_device.addr_len")?;
            let at = system.follow(device, layout.mac, "net_device.dev_addr")?;
            let len = to_usize(u64::from(len).min(MAX_MAC));
            system.bytes(at, 0, len, "net_device.dev_addr")
        };
        row.read("host.mac", mac().map(|bytes| hexadecimal(&bytes, "-")));
        let operations = layout.operations.and_then(|at| system.pointer(device, at, "rtnl_link_ops").ok()?);
        if let Some((operations, kind)) = operations.zip(self.kind) {
            row.read("linux.interface.kind", crate::mounts::text(system, operations, kind));
        }
        if let Some(master) = self.master(ground, device) {
            row.set("linux.interface.master_address", format!("{:#x}", master.0));
            if let Some((name, _)) = devices.0.get(&master) {
                row.set("linux.interface.master", name.clone());
            }
        }
        row
    }

    /// The bridge or bond that it is a part of.
    fn master(&self, ground: &Ground<'_>, device: VirtAddr) -> Option<VirtAddr> {
        let layout = self.adjacent.as_ref()?;
        let head = device.checked_add(self.device.above?)?;
        let (entries, _) = list::all(ground.system.kernel, head, MAX);
        entries.into_iter().find_map(|entry| {
            let at = VirtAddr(entry.0.wrapping_sub(layout.list));
            let is_master = ground.system.byte(at, layout.is_master, "netdev_adjacent.master").ok()?;
            let above = ground.system.pointer(at, layout.device, "netdev_adjacent.dev").ok()??;
            (is_master != 0).then_some(above)
        })
    }

    fn addresses(
        &self,
        ground: &Ground<'_>,
        at: Namespace,
        device: VirtAddr,
        devices: &Devices,
        rows: &mut Rows<'_>,
    ) -> Result<(), Stop> {
        let system = ground.system;
        let part = |offset: Option<u64>| system.pointer(device, offset?, "net_device.ip_ptr").ok()?;
        let mut faults = Vec::new();
        if let (Some(inner), Some((of, layout))) = (part(self.device.v4), &self.v4) {
            let first = system.word(inner, of.first, "in_device.ifa_list").unwrap_or(0);
            let (all, fault) = links::chain(system, first, layout.next, &mut Seen::new());
            faults.extend(fault);
            for address in all {
                let mut row = at.row("address", address);
                devices.name(Ok(Some(device)), &mut row);
                row.set("network.type", "ipv4");
                row.read("host.ip", text(ipv4(system, address, layout.local)));
                let peer = ipv4(system, address, layout.peer);
                if peer.as_ref().ok() != ipv4(system, address, layout.local).ok().as_ref() {
                    row.read("linux.ip.peer", text(peer));
                }
                row.read("linux.ip.prefix", system.byte(address, layout.prefix, "ifa_prefixlen"));
                let scope = system.byte(address, layout.scope, "in_ifaddr.ifa_scope");
                row.read("linux.ip.scope", scope.map(scope_name));
                let label = system.bytes(address, layout.label, NAME, "in_ifaddr.ifa_label");
                row.read(
                    "linux.ip.label",
                    label.map(|bytes| Fields(&bytes).text(0, NAME).unwrap_or_default()),
                );
                rows.add(&row)?;
            }
        }
        if let (Some(inner), Some((of, layout))) = (part(self.device.v6), &self.v6) {
            let head = VirtAddr(inner.0.wrapping_add(of.list));
            let (all, is_whole) = list::all(system.kernel, head, MAX);
            if !is_whole {
                faults.push("the list of IPv6 addresses cannot be read to its end".to_owned());
            }
            for entry in all {
                let address = VirtAddr(entry.0.wrapping_sub(layout.list));
                let mut row = at.row("address", address);
                devices.name(Ok(Some(device)), &mut row);
                row.set("network.type", "ipv6");
                row.read("host.ip", text(ipv6(system, address, layout.address)));
                row.read("linux.ip.prefix", system.half(address, layout.prefix, "prefix_len"));
                let scope = system.short(address, layout.scope, "inet6_ifaddr.scope");
                row.read("linux.ip.scope", scope.map(|scope| format!("{scope:#04x}")));
                let flags = system.half(address, layout.flags, "inet6_ifaddr.flags");
                row.read("linux.ip.flags", flags.map(|flags| format!("{flags:#04x}")));
                rows.add(&row)?;
            }
        }
        for fault in faults {
            rows.add(&at.failed("address", &fault))?;
        }
        Ok(())
    }
}

/// Bytes as two hex digits each.
pub(super) fn hexadecimal(bytes: &[u8], between: &str) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(between)
}

fn flag_names(flags: u32) -> Vec<&'static str> {
    let names = FLAGS.iter().enumerate();
    names.filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, name)| *name).collect()
}

/// RFC 2863 (include/uapi/linux/if.h).
fn state_name(state: u8) -> &'static str {
    match state {
        1 => "not present",
        2 => "down",
        3 => "lower layer down",
        4 => "testing",
        5 => "dormant",
        6 => "up",
        _ => "unknown",
    }
}

/// `enum rt_scope_t`, include/uapi/linux/rtnetlink.h
pub(super) fn scope_name(scope: u8) -> String {
    match scope {
        0 => "global".to_owned(),
        200 => "site".to_owned(),
        253 => "link".to_owned(),
        254 => "host".to_owned(),
        255 => "nowhere".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_names() {
        assert_eq!(flag_names(0x49), ["up", "loopback", "running"]);
        assert_eq!((state_name(6), scope_name(254)), ("up", "host".to_owned()));
        assert_eq!(hexadecimal(&[0x52, 0x54, 0], "-"), "52-54-00");
    }
}
