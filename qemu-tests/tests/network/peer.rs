//! The peer itself: its servers work, and other guests reach it. What fails here is no fault of the
//! product.

use anyhow::{Result, ensure};
use qemu_tests::kernel::Kernel;
use qemu_tests::network::HostNetwork;
use qemu_tests::peer::{
    ACCESS_KEY, ADDRESS, ADDRESS6, NAME, Peer, PeerShape, SECRET_KEY, Server, TOKEN, USER,
};
use qemu_tests::scenario::Scenario;
use std::fs;
use std::time::Duration;

/// What is sent.
const TEXT: &str = "one line\nand another\n";
/// Clients in the peer, which know its certificate and its host keys.
const CURL: &str =
    "curl -sS --max-time 20 --cacert /etc/peer/ca.pem -o /dev/null -w %{http_code} -T /tmp/text";
const SSH: &str = "-o BatchMode=yes -o UserKnownHostsFile=/etc/peer/known_hosts -i /etc/peer/ssh";

fn says(peer: &Peer, script: &str, expected: &str) -> Result<()> {
    let message = peer.run(script)?;
    ensure!(message.trim() == expected, "{script:?} says {message:?} instead of {expected:?}");
    Ok(())
}

#[test]
fn its_servers_take_what_they_should_and_refuse_what_they_should_not() -> Result<()> {
    let mut peer = Peer::start("servers", &PeerShape::default())?;
    let all = [Server::Ssh, Server::Nfs, Server::Nginx, Server::S3, Server::Dnsmasq];
    peer.serve(&all)?;
    // Killed and started again, as in the middle of a dump.
    peer.stop(&all)?;
    let listening = peer.run("for port in 22 53 443 2049 9000; do ! listens $port || echo $port; done")?;
    ensure!(listening.is_empty(), "{listening} still listens");
    peer.serve(&all)?;
    peer.put("/tmp/text", TEXT)?;

    for host in [ADDRESS, NAME, ADDRESS6] {
        says(&peer, &format!("ssh {SSH} {USER}@{host} id -un"), USER)?;
    }
    peer.run(&format!("echo 'put /tmp/text /srv/dump/by-sftp' | sftp -b - {SSH} {USER}@{ADDRESS}"))?;
    let stranger =
        format!("ssh-keygen -q -t ed25519 -N '' -f /tmp/key; ssh {SSH} -i /tmp/key root@{ADDRESS} true");
    ensure!(peer.run(&stranger).is_err(), "a key that nobody knows opens the peer");

    for (version, name) in [("3,nolock", "v3"), ("4.1", "v41"), ("4.2", "v42")] {
        peer.run(&format!(
            "mount -t nfs -o vers={version} {ADDRESS}:/srv/dump /mnt; cp /tmp/text /mnt/by-{name}; umount \
             /mnt"
        ))?;
    }

    says(&peer, &format!("{CURL} https://{NAME}/dumps/new/by-put"), "201")?;
    says(&peer, &format!("{CURL} https://[{ADDRESS6}]/token/by-token"), "401")?;
    let token = format!("-H 'Authorization: Bearer {TOKEN}'");
    says(&peer, &format!("{CURL} {token} https://{ADDRESS}/token/by-token"), "201")?;
    says(&peer, &format!("{CURL} https://{ADDRESS}/client/by-client"), "403")?;
    let client = "--cert /etc/peer/client.pem --key /etc/peer/client.key";
    says(&peer, &format!("{CURL} {client} https://{ADDRESS}/client/by-client"), "201")?;
    ensure!(
        peer.run(&format!("{CURL} https://{ADDRESS}:8443/dumps/by-stranger")).is_err(),
        "a stranger is trusted"
    );

    let s3 = |secret: &str| {
        let signed = "--aws-sigv4 aws:amz:us-east-1:s3 -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD'";
        format!("{CURL} {signed} -u {ACCESS_KEY}:{secret} http://{ADDRESS}:9000/dumps/by-s3")
    };
    says(&peer, &s3("wrong"), "403")?;
    says(&peer, &s3(SECRET_KEY), "200")?;

    // From the address that a guest on its network would ask.
    says(
        &peer,
        &format!(
            "echo nameserver {ADDRESS} >/etc/resolv.conf; : >/etc/hosts; getent ahostsv4 {NAME} | cut -d' ' \
             -f1 | uniq"
        ),
        ADDRESS,
    )?;

    ensure_arrived(&mut peer)?;
    // The file system goes on after each look.
    peer.run("echo more >/srv/dump/more")?;
    ensure!(peer.read_back("/srv/dump")?.join("more").exists(), "a second look sees an old state");
    peer.discard()
}

/// All that was accepted is there, and nothing that was refused.
fn ensure_arrived(peer: &mut Peer) -> Result<()> {
    let copy = peer.read_back("/srv/dump")?;
    for name in ["by-sftp", "by-v3", "by-v41", "by-v42"] {
        ensure!(fs::read_to_string(copy.join(name))? == TEXT, "{name} is another file");
    }
    let copy = peer.read_back("/srv/www")?;
    for name in ["dumps/new/by-put", "token/by-token", "client/by-client"] {
        ensure!(fs::read_to_string(copy.join(name))? == TEXT, "{name} is another file");
    }
    ensure!(!copy.join("dumps/by-stranger").exists(), "what was refused is there");
    let copy = peer.read_back("/srv/s3")?;
    ensure!(fs::read_to_string(copy.join("dumps/by-s3"))? == TEXT, "by-s3 is another file");
    Ok(())
}

/// Has the peer note each second whom it sees: at the end of a guest that is over.
fn watch(peer: &Peer) -> Result<()> {
    let look = "grep -e Number -e Partner.Mac /proc/net/bonding/bond0 || :; ip neighbour";
    peer.run(&format!("(while sleep 1; do {look}; done) >/tmp/seen 2>/dev/null &")).map(drop)
}

/// A crash whose dump goes to the disk: here only the network of the production system counts.
fn scenario(name: &str, network: HostNetwork) -> Result<Scenario> {
    let mut scenario = Scenario::new(name, &Kernel::of_series("6.1")?);
    scenario.config.level = 31;
    scenario.patience = Duration::from_mins(4);
    scenario.network = network;
    Ok(scenario)
}

#[test]
#[ignore = "full: another guest reaches it"]
fn another_guest_reaches_it() -> Result<()> {
    let peer = Peer::start("reached", &PeerShape::default())?;
    peer.serve(&[Server::Ssh])?;
    watch(&peer)?;
    let network = HostNetwork::address("10.9.0.2/24", None).reaching(&format!("{ADDRESS}:22"));
    let mut scenario = scenario("reaching", network)?;
    scenario.shape.cards = vec![peer.card(0)];
    scenario.run()?.discard()?;
    let seen = peer.run("cat /tmp/seen")?;
    ensure!(seen.contains(&format!("10.9.0.2 dev eth0 lladdr {}", peer.card(0).mac)), "{seen}");
    peer.discard()
}

#[test]
#[ignore = "full: another guest reaches it by a vlan on a bond"]
fn another_guest_reaches_it_by_a_vlan_on_a_bond() -> Result<()> {
    let peer = Peer::start("bonded", &PeerShape { cards: 2, ..PeerShape::default() })?;
    peer.run("bond 802.3ad; vlan bond0 7")?;
    peer.serve(&[Server::Ssh])?;
    watch(&peer)?;
    let mut network = HostNetwork::bond("802.3ad");
    network.ip.extend(HostNetwork::vlan("bond0", 7, "10.9.7.2/24"));
    let mut scenario = scenario("bonding", network.reaching("10.9.7.1:22"))?;
    scenario.shape.cards = vec![peer.card(0), peer.card(1)];
    scenario.run()?.discard()?;
    let seen = peer.run("cat /tmp/seen")?;
    let mac = peer.card(0).mac;
    for expected in [
        "Number of ports: 2",
        &format!("Partner Mac Address: {mac}"),
        &format!("10.9.7.2 dev bond0.7 lladdr {mac}"),
    ] {
        ensure!(seen.contains(expected), "never {expected:?}:\n{seen}");
    }
    peer.discard()
}

#[test]
#[ignore = "full: it slows down what arrives"]
fn it_slows_down_what_arrives() -> Result<()> {
    let peer = Peer::start("shaped", &PeerShape::default())?;
    peer.serve(&[Server::Ssh])?;
    peer.run("upload tbf rate 20mbit burst 32k latency 200ms; download netem delay 100ms loss 1%")?;
    let message = peer.run("tc qdisc show")?;
    ensure!(message.contains("rate 20Mbit") && message.contains("delay 100ms loss 1%"), "{message}");
    let network = HostNetwork::address("10.9.0.2/24", None).reaching(&format!("{ADDRESS}:22"));
    let mut scenario = scenario("slowed", network)?;
    scenario.shape.cards = vec![peer.card(0)];
    scenario.run()?.discard()?;
    // The counters tell that the frames did go that way.
    let message = peer.run("tc -s qdisc show dev ifb0; tc -s qdisc show dev eth0 root")?;
    let busy =
        message.lines().filter(|line| line.contains("Sent ") && !line.contains("Sent 0 bytes")).count();
    ensure!(busy == 2, "{message}");
    peer.discard()
}
