//! `network`: how the capture kernel comes onto the network.

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use serde::de::{Deserializer, Error, SeqAccess, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Serialize, Serializer};

/// Longest name of an interface, without the NUL (IFNAMSIZ of include/uapi/linux/if.h).
const MAX_NAME: usize = 15;

/// `network = "clone"`, or links one by one as `[[network]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// What the host has when the image is loaded: the links, addresses and routes by which it reaches the targets.
    #[default]
    Clone,
    /// These links, each after those that it stands on.
    Links(Vec<Link>),
}

/// `[[network]]`: a network card, a bond of cards, or a VLAN on either.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Link {
    /// What other links call it; a bond or VLAN gets it as the name of its interface.
    pub name: String,
    /// Which card it is. A bond or VLAN has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub card: Option<Card>,
    /// Makes it a VLAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// Makes it a bond.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bond: Option<Bond>,
    /// Longest packet, bytes; not given: what the driver has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// `dhcp`, `slaac`, or addresses with prefix length such as `192.0.2.7/24`.
    pub address: Vec<Address>,
    /// Routes by this link: `default via 192.0.2.1`, `198.51.100.0/24 via 192.0.2.1`, `203.0.113.0/24`.
    pub route: Vec<Route>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Seconds to wait for the card, its carrier and its addresses, in all. 0: the usual 60.
    #[serde(skip_serializing_if = "is_zero")]
    pub wait: u64,
}

/// A network card, by what stays the same when another kernel finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Card {
    /// MAC address, the one that the card was made with.
    Mac([u8; 6]),
    /// Bus and address, as `/sys/class/net/*/device` ends: `pci:0000:00:03.0`, `virtio:virtio0`.
    Bus(String),
    /// The kernel's name, which may be another one's in the next kernel.
    Name(String),
}

/// A VLAN.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vlan {
    /// Its tag, 1 to 4094.
    pub id: u16,
    /// `name` of the link that it is on.
    pub on: String,
}

/// A bond.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bond {
    /// `name`s of its members.
    pub members: Vec<String>,
    /// How they work together.
    pub mode: BondMode,
    /// Milliseconds between looks at the members' carriers.
    #[serde(default = "default_miimon")]
    pub miimon: u32,
    /// active-backup: `name` of the member that is preferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// Its MAC address, where it is not that of the first member: switches and DHCP servers may know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// Mode of a bond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BondMode {
    /// One member at a time.
    #[serde(rename = "active-backup")]
    ActiveBackup,
    /// LACP.
    #[serde(rename = "802.3ad")]
    Lacp,
}

/// How a link gets an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// DHCPv4.
    Dhcp,
    /// From the router's advertisements (IPv6).
    Slaac,
    /// This one.
    Static(Prefix),
}

/// An address with the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// Address.
    pub addr: IpAddr,
    /// Bits of it that name the network.
    pub len: u8,
}

/// A route by a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Route {
    /// Where to; `default` is a prefix of length 0.
    pub to: Prefix,
    /// Over which router; none: directly.
    pub via: Option<IpAddr>,
}

/// A word that makes no sense as a part of a link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no {1}")]
pub struct LinkError(String, &'static str);

fn default_miimon() -> u32 {
    100
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference to it")]
fn is_zero(seconds: &u64) -> bool {
    *seconds == 0
}

impl Network {
    /// Refuses links that cannot be.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self::Links(links) = self else { return Ok(()) };
        let mut known: Vec<&str> = Vec::new();
        for link in links {
            let name = link.name.as_str();
            link.check(&known).map_err(|reason| format!("{name:?}: {reason}"))?;
            known.push(name);
        }
        Ok(())
    }

    /// Whether it is the host's.
    #[must_use]
    pub fn is_clone(&self) -> bool {
        *self == Self::Clone
    }

    /// Seconds until all of it must work; of the host's links, those of one.
    #[must_use]
    pub fn patience(&self) -> u64 {
        self.links()
            .map_or(Link::default().wait(), |links| links.iter().map(Link::wait).fold(0, u64::saturating_add))
    }

    /// The links that are given; none if they are the host's.
    #[must_use]
    pub fn links(&self) -> Option<&[Link]> {
        match self {
            Self::Clone => None,
            Self::Links(links) => Some(links),
        }
    }
}

impl Link {
    /// Seconds until it must work.
    #[must_use]
    pub fn wait(&self) -> u64 {
        if self.wait == 0 { 60 } else { self.wait }
    }

    fn check(&self, known: &[&str]) -> Result<(), String> {
        let kinds = [self.card.is_some(), self.vlan.is_some(), self.bond.is_some()];
        if kinds.into_iter().filter(|given| *given).count() != 1 {
            return Err("give one of card, vlan and bond".to_owned());
        }
        if !is_name(&self.name) {
            return Err(format!("name must have 1 to {MAX_NAME} letters, digits, '.', '-' or '_'"));
        }
        if known.contains(&self.name.as_str()) {
            return Err("there are two of this name".to_owned());
        }
        let under: Vec<&String> = self
            .vlan
            .iter()
            .map(|vlan| &vlan.on)
            .chain(self.bond.iter().flat_map(|bond| bond.members.iter().chain(&bond.primary)))
            .collect();
        if let Some(missing) = under.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(format!("no link {missing:?} stands before it"));
        }
        if self.bond.as_ref().is_some_and(|bond| bond.members.is_empty()) {
            return Err("a bond has members".to_owned());
        }
        if let Some(mac) = self.bond.as_ref().and_then(|bond| bond.mac.as_ref())
            && parse_mac(mac).is_none()
        {
            return Err(format!("{mac:?} is no MAC address"));
        }
        if self.vlan.as_ref().is_some_and(|vlan| !(1..=4094).contains(&vlan.id)) {
            return Err("vlan.id must be from 1 to 4094".to_owned());
        }
        if self.mtu.is_some_and(|mtu| !(68..=65_535).contains(&mtu)) {
            return Err("mtu must be from 68 to 65535".to_owned());
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Network;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"clone\", or [[network]] sections")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Network, E> {
                if word == "clone" {
                    Ok(Network::Clone)
                } else {
                    Err(E::invalid_value(serde::de::Unexpected::Str(word), &self))
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, links: A) -> Result<Network, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(links)).map(Network::Links)
            }
        }

        from.deserialize_any(Either)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Clone => to.serialize_str("clone"),
            Self::Links(links) => links.serialize(to),
        }
    }
}

fn is_name(name: &str) -> bool {
    let fits = (1..=MAX_NAME).contains(&name.len()) && !matches!(name, "." | "..");
    fits && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

/// Reads `52:54:00:12:34:56`.
#[must_use]
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

impl FromStr for Prefix {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let parse = || {
            let (addr, len) = text.split_once('/')?;
            let addr: IpAddr = addr.parse().ok()?;
            let len: u8 = len.parse().ok()?;
            (len <= if addr.is_ipv4() { 32 } else { 128 }).then_some(Self { addr, len })
        };
        parse().ok_or_else(|| LinkError(text.to_owned(), "address with a prefix length"))
    }
}

impl FromStr for Address {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        match text {
            "dhcp" => Ok(Self::Dhcp),
            "slaac" => Ok(Self::Slaac),
            _ => text.parse().map(Self::Static),
        }
    }
}

impl FromStr for Route {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let parse = || {
            let (to, via) = match text.split_once(" via ") {
                Some((to, via)) => (to, Some(via.parse::<IpAddr>().ok()?)),
                None => (text, None),
            };
            let to = match (to, via) {
                ("default", Some(IpAddr::V4(_))) => Prefix { addr: [0; 4].into(), len: 0 },
                ("default", Some(IpAddr::V6(_))) => Prefix { addr: [0; 16].into(), len: 0 },
                _ => to.parse().ok()?,
            };
            via.is_none_or(|via| via.is_ipv4() == to.addr.is_ipv4()).then_some(Self { to, via })
        };
        parse().ok_or_else(|| {
            LinkError(text.to_owned(), "route: write \"default via ROUTER\" or \"NETWORK/LENGTH via ROUTER\"")
        })
    }
}

impl FromStr for Card {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        if let Some(mac) = parse_mac(text) {
            return Ok(Self::Mac(mac));
        }
        if let Some((bus, address)) = text.split_once(':') {
            let clean = !bus.is_empty() && !address.is_empty() && !text.contains('/');
            return clean
                .then(|| Self::Bus(text.to_owned()))
                .ok_or_else(|| LinkError(text.to_owned(), "network card"));
        }
        if is_name(text) {
            Ok(Self::Name(text.to_owned()))
        } else {
            Err(LinkError(text.to_owned(), "network card"))
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dhcp => f.write_str("dhcp"),
            Self::Slaac => f.write_str("slaac"),
            Self::Static(prefix) => prefix.fmt(f),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.to.len, self.via) {
            (0, Some(via)) => write!(f, "default via {via}"),
            (_, Some(via)) => write!(f, "{} via {via}", self.to),
            (_, None) => self.to.fmt(f),
        }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac([a, b, c, d, e, g]) => write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"),
            Self::Bus(text) | Self::Name(text) => f.write_str(text),
        }
    }
}

/// serde by way of `FromStr` and `Display`.
macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = LinkError;

            fn try_from(text: String) -> Result<Self, LinkError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}

as_text!(Address, Route, Card);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_link() {
        for text in ["dhcp", "slaac", "192.0.2.7/24", "2001:db8::7/64"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in
            ["default via 192.0.2.1", "default via fe80::1", "198.51.100.0/24 via 192.0.2.1", "10.0.0.0/8"]
        {
            assert_eq!(text.parse::<Route>().unwrap().to_string(), text);
        }
        for text in ["52:54:00:12:34:ff", "pci:0000:00:03.0", "eno1"] {
            assert_eq!(text.parse::<Card>().unwrap().to_string(), text);
        }
        assert!(matches!("52:54:00:12:34:ff".parse(), Ok(Card::Mac(_))));
        assert!(["192.0.2.7", "192.0.2.7/33", "auto", ""].iter().all(|bad| bad.parse::<Address>().is_err()));
        assert!(
            ["default", "default via x", "10.0.0.0/8 via ::1"]
                .iter()
                .all(|bad| bad.parse::<Route>().is_err())
        );
        assert!(["", "a/b", "much-too-long-a-name", ":"].iter().all(|bad| bad.parse::<Card>().is_err()));
    }
}
