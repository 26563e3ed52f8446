//! The ways onto the network: DHCP, DNS, VLAN, bond, and what the host has.

use crate::{collected, disk, ensure_complete, scenario, ssh};
use anyhow::{Result, ensure};
use qemu_tests::network::HostNetwork;
use qemu_tests::peer::{NAME, Peer, PeerShape, Server, USER};

#[test]
fn a_name_is_found_by_the_dns_that_dhcp_names() -> Result<()> {
    let mut peer = Peer::start("dhcp", &PeerShape::default())?;
    peer.serve(&[Server::Ssh, Server::Dnsmasq])?;
    let mut scenario = scenario("net-dhcp", &peer)?;
    // Production has no address and knows no name: nothing is recorded.
    scenario.network = HostNetwork { ip: vec!["link set eth0 up".into()], reach: None };
    scenario.files.retain(|(path, _)| path != "/etc/hosts");
    scenario.config.targets = vec![ssh(&peer)?.key("url", format!("ssh://{USER}@{NAME}/srv/dump"))];
    scenario.config.more =
        format!("[[network]]\nname = \"up\"\ncard = \"{}\"\naddress = [\"dhcp\"]\n", peer.card(0).mac);
    let outcome = scenario.run()?;
    ensure_complete(&collected(&mut peer, "/srv/dump")?)?;
    outcome.discard()?;
    peer.discard()
}

#[test]
#[ignore = "full: a silent DHCP server"]
fn a_silent_dhcp_server_costs_its_time_and_the_next_target_has_the_dump() -> Result<()> {
    let peer = Peer::start("silent", &PeerShape::default())?;
    let mut scenario = scenario("net-silent", &peer)?;
    scenario.config.targets = vec![ssh(&peer)?, disk()];
    scenario.config.more = format!(
        "[[network]]\nname = \"up\"\ncard = \"{}\"\naddress = [\"dhcp\"]\nwait = 15\n",
        peer.card(0).mac
    );
    let outcome = scenario.run()?;
    ensure_complete(outcome.dump()?)?;
    outcome.ensure_said("DHCP")?;
    outcome.discard()?;
    peer.discard()
}

/// A VLAN on a bond of two cards, on both sides; the capture has what the host had.
fn bonded(mode: &str) -> Result<()> {
    let mut peer = Peer::start("bond", &PeerShape { cards: 2, ..PeerShape::default() })?;
    peer.run(&format!("bond {mode}\nvlan bond0 7"))?;
    peer.serve(&[Server::Ssh])?;
    let mut scenario = scenario(&format!("net-bond-{mode}"), &peer)?;
    scenario.shape.cards = vec![peer.card(0), peer.card(1)];
    scenario.config.modules.extend(["bonding", "8021q"].map(str::to_owned));
    let lines = [
        &format!(
            "link add bond0 type bond mode {mode} miimon 100{}",
            if mode == "802.3ad" { " lacp_rate fast" } else { "" }
        ),
        "link set eth0 master bond0",
        "link set eth1 master bond0",
        "link set bond0 up",
        "link add link bond0 name prod7 type vlan id 7",
        "link set prod7 mtu 1400",
        "address add 10.9.7.2/24 dev prod7",
        "link set prod7 up",
    ];
    scenario.network =
        HostNetwork { ip: lines.map(str::to_owned).into(), reach: None }.reaching("10.9.7.1:22");
    scenario.config.targets = vec![ssh(&peer)?.key("url", format!("ssh://{USER}@10.9.7.1/srv/dump"))];
    let outcome = scenario.run()?;
    ensure_complete(&collected(&mut peer, "/srv/dump")?)?;
    ensure!(outcome.text().contains("prod7"), "the VLAN has the name that it had: {}", outcome.text());
    outcome.discard()?;
    peer.discard()
}

#[test]
fn a_vlan_on_a_bond_is_cloned() -> Result<()> {
    bonded("802.3ad")
}

#[test]
#[ignore = "full: a bond with one member at a time"]
fn a_vlan_on_a_bond_with_one_member_at_a_time_is_cloned() -> Result<()> {
    bonded("active-backup")
}
