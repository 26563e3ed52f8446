//! Cloning the network of a namespace that a thread of the test has to itself, and bringing it up
//! again. Needs root.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::thread;

use afterimage::network::{CloneError, Unclonable, clone, describe};
use base::config::Link;
use base::facts::Remote;
use network::Network;
use network::netlink::{Interface, Kind, Netlink, Way};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Uid;

fn ip(args: &str) {
    let found =
        ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"].iter().find(|path| Path::new(path).exists());
    let program = found.unwrap_or_else(|| panic!("ip is needed: apt-get install iproute2"));
    let output = Command::new(program).args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a test where there is a cable from `cli`, which has 192.0.2.7/24 and 2001:db8::7/64, to
/// `srv`.
fn with_a_cable(test: impl FnOnce() + Send + 'static) {
    assert!(Uid::effective().is_root(), "network namespaces need root");
    let body = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        ip("link add cli address 02:00:00:00:00:0c type veth peer name srv");
        ip("link set cli up");
        ip("link set srv up");
        ip("address add 192.0.2.7/24 dev cli");
        ip("address add 192.0.2.200/24 dev cli");
        ip("address add 2001:db8::7/64 dev cli nodad");
        ip("route add default via 192.0.2.1");
        ip("route add 198.51.0.0/16 via 192.0.2.9");
        ip("route add default via 2001:db8::1 dev cli");
        test();
    };
    thread::spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn remote(addresses: &[&str]) -> Vec<Remote> {
    let addresses = addresses.iter().map(|addr| addr.parse().unwrap()).collect();
    vec![Remote { url: "nfs://filer/x".into(), addresses, ..Remote::default() }]
}

#[test]
fn what_is_not_there_after_a_crash_is_refused_with_the_reason() {
    with_a_cable(|| {
        let error = clone(&remote(&["198.51.100.1"])).unwrap_err();
        let CloneError::Unclonable { source, .. } = error else { panic!("{error}") };
        assert_eq!(source, Unclonable::Namespace("cli".into()));
        let error = clone(&remote(&["192.0.2.7"])).unwrap_err().to_string();
        assert!(error.contains("192.0.2.7 is an address of this host itself"), "{error}");
        let error = clone(&remote(&["127.0.0.1"])).unwrap_err().to_string();
        assert!(error.contains("this host itself"), "{error}");
        assert!(matches!(clone(&remote(&[])), Err(CloneError::NoAddress { .. })));
        ip("route del default");
        let error = clone(&remote(&["203.0.113.9"])).unwrap_err();
        assert!(matches!(error, CloneError::NoRoute { .. }), "{error}");
        assert!(clone(&[]).unwrap().is_empty(), "no targets, no links");
    });
}

/// The links of this namespace, its veth taken for a card.
fn cloned(targets: &[&str]) -> (Vec<Link>, Vec<Way>) {
    let netlink = Netlink::open().unwrap();
    let as_card = |interface: Interface| match interface.kind {
        Some(Kind::Other(_)) => Interface { kind: None, ..interface },
        _ => interface,
    };
    let interfaces: Vec<_> = netlink.interfaces().unwrap().into_iter().map(as_card).collect();
    let ways = ways(targets);
    (describe(&interfaces, &netlink.addresses().unwrap(), &ways, &[]).unwrap(), ways)
}

fn ways(targets: &[&str]) -> Vec<Way> {
    let netlink = Netlink::open().unwrap();
    targets.iter().map(|addr| netlink.way_to(addr.parse::<IpAddr>().unwrap()).unwrap()).collect()
}

#[test]
fn what_was_cloned_leads_the_same_way_again() {
    with_a_cable(|| {
        let targets = ["203.0.113.9", "198.51.100.1", "192.0.2.55", "2001:db8:9::1"];
        let (links, before) = cloned(&targets);
        let [link] = &links[..] else { panic!("{links:?}") };
        let texts: Vec<String> = link.route.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["default via 192.0.2.1", "198.51.0.0/16 via 192.0.2.9", "default via 2001:db8::1"]
        );
        assert_eq!(link.address.len(), 2, "not the address that no way has: {link:?}");
        ip("address flush dev cli");
        ip("link set cli down");
        Network::of(links).up().unwrap();
        assert_eq!(ways(&targets), before);
    });
}

#[test]
fn of_a_bridge_what_is_behind_it_is_taken() {
    with_a_cable(|| {
        ip("address flush dev cli");
        ip("link add br0 type bridge");
        ip("link set cli master br0");
        ip("link set br0 up");
        ip("address add 192.0.2.7/24 dev br0");
        ip("route add default via 192.0.2.1");
        let (links, before) = cloned(&["203.0.113.9"]);
        assert_eq!(links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["cli"]);
        ip("link del br0");
        Network::of(links).up().unwrap();
        let after = ways(&["203.0.113.9"]);
        assert_eq!((&after[0].route, after[0].source), (&before[0].route, before[0].source));
    });
}
