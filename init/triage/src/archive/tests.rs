//! Archives, read back by zstd and the library `tar`, and by GNU tar as it is in the system.

use std::fs;
use std::io::Read;
use std::process::Command;

use super::*;
use crate::artefacts::Row;
use base::addr::VirtAddr;

fn recovered<'a>(path: &'a str, bytes: u64, ranges: &'a [(u64, u64)]) -> Recovered<'a> {
    Recovered { path, bytes, ranges, mode: 0o104_644, modified: Some(1_700_000_000) }
}

/// Some rows, a file without holes, one with holes, one with a long name, one of zeros.
fn chunks() -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut send = |chunk: Chunk| {
        chunks.push(chunk);
        Ok(())
    };
    let mut archive = Archive::new(1_600_000_000, &mut send).unwrap();
    for number in 0..5000 {
        let mut row = Row::at(VirtAddr(number));
        row.set("file.path", "x".repeat(200));
        archive.line("files.jsonl", &row.to_line()).unwrap();
    }
    let mut file = |path: &str, bytes: u64, ranges: &[(u64, u64)], letter: u8| {
        let name = archive.begin(&recovered(path, bytes, ranges)).unwrap();
        for (start, end) in ranges {
            archive.write(&vec![letter; to_usize(end - start)]).unwrap();
        }
        archive.end().unwrap();
        name
    };
    assert_eq!(file("/tmp/whole", 700_001, &[(0, 700_001)], b'a'), "[root]/tmp/whole");
    assert_eq!(file("/tmp/holes", 20_000, &[(4096, 8192), (12_288, 12_290)], b'b'), "[root]/tmp/holes");
    assert_eq!(file("/tmp/to-the-end", 9000, &[(8192, 9000)], b'c'), "[root]/tmp/to-the-end");
    let long = format!("/var/{}/é", "d".repeat(150));
    assert_eq!(file(&long, 3, &[(0, 3)], b'd'), format!("[root]{long}"));
    assert_eq!(file("/tmp/whole", 0, &[], b'e'), "[root]/[other]/1");
    archive.done("files.jsonl").unwrap();
    archive.done("sockets.jsonl").unwrap();
    archive.text("index.json", "{}\n").unwrap();
    archive.finish().unwrap();
    chunks
}

fn join(chunks: &[Chunk]) -> Vec<u8> {
    chunks.iter().flat_map(|chunk| chunk.frame.clone()).collect()
}

/// Names and lengths, as the library reads them.
fn entries(bytes: &[u8]) -> Vec<(String, u64)> {
    let plain = zstd::stream::decode_all(bytes).unwrap();
    assert!(plain.ends_with(&[0; 2 * BLOCK]), "it does not end as a tar does");
    let mut archive = tar::Archive::new(plain.as_slice());
    let entries = archive.entries().unwrap();
    let name = |entry: io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        let mut all = Vec::new();
        entry.read_to_end(&mut all).unwrap();
        (entry.path().unwrap().to_string_lossy().into_owned(), to_u64(all.len()))
    };
    entries.map(name).collect()
}

#[test]
fn every_file_is_read_back_by_gnu_tar() {
    let dir = tempfile::tempdir().unwrap();
    let plain = zstd::stream::decode_all(join(&chunks()).as_slice()).unwrap();
    let tar = dir.path().join("triage.tar");
    fs::write(&tar, plain).unwrap();
    let done = Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(dir.path()).output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read("[root]/tmp/whole"), vec![b'a'; 700_001]);
    let mut holes = vec![0; 20_000];
    holes[4096..8192].fill(b'b');
    holes[12_288..12_290].fill(b'b');
    assert!(read("[root]/tmp/holes") == holes);
    let mut end = vec![0; 9000];
    end[8192..].fill(b'c');
    assert!(read("[root]/tmp/to-the-end") == end);
    assert_eq!(read(&format!("[root]/var/{}/é", "d".repeat(150))), b"ddd");
    assert_eq!(read("[root]/[other]/1"), b"");
    assert_eq!(String::from_utf8(read("files.jsonl")).unwrap().lines().count(), 5000);
    assert_eq!((read("sockets.jsonl"), read("index.json")), (Vec::new(), b"{}\n".to_vec()));
}

#[test]
fn behind_any_part_the_archive_can_end() {
    let chunks = chunks();
    assert!(chunks.len() > 8 && chunks.iter().any(|chunk| chunk.owed > 0), "{}", chunks.len());
    assert_eq!(chunks.last().map(|chunk| chunk.owed), Some(0));
    let whole = entries(&join(&chunks));
    for count in 0..chunks.len() {
        let owed = chunks[..count].last().map_or(0, |chunk| chunk.owed);
        let mut bytes = join(&chunks[..count]);
        bytes.extend(ending(owed, "the walker died", 0).unwrap().concat());
        let mut found = entries(&bytes);
        assert_eq!(found.pop().map(|(name, _)| name).as_deref(), Some("INCOMPLETE.txt"));
        assert_eq!(found, whole[..found.len()], "{count} parts");
    }
}

#[test]
fn rows_have_a_limit_and_those_that_came_before_it_stay() {
    let mut bytes = Vec::new();
    let mut send = |chunk: Chunk| {
        bytes.extend(chunk.frame);
        Ok(())
    };
    let mut archive = Archive::new(0, &mut send).unwrap();
    let mut count = 0_u64;
    let mut state = 1_u64;
    let error = loop {
        let mut row = Row::default();
        // Digits that no compression makes much shorter.
        let noise = core::array::from_fn::<u64, 100, _>(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 8
        });
        row.set("noise", noise.map(|word| format!("{word:x}")).concat());
        match archive.line("files.jsonl", &row.to_line()) {
            Ok(()) => count += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("4 MiB"), "{error}");
    archive.done("files.jsonl").unwrap();
    archive.finish().unwrap();
    let plain = zstd::stream::decode_all(bytes.as_slice()).unwrap();
    let mut archive = tar::Archive::new(plain.as_slice());
    let mut text = String::new();
    archive.entries().unwrap().next().unwrap().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(to_u64(text.lines().count()), count);
}

#[test]
fn a_record_counts_its_own_length() {
    for len in [0, 1, 80, 89, 90, 91, 92, 93, 980, 990, 991, 992, 993] {
        let record = record("path", &"x".repeat(len));
        let said: usize = record.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(said, record.len());
    }
}
