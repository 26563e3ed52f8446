//! s3s-fs with a bucket.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use base::facts::{AccessKeys, Remote, Secret};
use vmcore::target::Artifact;

use crate::servers::{KEYS, Proxy, Server, s3};
use crate::{MIB, NAME, chain, joined, names, open, sample, save, sha256};

fn s3_config(port: u16, more: &str) -> String {
    format!(
        "[[target]]\ntype = \"s3\"\nurl = \"http://127.0.0.1:{port}/dumps/fleet\"\ncredentials \
         = \"/etc/keys.toml\"\n\
         wait = 5\nretry = 20\n{more}"
    )
}

fn keys() -> Remote {
    let (access_key, secret_key) = (KEYS.0.to_owned(), Secret::new(KEYS.1.to_owned()));
    Remote { keys: Some(AccessKeys { access_key, secret_key, ..AccessKeys::default() }), ..Remote::default() }
}

fn bucket(server: &Server) -> PathBuf {
    server.dir.path().join("dumps/fleet/web1").join(NAME)
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
        let bytes = joined(&at, std::slice::from_ref(name));
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
    assert!(start.elapsed() < Duration::from_secs(10), "they are not tried again and again");
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
    // Parts and notes of uploads lie beside the bucket.
    let files = |server: &Server| {
        let entries = fs::read_dir(server.dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let mut target = open(&s3_config(server.port, ""), keys()).unwrap();
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    sink.write_at(0, &sample(16 * MIB)).unwrap();
    let start = Instant::now();
    while !files(&server).iter().any(|name| name.contains(".part-")) {
        assert!(start.elapsed() < Duration::from_secs(10), "no part arrived: {:?}", files(&server));
        thread::sleep(Duration::from_millis(20));
    }
    drop(sink);
    target.close().unwrap();
    let left: Vec<_> = files(&server).into_iter().filter(|name| name.starts_with(".upload")).collect();
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(names(&bucket(&server)), Vec::<String>::new());
}

#[test]
fn an_upload_that_cannot_end_is_completed_with_what_is_there() {
    let server = s3(None);
    let dump = sample(13 * MIB);
    let mut target = open(&s3_config(server.port, ""), keys()).unwrap();
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    sink.write_at(0, &dump).unwrap();
    // Something else than what comes next: the dump ends here.
    assert!(sink.write_at(7, b"x").is_err() && sink.write_at(13 << 20, b"x").is_err());
    drop(sink);
    assert_eq!(target.leave(Artifact::Vmcore).as_deref(), Some("vmcore.flat"));
    assert_eq!(target.leave(Artifact::Vmcore), None, "it is left once");
    assert!(fs::read(bucket(&server).join("vmcore.flat")).unwrap() == dump);
    let index = fs::read(bucket(&server).join("vmcore.flat-incomplete.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    assert_eq!((&index["incomplete"], &index["bytes"]), (&true.into(), &(13 << 20).into()));
    assert!(index["sha256"].is_null(), "{index}");
    // Of which nothing arrived nothing is left.
    drop(target.create(Artifact::Live).unwrap());
    assert_eq!(target.leave(Artifact::Live), None);
    target.close().unwrap();
    assert_eq!(names(&bucket(&server)), ["vmcore.flat", "vmcore.flat-incomplete.json"]);
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
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    let (start, piece, mut at) = (Instant::now(), sample(MIB), 0);
    let error = loop {
        match sink.write_at(at, &piece) {
            Ok(()) => at += 1 << 20,
            Err(error) => break error,
        }
    };
    let text = chain(&error);
    assert!(text.contains("neither took nor sent a byte for 2 seconds"), "{text}");
    assert!((2..10).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert!(at <= 16 << 20, "{at} bytes are held in memory");
}

#[test]
fn a_server_that_is_gone_is_waited_for_once() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = s3_config(port, "").replace("retry = 20", "retry = 4");
    let mut target = open(&config, keys()).unwrap();
    drop(listener);
    let mut took = |artifact| {
        let start = Instant::now();
        let error = save(target.as_mut(), artifact, b"x").unwrap_err();
        assert!(chain(error.as_ref()).contains("no answer in"), "{error}");
        start.elapsed()
    };
    let (first, second) = (took(Artifact::Dmesg), took(Artifact::Vmcore));
    assert!(first > Duration::from_secs(1) && second < first / 2, "{first:?}, {second:?}");
}
