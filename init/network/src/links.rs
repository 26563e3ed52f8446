//! Brings links up: first each is made and switched on, so that all look for their carriers at
//! once; then each that has addresses waits for its carrier and gets them.
//!
//! A capture may be tried several times: what an earlier attempt has set up is there, and is taken
//! as it is.

use core::net::IpAddr;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::netlink::{Interface, Kind, Netlink, is_in};
use crate::wait::{TimeIsUp, Wait};
use crate::{bond, card, dhcp};
use base::beat;
use base::config::{Address, Link, Prefix, Route};

/// The kernel's advice to hosts and routers on IPv6, a directory for each link.
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// Why a link does not work.
#[derive(Debug, thiserror::Error)]
pub enum BringUpError {
    /// The kernel refuses something.
    #[error("{what}")]
    Kernel {
        /// What was asked for.
        what: String,
        /// Cause.
        source: io::Error,
    },
    /// Something does not come.
    #[error(transparent)]
    TimeIsUp(#[from] TimeIsUp),
    /// The card does not come.
    #[error("card {card} did not appear within {seconds} s; there are: {present}")]
    NoCard {
        /// Which.
        card: String,
        /// How long it was waited for.
        seconds: u64,
        /// Cards that are there.
        present: String,
    },
    /// What it stands on does not work.
    #[error("it stands on {0}, which is not there")]
    Under(String),
    /// An interface has its name and is something else.
    #[error("interface {0} exists, and is something else")]
    Taken(String),
    /// It is neither a card nor a bond nor a VLAN.
    #[error("it is neither card nor bond nor VLAN")]
    Nothing,
    /// A bond without members.
    #[error("none of its members works")]
    NoMember,
    /// DHCP.
    #[error("DHCP")]
    Dhcp(#[from] dhcp::DhcpError),
}

/// What came of all links.
#[derive(Debug, Default)]
pub(super) struct BroughtUp {
    /// Links with at least one address, or that want none.
    pub(super) works: Vec<String>,
    /// What went wrong, by link.
    pub(super) failed: Vec<(String, BringUpError)>,
    /// Name servers.
    pub(super) dns: Vec<IpAddr>,
}

impl BroughtUp {
    fn fail(&mut self, link: &Link, error: BringUpError) {
        log::warn!("link {}: {}", link.name, base::log::chain(&error));
        self.failed.push((link.name.clone(), error));
    }

    fn add_dns(&mut self, servers: impl IntoIterator<Item = IpAddr>) {
        for server in servers {
            if !self.dns.contains(&server) {
                self.dns.push(server);
            }
        }
    }
}

/// Brings all links up that work.
pub(super) fn bring_up(netlink: &Netlink, links: &[Link]) -> BroughtUp {
    let mut all = BroughtUp::default();
    if let Err(error) = switch_loopback_on(netlink) {
        log::warn!("the loopback link is off: {}", base::log::chain(&error));
    }
    let mut made: Vec<(&Link, Wait<'_>, u32)> = Vec::new();
    for link in links {
        beat::alive();
        let mut wait = Wait::new(&link.name, Duration::from_secs(link.wait()));
        let index_of =
            |name: &str| made.iter().find(|(link, ..)| link.name == name).map(|&(.., index)| index);
        match attach(netlink, link, is_member(link, links), &index_of, &mut wait) {
            Ok(index) => made.push((link, wait, index)),
            Err(error) => all.fail(link, error),
        }
    }
    for (metric, (link, mut wait, index)) in (1..).zip(made) {
        beat::alive();
        if link.address.is_empty() {
            continue; // others stand on it, and wait for their own carriers
        }
        match settle(netlink, link, index, metric, &mut wait, &mut all) {
            Ok(()) => all.works.push(link.name.clone()),
            Err(error) => all.fail(link, error),
        }
    }
    all
}

fn is_member(link: &Link, links: &[Link]) -> bool {
    links.iter().filter_map(|link| link.bond.as_ref()).any(|bond| bond.members.contains(&link.name))
}

fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> BringUpError {
    let what = what.into();
    move |source| BringUpError::Kernel { what, source }
}

fn switch_loopback_on(netlink: &Netlink) -> Result<(), BringUpError> {
    let interfaces = netlink.interfaces().map_err(kernel("listing links"))?;
    let Some(lo) = interfaces.iter().find(|interface| interface.name == "lo") else { return Ok(()) };
    netlink.set_link(bond::switch(lo.index, true)).map_err(kernel("switching lo on"))
}

/// Makes a link and switches it on, unless it is a bond's member, which its bond does. Gives its
/// index.
fn attach(
    netlink: &Netlink,
    link: &Link,
    is_member: bool,
    index_of: &dyn Fn(&str) -> Option<u32>,
    wait: &mut Wait<'_>,
) -> Result<u32, BringUpError> {
    let interface = if link.card.is_some() {
        find_card(netlink, link, wait)?
    } else if let Some(vlan) = &link.vlan {
        let on = index_of(&vlan.on).ok_or_else(|| BringUpError::Under(vlan.on.clone()))?;
        make_vlan(netlink, link, on, vlan.id)?
    } else if let Some(bond) = &link.bond {
        make_bond(netlink, link, bond, index_of)?
    } else {
        return Err(BringUpError::Nothing);
    };
    let index = interface.index;
    if let Some(mtu) = link.mtu.filter(|mtu| *mtu != interface.mtu)
        && let Err(error) = netlink.set_link(bond::mtu(index, mtu))
    {
        // It works with short packets, too.
        log::warn!("link {}: MTU stays {}: {error}", link.name, interface.mtu);
    }
    if is_member {
        return Ok(index);
    }
    if link.address.contains(&Address::Slaac) {
        listen_to_routers(&interface.name);
    }
    netlink
        .set_link(bond::switch(index, true))
        .map_err(kernel(format!("switching {} on", interface.name)))?;
    Ok(index)
}

/// Drivers look for their cards when they please.
fn find_card(netlink: &Netlink, link: &Link, wait: &mut Wait<'_>) -> Result<Interface, BringUpError> {
    let Some(wanted) = &link.card else { return Err(BringUpError::Nothing) };
    let mut present = Vec::new();
    let found = wait.poll(&format!("card {wanted}"), || {
        present = netlink.interfaces().map_err(kernel("listing links"))?;
        Ok(card::find(wanted, &present).cloned())
    });
    match found {
        Ok(interface) => {
            log::info!("link {}: card {wanted} is {}", link.name, interface.name);
            Ok(interface)
        }
        Err(BringUpError::TimeIsUp(TimeIsUp { seconds, .. })) => {
            Err(BringUpError::NoCard { card: wanted.to_string(), seconds, present: card::describe(&present) })
        }
        Err(other) => Err(other),
    }
}

fn by_name(netlink: &Netlink, name: &str) -> Result<Option<Interface>, BringUpError> {
    let interfaces = netlink.interfaces().map_err(kernel("listing links"))?;
    Ok(interfaces.into_iter().find(|interface| interface.name == name))
}

fn made(netlink: &Netlink, name: &str) -> Result<Interface, BringUpError> {
    by_name(netlink, name)?.ok_or_else(|| BringUpError::Under(name.to_owned()))
}

fn make_vlan(netlink: &Netlink, link: &Link, on: u32, id: u16) -> Result<Interface, BringUpError> {
    let name = &link.name;
    match by_name(netlink, name)? {
        Some(there) if there.on == Some(on) && there.kind == Some(Kind::Vlan { id, is_8021q: true }) => {
            Ok(there)
        }
        Some(_) => Err(BringUpError::Taken(name.clone())),
        None => {
            netlink.add_link(bond::vlan(name, on, id)).map_err(kernel(format!("making VLAN {id}")))?;
            made(netlink, name)
        }
    }
}

fn make_bond(
    netlink: &Netlink,
    link: &Link,
    wanted: &base::config::Bond,
    index_of: &dyn Fn(&str) -> Option<u32>,
) -> Result<Interface, BringUpError> {
    let name = &link.name;
    let interfaces = netlink.interfaces().map_err(kernel("listing links"))?;
    let there = interfaces.iter().find(|interface| interface.name == *name);
    let has_members = |bond: u32| interfaces.iter().any(|interface| interface.master == Some(bond));
    let is_there = match there {
        None => false,
        Some(there) if !matches!(there.kind, Some(Kind::Bond { .. })) => {
            return Err(BringUpError::Taken(name.clone()));
        }
        Some(there) if has_members(there.index) => true,
        Some(there) => {
            // bonding.ko makes a bond0 of its own accord (max_bonds), whose mode is not what is
            // wanted.
            netlink.remove_link(there.index).map_err(kernel(format!("removing the empty bond {name}")))?;
            false
        }
    };
    if !is_there {
        let primary = wanted.primary.as_deref().and_then(index_of);
        netlink.add_link(bond::bond(name, wanted, primary)).map_err(kernel("making the bond"))?;
    }
    let bond = made(netlink, name)?;
    let mut works = false;
    for member in &wanted.members {
        let joined = match index_of(member) {
            Some(index) => join(netlink, &interfaces, index, bond.index),
            None => Err(BringUpError::Under(member.clone())),
        };
        match joined {
            Ok(()) => works = true,
            Err(error) => {
                log::warn!("bond {name}: member {member} is left out: {}", base::log::chain(&error));
            }
        }
    }
    if works { Ok(bond) } else { Err(BringUpError::NoMember) }
}

/// A link must be off to become a member; the bond switches it on.
fn join(netlink: &Netlink, interfaces: &[Interface], member: u32, bond: u32) -> Result<(), BringUpError> {
    if interfaces.iter().any(|interface| interface.index == member && interface.master == Some(bond)) {
        return Ok(());
    }
    netlink.set_link(bond::switch(member, false)).map_err(kernel("switching it off"))?;
    netlink.set_link(bond::enslave(member, bond)).map_err(kernel("making it a member"))
}

/// Lets the kernel take an address from routers' advertisements, by the MAC address: the one that
/// this host has always had.
fn listen_to_routers(interface: &str) {
    for (name, value) in
        [("disable_ipv6", "0"), ("addr_gen_mode", "0"), ("autoconf", "1"), ("accept_ra", "2")]
    {
        let path = Path::new(IPV6).join(interface).join(name);
        if let Err(error) = fs::write(&path, value) {
            log::warn!("{}: {error}", path.display()); // the kernel's default may do
        }
    }
}

/// Waits for a link's carrier and gives it addresses and routes. What fails is told; the link works
/// if it has one address.
fn settle(
    netlink: &Netlink,
    link: &Link,
    index: u32,
    metric: u32,
    wait: &mut Wait<'_>,
    all: &mut BroughtUp,
) -> Result<(), BringUpError> {
    let interface = wait.poll("its carrier", || {
        let interfaces = netlink.interfaces().map_err(kernel("listing links"))?;
        Ok::<_, BringUpError>(interfaces.into_iter().find(|link| link.index == index && link.has_carrier))
    })?;
    all.add_dns(link.dns.iter().copied());
    let mut errors = Vec::new();
    let (mut own, mut routes) = (Vec::new(), link.route.clone());
    for address in &link.address {
        let added = match address {
            Address::Static(prefix) => {
                let added = netlink.add_address(index, *prefix);
                added.map_err(kernel(format!("adding address {prefix}"))).map(|()| own.push(*prefix))
            }
            Address::Slaac => wait_for_slaac(netlink, index, &own, wait).map(|prefix| own.push(prefix)),
            Address::Dhcp => take_lease(netlink, link, &interface, wait).map(|lease| {
                own.push(lease.address);
                routes.extend(lease.routes);
                all.add_dns(lease.dns);
            }),
        };
        match added {
            Ok(()) => log::info!("link {}: address {address} is set", link.name),
            Err(error) => errors.push(error),
        }
    }
    let why = if own.is_empty() { errors.pop() } else { None };
    for error in errors {
        all.fail(link, error);
    }
    if let Some(why) = why {
        return Err(why);
    }
    for route in routes {
        log::info!("link {}: route {route}", link.name);
        let added = netlink.add_route(index, &route, is_onlink(&route, &own), metric);
        if let Err(source) = added {
            all.fail(link, BringUpError::Kernel { what: format!("adding route {route}"), source });
        }
    }
    Ok(())
}

/// Whether the kernel must be told that a router is a neighbour: no address of the link says so.
fn is_onlink(route: &Route, own: &[Prefix]) -> bool {
    let is_neighbour = |router: IpAddr| {
        let link_local = matches!(router, IpAddr::V6(v6) if v6.is_unicast_link_local());
        link_local || own.iter().any(|prefix| is_in(router, *prefix))
    };
    route.via.is_some_and(|router| !is_neighbour(router))
}

fn wait_for_slaac(
    netlink: &Netlink,
    index: u32,
    own: &[Prefix],
    wait: &mut Wait<'_>,
) -> Result<Prefix, BringUpError> {
    wait.poll("an address from a router's advertisement", || {
        let addresses = netlink.addresses().map_err(kernel("listing addresses"))?;
        let usable = addresses.iter().find(|address| {
            let is_advertised = address.prefix.addr.is_ipv6() && !own.contains(&address.prefix);
            address.index == index && is_advertised && address.is_global && address.is_usable
        });
        Ok(usable.map(|address| address.prefix))
    })
}

fn take_lease(
    netlink: &Netlink,
    link: &Link,
    interface: &Interface,
    wait: &mut Wait<'_>,
) -> Result<dhcp::Lease, BringUpError> {
    let mac = interface.mac.ok_or(dhcp::DhcpError::NoMac)?;
    let lease = wait.within::<_, BringUpError>("an answer by DHCP", |left| {
        Ok(dhcp::acquire(&interface.name, mac, left)?)
    })?;
    log::info!("link {}: {} for {} s, from {}", link.name, lease.address, lease.seconds, lease.server);
    if let Some(mtu) = lease.mtu.filter(|_| link.mtu.is_none())
        && let Err(error) = netlink.set_link(bond::mtu(interface.index, mtu))
    {
        log::warn!("link {}: MTU {mtu}, as DHCP says: {error}", link.name);
    }
    let adding = kernel(format!("adding address {}", lease.address));
    netlink.add_address(interface.index, lease.address).map_err(adding)?;
    dhcp::keep(&interface.name, mac, &lease);
    Ok(lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_outside_of_every_prefix_must_be_called_a_neighbour() {
        let own: Vec<Prefix> = ["192.0.2.7/24", "2001:db8::7/64"].map(|text| text.parse().unwrap()).to_vec();
        let onlink = |route: &str| is_onlink(&route.parse().unwrap(), &own);
        assert!(!onlink("default via 192.0.2.1"));
        assert!(onlink("default via 169.254.1.1"));
        assert!(!onlink("default via fe80::1"));
        assert!(onlink("default via 2001:db8:1::1"));
        assert!(!onlink("198.51.100.0/24"));
    }
}
