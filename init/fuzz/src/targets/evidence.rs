//! The directory of a capture in hostile hands: what checks it ends, prints nothing that a terminal acts
//! upon, and says that all holds only of what was signed.
//!
//! Input: the files of the directory, each with its length before it (little-endian `u16`).

use std::fs;

use afterimage::evidence::custody;
use evidence::arm::{self, ArmRecord};
use evidence::events;
use evidence::manifest::{self, Digest, File, Manifest, Pages, Pieces};
use evidence::minisign::SecretKey;
use evidence::verify::{Holds, Trust, verify};
use evidence::{hex, sha256};

use crate::{take, take_u16};

const NAMES: [&str; 7] = [
    "manifest.json",
    "manifest.json.minisig",
    "arm.json",
    "arm.json.minisig",
    "events.jsonl",
    "vmcore",
    "custody.jsonl",
];

fn host() -> SecretKey {
    SecretKey::from_seed(&[7; 32])
}

/// The files, without a chain of custody.
fn sample() -> Vec<Vec<u8>> {
    let load = SecretKey::from_seed(&[8; 32]);
    let record = ArmRecord {
        schema: arm::SCHEMA.to_owned(),
        id: "1".to_owned(),
        public_key: load.public().to_string(),
        host_key: host().public().to_string(),
        ..ArmRecord::default()
    };
    let arm = record.to_json().expect("canonical");
    let sum = hex(&sha256(arm.as_bytes()));
    let what = ["armed", "the capture ends"].map(|what| (1, "2026-01-01T00:00:00Z".to_owned(), what));
    let (text, chain) = events::chain(&sum, what.into_iter()).expect("canonical");
    let dump = [3; 100];
    let sums = dump.chunks(40).map(|piece| Some(hex(&sha256(piece)))).collect();
    let pieces = Pieces { front: 0, size: 40, merkle_root: None, sha256: sums };
    let whole = |name: &str, bytes: &[u8]| File {
        name: name.to_owned(),
        bytes: bytes.len().try_into().expect("small"),
        sha256: Some(hex(&sha256(bytes))),
        ..File::default()
    };
    let manifest = Manifest {
        schema: manifest::SCHEMA.to_owned(),
        evidence: "e".to_owned(),
        verdict: "complete".to_owned(),
        pages: Pages { total: 3, written: 3, ..Pages::default() },
        files: vec![
            whole("events.jsonl", text.as_bytes()),
            File { sha256: None, pieces: Some(pieces), ..whole("vmcore", &dump) },
        ],
        events: chain,
        arm: Some(Digest { id: "1".to_owned(), sha256: sum }),
        public_key: Some(record.public_key),
        ..Manifest::default()
    };
    let manifest = manifest.to_json().expect("canonical");
    let signature = load.sign(manifest.as_bytes(), "evidence e");
    let arm_signature = host().sign(arm.as_bytes(), "load 1");
    let files = [manifest, signature, arm, arm_signature, text].map(String::into_bytes);
    files.into_iter().chain([dump.to_vec()]).collect()
}

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut input, mut files) = (data, Vec::new());
    for name in NAMES {
        let len = take_u16(&mut input);
        let bytes = take(&mut input, len.into()).to_vec();
        if !bytes.is_empty() {
            fs::write(directory.path().join(name), &bytes).expect("a file");
        }
        files.push(bytes);
    }
    let trust = Trust { keys: vec![host().public()] };
    let report = verify(directory.path(), &trust, &[], &mut |_| {}).expect("the directory is there");
    let good = sample();
    let is_good = |at: usize| files.get(at) == good.get(at);
    // `SHA256SUMS` is missing, which is said.
    let faults = report.checks.iter().filter(|check| check.holds != Holds::Yes && check.what != "SHA256SUMS");
    if faults.count() == 0 {
        assert!(is_good(0) && is_good(2) && is_good(4) && is_good(5), "changed, and all of it holds");
    }
    for check in &report.checks {
        assert!(!check.what.contains(base::text::is_unsafe), "{:?}", check.what);
    }
    for shown in custody::show(directory.path()).into_iter().flatten() {
        assert!(!shown.text().contains(base::text::is_unsafe), "{:?}", shown.text());
    }
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let with_length = |bytes: &Vec<u8>| {
        let len = u16::try_from(bytes.len()).expect("small").to_le_bytes();
        [len.as_slice(), bytes].concat()
    };
    vec![sample().iter().flat_map(with_length).collect()]
}
