//! What goes wrong on the way, and what is saved all the same.

use crate::{
    clear, collected, disk, ensure_complete, ensure_sums, https, nfs, received, remote, s3, scenario, ssh,
};
use anyhow::{Result, anyhow, ensure};
use qemu_tests::fault::Action;
use qemu_tests::network::HostNetwork;
use qemu_tests::outcome::{Dump, Outcome};
use qemu_tests::peer::{ADDRESS, NAME, Peer, PeerShape, Server};
use qemu_tests::readers;
use qemu_tests::scenario::{HOST, Scenario};
use std::fs;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

/// A dump that takes its time, so that there is a middle of it.
const SLOW: &str = "upload tbf rate 40mbit burst 64k latency 400ms";

/// What the capture says in the middle of its dump. The panicking kernel says "Kdump: loaded".
const IN_THE_MIDDLE: &str = "afterimage: dump: ";

/// The last of two targets took the dump, and says why the first did not.
fn ensure_next(outcome: &Outcome, words: &str) -> Result<()> {
    let dump = outcome.dump()?;
    ensure_complete(dump)?;
    let result = dump.result()?;
    let told = result.pointer("/degradations").map(ToString::to_string).unwrap_or_default();
    ensure!(told.contains(words), "{words:?} is not in {result:#}");
    Ok(())
}

const STRANGER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtTW4cBkDWbdpDYnk9pOzCWpCbFLqmVRVTt7CNRzWF3";

#[test]
fn who_is_not_the_collector_gets_nothing_and_the_next_target_does() -> Result<()> {
    let peer = Peer::start("strangers", &PeerShape::default())?;
    peer.serve(&[Server::Ssh, Server::Nginx])?;
    let certificate = remote("https", &format!("https://{NAME}:8443/dumps")).key("roots", "/keys/ca.pem");
    let cases = [
        ("host-key", ssh(&peer)?.key("host_key", vec![STRANGER]), "is refused: host_key has"),
        ("certificate", certificate, "ertificate"),
    ];
    refused(peer, cases.into())
}

#[test]
#[ignore = "full: a wrong token, wrong credentials, a host that does not answer"]
fn a_collector_that_refuses_or_is_silent_is_followed_by_the_next_target() -> Result<()> {
    let peer = Peer::start("refusing", &PeerShape::default())?;
    peer.serve(&[Server::Ssh, Server::Nginx, Server::S3])?;
    let silent = remote("ssh", "ssh://dump@10.9.0.77/x");
    let cases = [
        ("token", https("token"), "401"),
        ("credentials", s3().key("region", "elsewhere").key("credentials", "/keys/wrong.toml"), "403"),
        ("silent", silent.key("host_key", vec![STRANGER]).key("identity", "/keys/ssh"), "10.9.0.77"),
    ];
    refused(peer, cases.into())
}

/// Crashes a machine for each of these first targets, which the words explain; the disk takes the
/// dump.
fn refused(peer: Peer, cases: Vec<(&str, qemu_tests::scenario::Target, &str)>) -> Result<()> {
    for (name, target, words) in cases {
        let mut scenario = scenario(&format!("net-wrong-{name}"), &peer)?;
        scenario.files.push((
            "/keys/wrong.toml".into(),
            b"access_key = \"afterimage\"\nsecret_key = \"wrong\"\n".into(),
        ));
        scenario.config.targets = vec![target, disk()];
        let outcome = scenario.run()?;
        ensure_next(&outcome, words)?;
        let left = peer.run("find /srv/dump /srv/www /srv/s3 -type f")?;
        ensure!(left.trim().is_empty(), "{left}");
        outcome.discard()?;
    }
    peer.discard()
}

/// From when to when a dump was under way, in seconds since 1970.
fn when(dump: &Dump) -> Result<core::ops::Range<u64>> {
    let written = |name: &str| -> Result<u64> {
        Ok(fs::metadata(dump.file(name))?.modified()?.duration_since(UNIX_EPOCH)?.as_secs())
    };
    Ok(written("dmesg.txt")?..written("vmcore")?)
}

#[test]
#[ignore = "full: two hosts at one NFS server"]
fn two_hosts_of_one_name_dump_to_one_nfs_server_at_once() -> Result<()> {
    let mut peer = Peer::start("two", &PeerShape { cards: 2, ..PeerShape::default() })?;
    peer.run("address eth1 1")?;
    peer.serve(&[Server::Nfs])?;
    peer.run(SLOW)?;
    let of = |number: usize| -> Result<Scenario> {
        let mut scenario = scenario(&format!("net-host-{number}"), &peer)?;
        scenario.shape.cards = vec![peer.card(number)];
        scenario.network = HostNetwork::address(&format!("10.9.{number}.2/24"), None);
        let url = format!("nfs://10.9.{number}.1/srv/dump");
        scenario.config.targets = vec![nfs("4.2").key("url", url)];
        scenario.config.level = 1;
        Ok(scenario)
    };
    let (first, second) = (of(0)?, of(1)?);
    let (first, second) = thread::scope(|scope| {
        let second = scope.spawn(|| second.run());
        (first.run(), second.join().map_err(|_| anyhow!("the second host's thread panicked")))
    });
    let outcomes = [first?, second??];
    let dumps = peer.dumps(&format!("/srv/dump/{HOST}"))?;
    ensure!(dumps.len() == 2, "{dumps:?}");
    let makes = |dump: &Dump| -> Result<_> {
        ensure_complete(dump)?;
        let log = String::from_utf8_lossy(&readers::makedumpfile_dmesg(&dump.file("vmcore"))?).into_owned();
        ensure!(log.contains("Kernel panic"), "{log}");
        when(dump)
    };
    let times = [makes(&dumps[0])?, makes(&dumps[1])?];
    let (from, to) = (times[0].start.max(times[1].start), times[0].end.min(times[1].end));
    ensure!(from + 2 <= to, "they were not at it together: {times:?}");
    outcomes.into_iter().try_for_each(Outcome::discard)?;
    peer.discard()
}

/// Runs a capture to this target with something done to it in the middle of its dump.
fn disturbed(
    peer: &mut Peer,
    name: &str,
    target: crate::Target,
    at: &str,
    actions: Vec<Action>,
) -> Result<u64> {
    peer.run(SLOW)?;
    let mut scenario = scenario(&format!("net-{name}"), peer)?;
    scenario.config.level = 1;
    scenario.config.targets = vec![target];
    scenario.actions = actions.into_iter().map(|action| (IN_THE_MIDDLE.to_owned(), action)).collect();
    let outcome = scenario.run()?;
    peer.run("plain")?;
    let dump = collected(peer, at)?;
    ensure_complete(&dump)?;
    let received = received(&dump, &outcome)?;
    let result = dump.result()?;
    ensure_sums(&result, received.artifact(), &received.file)?;
    let received = received.rearranged(&outcome, "rearranged")?;
    let log = String::from_utf8_lossy(&readers::makedumpfile_dmesg(&received)?).into_owned();
    ensure!(log.contains("Kernel panic"), "{log}");
    let sent = result.pointer("/sent").and_then(|all| all.as_array()).cloned().unwrap_or_default();
    let retries = sent.iter().filter_map(|sent| sent["retries"].as_u64()).sum();
    clear(peer)?;
    outcome.discard()?;
    Ok(retries)
}

#[test]
fn a_server_that_dies_and_comes_back_gets_all_of_the_dump() -> Result<()> {
    let mut peer = Peer::start("dies", &PeerShape::default())?;
    peer.serve(&[Server::Ssh])?;
    let (target, dies) = (ssh(&peer)?, restart(&peer, Server::Ssh));
    let retries = disturbed(&mut peer, "ssh-dies", target, "/srv/dump", dies)?;
    ensure!(retries > 0, "it was not in the middle of the dump");
    peer.discard()
}

#[test]
#[ignore = "full: S3, HTTPS and NFS"]
fn each_server_that_dies_and_comes_back_gets_all_of_the_dump() -> Result<()> {
    let mut peer = Peer::start("each-dies", &PeerShape::default())?;
    peer.serve(&[Server::Nginx, Server::S3, Server::Nfs])?;
    let (s3_dies, web_dies, nfs_dies) =
        (restart(&peer, Server::S3), restart(&peer, Server::Nginx), restart(&peer, Server::Nfs));
    let retries = disturbed(&mut peer, "s3-dies", s3(), "/srv/s3/dumps", s3_dies)?;
    ensure!(retries > 0, "it was not in the middle of the dump");
    let retries = disturbed(&mut peer, "https-dies", https("dumps"), "/srv/www/dumps", web_dies)?;
    ensure!(retries > 0, "it was not in the middle of the dump");
    disturbed(&mut peer, "nfs-dies", nfs("4.2"), "/srv/dump", nfs_dies)?;
    peer.discard()
}

/// The server is gone for five seconds.
fn restart(peer: &Peer, server: Server) -> Vec<Action> {
    vec![Action::Peer(peer.control(), format!("{}\nsleep 5\n{}", server.stop(), server.start()))]
}

#[test]
#[ignore = "full: a dead server is the same pause, and more"]
fn a_cable_that_is_out_for_20_seconds_costs_nothing() -> Result<()> {
    let mut peer = Peer::start("cable", &PeerShape::default())?;
    peer.serve(&[Server::Nfs])?;
    disturbed(&mut peer, "nfs-cable", nfs("4.2"), "/srv/dump", cable_out())?;
    peer.discard()
}

#[test]
#[ignore = "full: SSH and S3"]
fn a_cable_that_is_out_for_20_seconds_costs_ssh_and_s3_nothing() -> Result<()> {
    let mut peer = Peer::start("cables", &PeerShape::default())?;
    peer.serve(&[Server::Ssh, Server::S3])?;
    let target = ssh(&peer)?;
    disturbed(&mut peer, "ssh-cable", target, "/srv/dump", cable_out())?;
    disturbed(&mut peer, "s3-cable", s3(), "/srv/s3/dumps", cable_out())?;
    peer.discard()
}

fn cable_out() -> Vec<Action> {
    vec![Action::LinkDown { card: 0, lasting: Some(Duration::from_secs(20)) }]
}

#[test]
#[ignore = "full: 1 % loss at 200 ms"]
fn a_line_that_loses_packets_and_takes_its_time_costs_nothing() -> Result<()> {
    let mut peer = Peer::start("lossy", &PeerShape::default())?;
    peer.serve(&[Server::Ssh, Server::S3])?;
    let lossy = "upload netem delay 100ms loss 1%\ndownload netem delay 100ms";
    for (name, target, at) in [("ssh", ssh(&peer)?, "/srv/dump"), ("s3", s3(), "/srv/s3/dumps")] {
        let losing = vec![Action::Peer(peer.control(), lossy.into())];
        disturbed(&mut peer, &format!("{name}-lossy"), target, at, losing)?;
    }
    peer.discard()
}

#[test]
fn a_collector_without_room_is_followed_by_the_next_target() -> Result<()> {
    let peer = Peer::start("full", &PeerShape::default())?;
    peer.serve(&[Server::Ssh])?;
    peer.run("mkdir -p /srv/small && mount -t tmpfs -o size=4m tmpfs /srv/small && chown dump: /srv/small")?;
    let small = ssh(&peer)?.key("url", format!("ssh://dump@{ADDRESS}/srv/small")).key("when_full", "nothing");
    let mut full_up = scenario("net-full", &peer)?;
    full_up.config.targets = vec![small, disk()];
    let outcome = full_up.run()?;
    ensure_next(&outcome, "no-room")?;
    outcome.discard()?;
    peer.discard()
}

#[test]
#[ignore = "full: a server that dies for good"]
fn a_collector_that_is_gone_for_good_is_followed_by_the_next_target() -> Result<()> {
    let peer = Peer::start("gone", &PeerShape::default())?;
    peer.serve(&[Server::Ssh, Server::Nfs])?;
    // The dump is on its way when the server dies for good.
    peer.run(SLOW)?;
    let cases =
        [("ssh", ssh(&peer)?, Server::Ssh, "ssh://"), ("nfs", nfs("4.2"), Server::Nfs, "10.9.0.1:/srv/dump")];
    for (name, target, server, words) in cases {
        let mut gone = scenario(&format!("net-{name}-gone"), &peer)?;
        gone.config.level = 1;
        gone.config.targets = vec![target.key("retry", 15), disk()];
        gone.actions = vec![(IN_THE_MIDDLE.into(), Action::Peer(peer.control(), server.stop()))];
        let outcome = gone.run()?;
        ensure_next(&outcome, words)?;
        // It is waited for once: half a minute by NFS, and the dump for the disk takes a quarter.
        outcome.ensure_in_time(Duration::from_secs(80))?;
        outcome.discard()?;
    }
    // Where there is no next target, the machine boots again all the same.
    peer.serve(&[Server::Nfs])?;
    let mut only = scenario("net-nfs-only", &peer)?;
    only.config.level = 1;
    only.config.targets = vec![nfs("4.2").key("retry", 15)];
    only.actions = vec![(IN_THE_MIDDLE.into(), Action::Peer(peer.control(), Server::Nfs.stop()))];
    let outcome = only.run()?;
    outcome.ensure_in_time(Duration::from_mins(1))?;
    outcome.ensure_said("final action: reboot")?;
    outcome.discard()?;
    peer.discard()
}
