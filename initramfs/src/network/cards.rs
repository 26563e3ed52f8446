//! Drivers of the network cards that links name, found on this host as the capture kernel will find
//! the cards; and the modules of bonds and VLANs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base::config::{Address, Link};
use network::card;
use network::netlink::{Interface, Netlink};

use crate::drivers::modules_on_the_way;
use crate::modules::ModuleTree;

const NET: &str = "/sys/class/net";

/// Why the drivers of a card cannot be found out.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// The kernel does not tell.
    #[error("listing the links of this host")]
    Kernel(#[source] io::Error),
    /// The card is not here.
    #[error(
        "link {link}: card {card} is not on this host, which has {present}; to build for another machine, \
         name image.modules"
    )]
    NoCard {
        /// Which link.
        link: String,
        /// Which card.
        card: String,
        /// Cards that are here.
        present: String,
    },
}

/// What links need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drivers {
    /// Roots for [`ModuleTree::closure`]: drivers of the cards, which may want firmware.
    pub cards: Vec<String>,
    /// And those of what is made of cards.
    pub others: Vec<String>,
}

impl Drivers {
    /// All of them, cards first.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.cards.iter().chain(&self.others).cloned().collect()
    }
}

/// The modules of these links. The bond and VLAN modules are wanted whether or not this kernel has
/// them: what it lacks is then named.
pub fn modules(links: &[Link], tree: &ModuleTree) -> Result<Drivers, CardError> {
    let interfaces = Netlink::open().and_then(|netlink| netlink.interfaces()).map_err(CardError::Kernel)?;
    let mut cards = Vec::new();
    for interface in cards_of(links, &interfaces)? {
        for device in devices(Path::new(NET), &interface.name) {
            cards.extend(modules_on_the_way(&device, tree));
        }
    }
    let mut seen = BTreeSet::new();
    cards.retain(|name| seen.insert(name.clone()));
    Ok(Drivers { cards, others: made_of_cards(links) })
}

fn cards_of<'a>(links: &[Link], interfaces: &'a [Interface]) -> Result<Vec<&'a Interface>, CardError> {
    let wanted = links.iter().filter_map(|link| Some((link, link.card.as_ref()?)));
    wanted
        .map(|(link, wanted)| {
            card::find(wanted, interfaces).ok_or_else(|| CardError::NoCard {
                link: link.name.clone(),
                card: wanted.to_string(),
                present: card::describe(interfaces),
            })
        })
        .collect()
}

/// The card, and the chip between it and the cable, which may have a driver of its own. A card made
/// of nothing has neither.
fn devices(class: &Path, interface: &str) -> Vec<PathBuf> {
    let of = |link: &str| fs::canonicalize(class.join(interface).join(link)).ok();
    [of("device"), of("phydev")].into_iter().flatten().collect()
}

fn made_of_cards(links: &[Link]) -> Vec<String> {
    let is_v6 = |address: &Address| match address {
        Address::Slaac => true,
        Address::Static(prefix) => prefix.addr.is_ipv6(),
        Address::Dhcp => false,
    };
    let mut wanted = Vec::new();
    if links.iter().any(|link| link.bond.is_some()) {
        wanted.push("bonding".to_owned());
    }
    if links.iter().any(|link| link.vlan.is_some()) {
        wanted.push("8021q".to_owned());
    }
    if links.iter().flat_map(|link| &link.address).any(is_v6) {
        wanted.push("ipv6".to_owned());
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn links(text: &str) -> Vec<Link> {
        base::config::Config::parse(text).unwrap().network.links().unwrap().to_vec()
    }

    #[test]
    fn bonds_and_vlans_want_their_modules() {
        let card = |name: &str, mac: u8, more: &str| {
            format!("[[network]]\nname = \"{name}\"\ncard = \"02:00:00:00:00:0{mac}\"\n{more}\n")
        };
        assert!(made_of_cards(&links(&card("a", 1, "address = [\"dhcp\"]"))).is_empty());
        assert_eq!(made_of_cards(&links(&card("a", 1, "address = [\"slaac\"]"))), ["ipv6"]);
        let all = card("a", 1, "")
            + &card("b", 2, "")
            + "[[network]]\nname = \"bond0\"\nbond = { members = [\"a\", \"b\"], mode = \"802.3ad\" }\n\
               [[network]]\nname = \"v\"\nvlan = { id = 9, on = \"bond0\" }\naddress = \
               [\"2001:db8::7/64\"]\n";
        assert_eq!(made_of_cards(&links(&all)), ["bonding", "8021q", "ipv6"]);
    }

    #[test]
    fn a_card_that_is_not_here_is_an_error_that_names_those_that_are() {
        let text = "[[network]]\nname = \"a\"\ncard = \"02:00:00:00:00:01\"\naddress = [\"dhcp\"]\n";
        let here = Interface {
            name: "eth0".into(),
            is_ethernet: true,
            mac: Some([2, 0, 0, 0, 0, 9]),
            ..Interface::default()
        };
        let error = cards_of(&links(text), &[here]).unwrap_err().to_string();
        assert!(error.contains("02:00:00:00:00:01") && error.contains("eth0"), "{error}");
    }

    #[test]
    fn the_chip_at_the_cable_counts_too() {
        let dir = tempfile::tempdir().unwrap();
        let class = dir.path().join("net");
        for at in ["net/eth0", "devices/card", "devices/card/mdio/phy"] {
            fs::create_dir_all(dir.path().join(at)).unwrap();
        }
        symlink("../../devices/card", class.join("eth0/device")).unwrap();
        symlink("../../devices/card/mdio/phy", class.join("eth0/phydev")).unwrap();
        let found = devices(&class, "eth0");
        assert!(found.len() == 2 && found[0].ends_with("devices/card") && found[1].ends_with("mdio/phy"));
        assert!(devices(&class, "lo").is_empty());
    }
}
