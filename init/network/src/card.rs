//! Which interface is the network card that a configuration means. The same on the host and in the
//! capture kernel.

use crate::netlink::{Interface, Kind};
use base::config::Card;

/// The interface that a card has got. Where several match, as those of a card with several ports do
/// by its bus, the one that is no part of a bond or bridge, and of these the first.
#[must_use]
pub fn find<'a>(card: &Card, interfaces: &'a [Interface]) -> Option<&'a Interface> {
    let matching = interfaces.iter().filter(|interface| is_card(interface) && matches(card, interface));
    matching.min_by_key(|interface| (distance(card, interface), interface.master.is_some(), interface.index))
}

/// Cards by name and MAC address, for a message that says what is there instead.
#[must_use]
pub fn describe(interfaces: &[Interface]) -> String {
    let cards: Vec<String> = interfaces
        .iter()
        .filter(|interface| is_card(interface))
        .map(|interface| {
            let mac = permanent_mac(interface).map(|mac| Card::Mac(mac).to_string()).unwrap_or_default();
            format!("{} ({mac} {})", interface.name, interface.buses.join(" "))
        })
        .collect();
    if cards.is_empty() { "none".to_owned() } else { cards.join(", ") }
}

/// The MAC address that a card was made with. Kernels before 5.6 do not tell it for those that are
/// in a bond.
#[must_use]
pub fn permanent_mac(interface: &Interface) -> Option<[u8; 6]> {
    interface.permanent_mac.or_else(|| interface.mac.filter(|_| interface.master.is_none()))
}

/// An end of a cable. A veth is one to who is inside of a container.
fn is_card(interface: &Interface) -> bool {
    let is_veth = matches!(&interface.kind, Some(Kind::Other(kind)) if kind == "veth");
    interface.is_ethernet && (interface.kind.is_none() || is_veth)
}

fn matches(card: &Card, interface: &Interface) -> bool {
    match card {
        Card::Mac(mac) => permanent_mac(interface) == Some(*mac),
        Card::Bus(bus) => interface.buses.contains(bus),
        Card::Name(name) => interface.name == *name,
    }
}

/// How many devices are between an interface and what its card is named by: a bridge of PCI has
/// many behind it.
fn distance(card: &Card, interface: &Interface) -> usize {
    match card {
        Card::Bus(bus) => interface.buses.iter().position(|own| own == bus).unwrap_or(usize::MAX),
        Card::Mac(_) | Card::Name(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(index: u32, name: &str, mac: u8, buses: &[&str]) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            is_ethernet: true,
            mac: Some([2, 0, 0, 0, 0, mac]),
            permanent_mac: Some([2, 0, 0, 0, 0, mac]),
            buses: buses.iter().map(|&bus| bus.to_owned()).collect(),
            ..Interface::default()
        }
    }

    fn name(card: &str, interfaces: &[Interface]) -> Option<String> {
        find(&card.parse().unwrap(), interfaces).map(|found| found.name.clone())
    }

    #[test]
    fn a_member_of_a_bond_is_found_by_the_address_that_it_was_made_with() {
        let mut interfaces = [card(2, "eth0", 1, &[]), card(3, "eth1", 2, &[]), card(4, "bond0", 1, &[])];
        interfaces[2].kind = Some(Kind::Bond { mode: "802.3ad".into(), miimon: 100, primary: None });
        for member in [0, 1] {
            interfaces[member].master = Some(4);
            interfaces[member].mac = interfaces[2].mac;
        }
        assert_eq!(name("02:00:00:00:00:02", &interfaces).as_deref(), Some("eth1"));
        assert_eq!(name("02:00:00:00:00:01", &interfaces).as_deref(), Some("eth0"), "not the bond");
        assert_eq!(name("02:00:00:00:00:03", &interfaces), None);
    }

    #[test]
    fn of_two_with_one_address_the_free_one_is_meant() {
        let mut interfaces = [card(2, "vf", 1, &["pci:0001:00:02.0"]), card(3, "eth0", 1, &["vmbus:f8b3"])];
        interfaces[0].master = Some(3);
        assert_eq!(name("02:00:00:00:00:01", &interfaces).as_deref(), Some("eth0"));
    }

    #[test]
    fn a_bus_names_the_nearest_card() {
        let interfaces = [
            card(2, "far", 1, &["pci:0000:02:00.0", "pci:0000:00:1c.0"]),
            card(3, "near", 2, &["virtio:virtio0", "pci:0000:00:03.0"]),
            card(4, "bridge", 3, &["pci:0000:00:1c.0"]),
        ];
        assert_eq!(name("pci:0000:00:03.0", &interfaces).as_deref(), Some("near"));
        assert_eq!(name("pci:0000:00:1c.0", &interfaces).as_deref(), Some("bridge"));
        assert_eq!(name("near", &interfaces).as_deref(), Some("near"));
        assert!(describe(&interfaces).contains("near (02:00:00:00:00:02 virtio:virtio0 pci:0000:00:03.0)"));
    }
}
