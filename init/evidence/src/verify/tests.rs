use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::manifest::{Digest, File, Host, Pages};
use crate::minisign::SecretKey;
use crate::sums::{FileSums, Piece};

/// Bytes of the dump's front and of each of its pieces, here.
const FRONT: usize = 700;
const SIZE: usize = 1000;

/// A capture as it was saved.
struct Sample {
    dir: TempDir,
    host: SecretKey,
    load: SecretKey,
}

#[expect(clippy::cast_possible_truncation, reason = "below 251")]
fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ seed).collect()
}

/// The dump's sums as a capture makes them: no sum of the whole, pieces.
fn in_pieces(dump: &[u8], name: &str) -> File {
    let cut = [0..FRONT]
        .into_iter()
        .chain((FRONT..dump.len()).step_by(SIZE).map(|at| at..(at + SIZE).min(dump.len())));
    let pieces = cut.map(|range| Piece {
        offset: range.start as u64,
        bytes: range.len() as u64,
        sum: Some(sha256(&dump[range])),
    });
    let sums = FileSums { bytes: dump.len() as u64, whole: None, pieces: pieces.collect() };
    let mut file = File::new(name.into(), "memory", &sums);
    let pieces = file.pieces.as_mut().unwrap();
    (pieces.front, pieces.size) = (FRONT as u64, SIZE as u64);
    file
}

fn whole(bytes: &[u8], name: &str, role: &str) -> File {
    let sums = FileSums { bytes: bytes.len() as u64, whole: Some(sha256(bytes)), pieces: Vec::new() };
    File::new(name.into(), role, &sums)
}

impl Sample {
    /// `seed` makes another capture of another load; `verdict` is that of the capture.
    fn new(seed: u8, verdict: &str) -> Self {
        let (host, load) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[seed; 32]));
        let sample = Self { dir: tempfile::tempdir().unwrap(), host, load };
        let record = ArmRecord {
            schema: arm::SCHEMA.into(),
            id: format!("load{seed}"),
            host: "h".into(),
            boot_id: "boot".into(),
            public_key: sample.load.public().to_string(),
            host_key: sample.host.public().to_string(),
            ..ArmRecord::default()
        };
        let arm = record.to_json().unwrap();
        let what = ["armed", "log saved", "dump saved", "the capture ends"];
        let told = what.iter().map(|&what| (7, "2026-01-01T00:00:00Z".into(), what));
        let (events, chain) = events::chain(&hex(&sha256(arm.as_bytes())), told).unwrap();
        let mut files = Vec::new();
        for (name, role, content) in [
            ("dmesg.txt", "log", bytes(333, seed)),
            ("result.json", "result", bytes(90, seed)),
            ("events.jsonl", "events", events.into_bytes()),
            ("arm.json", "arm-record", arm.clone().into_bytes()),
            ("arm.json.minisig", "arm-signature", sample.host.sign(arm.as_bytes(), "load").into_bytes()),
        ] {
            files.push(whole(&content, name, role));
            sample.write(name, &content);
        }
        let dump = bytes(5432, seed);
        match verdict {
            "complete" => files.push(in_pieces(&dump, "vmcore")),
            "incomplete" => {
                files.push(File { incomplete: true, ..in_pieces(&dump, "vmcore-incomplete") });
            }
            _ => {}
        }
        if let Some(file) = files.iter().find(|file| file.role == "memory") {
            sample.write(&file.name, &dump);
        }
        let missing = if verdict == "complete" { 0 } else { 3 };
        let pages = Pages { total: 10 + missing, written: 4, zero: 6, missing, ..Pages::default() };
        let manifest = Manifest {
            schema: manifest::SCHEMA.into(),
            evidence: format!("e{seed}"),
            verdict: verdict.into(),
            host: Host { boot_id: Some("boot".into()), ..Host::default() },
            pages,
            files,
            events: chain,
            arm: Some(Digest { id: record.id, sha256: hex(&sha256(arm.as_bytes())) }),
            public_key: Some(record.public_key),
            ..Manifest::default()
        };
        sample.sign(&manifest);
        let sums = manifest.files.iter().filter_map(|file| Some((file.sha256.as_deref()?, &*file.name)));
        sample.write(SUMS, manifest::sums_file(sums).as_bytes());
        sample
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn manifest(&self) -> Manifest {
        serde_json::from_str(&self.read(MANIFEST)).unwrap()
    }

    fn sign(&self, manifest: &Manifest) {
        let text = manifest.to_json().unwrap();
        let comment = format!("evidence {}", manifest.evidence);
        self.write(SIGNATURE, self.load.sign(text.as_bytes(), &comment).as_bytes());
        self.write(MANIFEST, text.as_bytes());
    }

    fn verify(&self) -> Report {
        let trust = Trust { keys: vec![self.host.public()] };
        verify(self.dir.path(), &trust, &[], &mut |_| {}).unwrap()
    }

    /// What does not hold.
    fn faults(&self) -> Vec<String> {
        let report = self.verify();
        let faults = report.checks.iter().filter(|check| check.holds == Holds::No);
        let faults: Vec<_> = faults.map(|check| format!("{}: {}", check.what, check.found)).collect();
        assert_eq!(report.holds() == Holds::No, !faults.is_empty());
        faults
    }
}

#[test]
fn a_good_capture_holds_whatever_it_is() {
    for seed in 2..35 {
        for verdict in ["complete", "incomplete", "log-only"] {
            let sample = Sample::new(seed, verdict);
            sample.write(".afterimage", b"sequence = 1");
            fs::create_dir(sample.path(&format!(".afterimage-{}", "0a".repeat(16)))).unwrap();
            let report = sample.verify();
            assert_eq!(report.holds(), Holds::Yes, "{:?}", report.checks);
            assert_eq!(report.verdict.as_deref(), Some(verdict));
        }
    }
}

#[test]
fn a_key_that_nobody_has_vouched_for_is_said() {
    let sample = Sample::new(2, "complete");
    let with = |keys: Vec<PublicKey>| {
        let report = verify(sample.dir.path(), &Trust { keys }, &[], &mut |_| {}).unwrap();
        let unknown = report.checks.iter().find(|check| check.holds == Holds::Unknown);
        (report.holds(), unknown.map(|check| check.found.clone()).unwrap_or_default())
    };
    let (holds, why) = with(vec![]);
    assert!(holds == Holds::Unknown && why.contains(&format!("--key {}", sample.host.public())), "{why}");
    let stranger = SecretKey::from_seed(&[99; 32]).public();
    assert_eq!(with(vec![stranger]).0, Holds::Unknown);
    assert_eq!(with(vec![stranger, sample.host.public()]).0, Holds::Yes);
    assert_eq!(with(vec![sample.load.public()]).0, Holds::Yes, "who knows the load key needs no other");
}

#[test]
fn a_capture_that_did_not_come_to_its_end_is_neither_whole_nor_damaged() {
    let sample = Sample::new(2, "complete");
    // A power cut before the manifest: its signature and the sums are there.
    fs::rename(sample.path(MANIFEST), sample.path("manifest.json-incomplete")).unwrap();
    let report = sample.verify();
    assert_eq!((report.holds(), report.verdict.clone()), (Holds::Unknown, None));
    assert!(report.checks[0].found.contains("did not come to its end"), "{:?}", report.checks);
}

type Act = fn(&Sample);

/// What is done to a capture, and how what does not hold then begins.
const ACTS: [(&str, Act); 17] = [
    ("dmesg.txt: it is missing", |s| fs::remove_file(s.path("dmesg.txt")).unwrap()),
    ("added.txt: it is not of this capture", |s| s.write("added.txt", b"x")),
    ("renamed: it is not of this capture", |s| fs::rename(s.path("vmcore"), s.path("renamed")).unwrap()),
    ("vmcore: it has 5000 bytes, and had 5432", |s| s.write("vmcore", &bytes(5000, 2))),
    ("vmcore: it has 5433 bytes", |s| s.write("vmcore", &bytes(5433, 2))),
    ("manifest.json.minisig: it is by the key", |s| {
        let other = SecretKey::from_seed(&[77; 32]);
        s.write(SIGNATURE, other.sign(s.read(MANIFEST).as_bytes(), "evidence e2").as_bytes());
    }),
    ("arm.json: it names another load key", |s| {
        // Whoever has no load key signs with one of his own.
        let other = SecretKey::from_seed(&[77; 32]);
        let manifest = Manifest { public_key: Some(other.public().to_string()), ..s.manifest() };
        let text = manifest.to_json().unwrap();
        s.write(SIGNATURE, other.sign(text.as_bytes(), "evidence e2").as_bytes());
        s.write(MANIFEST, text.as_bytes());
    }),
    ("arm.json: the program that captured is not the one", |s| {
        let mut manifest = s.manifest();
        manifest.tools.init_sha256 = Some("another".into());
        s.sign(&manifest);
    }),
    ("arm.json: it is not the one", |s| {
        let other = Sample::new(3, "complete");
        for name in [ARM, ARM_SIGNATURE] {
            s.write(name, other.read(name).as_bytes());
        }
    }),
    ("dmesg.txt: its SHA-256 is not the one", |s| {
        let other = Sample::new(3, "complete");
        for name in [MANIFEST, SIGNATURE, ARM, ARM_SIGNATURE, EVENTS] {
            s.write(name, other.read(name).as_bytes());
        }
    }),
    ("manifest.json.minisig: the signature does not hold", |s| {
        let manifest = Manifest { verdict: "incomplete".into(), ..s.manifest() };
        s.write(MANIFEST, manifest.to_json().unwrap().as_bytes());
    }),
    ("manifest.json: it is not in the canonical form", |s| {
        s.write(MANIFEST, (s.read(MANIFEST) + "\n").as_bytes());
    }),
    ("events.jsonl: line 3 was not written behind", |s| {
        s.write(EVENTS, s.read(EVENTS).replace("log saved", "dog saved").as_bytes());
    }),
    ("events.jsonl: line 2 has the number 2", |s| {
        let text = s.read(EVENTS);
        let lines: Vec<_> =
            text.lines().enumerate().filter(|(at, _)| *at != 1).map(|(_, line)| line).collect();
        s.write(EVENTS, (lines.join("\n") + "\n").as_bytes());
    }),
    ("events.jsonl: line 1 has the number 1", |s| {
        let text = s.read(EVENTS);
        let mut lines: Vec<_> = text.lines().collect();
        lines.swap(0, 1);
        s.write(EVENTS, (lines.join("\n") + "\n").as_bytes());
    }),
    ("SHA256SUMS: its line", |s| {
        s.write(SUMS, s.read(SUMS).replacen('a', "b", 1).replacen('1', "2", 1).as_bytes());
    }),
    ("result.json: it cannot be read: it is no regular file", |s| {
        fs::remove_file(s.path("result.json")).unwrap();
        fs::create_dir(s.path("result.json")).unwrap();
    }),
];

#[test]
fn what_was_done_to_a_capture_is_named() {
    for (wanted, act) in ACTS {
        let sample = Sample::new(2, "complete");
        act(&sample);
        let faults = sample.faults();
        assert!(faults.iter().any(|fault| fault.starts_with(wanted)), "{wanted}: {faults:?}");
    }
}

/// A manifest with a good signature may still not be believed: who has the load key made it.
#[test]
fn an_account_that_does_not_add_up_is_not_complete() {
    let sample = Sample::new(2, "complete");
    let mut manifest = sample.manifest();
    manifest.pages.written += 1;
    sample.sign(&manifest);
    assert_eq!(sample.faults(), ["page account: the fates of 11 pages are told, of 10 in all"]);
    let mut manifest = Sample::new(2, "incomplete").manifest();
    manifest.verdict = "complete".into();
    let sample = Sample::new(2, "incomplete");
    sample.sign(&manifest);
    assert_eq!(sample.faults(), ["page account: the verdict is complete, and vmcore-incomplete is not"]);
}

#[test]
fn a_damaged_dump_proves_its_good_parts() {
    let sample = Sample::new(2, "complete");
    let mut dump = fs::read(sample.path("vmcore")).unwrap();
    dump[FRONT + SIZE + 5] ^= 4;
    sample.write("vmcore", &dump);
    assert_eq!(sample.faults(), ["vmcore: it was changed, or cut, within bytes 1700 to 2700"]);
    let report = sample.verify();
    assert!(
        report.good.contains(&"vmcore: 4432 of 5432 bytes, in whole pieces".to_owned()),
        "{:?}",
        report.good
    );
    assert!(report.good.contains(&"dmesg.txt".to_owned()));
}

#[test]
fn a_dump_that_was_sent_in_parts_is_read_from_them() {
    let sample = Sample::new(2, "complete");
    let dump = fs::read(sample.path("vmcore")).unwrap();
    fs::remove_file(sample.path("vmcore")).unwrap();
    let files: Vec<_> = dump
        .chunks(1000)
        .enumerate()
        .map(|(at, part)| {
            sample.write(&format!("vmcore.p{at}"), part);
            serde_json::json!({ "name": format!("vmcore.p{at}") })
        })
        .collect();
    let index = serde_json::json!({ "name": "vmcore", "objects": [{ "name": "vmcore", "files": files }] });
    sample.write("vmcore.json", index.to_string().as_bytes());
    assert_eq!(sample.faults(), Vec::<String>::new());
    sample.write("vmcore.p2", b"short");
    assert!(!sample.faults().is_empty());
}

/// Names in a manifest are whoever's.
#[test]
fn a_name_that_leads_out_of_the_directory_is_not_followed() {
    let sample = Sample::new(2, "complete");
    let outside = tempfile::NamedTempFile::new().unwrap();
    for name in ["../outside", "/etc/passwd", "..", ""] {
        let mut manifest = sample.manifest();
        manifest.files.push(whole(b"", name, "log"));
        sample.sign(&manifest);
        let faults = sample.faults();
        assert!(faults.iter().any(|fault| fault.contains("no name of a file")), "{name}: {faults:?}");
    }
    fs::remove_file(sample.path("dmesg.txt")).unwrap();
    std::os::unix::fs::symlink(outside.path(), sample.path("dmesg.txt")).unwrap();
    assert!(!sample.faults().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_bit_that_was_flipped_anywhere_is_noticed(
        which: prop::sample::Index, at: prop::sample::Index, bit in 0..8_u32
    ) {
        thread_local!(static SAMPLE: Sample = Sample::new(2, "complete"));
        SAMPLE.with(|sample| {
            let names = fs::read_dir(sample.dir.path()).unwrap();
            let mut names: Vec<_> = names.map(|entry| entry.unwrap().path()).collect();
            names.sort();
            let path = which.get(&names);
            let good = fs::read(path).unwrap();
            let mut bad = good.clone();
            bad[at.index(good.len())] ^= 1 << bit;
            fs::write(path, &bad).unwrap();
            let faults = sample.faults();
            fs::write(path, &good).unwrap();
            // The first line of a signature is not signed, and says so itself.
            let is_unsigned = bad.starts_with(b"untrusted comment: ") && good.starts_with(b"untrusted comment: ")
                && at.index(good.len()) < good.iter().position(|&byte| byte == b'\n').unwrap();
            let is_signature_of_manifest = path.ends_with(SIGNATURE);
            prop_assert!(!faults.is_empty() || (is_unsigned && is_signature_of_manifest), "{path:?} {at:?}");
            Ok(())
        })?;
    }
}
