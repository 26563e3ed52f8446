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
    /// What the host has when the image is loaded: the links, addresses and routes by which it
    /// reaches the targets.
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
    /// Routes by this link: `default via 192.0.2.1`, `198.51.100.0/24 via 192.0.2.1`,
    /// `203.0.113.0/24`.
    pub route: Vec<Route>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Seconds to wait for the card, its carrier and its addresses, in all. 0: the usual 60.
    #[serde(deserialize_with = "super::checked::duration", skip_serializing_if = "is_zero")]
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
    #[serde(default = "default_miimon", deserialize_with = "super::checked::milliseconds")]
    pub miimon: u32,
    /// active-backup: `name` of the member that is preferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// Its MAC address, where it is not that of the first member: switches and DHCP servers may
    /// know it.
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
        let mut known: Vec<&Link> = Vec::new();
        for link in links {
            link.check(&known).map_err(|reason| format!("{:?}: {reason}", link.name))?;
            known.push(link);
        }
        if !links.is_empty() && links.iter().all(|link| link.address.is_empty()) {
            return Err("no link has an address".to_owned());
        }
        Ok(())
    }

    /// Whether it is the host's.
    #[must_use]
    pub fn is_clone(&self) -> bool {
        *self == Self::Clone
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

    fn check(&self, known: &[&Self]) -> Result<(), String> {
        let kinds = [self.card.is_some(), self.vlan.is_some(), self.bond.is_some()];
        if kinds.into_iter().filter(|given| *given).count() != 1 {
            return Err("give one of card, vlan and bond".to_owned());
        }
        if !is_name(&self.name) {
            return Err(format!("name must have 1 to {MAX_NAME} letters, digits, '.', '-' or '_'"));
        }
        if known.iter().any(|link| link.name == self.name) {
            return Err("there are two of this name".to_owned());
        }
        let stands_before = |name: &str| known.iter().find(|link| link.name == name);
        let missing = |name: &str| format!("no link {name:?} stands before it");
        let is_member = |name: &str| {
            let bonds = known.iter().filter_map(|link| link.bond.as_ref());
            bonds.flat_map(|bond| &bond.members).any(|member| member == name)
        };
        if let Some(vlan) = &self.vlan {
            stands_before(&vlan.on).ok_or_else(|| missing(&vlan.on))?;
            if is_member(&vlan.on) {
                return Err(format!("{:?} belongs to a bond: the VLAN must be on that", vlan.on));
            }
            if !(1..=4094).contains(&vlan.id) {
                return Err("vlan.id must be from 1 to 4094".to_owned());
            }
        }
        if let Some(bond) = &self.bond {
            for name in &bond.members {
                let member = stands_before(name).ok_or_else(|| missing(name))?;
                if member.card.is_none() || !member.address.is_empty() || is_member(name) {
                    return Err(format!("{name:?} must be a card without addresses, and in one bond only"));
                }
            }
            bond.check()?;
        }
        if self.mtu.is_some_and(|mtu| !(68..=65_535).contains(&mtu)) {
            return Err("mtu must be from 68 to 65535".to_owned());
        }
        Ok(())
    }
}

impl Bond {
    fn check(&self) -> Result<(), String> {
        if self.members.is_empty() {
            return Err("a bond has members".to_owned());
        }
        if let Some(primary) = self.primary.as_ref().filter(|primary| !self.members.contains(primary)) {
            return Err(format!("primary {primary:?} is none of the members"));
        }
        // The lowest bit is that of groups (IEEE 802).
        let is_good = |mac: &String| parse_mac(mac).is_some_and(|[first, ..]| first & 1 == 0);
        match self.mac.as_ref().filter(|mac| !is_good(mac)) {
            Some(mac) => Err(format!("{mac:?} is no MAC address of a link")),
            None => Ok(()),
        }
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
            Self::Mac(mac) => f.write_str(&mac.map(|byte| format!("{byte:02x}")).join(":")),
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

    #[test]
    fn links_that_cannot_be_are_refused() {
        let card = |name: &str, mac: u8, more: &str| {
            format!("[[network]]\nname = \"{name}\"\ncard = \"02:00:00:00:00:0{mac}\"\n{more}\n")
        };
        let bond = |name: &str, more: &str| {
            format!(
                "[[network]]\nname = \"{name}\"\nbond = {{ mode = \"active-backup\", {more} }}\naddress = \
                 [\"dhcp\"]\n"
            )
        };
        let vlan = |on: &str, id: u16| {
            format!(
                "[[network]]\nname = \"v{id}\"\nvlan = {{ id = {id}, on = \"{on}\" }}\naddress = [\"dhcp\"]\n"
            )
        };
        let why = |text: &str| crate::config::Config::parse(text).unwrap_err().to_string();
        let (a, b) = (card("a", 1, ""), card("b", 2, ""));
        let good = bond("bond0", "members = [\"a\", \"b\"], primary = \"b\"");
        assert!(crate::config::Config::parse(&format!("{a}{b}{good}{}", vlan("bond0", 5))).is_ok());
        for (text, reason) in [
            (a.clone(), "no link has an address"),
            (format!("{a}{a}"), "two of this name"),
            (format!("{a}{}", bond("bond0", "members = [\"b\"]")), "no link \\\"b\\\""),
            (format!("{a}{}", bond("bond0", "members = []")), "a bond has members"),
            (format!("{a}{}", bond("bond0", "members = [\"a\"], primary = \"b\"")), "none of the members"),
            (
                format!("{a}{}", bond("bond0", "members = [\"a\"], mac = \"01:00:5e:00:00:01\"")),
                "no MAC address",
            ),
            (
                format!("{a}{}{}", bond("x", "members = [\"a\"]"), bond("y", "members = [\"a\"]")),
                "one bond only",
            ),
            (format!("{a}{b}{good}{}", vlan("a", 5)), "belongs to a bond"),
            (format!("{a}{}", vlan("a", 4095)), "1 to 4094"),
            (format!("{a}{}", vlan("c", 5)), "no link"),
            (card("a", 1, "mtu = 20\naddress = [\"dhcp\"]"), "mtu"),
        ] {
            let error = why(&text);
            assert!(error.contains(&reason.replace("\\\"", "\"")), "{error} for {text}");
        }
        let with = card("a", 1, "address = [\"dhcp\"]");
        assert!(why(&format!("{with}{}", bond("bond0", "members = [\"a\"]"))).contains("without addresses"));
    }
}
