//! From what the kernel says about its links to a configuration of them. Pure.
//!
//! Only what the ways to the targets need is taken: an address that is none of their sources may be
//! one that moves to another host when this one crashes.

use core::net::IpAddr;

use base::config::{Address, Bond, BondMode, Card, Link, Prefix, Vlan};
use network::card;
use network::netlink::{Assigned, Interface, Kind, Way, network_of};

/// What every driver has, unless it is told otherwise.
const USUAL_MTU: u32 = 1500;
/// Links that stand on each other, at most.
const MAX_DEPTH: usize = 8;

/// Why a link cannot be had in the capture kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclonable {
    /// The kernel names a link that it does not list.
    #[error("link {0} is gone")]
    Gone(u32),
    /// Nothing that afterimage can make.
    #[error("{name} is a {kind}, which the capture kernel cannot set up")]
    Kind {
        /// Which interface.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The end of a container's cable.
    #[error("{0} leads to another network namespace of this host, which is not there after a crash")]
    Namespace(String),
    /// Bridges are left out, and what is behind them is taken.
    #[error(
        "bridge {name} has {ports} ports that lead out of this host; only one with a single one is clear"
    )]
    Bridge {
        /// Which bridge.
        name: String,
        /// How many ports.
        ports: usize,
    },
    /// A mode that afterimage does not make.
    #[error("bond {name} has mode {mode}; active-backup and 802.3ad can be set up")]
    BondMode {
        /// Which bond.
        name: String,
        /// Its mode.
        mode: String,
    },
    /// A bond without members.
    #[error("bond {0} has no members")]
    NoMembers(String),
    /// 802.1ad.
    #[error("VLAN {0} is of 802.1ad; those of 802.1Q can be set up")]
    VlanProtocol(String),
    /// Links on links on links.
    #[error("{0} stands on too many other links")]
    Deep(String),
    /// The way has no source that would be good in another kernel.
    #[error("this host has no address beyond link {0} itself")]
    LinkLocal(String),
    /// IPv4 by a router that is known by its IPv6 address.
    #[error("the router has an address of the other family")]
    OtherFamily,
}

/// What is described so far.
struct Draft<'a> {
    interfaces: &'a [Interface],
    addresses: &'a [Assigned],
    /// Each link with the index of its interface. The index of a bridge leads to the link of its port.
    links: Vec<(u32, Link)>,
}

/// Links, each after those that it stands on, for these ways; and for those to name servers, where
/// they go by the same links.
pub fn describe(
    interfaces: &[Interface],
    addresses: &[Assigned],
    ways: &[Way],
    servers: &[(IpAddr, Way)],
) -> Result<Vec<Link>, Unclonable> {
    let mut draft = Draft { interfaces, addresses, links: Vec::new() };
    for way in ways {
        draft.add_way(way)?;
    }
    let targets = draft.links.len();
    for (server, way) in servers {
        let before = draft.links.clone();
        let added = draft.add_way(way);
        let link = added.ok().filter(|_| draft.links.len() == targets);
        match link.and_then(|index| draft.link(index)) {
            Some(link) => link.dns.push(*server),
            None => draft.links = before, // the addresses of the targets are known: names may stay without
        }
    }
    Ok(draft.links.into_iter().map(|(_, link)| link).collect())
}

impl Draft<'_> {
    fn link(&mut self, index: u32) -> Option<&mut Link> {
        self.links.iter_mut().find(|(own, _)| *own == index).map(|(_, link)| link)
    }

    /// Adds what packets take; gives the index of the link with the addresses.
    fn add_way(&mut self, way: &Way) -> Result<u32, Unclonable> {
        let interface = self.interface(way.index)?;
        let name = interface.name.clone();
        if way.other_family {
            return Err(Unclonable::OtherFamily);
        }
        let source = self.source(way).ok_or(Unclonable::LinkLocal(name))?;
        let index = self.add_link(way.index, 0)?;
        let link = self.link(index).ok_or(Unclonable::Gone(index))?;
        let address = Address::Static(source);
        if !link.address.contains(&address) {
            link.address.push(address);
        }
        let is_own_network = way.route.via.is_none() && way.route.to == network_of(source.addr, source.len);
        if !is_own_network && !link.route.contains(&way.route) {
            link.route.push(way.route.clone());
        }
        Ok(index)
    }

    /// The address that packets on a way have, with the length of its prefix. One of another link,
    /// such as a loopback address that is announced by a routing protocol, is a network of its own.
    /// Of those that change for privacy's sake, the one that stays is taken.
    fn source(&self, way: &Way) -> Option<Prefix> {
        let source = way.source?;
        let is_good = |known: &&Assigned| known.is_global && known.is_usable;
        let known = self.addresses.iter().filter(is_good).find(|known| known.prefix.addr == source)?;
        if known.index != way.index {
            return Some(Prefix { addr: source, len: if source.is_ipv4() { 32 } else { 128 } });
        }
        let network = network_of(source, known.prefix.len);
        let stays = self.addresses.iter().filter(is_good).find(|other| {
            let is_same_network = network_of(other.prefix.addr, other.prefix.len) == network;
            other.index == known.index && !other.is_temporary && is_same_network
        });
        Some(if known.is_temporary { stays.unwrap_or(known).prefix } else { known.prefix })
    }

    fn interface(&self, index: u32) -> Result<&Interface, Unclonable> {
        self.interfaces.iter().find(|interface| interface.index == index).ok_or(Unclonable::Gone(index))
    }

    /// Adds a link behind those that it stands on; gives the index of the interface that carries
    /// its addresses.
    fn add_link(&mut self, index: u32, depth: usize) -> Result<u32, Unclonable> {
        let interface = self.interface(index)?.clone();
        if depth > MAX_DEPTH {
            return Err(Unclonable::Deep(interface.name));
        }
        if self.link(index).is_some() {
            return Ok(index);
        }
        let deeper = depth.saturating_add(1);
        let mut link = Link {
            name: interface.name.clone(),
            mtu: Some(interface.mtu).filter(|mtu| *mtu != USUAL_MTU),
            ..Link::default()
        };
        match &interface.kind {
            None if interface.is_ethernet => link.card = Some(self.card(&interface)),
            None => {
                return Err(Unclonable::Kind { name: interface.name, kind: "link without Ethernet".into() });
            }
            Some(Kind::Bridge) => {
                let ports = self.ports(index);
                let [port] = ports[..] else {
                    return Err(Unclonable::Bridge { name: interface.name, ports: ports.len() });
                };
                return self.add_link(port, deeper);
            }
            Some(Kind::Vlan { is_8021q: false, .. }) => return Err(Unclonable::VlanProtocol(interface.name)),
            Some(Kind::Vlan { id, .. }) => {
                let on = self.add_link(interface.on.unwrap_or(0), deeper)?;
                let on = self.interface(on)?.name.clone();
                link.vlan = Some(Vlan { id: *id, on });
            }
            Some(Kind::Bond { mode, miimon, primary }) => {
                link.bond = Some(self.bond(&interface, mode, *miimon, *primary, deeper)?);
            }
            Some(Kind::Other(kind)) if matches!(kind.as_str(), "veth" | "netkit") => {
                return Err(Unclonable::Namespace(interface.name));
            }
            Some(Kind::Other(kind)) => {
                return Err(Unclonable::Kind { name: interface.name, kind: kind.clone() });
            }
        }
        self.links.push((index, link));
        Ok(index)
    }

    fn bond(
        &mut self,
        bond: &Interface,
        mode: &str,
        miimon: u32,
        primary: Option<u32>,
        depth: usize,
    ) -> Result<Bond, Unclonable> {
        let mode = match mode {
            "active-backup" => BondMode::ActiveBackup,
            "802.3ad" => BondMode::Lacp,
            other => return Err(Unclonable::BondMode { name: bond.name.clone(), mode: other.to_owned() }),
        };
        let mut members = Vec::new();
        let of_bond = self.interfaces.iter().filter(|interface| interface.master == Some(bond.index));
        for member in of_bond {
            let index = self.add_link(member.index, depth)?;
            if let Some(link) = self.link(index) {
                link.mtu = None; // the bond's is its members'
            }
            members.push(member.name.clone());
        }
        if members.is_empty() {
            return Err(Unclonable::NoMembers(bond.name.clone()));
        }
        let primary = primary.filter(|_| mode == BondMode::ActiveBackup);
        let primary = primary.and_then(|index| Some(self.interface(index).ok()?.name.clone()));
        let primary = primary.filter(|name| members.contains(name));
        let miimon = if miimon == 0 { 100 } else { miimon };
        let mac = bond.mac.map(|mac| Card::Mac(mac).to_string());
        Ok(Bond { members, mode, miimon, primary, mac })
    }

    /// Ports of a bridge that lead out of this host: not those of containers and guests.
    fn ports(&self, bridge: u32) -> Vec<u32> {
        let ports = self.interfaces.iter().filter(|interface| interface.master == Some(bridge));
        let lead_out = ports.filter(|port| match port.kind {
            None => port.is_ethernet,
            Some(Kind::Bond { .. } | Kind::Vlan { .. }) => true,
            Some(Kind::Bridge | Kind::Other(_)) => false,
        });
        lead_out.map(|port| port.index).collect()
    }

    /// A card by what another kernel finds it by: its MAC address if no other has it, else its
    /// place on a bus.
    fn card(&self, card: &Interface) -> Card {
        let finds_it =
            |by: &Card| card::find(by, self.interfaces).is_some_and(|found| found.index == card.index);
        let mac = card::permanent_mac(card).filter(|mac| {
            let has_it =
                |other: &&Interface| card::permanent_mac(other) == Some(*mac) && other.kind.is_none();
            self.interfaces.iter().filter(has_it).count() == 1
        });
        let mac = mac.map(Card::Mac).filter(finds_it);
        // virtio counts its devices as it finds them.
        let buses = card.buses.iter().filter(|bus| !bus.starts_with("virtio:"));
        let bus = || buses.map(|bus| Card::Bus(bus.clone())).find(finds_it);
        mac.or_else(bus).unwrap_or_else(|| Card::Name(card.name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(index: u32, name: &str) -> Interface {
        let mac = [2, 0, 0, 0, 0, u8::try_from(index).unwrap()];
        Interface {
            index,
            name: name.to_owned(),
            is_ethernet: true,
            mac: Some(mac),
            permanent_mac: Some(mac),
            mtu: 1500,
            is_up: true,
            has_carrier: true,
            ..Interface::default()
        }
    }

    fn made(index: u32, name: &str, kind: Kind) -> Interface {
        Interface { kind: Some(kind), permanent_mac: None, ..card(index, name) }
    }

    fn vlan(index: u32, name: &str, id: u16, on: u32) -> Interface {
        Interface { on: Some(on), ..made(index, name, Kind::Vlan { id, is_8021q: true }) }
    }

    fn other(index: u32, name: &str, kind: &str) -> Interface {
        made(index, name, Kind::Other(kind.to_owned()))
    }

    fn in_(master: u32, interface: Interface) -> Interface {
        Interface { master: Some(master), ..interface }
    }

    fn address(index: u32, prefix: &str) -> Assigned {
        Assigned {
            index,
            prefix: prefix.parse().unwrap(),
            is_global: true,
            is_usable: true,
            is_temporary: false,
        }
    }

    fn way(index: u32, route: &str, source: &str) -> Way {
        Way {
            index,
            route: route.parse().unwrap(),
            source: Some(source.parse().unwrap()),
            is_local: false,
            other_family: false,
        }
    }

    /// The links as TOML, as they stand among the facts.
    fn text(links: &[Link]) -> String {
        base::facts::Facts { network: links.to_vec(), ..base::facts::Facts::default() }.to_toml()
    }

    #[test]
    fn a_card_with_its_address_and_the_route_that_is_used() {
        let interfaces = [card(2, "eno1"), card(3, "eno2")];
        let addresses = [address(2, "192.0.2.7/24"), address(2, "192.0.2.200/32"), address(3, "10.0.0.7/8")];
        let ways = [way(2, "default via 192.0.2.1", "192.0.2.7"), way(2, "192.0.2.0/24", "192.0.2.7")];
        let dns = [
            ("192.0.2.53".parse().unwrap(), way(2, "192.0.2.0/24", "192.0.2.7")),
            ("10.0.0.53".parse().unwrap(), way(3, "10.0.0.0/8", "10.0.0.7")),
        ];
        let links = describe(&interfaces, &addresses, &ways, &dns).unwrap();
        let [link] = &links[..] else { panic!("{links:?}") };
        assert_eq!(link.card, Some(Card::Mac([2, 0, 0, 0, 0, 2])));
        assert_eq!(link.address, ["192.0.2.7/24".parse().unwrap()], "the other may belong to a cluster");
        assert_eq!(link.route, ["default via 192.0.2.1".parse().unwrap()]);
        assert_eq!(link.dns, ["192.0.2.53".parse::<IpAddr>().unwrap()], "no link is there for DNS only");
        assert_eq!((link.mtu, link.name.as_str()), (None, "eno1"));
    }

    #[test]
    fn a_vlan_on_a_bond_behind_a_bridge() {
        let bond = Kind::Bond { mode: "active-backup".into(), miimon: 50, primary: Some(3) };
        let interfaces = [
            Interface { mac: Some([2, 0, 0, 0, 0, 9]), mtu: 9000, ..in_(4, card(2, "eno1")) },
            Interface { mtu: 9000, ..in_(4, card(3, "eno2")) },
            Interface { mac: Some([2, 0, 0, 0, 0, 9]), mtu: 9000, ..made(4, "bond0", bond) },
            in_(6, vlan(5, "bond0.100", 100, 4)),
            made(6, "br0", Kind::Bridge),
            in_(6, other(7, "vnet0", "tun")),
        ];
        let addresses = [address(6, "192.0.2.7/24")];
        let ways = [way(6, "default via 192.0.2.1", "192.0.2.7")];
        let links = describe(&interfaces, &addresses, &ways, &[]).unwrap();
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["eno1", "eno2", "bond0", "bond0.100"]);
        let bond = links[2].bond.as_ref().unwrap();
        assert_eq!(bond.members, ["eno1", "eno2"]);
        assert_eq!(
            (bond.mode, bond.miimon, bond.primary.as_deref()),
            (BondMode::ActiveBackup, 50, Some("eno2"))
        );
        assert_eq!(bond.mac.as_deref(), Some("02:00:00:00:00:09"));
        assert_eq!(links[0].card, Some(Card::Mac([2, 0, 0, 0, 0, 2])), "what it was made with");
        assert_eq!((links[0].mtu, links[2].mtu), (None, Some(9000)));
        assert_eq!(links[3].vlan, Some(Vlan { id: 100, on: "bond0".into() }));
        assert_eq!(links[3].address, ["192.0.2.7/24".parse().unwrap()]);
        assert!(links[..3].iter().all(|link| link.address.is_empty()));
        let config = text(&links);
        assert_eq!(base::facts::Facts::parse(&config).unwrap().network, links);
        let from = config.find("[[network]]").unwrap();
        base::config::Config::parse(&config[from..]).expect("what is cloned is a good configuration");
    }

    #[test]
    fn what_cannot_be_set_up_is_refused_with_the_reason() {
        let why = |interfaces: &[Interface]| {
            let index = interfaces.last().unwrap().index;
            let (addresses, ways) =
                ([address(index, "192.0.2.7/24")], [way(index, "default via 192.0.2.1", "192.0.2.7")]);
            describe(interfaces, &addresses, &ways, &[]).unwrap_err().to_string()
        };
        assert_eq!(
            why(&[other(2, "wg0", "wireguard")]),
            "wg0 is a wireguard, which the capture kernel cannot set up"
        );
        assert!(why(&[other(2, "eth0", "veth")]).contains("another network namespace"));
        assert!(why(&[other(2, "team0", "team")]).contains("team0 is a team"));
        let two = [in_(4, card(2, "a")), in_(4, card(3, "b")), made(4, "br0", Kind::Bridge)];
        assert!(why(&two).contains("br0 has 2 ports"));
        let bond = |mode: &str| Kind::Bond { mode: mode.into(), miimon: 0, primary: None };
        assert!(why(&[in_(3, card(2, "a")), made(3, "bond0", bond("balance-rr"))]).contains("balance-rr"));
        assert!(why(&[made(3, "bond0", bond("802.3ad"))]).contains("no members"));
        let qinq = made(3, "q", Kind::Vlan { id: 7, is_8021q: false });
        assert!(why(&[qinq]).contains("802.1ad"));
        assert_eq!(why(&[vlan(2, "loop", 1, 2)]), "loop stands on too many other links");
        let ppp = Interface { is_ethernet: false, ..card(2, "ppp0") };
        assert!(why(&[ppp]).contains("ppp0"));
    }

    #[test]
    fn addresses_that_will_not_do() {
        let interfaces = [card(2, "eth0"), Interface { is_ethernet: false, ..card(1, "lo") }];
        let link_local = Assigned { is_global: false, ..address(2, "fe80::7/64") };
        let ways = [way(2, "fe80::/64", "fe80::7")];
        let error = describe(&interfaces, &[link_local], &ways, &[]).unwrap_err();
        assert_eq!(error.to_string(), "this host has no address beyond link eth0 itself");

        let announced = [address(1, "198.51.100.7/32"), address(2, "192.0.2.7/31")];
        let ways = [way(2, "default via 192.0.2.6", "198.51.100.7")];
        let links = describe(&interfaces, &announced, &ways, &[]).unwrap();
        assert_eq!(links[0].address, ["198.51.100.7/32".parse().unwrap()]);
        assert_eq!(links[0].route, ["default via 192.0.2.6".parse().unwrap()]);

        let temporary = Assigned { is_temporary: true, ..address(2, "2001:db8::abcd/64") };
        let ways = [way(2, "default via fe80::1", "2001:db8::abcd")];
        let links = describe(&interfaces, &[temporary, address(2, "2001:db8::7/64")], &ways, &[]).unwrap();
        assert_eq!(links[0].address, ["2001:db8::7/64".parse().unwrap()]);
        let alone = describe(&interfaces, &[temporary], &ways, &[]).unwrap();
        assert_eq!(alone[0].address, ["2001:db8::abcd/64".parse().unwrap()]);

        let other_family = [Way { other_family: true, ..way(2, "10.0.0.0/8", "192.0.2.7") }];
        let refused = describe(&interfaces, &[address(2, "192.0.2.7/24")], &other_family, &[]);
        assert_eq!(refused, Err(Unclonable::OtherFamily));
    }

    #[test]
    fn a_card_is_named_by_what_stays() {
        let ways = [way(2, "192.0.2.0/24", "192.0.2.7")];
        let named = |interfaces: &[Interface]| {
            let links = describe(interfaces, &[address(2, "192.0.2.7/24")], &ways, &[]).unwrap();
            links[0].card.as_ref().unwrap().to_string()
        };
        let bus = |bus: &[&str], interface: Interface| Interface {
            buses: bus.iter().map(|&bus| bus.to_owned()).collect(),
            ..interface
        };
        let same_mac = Interface { permanent_mac: Some([2, 0, 0, 0, 0, 2]), ..card(3, "vf") };
        let first = bus(&["virtio:virtio0", "pci:0000:00:03.0"], card(2, "eth0"));
        assert_eq!(named(std::slice::from_ref(&first)), "02:00:00:00:00:02");
        let second = bus(&["pci:0000:00:04.0"], same_mac.clone());
        assert_eq!(named(&[first, second]), "pci:0000:00:03.0");
        assert_eq!(named(&[card(2, "eth0"), same_mac]), "eth0");
    }
}
