//! What a host receives is byte for byte what a local target gets.

use crate::{
    clear, collected, ensure_complete, ensure_sums, https, nfs, received, s3, scenario, series, ssh,
};
use anyhow::{Result, ensure};
use qemu_tests::binaries::Binaries;
use qemu_tests::collector;
use qemu_tests::command::{Run, command};
use qemu_tests::evidence;
use qemu_tests::kernel::Kernel;
use qemu_tests::outcome::Outcome;
use qemu_tests::peer::{Peer, PeerShape, Server};
use qemu_tests::readers;
use qemu_tests::scenario::{HOST, Target};
use serde_json::Value;
use std::path::Path;

/// The same engine on the raw copy of the same memory, for a disk.
fn locally(outcome: &Outcome) -> Result<std::path::PathBuf> {
    let local = outcome.scratch("local");
    command(&Binaries::get()?.afterimage.to_string_lossy())
        .args(["dump", "--level", "31", "--force"])
        .args([outcome.raw()?, &local])
        .run()?;
    Ok(local)
}

fn ensure_same(ours: &Path, theirs: &Path) -> Result<()> {
    command("cmp").args([ours, theirs]).run().map(drop)
}

/// Crashes a machine whose only target is this one, and compares what arrives with what a local
/// target gets.
fn round_trip(peer: &mut Peer, name: &str, target: Target, at: &str) -> Result<()> {
    let mut scenario = scenario(&format!("net-{name}"), peer)?;
    scenario.config.targets = vec![target];
    scenario.raw_copy = true;
    scenario.memory_mib = 512; // all of it is copied
    // Nothing but the host's seed gives the capture random numbers.
    scenario.shape.cpu = "rdrand=off,rdseed=off".into();
    scenario.append.push_str(" random.trust_cpu=off");
    let outcome = scenario.run()?;
    let dump = collected(peer, at)?;
    ensure_complete(&dump)?;
    let received = received(&dump, &outcome)?;
    // Where records of a stream begin and end depends on the time that it takes; what they make up
    // does not.
    ensure_same(&received.rearranged(&outcome, "received.vmcore")?, &locally(&outcome)?)?;
    let result = dump.result()?;
    let degradations = result.pointer("/degradations").and_then(|all| all.as_array());
    ensure!(degradations.is_some_and(Vec::is_empty), "{result:#}");
    let sequence = result.pointer("/sequence").and_then(Value::as_u64);
    ensure!(name != "nfs-4.2" || sequence == Some(2), "{result:#}");
    ensure_sums(&result, "dmesg.txt", &dump.file("dmesg.txt"))?;
    ensure_sums(&result, received.artifact(), &received.file)?;
    evidence::ensure_holds(&dump.path, "complete")?;
    if name == "ssh" {
        // All that the old kernel had in memory: the loader has left nothing there.
        evidence::ensure_no_seed(outcome.raw()?)?;
    }
    if matches!(name, "ssh" | "https") && series() == crate::SERIES {
        let kernel = Kernel::with_symbols(crate::SERIES)?;
        let message = readers::crash(
            &kernel.vmlinux(),
            &received.rearranged(&outcome, "received.vmcore")?,
            &["sys", "bt"],
        )?
        .join("\n");
        ensure!(message.contains("sysrq") || message.contains("panic"), "{message}");
    }
    clear(peer)?;
    outcome.discard()
}

#[test]
fn each_kind_of_server_gets_what_a_local_target_gets() -> Result<()> {
    let mut peer = Peer::start("protocols", &PeerShape::default())?;
    peer.serve(&[Server::Ssh, Server::Nfs, Server::Nginx, Server::S3])?;
    let target = ssh(&peer)?;
    round_trip(&mut peer, "ssh", target, "/srv/dump")?;
    // Behind root_squash captures are counted, and the oldest goes.
    peer.run(&format!("old_capture /srv/dump/{HOST}"))?;
    round_trip(&mut peer, "nfs-4.2", nfs("4.2").key("keep", 1), "/srv/dump")?;
    let token = https("token").key("token_file", "/keys/token");
    round_trip(&mut peer, "https", token, "/srv/www/token")?;
    round_trip(&mut peer, "s3", s3(), "/srv/s3/dumps")?;
    peer.discard()
}

/// No seed and no node of a device either: the kernel makes its own, by the jitter of its clocks.
#[test]
#[ignore = "full: neither a seed nor /dev/random"]
fn without_a_seed_the_kernel_makes_random_numbers() -> Result<()> {
    let mut peer = Peer::start("seedless", &PeerShape::default())?;
    peer.serve(&[Server::Ssh, Server::Nginx, Server::S3])?;
    for (name, target, at) in collector::each(&peer)?.into_iter().filter(|(name, ..)| !name.contains("nfs")) {
        let mut scenario = scenario(&format!("net-seedless-{name}"), &peer)?;
        scenario.config.targets = vec![target];
        scenario.shape.cpu = "rdrand=off,rdseed=off".into();
        scenario.append.push_str(" random.trust_cpu=off");
        scenario.wrap = vec!["wrap.random=none".into()];
        let outcome = scenario.run()?;
        outcome.ensure_said("wrapper: random numbers are taken away")?;
        ensure_complete(&collected(&mut peer, at)?)?;
        clear(&peer)?;
        outcome.discard()?;
    }
    peer.discard()
}

#[test]
#[ignore = "full: NFS 4.1 and 3, client certificates, one stream, more than one object"]
fn each_way_to_a_server_gets_what_a_local_target_gets() -> Result<()> {
    let mut peer = Peer::start("ways", &PeerShape::default())?;
    peer.serve(&[Server::Nfs, Server::Nginx, Server::S3])?;
    round_trip(&mut peer, "nfs-4.1", nfs("4.1"), "/srv/dump")?;
    round_trip(&mut peer, "nfs-3", nfs("3"), "/srv/dump")?;
    let client = https("client").key("client_cert", "/keys/client.pem").key("client_key", "/keys/client.key");
    round_trip(&mut peer, "https-client", client.key("upload", "stream"), "/srv/www/client")?;
    round_trip(&mut peer, "s3-objects", s3().key("max_parts", 2), "/srv/s3/dumps")?;
    peer.discard()
}

/// Payload of a line of 20 Mbit/s, bytes per second: of the 1514 bytes of a frame 1448 are TCP's,
/// with timestamps.
const LINE: f64 = 20e6 / 8.0 * 1448.0 / 1514.0;

#[test]
#[ignore = "full: a line of 20 Mbit/s"]
fn a_slow_line_is_used_by_each_protocol() -> Result<()> {
    let mut peer = Peer::start("rates", &PeerShape::default())?;
    peer.serve(&[Server::Ssh, Server::Nfs, Server::Nginx, Server::S3])?;
    peer.run("upload tbf rate 20mbit burst 32k latency 200ms")?;
    let mut slow = Vec::new();
    for (name, target, at) in collector::each(&peer)? {
        let mut scenario = scenario(&format!("net-rate-{name}"), &peer)?;
        // So much that what emulation takes to scan memory is little beside it.
        scenario.config.level = 1;
        scenario.config.compress = "none".into();
        scenario.config.targets = vec![target];
        let outcome = scenario.run()?;
        let dump = collected(&mut peer, at)?;
        ensure_complete(&dump)?;
        let result = dump.result()?;
        let number = |at| result.pointer(at).and_then(Value::as_f64).unwrap_or_default();
        let (bytes, seconds) = (number("/dump_bytes"), number("/seconds/dump"));
        let share = bytes / seconds / LINE;
        eprintln!("{name}: {bytes} bytes in {seconds} s, {share:.3} of the line's payload");
        // Larger packets, which virtio hands on, have fewer headers.
        ensure!(share < 1.05, "the line is not what it was to be: {result:#}");
        // An emulated store takes seconds to put the object together in the end, which are not the
        // line's: scripts/bench-net measures it.
        let least = if name == "s3" { 0.8 } else { 0.9 };
        if share < least {
            slow.push((name, share));
        }
        clear(&peer)?;
        outcome.discard()?;
    }
    ensure!(slow.is_empty(), "{slow:?}");
    peer.discard()
}
