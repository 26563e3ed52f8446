//! Network cards of a machine, where their cables lead, and what the production system makes of
//! them.

use std::path::{Path, PathBuf};

/// A virtio network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its address: `52:54:00:af:02:00`.
    pub mac: String,
    /// Where its cable leads.
    pub cable: Cable,
}

/// A cable: QEMU's stream netdev over a socket, which carries whole Ethernet frames and loses none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cable {
    /// One end: it waits for the other at this socket, again after each machine that was plugged
    /// in. Until then, and between them, frames are lost.
    At(PathBuf),
    /// The other end: the machine of the first is started already.
    To(PathBuf),
    /// To a network that QEMU makes up: 10.0.2.0/24, in which 10.0.2.2 is the loopback of this
    /// host, 10.0.2.3 answers to DNS, and DHCP gives 10.0.2.15.
    User,
}

/// How the production system comes onto the network: before it loads the capture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNetwork {
    /// Lines for `ip -batch`: `link set eth0 up`. None: it does nothing about it.
    pub ip: Vec<String>,
    /// Who must answer before it goes on: `10.9.0.1:22`.
    pub reach: Option<String>,
}

impl Card {
    /// A card on QEMU's own network.
    #[must_use]
    pub fn user() -> Self {
        Self { mac: "52:54:00:af:02:ff".into(), cable: Cable::User }
    }

    /// What QEMU calls the cable of the card with this number: `set_link` takes it.
    #[must_use]
    pub fn cable_id(number: usize) -> String {
        format!("cable{number}")
    }

    /// The arguments that plug it in.
    pub(crate) fn arguments(&self, number: usize) -> [String; 4] {
        let id = Self::cable_id(number);
        let stream = |server: &str, socket: &Path| {
            format!("stream,id={id},server={server},addr.type=unix,addr.path={}", socket.display())
        };
        let netdev = match &self.cable {
            Cable::At(socket) => stream("on", socket),
            Cable::To(socket) => stream("off", socket),
            Cable::User => format!("user,id={id}"),
        };
        // LACP takes no card that does not tell these two.
        let device = format!("virtio-net-pci,netdev={id},mac={},romfile=,speed=10000,duplex=full", self.mac);
        ["-netdev".into(), netdev, "-device".into(), device]
    }
}

impl HostNetwork {
    /// A fixed address on the first card, and if given a router; names of cards are the kernel's.
    #[must_use]
    pub fn address(address: &str, router: Option<&str>) -> Self {
        let mut ip = vec![format!("address add {address} dev eth0"), "link set eth0 up".to_owned()];
        ip.extend(router.map(|router| format!("route add default via {router}")));
        Self { ip, reach: None }
    }

    /// A bond of the first two cards, without an address.
    #[must_use]
    pub fn bond(mode: &str) -> Self {
        let ip = [
            &*format!("link add bond0 type bond mode {mode} miimon 100"),
            "link set eth0 master bond0",
            "link set eth1 master bond0",
            "link set bond0 up",
        ];
        Self { ip: ip.map(str::to_owned).into(), reach: None }
    }

    /// Lines that make a VLAN with an address: `bond0.7` of `bond0`.
    #[must_use]
    pub fn vlan(on: &str, id: u16, address: &str) -> [String; 3] {
        [
            format!("link add link {on} name {on}.{id} type vlan id {id}"),
            format!("address add {address} dev {on}.{id}"),
            format!("link set {on}.{id} up"),
        ]
    }

    /// The same, and somebody must answer.
    #[must_use]
    pub fn reaching(self, whom: &str) -> Self {
        Self { reach: Some(whom.to_owned()), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_cable_meet_at_one_socket() {
        let socket = PathBuf::from("/run/cable");
        let ends = [Cable::At(socket.clone()), Cable::To(socket)];
        let [at, to] = ends.map(|cable| Card { cable, ..Card::user() }.arguments(3)[1].clone());
        assert_eq!(at, "stream,id=cable3,server=on,addr.type=unix,addr.path=/run/cable");
        assert_eq!(to, at.replace("=on", "=off"));
    }
}
