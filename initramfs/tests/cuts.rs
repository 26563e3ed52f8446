//! Dumps that end anywhere: none of them passes for whole, and what arrived of a stream is recovered.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails panics")]
#![expect(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "likewise")]
#![expect(clippy::cast_possible_truncation, reason = "a test runs on a 64-bit machine")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use afterimage::input::Input;
use afterimage::{inspect, offline, stream};
use base::addr::Pfn;
use base::config::{Compress, Config, Dump, Exclude, Format};
use tempfile::TempDir;
use vmcore::format::flattened::{HEADER_LEN, RECORD_LEN, Record};
use vmcore::format::kdump::PageDesc;
use vmcore::report::Outcome;
use vmcore::source::testing::CoreFile;
use vmcore::source::{Kdump, PhysicalMemory};

const PAGE: usize = 4096;
const MEMORY: [(u64, u64); 3] = [(0x1000, 300), (0x100_0000, 500), (0x1_0000_0000, 200)];
const INFO: &[u8] = b"OSRELEASE=6.1-test\nPAGESIZE=4096\nCRASHTIME=1700000000\n";

fn core() -> CoreFile {
    let memory =
        (1..).zip(MEMORY).fold(CoreFile::new(), |core, (seed, (at, pages))| core.memory(at, pages, seed));
    memory.note("CORE", 1, &[0; 336]).note("VMCOREINFO", 0, INFO)
}

/// Numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

fn dump(input: &Path, out: &Path, format: Format) {
    let dump = Dump { exclude: Exclude::preset("full").unwrap(), compress: Compress::default(), format };
    let config = Config { dump, ..Config::default() };
    let summary = offline::dump(&[input.to_owned()], out, &config, false).unwrap();
    assert_eq!(summary.outcome, Outcome::Complete);
}

/// The whole dump in a format, and where the cut ones go.
fn whole(format: Format) -> (TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("core"), dir.path().join("whole"));
    fs::write(&input, core().bytes()).unwrap();
    dump(&input, &out, format);
    let bytes = fs::read(&out).unwrap();
    (dir, out, bytes)
}

/// Whether anything says that a file is not whole: it cannot be opened, or its report says so.
fn is_told(path: &Path) -> bool {
    match Input::open(&[path.to_owned()]) {
        Err(_) => true,
        Ok(input) => {
            let report = inspect::report(&input).unwrap();
            assert_eq!(report.text.contains("INCOMPLETE: "), !report.is_whole, "{}", report.text);
            assert_eq!(input.faults().unwrap().is_empty(), report.is_whole);
            !report.is_whole
        }
    }
}

/// Cuts a dump at `cuts` places. Every one is told, also by a dump that is made of it.
fn no_cut_passes(format: Format, cuts: usize, seed: u64) {
    let (dir, out, bytes) = whole(format);
    assert!(!is_told(&out), "the whole dump is whole");
    let mut random = Random(seed);
    let cut = dir.path().join("cut");
    for number in 0..cuts {
        let at = random.below(bytes.len());
        fs::write(&cut, &bytes[..at]).unwrap();
        assert!(is_told(&cut), "{format} cut at {at} of {} passes", bytes.len());
        if number % 20 == 0 {
            let again = dir.path().join("again");
            let config = Config::default();
            if let Ok(summary) = offline::dump(core::slice::from_ref(&cut), &again, &config, true) {
                assert_eq!(summary.outcome, Outcome::Incomplete, "{format} cut at {at}");
                assert!(is_told(&again), "what is made of {format} cut at {at} passes");
            }
        }
    }
}

#[test]
fn no_cut_of_a_kdump_file_passes() {
    no_cut_passes(Format::Kdump, 250, 1);
}

#[test]
fn no_cut_of_a_stream_passes() {
    no_cut_passes(Format::Flattened, 250, 2);
}

#[test]
fn no_cut_of_an_elf_core_passes() {
    no_cut_passes(Format::Elf, 250, 3);
}

#[test]
fn no_cut_of_lime_passes() {
    no_cut_passes(Format::Lime, 250, 4);
}

/// Where each byte of the dump lies in its stream: (first byte in the dump, bytes, first byte in the stream).
fn records(stream: &[u8]) -> Vec<(u64, u64, u64)> {
    let (mut records, mut at) = (Vec::new(), HEADER_LEN);
    while let Some(Record::Piece { offset, len }) = Record::parse(&stream[at..]) {
        at += RECORD_LEN;
        records.push((offset, len, at as u64));
        at += len as usize;
    }
    records
}

/// For each page that the dump has: the byte of the stream behind its data and its descriptor. Of
/// pages of zeros, which share their data, the descriptor is what arrives.
fn arrivals(stream: &[u8], dump: &Kdump) -> BTreeMap<u64, u64> {
    let records = records(stream);
    let end_of = |offset: u64, size: u64| {
        let inside = |&&(start, len, _): &&(u64, u64, u64)| start <= offset && offset + size <= start + len;
        let (start, _, at) = records.iter().find(inside).unwrap();
        at + (offset - start) + size
    };
    let pages = dump.ranges().iter().flat_map(|range| range.start().0..range.end().0);
    let kept = pages.filter_map(|pfn| dump.desc(Pfn(pfn)).unwrap().map(|desc| (pfn, desc)));
    let place = |(rank, (pfn, desc)): (u64, (u64, PageDesc))| {
        let data = end_of(desc.offset, desc.size.into());
        (pfn, data.max(end_of(dump.layout().desc_offset(rank).unwrap(), 24)))
    };
    (0..).zip(kept).map(place).collect()
}

/// Pages of a dump that can be read; they are as in the core.
fn readable(path: &Path) -> Vec<u64> {
    let (dump, core, mut page) = (Kdump::open(path).unwrap(), core(), vec![0; PAGE]);
    let mut reader = dump.page_reader();
    let pages = dump.ranges().iter().flat_map(|range| range.start().0..range.end().0);
    let is_there = |pfn: &u64| {
        let there = reader.read_page(Pfn(*pfn), &mut page).is_ok();
        assert!(!there || page == core.page(*pfn), "page {pfn:#x} is another one");
        there
    };
    pages.filter(is_there).collect()
}

#[test]
fn all_pages_that_arrived_of_a_stream_are_recovered() {
    let (dir, out, bytes) = whole(Format::Flattened);
    let arrivals = arrivals(&bytes, &Kdump::open(&out).unwrap());
    assert_eq!(arrivals.len(), 1000);
    let first = *arrivals.values().min().unwrap() as usize;
    let (cut, recovered) = (dir.path().join("cut"), dir.path().join("recovered"));
    let mut random = Random(5);
    for _ in 0..150 {
        let at = first + random.below(bytes.len() - first);
        fs::write(&cut, &bytes[..at]).unwrap();
        let _ = fs::remove_file(&recovered);
        let said = stream::recover(core::slice::from_ref(&cut), &recovered).unwrap();
        assert!(!said.faults.is_empty() && is_told(&recovered), "cut at {at}");
        let arrived = arrivals.values().filter(|&&end| end <= at as u64).count();
        let there = readable(&recovered);
        assert_eq!(there.len(), arrived, "cut at {at}: pages that arrived and pages that are recovered");
        assert_eq!(said.kept - said.lost, there.len() as u64);
    }
}

#[test]
fn a_whole_stream_is_recovered_whole_from_its_parts_in_order() {
    let (dir, _, bytes) = whole(Format::Flattened);
    let part = |number: usize| dir.path().join(format!("vmcore.flat.part{number:05}"));
    let chunk = bytes.len() / 5 + 1;
    for (number, bytes) in bytes.chunks(chunk).enumerate() {
        fs::write(part(number), bytes).unwrap();
    }
    let all: Vec<PathBuf> = (0..5).map(part).collect();
    let recovered = dir.path().join("recovered");
    assert_eq!(stream::recover(&all, &recovered).unwrap().faults, [""; 0]);
    assert!(!is_told(&recovered));
    assert_eq!(readable(&recovered).len(), 1000);
    // Without one of them, all pages of the others but for those around the gap.
    for missing in 2..5 {
        let some: Vec<PathBuf> =
            all.iter().enumerate().filter(|&(n, _)| n != missing).map(|(_, p)| p.clone()).collect();
        let out = dir.path().join(format!("without-{missing}"));
        assert!(!stream::recover(&some, &out).unwrap().faults.is_empty());
        assert!(is_told(&out));
        let there = readable(&out).len();
        assert!((500..1000).contains(&there), "without part {missing}: {there}");
    }
    assert!(stream::recover(&all, &recovered).is_err(), "what is there is not written over");
}

#[test]
fn formats_in_the_order_of_pages_go_to_a_pipe() {
    for format in [Format::Elf, Format::Lime, Format::Raw, Format::Flattened] {
        let (dir, out, bytes) = whole(format);
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_afterimage"))
            .args(["dump", "--level", "0", "--format", &format.to_string()])
            .args([&dir.path().join("core"), Path::new("-")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        if format != Format::Flattened {
            assert!(output.stdout == bytes, "{format}: what a pipe takes is what a file has");
        }
        fs::write(&out, output.stdout).unwrap();
        if format != Format::Raw {
            assert!(!is_told(&out), "{format}");
        }
    }
}

#[test]
fn lime_and_raw_memory_give_the_pages_of_the_core() {
    for format in [Format::Lime, Format::Raw] {
        let (dir, out, _) = whole(format);
        let again = dir.path().join("again");
        if format == Format::Raw {
            // There is no kernel in it that could be found.
            assert!(
                Input::open(core::slice::from_ref(&out))
                    .unwrap_err()
                    .to_string()
                    .contains("no Linux kernel in it")
            );
            continue;
        }
        dump(&out, &again, Format::Kdump);
        assert_eq!(readable(&again).len(), 1000, "{format}");
    }
}
