//! nginx with TLS that takes PUT.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use base::facts::{Remote, Secret};
use vmcore::target::{Artifact, Target, TargetError};

use crate::servers::{Certificates, HOST, Proxy, Server, nginx};
use crate::{MIB, NAME, chain, joined, names, open, sample, save, sha256, write};

fn https(server: &Server, more: &str) -> String {
    let port = server.port;
    // What is configured without roots has a pin; the file is read by the loader.
    let roots = if more.contains("pin") { "" } else { "roots = \"/etc/ca.pem\"\n" };
    format!(
        "[[target]]\ntype = \"https\"\nurl = \"https://{HOST}:{port}/crash\"\nwait = 5\nretry = \
         4\n{roots}{more}"
    )
}

fn trusting(certificates: &Certificates) -> Remote {
    Remote { roots: certificates.text("ca.pem"), ..Remote::default() }
}

fn directory(server: &Server) -> PathBuf {
    server.dir.path().join("www/crash/web1").join(NAME)
}

fn refused(opened: Result<Box<dyn Target>, TargetError>) -> String {
    chain(&opened.err().expect("it is refused"))
}

#[test]
fn a_web_server_gets_parts_and_an_index() {
    let certificates = Certificates::new();
    let mut server = nginx(&certificates, "server", "", "");
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
            (&(**name).into(), &sha256(&joined(&at, std::slice::from_ref(name))).into())
        );
    }
    let requests = server.requests();
    let mut connections: Vec<_> = requests.iter().map(|line| line.split(' ').next().unwrap()).collect();
    connections.sort_unstable();
    connections.dedup();
    assert_eq!(requests.len(), 7);
    assert!(connections.len() <= 3, "no more than there are buffers: {requests:?}");
}

#[test]
fn a_part_whose_connection_broke_is_sent_again_as_it_was() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "server", "", "");
    let proxy = Proxy::new(server.port, 2 * MIB, 3);
    let config = https(&server, "").replace(&server.port.to_string(), &proxy.port.to_string());
    let mut target = open(&config, trusting(&certificates)).unwrap();
    let dump = sample(11 * MIB);
    save(target.as_mut(), Artifact::Vmcore, &dump).unwrap();
    let parts: Vec<_> = (1..=3).map(|n| format!("vmcore.flat.part{n:05}")).collect();
    assert!(joined(&directory(&server), &parts) == dump);
    assert!(target.sent()[0].retries >= 3, "{:?}", target.sent());
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
    let mut server = nginx(&certificates, "server", guard, "");
    let config = https(&server, "token_file = \"/etc/token\"\n");
    let remote = |token: &str| Remote { token: Secret::new(token.to_owned()), ..trusting(&certificates) };
    let mut target = open(&config, remote("t0k3n\n")).unwrap();
    save(target.as_mut(), Artifact::Dmesg, b"log").unwrap();
    let mut target = open(&config, remote("another")).unwrap();
    let error = save(target.as_mut(), Artifact::Dmesg, b"other").unwrap_err();
    let text = chain(error.as_ref());
    assert!(text.contains("401 Unauthorized") && !text.contains("another"), "{text}");
    assert_eq!(
        server.requests().iter().filter(|line| line.ends_with("PUT 401")).count(),
        1,
        "it is not tried again"
    );
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
    assert!(start.elapsed() < Duration::from_secs(10), "none of them is asked again");
    // Nobody vouches for who signs himself, but his key is known.
    let selfsigned = nginx(&certificates, "stranger", "", "");
    let config = https(&selfsigned, &format!("pin = [{:?}]\n", certificates.pin("stranger")));
    save(open(&config, Remote::default()).unwrap().as_mut(), Artifact::Dmesg, b"log").unwrap();
}

#[test]
fn a_wrong_clock_is_told_and_harmless() {
    let certificates = Certificates::new();
    let san = format!("subjectAltName=DNS:{HOST}");
    for (name, at) in [("past", "2024-01-01 00:00:00"), ("future", "+90 days")] {
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
