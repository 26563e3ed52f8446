//! Targets on web servers and object stores, against nginx and s3s-fs as they come.
#![cfg(feature = "s3")]
#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test that fails panics")]
#![expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "likewise")]

mod servers;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use capture::config::{Config, CrashLoop};
use capture::facts::{AccessKeys, Remote, Secret};
use capture::setup::net::Network;
use capture::sink::Sink;
use capture::target::{self, Artifact, Capture, Target, TargetError};
use sha2::{Digest, Sha256};

use servers::{Certificates, HOST, KEYS, Proxy, Server, nginx, s3};

const NAME: &str = "2026-11-23T16-05-22Z-web1-d4b859d1";
const MIB: usize = 1 << 20;

fn open(config: &str, remote: Remote) -> Result<Box<dyn Target>, TargetError> {
    let target = Config::parse(config).unwrap().target.remove(0);
    let url = target.url.as_ref().unwrap().to_string();
    let remotes = [Remote { url, addresses: vec![Ipv4Addr::LOCALHOST.into()], ..remote }];
    let network = Network::host();
    let capture = Capture {
        host: "web1",
        remotes: &remotes,
        network: Some(&network),
        ..Capture::new(NAME, 0, CrashLoop { crashes: 0, within: 0 }, &|| ())
    };
    target::open(&target, capture)
}

fn https(server: &Server, more: &str) -> String {
    let port = server.port;
    // What is configured without roots has a pin; the file is read by the loader.
    let roots = if more.contains("pin") { "" } else { "roots = \"/etc/ca.pem\"\n" };
    format!(
        "[[target]]\ntype = \"https\"\nurl = \"https://{HOST}:{port}/crash\"\nwait = 5\nretry = 4\n{roots}{more}"
    )
}

fn trusting(certificates: &Certificates) -> Remote {
    Remote { roots: certificates.text("ca.pem"), ..Remote::default() }
}

fn s3_config(port: u16, more: &str) -> String {
    format!(
        "[[target]]\ntype = \"s3\"\nurl = \"http://127.0.0.1:{port}/dumps/fleet\"\ncredentials = \"/etc/keys.toml\"\n\
         wait = 5\nretry = 20\n{more}"
    )
}

fn keys() -> Remote {
    let (access_key, secret_key) = (KEYS.0.to_owned(), Secret::new(KEYS.1.to_owned()));
    Remote { keys: Some(AccessKeys { access_key, secret_key, ..AccessKeys::default() }), ..Remote::default() }
}

/// Bytes of which no two parts are alike.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Writes in pieces of odd sizes.
fn write(sink: &mut dyn Sink, bytes: &[u8]) -> Result<(), capture::sink::SinkError> {
    let mut at = 0;
    for piece in bytes.chunks(300_001) {
        sink.write_at(u64::try_from(at).unwrap(), piece)?;
        at += piece.len();
        sink.sync()?;
    }
    Ok(())
}

fn save(
    target: &mut dyn Target,
    artifact: Artifact,
    bytes: &[u8],
) -> Result<(), Box<dyn core::error::Error>> {
    let mut sink = target.create(artifact)?;
    assert_eq!(sink.is_rewritable(), artifact == Artifact::Result);
    write(sink.as_mut(), bytes)?;
    drop(sink);
    Ok(target.publish(artifact)?)
}

fn chain(error: &dyn core::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

fn directory(server: &Server) -> PathBuf {
    server.dir.path().join("www/crash/web1").join(NAME)
}

fn bucket(server: &Server) -> PathBuf {
    server.dir.path().join("dumps/fleet/web1").join(NAME)
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    // What s3s-fs notes beside the objects.
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

fn joined(directory: &Path, names: &[String]) -> Vec<u8> {
    names.iter().flat_map(|name| fs::read(directory.join(name)).unwrap()).collect()
}

fn refused(opened: Result<Box<dyn Target>, TargetError>) -> String {
    chain(&opened.err().expect("it is refused"))
}

#[test]
fn a_web_server_gets_parts_and_an_index() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "server", "", "");
    let mut target = open(&https(&server, ""), trusting(&certificates)).unwrap();
    assert!(target.is_stream() && target.room().is_none() && target.directory().is_none());
    let port = server.port;
    assert_eq!(target.location(), format!("https://{HOST}:{port}/crash/web1/{NAME}/"));
    save(target.as_mut(), Artifact::Dmesg, b"[0.0] Linux\n").unwrap();
    let mut result = target.create(Artifact::Result).unwrap();
    let dump = sample(12 * MIB + 123);
    target.expect(12 << 20);
    save(target.as_mut(), Artifact::Vmcore, &dump).unwrap();
    result.write_at(0, b"{}").unwrap();
    result.sync().unwrap();
    target.publish(Artifact::Result).unwrap();
    result.write_at(0, b"{ \"more\": 1 }").unwrap();
    result.sync().unwrap();
    assert!(result.write_at(1 << 20, b"x").unwrap_err().is_full());

    let sent = target.sent();
    assert_eq!(
        sent.iter().map(|sent| sent.artifact).collect::<Vec<_>>(),
        ["dmesg.txt", "vmcore.flat", "result.json"]
    );
    assert_eq!((sent[1].bytes, sent[1].retries), (12 * (1 << 20) + 123, 0));
    assert_eq!(sent[1].sha256.as_deref(), Some(&*sha256(&dump)));
    assert_eq!(target.remarks(), Vec::<String>::new());
    drop(result);
    target.close().unwrap();

    let at = directory(&server);
    let parts: Vec<_> = (1..=3).map(|n| format!("vmcore.flat.part{n:05}")).collect();
    let mut all = vec!["dmesg.txt".to_owned(), "result.json".to_owned(), "vmcore.flat.json".to_owned()];
    all.extend(parts.clone());
    assert_eq!(names(&at), all);
    assert!(joined(&at, &parts) == dump);
    assert_eq!(fs::read(at.join("dmesg.txt")).unwrap(), b"[0.0] Linux\n");
    assert_eq!(fs::read(at.join("result.json")).unwrap(), b"{ \"more\": 1 }");
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(at.join("vmcore.flat.json")).unwrap()).unwrap();
    assert_eq!((&index["bytes"], &index["sha256"]), (&dump.len().into(), &sha256(&dump).into()));
    for (file, name) in index["objects"][0]["files"].as_array().unwrap().iter().zip(&parts) {
        assert_eq!(
            (&file["name"], &file["sha256"]),
            (&(**name).into(), &sha256(&joined(&at, &[name.clone()])).into())
        );
    }
    // nginx tells of each connection in its log: the second request came over the first one.
    let log = fs::read_to_string(server.dir.path().join("access.log")).unwrap();
    assert_eq!(log.lines().count(), 7, "{log}");
}

#[test]
fn a_web_server_gets_one_stream_or_nothing() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "server", "", "");
    let config = https(&server, "upload = \"stream\"\n");
    let dump = sample(9 * MIB + 1);
    let mut target = open(&config, trusting(&certificates)).unwrap();
    save(target.as_mut(), Artifact::Vmcore, &dump).unwrap();
    assert_eq!(target.sent()[0].sha256.as_deref(), Some(&*sha256(&dump)));
    assert_eq!(names(&directory(&server)), ["vmcore.flat"]);
    assert!(fs::read(directory(&server).join("vmcore.flat")).unwrap() == dump);

    fs::remove_file(directory(&server).join("vmcore.flat")).unwrap();
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    write(sink.as_mut(), &dump).unwrap();
    let order = sink.write_at(7, b"x").unwrap_err();
    assert!(chain(&order).contains("cannot take bytes for 7"), "{}", chain(&order));
    drop(sink);
    target.close().unwrap();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(names(&directory(&server)), Vec::<String>::new(), "what has no end is not kept");
}

#[test]
fn a_bearer_token_opens_and_a_wrong_one_is_refused_at_once() {
    let certificates = Certificates::new();
    let guard = "if ($http_authorization != \"Bearer t0k3n\") { return 401; }";
    let server = nginx(&certificates, "server", guard, "");
    let config = https(&server, "token_file = \"/etc/token\"\n");
    let remote = |token: &str| Remote { token: Secret::new(token.to_owned()), ..trusting(&certificates) };
    let mut target = open(&config, remote("t0k3n\n")).unwrap();
    save(target.as_mut(), Artifact::Dmesg, b"log").unwrap();
    let start = Instant::now();
    let mut target = open(&config, remote("another")).unwrap();
    let error = save(target.as_mut(), Artifact::Dmesg, b"other").unwrap_err();
    let text = chain(error.as_ref());
    assert!(text.contains("401 Unauthorized") && !text.contains("another"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(2), "it is not tried again");
    assert_eq!(fs::read(directory(&server).join("dmesg.txt")).unwrap(), b"log");
}

#[test]
fn a_client_certificate_opens_and_without_one_nothing_is_stored() {
    let certificates = Certificates::new();
    let guard =
        format!("ssl_client_certificate {}; ssl_verify_client on;", certificates.path("ca.pem").display());
    let server = nginx(&certificates, "server", &guard, "");
    let more = "client_cert = \"/etc/c.pem\"\nclient_key = \"/etc/c.key\"\n";
    let shown = Remote {
        client_cert: certificates.text("client.pem"),
        client_key: Secret::new(certificates.text("client.key")),
        ..trusting(&certificates)
    };
    let mut target = open(&https(&server, more), shown).unwrap();
    save(target.as_mut(), Artifact::Dmesg, b"log").unwrap();
    let mut target = open(&https(&server, ""), trusting(&certificates)).unwrap();
    let error = save(target.as_mut(), Artifact::Live, b"other").unwrap_err();
    assert!(chain(error.as_ref()).contains("400 Bad Request"), "{}", chain(error.as_ref()));
    assert_eq!(names(&directory(&server)), ["dmesg.txt"]);
}

#[test]
fn only_who_was_meant_is_trusted() {
    let certificates = Certificates::new();
    certificates.signed("elsewhere", "subjectAltName=DNS:elsewhere.test", None);
    certificates.root("stranger", None);
    let server = nginx(&certificates, "server", "", "");
    let (pin, other) = (certificates.pin("server"), certificates.pin("client"));
    let pinned = |pins: &[&str]| https(&server, &format!("pin = {pins:?}\n"));
    open(&pinned(&[&pin]), Remote::default()).unwrap();
    open(&pinned(&[&other, &pin]), trusting(&certificates)).unwrap();
    let start = Instant::now();
    let wrong = refused(open(&pinned(&[&other]), Remote::default()));
    assert!(wrong.contains("another key") && wrong.contains(&pin), "{wrong}");
    refused(open(&pinned(&[&other]), trusting(&certificates)));
    let stranger = Remote { roots: certificates.text("stranger.pem"), ..Remote::default() };
    let unknown = refused(open(&pinned(&[&pin]), stranger));
    assert!(unknown.contains("UnknownIssuer"), "with both, both must hold: {unknown}");
    let elsewhere = nginx(&certificates, "elsewhere", "", "");
    let named = refused(open(&https(&elsewhere, ""), trusting(&certificates)));
    assert!(named.contains("not valid for name"), "{named}");
    assert!(start.elapsed() < Duration::from_secs(4), "none of them is asked again");
    // Nobody vouches for who signs himself, but his key is known.
    let selfsigned = nginx(&certificates, "stranger", "", "");
    let config = https(&selfsigned, &format!("pin = [{:?}]\n", certificates.pin("stranger")));
    save(open(&config, Remote::default()).unwrap().as_mut(), Artifact::Dmesg, b"log").unwrap();
}

#[test]
fn a_wrong_clock_is_told_and_harmless() {
    let certificates = Certificates::new();
    let san = format!("subjectAltName=DNS:{HOST}");
    for (name, at) in [("past", "2 years ago"), ("future", "+90 days")] {
        let at = if name == "past" { "2024-01-01 00:00:00" } else { at };
        certificates.signed(name, &san, Some(at));
        let server = nginx(&certificates, name, "", "");
        let pin = format!("pin = [{:?}]\n", certificates.pin(name));
        for (config, remote) in [
            (https(&server, ""), trusting(&certificates)),
            (https(&server, &pin), Remote::default()),
            (https(&server, &pin), trusting(&certificates)),
        ] {
            let mut target = open(&config, remote).unwrap();
            save(target.as_mut(), Artifact::Dmesg, b"log").unwrap();
            let remarks = target.remarks();
            assert!(remarks.len() == 1 && remarks[0].contains("clock"), "{name}: {remarks:?}");
        }
    }
    // A wrong name is not forgiven for the sake of a wrong clock.
    certificates.signed("elsewhere", "subjectAltName=DNS:elsewhere.test", Some("2024-01-01 00:00:00"));
    let elsewhere = nginx(&certificates, "elsewhere", "", "");
    let named = refused(open(&https(&elsewhere, ""), trusting(&certificates)));
    assert!(named.contains("not valid for name"), "{named}");
}

#[test]
fn a_full_server_is_told_from_a_broken_one() {
    let certificates = Certificates::new();
    let dump = sample(6 * MIB);
    for location in ["client_max_body_size 1m;", "if ($request_method = PUT) { return 507; }"] {
        let server = nginx(&certificates, "server", "", location);
        for upload in ["parts", "stream"] {
            let config = https(&server, &format!("upload = \"{upload}\"\n"));
            let mut target = open(&config, trusting(&certificates)).unwrap();
            let mut sink = target.create(Artifact::Vmcore).unwrap();
            let mut at = 0;
            let start = Instant::now();
            let error = loop {
                if let Err(error) = sink.write_at(at, &dump) {
                    break error;
                }
                at += 6 << 20;
                assert!(start.elapsed() < Duration::from_secs(20), "{upload}, {location}");
            };
            assert!(error.is_full(), "{upload}, {location}: {}", chain(&error));
            drop(sink);
            target.publish(Artifact::Vmcore).unwrap_err();
        }
    }
}

#[test]
fn a_busy_server_is_asked_again_when_it_says() {
    let certificates = Certificates::new();
    let guard = "add_header Retry-After 2 always; set $busy 0; if (-f $document_root/busy) { return 503; }";
    let server = nginx(&certificates, "server", guard, "");
    let busy = server.dir.path().join("www/busy");
    fs::write(&busy, "").unwrap();
    let mut target = open(&https(&server, ""), trusting(&certificates)).unwrap();
    let start = Instant::now();
    let freed = thread::spawn(move || {
        thread::sleep(Duration::from_secs(1));
        fs::remove_file(busy).unwrap();
    });
    save(target.as_mut(), Artifact::Dmesg, b"log").unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "after {:?}", start.elapsed());
    assert_eq!(target.sent()[0].retries, 1);
    freed.join().unwrap();
}

#[test]
fn an_object_store_gets_one_object_of_many_parts() {
    let server = s3(None);
    let mut target = open(&s3_config(server.port, ""), keys()).unwrap();
    save(target.as_mut(), Artifact::Dmesg, b"log").unwrap();
    let dump = sample(17 * MIB + 5);
    save(target.as_mut(), Artifact::Vmcore, &dump).unwrap();
    save(target.as_mut(), Artifact::Result, b"{}").unwrap();
    assert_eq!(names(&bucket(&server)), ["dmesg.txt", "result.json", "vmcore.flat"]);
    assert!(fs::read(bucket(&server).join("vmcore.flat")).unwrap() == dump);
    assert_eq!(target.sent()[1].sha256.as_deref(), Some(&*sha256(&dump)));
    assert_eq!(target.remarks(), Vec::<String>::new());
}

#[test]
fn past_the_last_part_of_an_object_comes_the_next_one() {
    let server = s3(None);
    let mut target = open(&s3_config(server.port, "max_parts = 2\npart_size = \"5M\"\n"), keys()).unwrap();
    let dump = sample(22 * MIB);
    save(target.as_mut(), Artifact::Vmcore, &dump).unwrap();
    let objects = ["vmcore.flat", "vmcore.flat.2", "vmcore.flat.3"].map(str::to_owned);
    let at = bucket(&server);
    assert_eq!(names(&at), ["vmcore.flat", "vmcore.flat.2", "vmcore.flat.3", "vmcore.flat.json"]);
    assert!(joined(&at, &objects) == dump);
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(at.join("vmcore.flat.json")).unwrap()).unwrap();
    assert_eq!((&index["bytes"], &index["sha256"]), (&dump.len().into(), &sha256(&dump).into()));
    let listed = index["objects"].as_array().unwrap();
    assert_eq!(listed.len(), 3);
    for ((object, name), parts) in listed.iter().zip(&objects).zip([2, 2, 1]) {
        let bytes = joined(&at, &[name.clone()]);
        assert_eq!((&object["name"], &object["parts"]), (&(**name).into(), &parts.into()));
        assert_eq!((&object["bytes"], &object["sha256"]), (&bytes.len().into(), &sha256(&bytes).into()));
    }
}

#[test]
fn a_part_that_was_cut_off_is_sent_again_as_it_was() {
    let server = s3(None);
    let proxy = Proxy::new(server.port, 3 * MIB, 4);
    let mut target = open(&s3_config(proxy.port, ""), keys()).unwrap();
    let dump = sample(23 * MIB + 77);
    save(target.as_mut(), Artifact::Vmcore, &dump).unwrap();
    assert!(fs::read(bucket(&server).join("vmcore.flat")).unwrap() == dump);
    let sent = &target.sent()[0];
    assert!(sent.retries >= 4, "{sent:?}");
    assert_eq!(sent.sha256.as_deref(), Some(&*sha256(&dump)));
}

#[test]
fn a_store_that_is_killed_and_comes_back_gets_the_rest() {
    let mut server = s3(None);
    let mut target = open(&s3_config(server.port, ""), keys()).unwrap();
    let dump = sample(20 * MIB);
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    sink.write_at(0, &dump[..11 * MIB]).unwrap();
    server.kill();
    let port = server.port;
    let revived = thread::spawn(move || {
        thread::sleep(Duration::from_secs(2));
        server.restart_s3();
        server
    });
    sink.write_at(11 << 20, &dump[11 * MIB..]).unwrap();
    drop(sink);
    target.publish(Artifact::Vmcore).unwrap();
    let server = revived.join().unwrap();
    assert_eq!(server.port, port);
    assert!(fs::read(bucket(&server).join("vmcore.flat")).unwrap() == dump);
    assert!(target.sent()[0].retries >= 1);
}

#[test]
fn wrong_keys_are_refused_at_once_and_not_shown() {
    let server = s3(None);
    let mut remote = keys();
    remote.keys.as_mut().unwrap().secret_key = Secret::new("guessed".to_owned());
    let start = Instant::now();
    let mut target = open(&s3_config(server.port, ""), remote).unwrap();
    let error = save(target.as_mut(), Artifact::Dmesg, b"log").unwrap_err();
    let text = chain(error.as_ref());
    assert!(text.contains("403 Forbidden (SignatureDoesNotMatch)") && !text.contains("guessed"), "{text}");
    let dump = sample(6 * MIB);
    save(target.as_mut(), Artifact::Vmcore, &dump).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_eq!(names(&bucket(&server)), Vec::<String>::new());
}

#[test]
fn the_time_is_taken_from_a_store_that_has_another_one() {
    for clock in ["+20d", "-20d"] {
        let server = s3(Some(clock));
        let mut remote = keys();
        remote.keys.as_mut().unwrap().expires = "2001-01-01T00:00:00Z".to_owned();
        let mut target = open(&s3_config(server.port, ""), remote).unwrap();
        save(target.as_mut(), Artifact::Dmesg, b"log").unwrap();
        let dump = sample(11 * MIB);
        save(target.as_mut(), Artifact::Vmcore, &dump).unwrap();
        assert!(fs::read(bucket(&server).join("vmcore.flat")).unwrap() == dump);
        let remarks = target.remarks();
        assert!(remarks.len() == 2 && remarks[0].contains("clock is wrong"), "{clock}: {remarks:?}");
        assert!(remarks[1].contains("2001-01-01"), "{remarks:?}");
    }
}

#[test]
fn an_upload_that_is_given_up_leaves_nothing() {
    let server = s3(None);
    let files = |server: &Server| {
        fs::read_dir(server.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
    };
    let before = files(&server);
    let mut target = open(&s3_config(server.port, ""), keys()).unwrap();
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    sink.write_at(0, &sample(16 * MIB)).unwrap();
    let start = Instant::now();
    while files(&server).len() == before.len() {
        assert!(start.elapsed() < Duration::from_secs(10), "no part arrived");
        thread::sleep(Duration::from_millis(20));
    }
    drop(sink);
    target.close().unwrap();
    assert_eq!(files(&server), before);
    assert_eq!(names(&bucket(&server)), Vec::<String>::new());
}

#[test]
fn a_server_that_accepts_and_never_reads_is_given_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let held: Vec<_> = listener.incoming().collect();
        drop(held);
    });
    let config = s3_config(port, "").replace("retry = 20", "retry = 2");
    let mut target = open(&config, keys()).unwrap();
    let start = Instant::now();
    let error = save(target.as_mut(), Artifact::Vmcore, &sample(6 * MIB)).unwrap_err();
    let text = chain(error.as_ref());
    assert!(text.contains("neither took nor sent a byte for 2 seconds"), "{text}");
    assert!((2..10).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}
