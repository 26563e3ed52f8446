//! rtnetlink(7), one question at a time: which links, addresses and routes there are, and changing
//! them.
//!
//! What the kernel says is put into types of our own here; nothing is decided.

use core::future::Future;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::pin::pin;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    InfoBond, InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    State, VlanProtocol,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder, new_connection};
use tokio::runtime::{Builder, Runtime};

use base::config::{Prefix, Route};

/// The kernel answers at once; this is for an answer that was lost.
const ANSWER: Duration = Duration::from_secs(10);

/// A link as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// By which the kernel calls it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is, where it is not the work of a card's driver.
    pub kind: Option<Kind>,
    /// Whether it is an Ethernet.
    pub is_ethernet: bool,
    /// Its MAC address.
    pub mac: Option<[u8; 6]>,
    /// The MAC address that it was made with: that of a bond's member is another one.
    pub permanent_mac: Option<[u8; 6]>,
    /// Longest packet, bytes.
    pub mtu: u32,
    /// Whether it is switched on.
    pub is_up: bool,
    /// Whether packets get through.
    pub has_carrier: bool,
    /// The bond or bridge that it is a part of.
    pub master: Option<u32>,
    /// The link that it is on.
    pub on: Option<u32>,
    /// The devices that it is, the nearest first, such as `virtio:virtio0` and `pci:0000:00:03.0`.
    pub buses: Vec<String>,
}

/// A link that the kernel makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A VLAN.
    Vlan {
        /// Its tag.
        id: u16,
        /// Whether it is of 802.1Q, not of 802.1ad.
        is_8021q: bool,
    },
    /// A bond.
    Bond {
        /// `BOND_MODE_*` by name, as the kernel's documentation writes it.
        mode: String,
        /// Milliseconds between looks at the members' carriers.
        miimon: u32,
        /// The member that is preferred.
        primary: Option<u32>,
    },
    /// A bridge.
    Bridge,
    /// Anything else, as `ip link` calls it.
    Other(String),
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Which link.
    pub index: u32,
    /// The address.
    pub prefix: Prefix,
    /// Whether it is good beyond the link.
    pub is_global: bool,
    /// Whether it may be used: it has been found that nobody else has it.
    pub is_usable: bool,
    /// Whether it is one of those that change for privacy's sake.
    pub is_temporary: bool,
}

/// How packets get to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// By which link; 0 if by none.
    pub index: u32,
    /// The entry of the routing table.
    pub route: Route,
    /// With which address as their source.
    pub source: Option<IpAddr>,
    /// Whether the address is one of this host's own.
    pub is_local: bool,
    /// The router of an IPv4 route, where it has an IPv6 address only.
    pub other_family: bool,
}

/// A socket to the kernel.
#[derive(Debug)]
pub struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    /// Opens it, in the network namespace of this thread.
    pub fn open() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let connect = || {
            let _inside = runtime.enter();
            new_connection()
        };
        let (connection, handle, _messages) = connect()?;
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// All links.
    pub fn interfaces(&self) -> io::Result<Vec<Interface>> {
        let links = self.collect(self.handle.link().get().execute())?;
        Ok(links.iter().map(interface).collect())
    }

    /// All addresses.
    pub fn addresses(&self) -> io::Result<Vec<Assigned>> {
        let addresses = self.collect(self.handle.address().get().execute())?;
        Ok(addresses.iter().filter_map(assigned).collect())
    }

    /// Makes a link.
    pub fn add_link(&self, message: LinkMessage) -> io::Result<()> {
        self.ask(self.handle.link().add(message).execute())
    }

    /// Changes a link.
    pub fn set_link(&self, message: LinkMessage) -> io::Result<()> {
        self.ask(self.handle.link().set(message).execute())
    }

    /// Removes a link.
    pub fn remove_link(&self, index: u32) -> io::Result<()> {
        self.ask(self.handle.link().del(index).execute())
    }

    /// Gives a link an address for ever, at once: nobody is asked whether it is free. One that is
    /// there stays.
    pub fn add_address(&self, index: u32, prefix: Prefix) -> io::Result<()> {
        let mut request = self.handle.address().add(index, prefix.addr, prefix.len).replace();
        if prefix.addr.is_ipv6() {
            let message = request.message_mut();
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.ask(request.execute())
    }

    /// Adds a route by a link, or puts it in the place of one with the same destination and
    /// `metric`. A router is taken for a neighbour whatever the link's addresses are, if `onlink`.
    pub fn add_route(&self, index: u32, route: &Route, onlink: bool, metric: u32) -> io::Result<()> {
        let message = route_message(index, route, onlink, metric)?;
        self.ask(self.handle.route().add(message).replace().execute())
    }

    /// How packets get to an address.
    pub fn way_to(&self, addr: IpAddr) -> io::Result<Way> {
        let get = |flags: RouteFlags| {
            let len = if addr.is_ipv4() { 32 } else { 128 };
            let message = RouteMessageBuilder::<IpAddr>::new().destination_prefix(addr, len);
            let mut message = message.map_err(io::Error::other)?.build();
            message.header.flags = flags;
            let routes = self.collect(self.handle.route().get(message).execute())?;
            routes.into_iter().next().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        // The entry of the table says what leads there; the answer without FIB_MATCH, what the
        // source will be, and which of several routers is taken.
        let answer = get(RouteFlags::empty())?;
        let entry = get(RouteFlags::FibMatch)?;
        Ok(way(addr, &answer, &entry))
    }

    fn ask<T>(&self, question: impl Future<Output = Result<T, rtnetlink::Error>>) -> io::Result<T> {
        let answer = async { tokio::time::timeout(ANSWER, question).await };
        match self.runtime.block_on(answer) {
            Ok(answer) => answer.map_err(io_error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn collect<T>(&self, stream: impl Stream<Item = Result<T, rtnetlink::Error>>) -> io::Result<Vec<T>> {
        self.ask(async {
            let mut stream = pin!(stream);
            let mut all = Vec::new();
            while let Some(item) = stream.next().await {
                all.push(item?);
            }
            Ok(all)
        })
    }
}

fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn interface(message: &LinkMessage) -> Interface {
    let flags = message.header.flags;
    let mut found = Interface {
        index: message.header.index,
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        is_up: flags.contains(LinkFlags::Up),
        ..Interface::default()
    };
    let mut state = State::Unknown;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Address(mac) => found.mac = hardware_address(mac),
            LinkAttribute::PermAddress(mac) => found.permanent_mac = hardware_address(mac),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Controller(index) => found.master = Some(*index),
            LinkAttribute::Link(index) => found.on = Some(*index),
            LinkAttribute::OperState(is) => state = *is,
            LinkAttribute::LinkInfo(infos) => found.kind = kind(infos),
            _ => (),
        }
    }
    // Drivers that know no states leave it unknown.
    found.has_carrier = flags.contains(LinkFlags::LowerUp) && matches!(state, State::Up | State::Unknown);
    found.buses = buses(Path::new("/sys/class/net"), &found.name);
    found
}

fn hardware_address(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok().filter(|mac| *mac != [0; 6])
}

fn kind(infos: &[LinkInfo]) -> Option<Kind> {
    let name = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })?;
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    });
    Some(match (name, data) {
        (InfoKind::Bridge, _) => Kind::Bridge,
        (InfoKind::Vlan, Some(InfoData::Vlan(about))) => {
            let (mut id, mut is_8021q) = (0, true);
            for about in about {
                match about {
                    InfoVlan::Id(tag) => id = *tag,
                    InfoVlan::Protocol(protocol) => is_8021q = *protocol == VlanProtocol::Ieee8021Q,
                    _ => (),
                }
            }
            Kind::Vlan { id, is_8021q }
        }
        (InfoKind::Bond, Some(InfoData::Bond(about))) => {
            let (mut mode, mut miimon, mut primary) = (String::new(), 0, None);
            for about in about {
                match about {
                    InfoBond::Mode(is) => mode = is.to_string(),
                    InfoBond::MiiMon(every) => miimon = *every,
                    InfoBond::Primary(index) if *index > 0 => primary = Some(*index),
                    _ => (),
                }
            }
            Kind::Bond { mode, miimon, primary }
        }
        (other, _) => Kind::Other(other.to_string()),
    })
}

/// The devices that an interface is, by sysfs: its own and those on the way to the bus, the nearest
/// first.
fn buses(class: &Path, name: &str) -> Vec<String> {
    let Ok(device) = fs::canonicalize(class.join(name).join("device")) else { return Vec::new() };
    let last = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    let chain = device.ancestors().take_while(|path| path.file_name().is_some_and(|name| name != "devices"));
    chain
        .filter_map(|path| {
            let bus = fs::canonicalize(path.join("subsystem")).ok()?;
            Some(format!("{}:{}", last(&bus)?, last(path)?))
        })
        .collect()
}

fn assigned(message: &AddressMessage) -> Option<Assigned> {
    let (mut address, mut local, mut flags) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(addr) => address = Some(*addr),
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Flags(all) => flags = Some(*all),
            _ => (),
        }
    }
    let flags =
        flags.unwrap_or_else(|| AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())));
    // IFA_ADDRESS is that of the peer, where there is one.
    let addr = local.or(address)?;
    Some(Assigned {
        index: message.header.index,
        prefix: Prefix { addr, len: message.header.prefix_len },
        is_global: message.header.scope == AddressScope::Universe,
        is_usable: !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
        // IFA_F_SECONDARY is IFA_F_TEMPORARY for IPv6 (include/uapi/linux/if_addr.h).
        is_temporary: addr.is_ipv6() && flags.contains(AddressFlags::Secondary),
    })
}

fn route_message(index: u32, route: &Route, onlink: bool, metric: u32) -> io::Result<RouteMessage> {
    let builder = RouteMessageBuilder::<IpAddr>::new().output_interface(index).priority(metric);
    let builder = builder.destination_prefix(route.to.addr, route.to.len).map_err(io::Error::other)?;
    let mut builder = match route.via {
        Some(router) => builder.gateway(router).map_err(io::Error::other)?,
        None if route.to.addr.is_ipv4() => builder.scope(RouteScope::Link),
        None => builder,
    };
    if onlink && route.via.is_some() {
        builder = builder.onlink();
    }
    Ok(builder.build())
}

fn way(addr: IpAddr, answer: &RouteMessage, entry: &RouteMessage) -> Way {
    let mut way = Way {
        index: 0,
        route: Route { to: network_of(addr, entry.header.destination_prefix_length), via: None },
        source: None,
        is_local: answer.header.kind != RouteType::Unicast,
        other_family: false,
    };
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Oif(index) => way.index = *index,
            RouteAttribute::Gateway(router) => way.route.via = ip(router),
            RouteAttribute::PrefSource(source) => way.source = ip(source),
            RouteAttribute::Via(_) => way.other_family = true,
            _ => (),
        }
    }
    way
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(addr) => Some(IpAddr::V4(*addr)),
        RouteAddress::Inet6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

/// The network of `len` bits that an address is in.
#[must_use]
pub fn network_of(addr: IpAddr, len: u8) -> Prefix {
    match addr {
        IpAddr::V4(v4) => {
            let len = len.min(32);
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(len.into())).unwrap_or(0);
            Prefix { addr: Ipv4Addr::from_bits(v4.to_bits() & mask).into(), len }
        }
        IpAddr::V6(v6) => {
            let len = len.min(128);
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(len.into())).unwrap_or(0);
            Prefix { addr: Ipv6Addr::from_bits(v6.to_bits() & mask).into(), len }
        }
    }
}

/// Whether an address is in the network of another.
#[must_use]
pub fn is_in(addr: IpAddr, prefix: Prefix) -> bool {
    addr.is_ipv4() == prefix.addr.is_ipv4()
        && network_of(addr, prefix.len) == network_of(prefix.addr, prefix.len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_core::Emitable;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn networks_of_addresses() {
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(network_of(addr("192.0.2.77"), 26), prefix("192.0.2.64/26"));
        assert_eq!(network_of(addr("192.0.2.77"), 0), prefix("0.0.0.0/0"));
        assert_eq!(network_of(addr("192.0.2.77"), 32), prefix("192.0.2.77/32"));
        assert_eq!(network_of(addr("2001:db8::7"), 64), prefix("2001:db8::/64"));
        assert_eq!(network_of(addr("2001:db8::7"), 0), prefix("::/0"));
        assert!(is_in(addr("192.0.2.1"), prefix("192.0.2.77/24")));
        assert!(!is_in(addr("192.0.3.1"), prefix("192.0.2.77/24")));
        assert!(!is_in(addr("::1"), prefix("0.0.0.0/0")));
    }

    #[test]
    fn a_route_to_a_router_that_is_no_neighbour_says_so() {
        let route: Route = "default via 169.254.1.1".parse().unwrap();
        let message = route_message(3, &route, true, 7).unwrap();
        assert!(message.header.flags.contains(RouteFlags::Onlink));
        assert!(
            message
                .attributes
                .contains(&RouteAttribute::Gateway(RouteAddress::Inet([169, 254, 1, 1].into())))
        );
        assert!(message.attributes.contains(&RouteAttribute::Priority(7)));
        assert_eq!(message.header.destination_prefix_length, 0);
        let direct = route_message(3, &"198.51.100.0/24".parse().unwrap(), true, 7).unwrap();
        assert!(direct.header.scope == RouteScope::Link && !direct.header.flags.contains(RouteFlags::Onlink));
        assert!(direct.buffer_len() > 12);
    }

    #[test]
    fn a_way_is_the_entry_of_the_table_with_the_router_that_is_taken() {
        let (mut answer, mut entry) = (RouteMessage::default(), RouteMessage::default());
        answer.header.kind = RouteType::Unicast;
        answer.header.destination_prefix_length = 32;
        answer.attributes = vec![
            RouteAttribute::Oif(2),
            RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, 1].into())),
            RouteAttribute::PrefSource(RouteAddress::Inet([10, 0, 0, 5].into())),
        ];
        entry.header.destination_prefix_length = 12;
        let found = way("172.16.9.9".parse().unwrap(), &answer, &entry);
        assert_eq!(found.route.to_string(), "172.16.0.0/12 via 10.0.0.1");
        assert_eq!((found.index, found.source, found.is_local), (2, Some([10, 0, 0, 5].into()), false));
        answer.header.kind = RouteType::Local;
        assert!(way([127, 0, 0, 1].into(), &answer, &entry).is_local);
    }
}
