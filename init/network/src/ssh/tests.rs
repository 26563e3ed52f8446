//! Against OpenSSH's sshd, unmodified.

mod server;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::Network;
use base::config::{Config, CrashLoop};
use base::facts::{Remote, Secret};
use evidence::witness::Witness;
use russh::keys::Algorithm;
use server::{Proxy, RESTRICTION, Shape, Sshd, new_key};
use sha2::{Digest, Sha256};
use vmcore::sink::SinkError;

const NAME: &str = "2025-11-23T12-13-20Z-web-0123abcd";

/// Opens the target at `port` with `path` behind it.
fn open_at(
    port: u16,
    path: &str,
    host_key: &str,
    identity: &str,
    retry: u64,
) -> Result<Box<Ssh>, TargetError> {
    open_capture(port, path, host_key, identity, (retry, NAME, 1_763_900_000))
}

/// Opens the target for the capture called `name`, of a crash at `time`.
fn open_named(port: u16, name: &str, time: u64, sshd: &Sshd) -> Box<Ssh> {
    let opened = open_capture(port, "", &sshd.host_key, &sshd.identity, (20, name, time));
    opened.unwrap_or_else(|error| panic!("{}", base::log::chain(&error)))
}

fn open_capture(
    port: u16,
    path: &str,
    host_key: &str,
    identity: &str,
    (retry, name, time): (u64, &str, u64),
) -> Result<Box<Ssh>, TargetError> {
    let url = format!("ssh://root@127.0.0.1:{port}{path}");
    let text = format!(
        "[[target]]\ntype = \"ssh\"\nurl = \"{url}\"\nwait = 3\nretry = {retry}\nhost_key = \
         [\"{host_key}\"]\nidentity = \"/k\"\n"
    );
    let config = Config::parse(&text).unwrap().target.remove(0);
    let remotes = [Remote { url, identity: Secret::new(identity.to_owned()), ..Remote::default() }];
    let network = Network::host();
    let crash_loop = CrashLoop { crashes: 3, within: 3600 };
    let capture = Capture { host: "web", remotes: &remotes, ..Capture::new(name, time, crash_loop) };
    let config::Place::Ssh(wanted) = &config.place else { panic!("{config}") };
    let host = Host::find(&config, &wanted.url, (wanted.retry, wanted.min_rate), capture, &network)?;
    Ssh::open(wanted, &host, capture).map(Box::new)
}

fn open(sshd: &Sshd, path: &str) -> Box<Ssh> {
    open_at(sshd.port, path, &sshd.host_key, &sshd.identity, 20)
        .unwrap_or_else(|error| panic!("{}", base::log::chain(&error)))
}

/// Bytes that are not the same anywhere.
fn bytes(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()
    };
    std::iter::repeat_with(next).flatten().take(len).collect()
}

/// What stands before the pages of a dump.
const FRONT: usize = 100_000;

/// A dump of sorts: a header that is written first and last, descriptors after it, data in pieces
/// of odd length.
fn write_dump(sink: &mut dyn Sink, data: &[u8], mut each: impl FnMut(usize)) -> Result<(), SinkError> {
    sink.reserve(FRONT as u64)?;
    sink.write_at(0, &[0; 4096])?;
    let mut at = FRONT;
    for piece in data[FRONT..].chunks(70_001) {
        sink.write_at(at as u64, piece)?;
        at += piece.len();
        each(at);
    }
    sink.sync()?;
    sink.write_at(4096, &data[4096..FRONT])?;
    sink.write_at(0, &data[..4096])?;
    sink.sync()
}

/// What is in a directory, but for the seal of the host.
fn names(dir: &Path) -> Vec<String> {
    let mut names = names_with_hidden(dir);
    names.retain(|name| !name.starts_with(".afterimage-"));
    names
}

fn names_with_hidden(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn hex(data: &[u8]) -> String {
    format!("{:x}", Sha256::digest(data))
}

#[test]
fn a_capture_is_saved_under_the_restricted_account() {
    let sshd = Sshd::start(RESTRICTION);
    // It reads back what the witness asks for.
    let mut target = Witness::new(open(&sshd, ""));
    assert_eq!(target.location(), format!("ssh://root@127.0.0.1:{}/web/{NAME}", sshd.port));
    assert_eq!((target.ledger().sequence, target.ledger().looping), (1, false));
    assert!(target.room().is_some_and(|room| room > 1 << 20));
    let at = sshd.data().join("web").join(NAME);

    let mut log = target.create(Artifact::Dmesg).unwrap();
    for piece in bytes(300_000).chunks(999).enumerate() {
        log.write_at(piece.0 as u64 * 999, piece.1).unwrap();
    }
    log.sync().unwrap();
    drop(log);
    assert!(!at.join("dmesg.txt").exists());
    target.publish(Artifact::Dmesg).unwrap();
    assert_eq!(fs::read(at.join("dmesg.txt")).unwrap(), bytes(300_000));

    let mut result = target.create(Artifact::Result).unwrap();
    result.reserve(64 << 10).unwrap();
    let data = bytes(5 << 20);
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    assert!(sink.is_rewritable());
    write_dump(sink.as_mut(), &data, |_| ()).unwrap();
    drop(sink);
    let unfinished = names(&at);
    assert!(
        unfinished.iter().any(|name| name.starts_with("vmcore-incomplete-") && name.len() == 26),
        "{unfinished:?}"
    );
    target.publish(Artifact::Vmcore).unwrap();
    assert!(fs::read(at.join("vmcore")).unwrap() == data);

    result.write_at(0, b"{\"first\": 1}\n").unwrap();
    result.sync().unwrap();
    target.publish(Artifact::Result).unwrap();
    result.write_at(0, b"{\"second\": 2, \"longer\": 3}\n").unwrap();
    result.sync().unwrap();
    assert_eq!(fs::read(at.join("result.json")).unwrap(), b"{\"second\": 2, \"longer\": 3}\n");
    drop(result);

    assert_eq!(names(&at), ["dmesg.txt", "result.json", "vmcore"]);
    assert_eq!((mode(&at), mode(&at.join("vmcore")), mode(&sshd.data().join("web"))), (0o700, 0o600, 0o700));
    let sent = target.sent();
    let of = |name| sent.iter().find(|sent| sent.artifact == name).unwrap();
    assert_eq!(of("dmesg.txt").sha256, Some(hex(&bytes(300_000))));
    let dump = of("vmcore");
    assert_eq!((dump.sha256.as_deref(), dump.bytes, dump.retries), (None, 5 << 20, 0));
    let pieces: Vec<_> =
        dump.pieces.iter().map(|piece| (piece.offset, piece.bytes, &*piece.sha256)).collect();
    let (front, back) = data.split_at(FRONT);
    assert_eq!(pieces, [(0, 100_000, &*hex(front)), (100_000, (5 << 20) - 100_000, &*hex(back))]);
    assert_eq!(of("result.json").sha256, Some(hex(b"{\"second\": 2, \"longer\": 3}\n")));
    Box::new(target).close().unwrap();

    let again = open(&sshd, "");
    assert!(again.location().ends_with(&format!("/web/{NAME}-2")), "{}", again.location());
    assert_eq!(again.ledger().sequence, 2);
}

#[test]
fn nothing_is_overwritten_and_missing_directories_are_made() {
    let sshd = Sshd::start("");
    let path = sshd.data().join("a/b").display().to_string();
    let mut target = open(&sshd, &path);
    let at = sshd.data().join("a/b/web").join(NAME);
    assert_eq!((mode(&sshd.data().join("a")), mode(&at)), (0o700, 0o700));
    fs::write(at.join("vmcore"), "somebody's").unwrap();
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    sink.write_at(0, b"ours").unwrap();
    drop(sink); // and not synced
    let error = base::log::chain(&target.publish(Artifact::Vmcore).unwrap_err());
    assert!(error.contains("publishing vmcore"), "{error}");
    assert_eq!(fs::read(at.join("vmcore")).unwrap(), b"somebody's");
    assert_eq!(names(&at).len(), 2);
}

#[test]
fn a_crash_loop_is_seen_in_the_names_that_this_host_has_sealed() {
    let sshd = Sshd::start(RESTRICTION);
    let capture = |second: u64| {
        let name = format!("2025-11-23T12-13-{second:02}Z-web-0123abcd");
        let target = open_named(sshd.port, &name, 1_763_899_980 + second, &sshd);
        let ledger = target.ledger().clone();
        let advice = target.end_of_loop();
        target.close().unwrap();
        (ledger, advice)
    };
    // Whoever shares the account makes directories, some with the seals of others of ours, and one
    // whose seal is a file.
    for second in 30..40 {
        fs::create_dir_all(sshd.data().join(format!("web/2025-11-23T12-13-{second}Z-web-0123abcd"))).unwrap();
    }
    let (first, _) = capture(1);
    assert_eq!((first.sequence, first.crashes.len(), first.looping), (11, 1, false));
    let sealed = sshd.data().join("web/2025-11-23T12-13-01Z-web-0123abcd");
    let seal = names_with_hidden(&sealed).into_iter().find(|name| name.starts_with(".afterimage-")).unwrap();
    for second in 41..50 {
        let at = sshd.data().join(format!("web/2025-11-23T12-13-{second}Z-web-0123abcd"));
        fs::create_dir_all(at.join(&seal)).unwrap();
    }
    for second in 2..=3 {
        assert!(!capture(second).0.looping, "{second}");
    }
    let (fourth, advice) = capture(4);
    assert!(fourth.looping && fourth.crashes.len() == 4, "{fourth:?}");
    assert!(!advice.contains("afterimage reset") && advice.contains("on the collector"), "{advice}");
}

#[test]
fn rsa_keys_do_too() {
    let rsa = || new_key(Algorithm::Rsa { hash: None });
    let sshd = Sshd::with_keys(RESTRICTION, &rsa(), &rsa());
    let target = open(&sshd, "");
    target.close().unwrap();
}

#[test]
fn a_wrong_host_gets_nothing() {
    let sshd = Sshd::start(RESTRICTION);
    let other = new_key(Algorithm::Ed25519).public_key().to_openssh().unwrap();
    let start = Instant::now();
    let error = open_at(sshd.port, "", &other, &sshd.identity, 20).unwrap_err();
    let error = base::log::chain(&error);
    let offered = russh::keys::PublicKey::from_openssh(&sshd.host_key).unwrap();
    let offered = offered.fingerprint(russh::keys::HashAlg::Sha256).to_string();
    assert!(
        error.contains("refused") && error.contains(&offered) && offered.starts_with("SHA256:"),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(3), "it is not tried again");
    assert!(names(&sshd.data()).is_empty());
}

#[test]
fn a_wrong_key_of_ours_is_told() {
    let sshd = Sshd::start(RESTRICTION);
    let other = server::pem(&new_key(Algorithm::Ed25519));
    let start = Instant::now();
    let error = base::log::chain(&open_at(sshd.port, "", &sshd.host_key, &other, 20).unwrap_err());
    assert!(error.contains("user root is not let in") && error.contains("SHA256:"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3), "it is not tried again");
    assert!(names(&sshd.data()).is_empty());
}

#[test]
fn a_server_that_is_killed_and_comes_back_gets_the_rest() {
    let mut sshd = Sshd::start(RESTRICTION);
    let mut target = open(&sshd, "");
    let data = bytes(32 << 20);
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    let mut log = target.create(Artifact::Dmesg).unwrap();
    log.write_at(0, b"log").unwrap();
    let (mut killed, mut restarting) = (false, None);
    write_dump(sink.as_mut(), &data, |at| {
        if at > 12 << 20 && !killed {
            sshd.kill();
            killed = true;
            let mut sshd = std::mem::replace(&mut sshd, Sshd::start(""));
            restarting = Some(thread::spawn(move || {
                thread::sleep(Duration::from_millis(700));
                sshd.restart();
                sshd
            }));
        }
    })
    .unwrap();
    let sshd = restarting.unwrap().join().unwrap();
    drop(sink);
    target.publish(Artifact::Vmcore).unwrap();
    log.write_at(3, b", whole").unwrap();
    log.sync().unwrap();
    target.publish(Artifact::Dmesg).unwrap();
    let at = sshd.data().join("web").join(NAME);
    assert!(fs::read(at.join("vmcore")).unwrap() == data);
    assert_eq!(fs::read(at.join("dmesg.txt")).unwrap(), b"log, whole");
    let sent = target.sent();
    assert!(sent.iter().any(|sent| sent.artifact == "vmcore" && sent.retries >= 1), "{sent:?}");
    let peak = target.shared.lock().peak();
    let limit = target.shared.lock().limit();
    assert!(peak <= limit && peak > limit / 2 && limit <= 8 << 20, "{peak} of {limit}");
    drop(log);
    target.close().unwrap();
}

#[test]
fn a_connection_that_is_cut_is_made_again_and_one_that_swallows_is_given_up() {
    let sshd = Sshd::start(RESTRICTION);
    let proxy = Proxy::to(sshd.port);
    let mut target = open_at(proxy.port, "", &sshd.host_key, &sshd.identity, 4).unwrap();
    let data = bytes(24 << 20);
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    let mut cuts = 0;
    write_dump(sink.as_mut(), &data, |_| {
        if cuts < 3 && proxy.passed() > (cuts + 1) * (5 << 20) {
            proxy.cut();
            cuts += 1;
        }
    })
    .unwrap();
    drop(sink);
    target.publish(Artifact::Vmcore).unwrap();
    assert!(fs::read(sshd.data().join("web").join(NAME).join("vmcore")).unwrap() == data);
    let retries = target.sent()[0].retries;
    assert!((1..=cuts).contains(&retries), "{retries} of {cuts}");

    let mut sink = target.create(Artifact::Live).unwrap();
    proxy.swallow();
    let start = Instant::now();
    let mut at = 0;
    let error = loop {
        match sink.write_at(at, &data[..1 << 20]) {
            Ok(()) => at += 1 << 20,
            Err(error) => break error,
        }
    };
    let text = base::log::chain(&error);
    assert!(text.contains("no progress for 4 s") && text.contains("no answer for 4 s"), "{text}");
    assert!(!error.is_full() && at <= *pool::BYTES.end(), "{at}");
    assert!(start.elapsed() < Duration::from_secs(4 + 4 + 4 + 2), "{:?}", start.elapsed());
    let start = Instant::now();
    assert!(
        sink.write_at(0, b"x").is_err() && sink.sync().is_err() && target.create(Artifact::Result).is_err()
    );
    assert!(target.publish(Artifact::Live).is_err() && target.room().is_none());
    drop(sink);
    assert!(target.close().is_err());
    assert!(start.elapsed() < Duration::from_secs(1), "from then on it fails at once");
}

#[test]
fn a_long_way_is_used_to_nine_tenths() {
    let sshd = Sshd::start(RESTRICTION);
    // 20 Mbit/s, and 200 ms there and back.
    let shape = Shape { bytes_per_second: 2_500_000, delay: Duration::from_millis(100) };
    let proxy = Proxy::shaped(sshd.port, Some(shape));
    let mut target = open_at(proxy.port, "", &sshd.host_key, &sshd.identity, 20).unwrap();
    let data = bytes(24 << 20);
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    let start = Instant::now();
    let mut synced = start;
    for (piece, at) in data.chunks(300_000).zip((0..).step_by(300_000)) {
        if synced.elapsed() > Duration::from_secs(2) {
            sink.sync().unwrap(); // as a kdump file does
            synced = Instant::now();
        }
        sink.write_at(at, piece).unwrap();
    }
    sink.sync().unwrap();
    let took = start.elapsed();
    let used = data.len() as u128 * 1_000_000 / took.as_micros() * 100 / u128::from(shape.bytes_per_second);
    println!("{used} % of the way's speed, {took:?}");
    assert!((90..=100).contains(&used), "{used} %");
    drop(sink);
    target.publish(Artifact::Vmcore).unwrap();
    assert!(fs::read(sshd.data().join("web").join(NAME).join("vmcore")).unwrap() == data);
    assert_eq!((target.sent()[0].retries, target.sent()[0].bytes), (0, data.len() as u64));
}

#[test]
fn who_takes_a_byte_now_and_then_is_given_up() {
    let sshd = Sshd::start(RESTRICTION);
    let shape = Shape { bytes_per_second: 16_000, delay: Duration::from_millis(5) };
    let proxy = Proxy::shaped(sshd.port, Some(shape));
    let mut target = open_at(proxy.port, "", &sshd.host_key, &sshd.identity, 3).unwrap();
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    let data = bytes(24 << 20);
    let start = Instant::now();
    let failed = (0..)
        .step_by(100_000)
        .zip(data.chunks(100_000))
        .find_map(|(at, piece)| sink.write_at(at, piece).err());
    let said = base::log::chain(&failed.unwrap());
    assert!(said.contains("min_rate, 65536 bytes per second"), "{said}");
    assert!(start.elapsed() < Duration::from_mins(1), "{:?}", start.elapsed());
}

#[test]
fn new_keys_for_the_connection_do_not_break_it() {
    let key = || new_key(Algorithm::Ed25519);
    let sshd = Sshd::with_config(RESTRICTION, &key(), &key(), "RekeyLimit 1M\n");
    let mut target = open(&sshd, "");
    let data = bytes(12 << 20);
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    write_dump(sink.as_mut(), &data, |_| ()).unwrap();
    drop(sink);
    target.publish(Artifact::Vmcore).unwrap();
    assert!(fs::read(sshd.data().join("web").join(NAME).join("vmcore")).unwrap() == data);
    assert_eq!(target.sent()[0].retries, 0);
}

#[test]
fn a_full_disk_is_told_as_that() {
    let sshd = Sshd::start(RESTRICTION);
    let at = sshd.data();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some("size=4m")).unwrap();
    let unmount = Unmount(at.clone());
    let mut target = open(&sshd, "");
    let data = bytes(8 << 20);
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    let error = write_dump(sink.as_mut(), &data, |_| ()).unwrap_err();
    assert!(error.is_full(), "by what it had beforehand: {error:?}");
    sink.sync().unwrap(); // nothing was lost

    let mut sink = target.create(Artifact::Live).unwrap();
    let start = Instant::now();
    let error = write_dump(sink.as_mut(), &data, |_| ()).unwrap_err();
    assert!(error.is_full(), "by the server: {}", base::log::chain(&error));
    assert!(start.elapsed() < Duration::from_secs(10), "it is not tried again");
    let synced = sink.sync();
    assert!(matches!(&error, SinkError::Sync(_)) || synced.unwrap_err().is_full(), "a sync tells it, too");
    sink.write_at(0, &[1; 4096]).unwrap();
    sink.sync().unwrap();
    assert_eq!(target.sent().iter().map(|sent| sent.retries).sum::<u64>(), 0);
    drop(sink);
    target.close().unwrap();
    drop(unmount);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn servers_that_say_nothing_or_rubbish_are_given_up() {
    let key = new_key(Algorithm::Ed25519);
    let (public, identity) = (key.public_key().to_openssh().unwrap(), server::pem(&key));
    for (says, reason) in [
        (&b""[..], "no answer for"),
        (&b"\0\xff rubbish"[..], "no answer for"),
        (&b"SSH-2.0-x\r\n\xff\xff\xff\xff\xff\xff\xff\xff"[..], "speaking SSH"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let mut taken = Vec::new();
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let _ = client.write_all(says);
                taken.push(client);
            }
        });
        let start = Instant::now();
        let error = open_at(port, "", &public, &identity, 2).unwrap_err();
        let error = base::log::chain(&error);
        assert!(error.contains(reason) && error.contains("reaching it by SFTP"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(3 + 2 + 2), "{:?}", start.elapsed());
    }
}
