//! ELF, LiME and raw against readers of a few lines, on sinks that fail. Independent readers judge
//! in `qemu-tests`.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::*;
use crate::dump::tests::{MemorySink, dump, open, request};
use crate::dump::{Request, Written, write};
use crate::sink::SinkError;
use crate::source::testing::CoreFile;
use crate::source::{Access, PhysicalMemory, Vmcore, VmcoreError};
use base::config::Compress;

/// The pages that a reader finds.
type Pages = BTreeMap<u64, Vec<u8>>;

/// Below 16 MiB: a raw file is as long as the last address.
fn sample() -> CoreFile {
    CoreFile::new()
        .memory(0x1000, 159, 1)
        .memory(0x10_0000, 1500, 2)
        .memory(0x80_0000, 103, 3)
        .note("CORE", 1, &[1; 336])
}

fn elf_pages(bytes: &[u8]) -> Pages {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    match Vmcore::open(file.path(), Access::Pread) {
        Ok(core) => {
            assert!(core.anomalies().is_empty(), "{:?}", core.anomalies());
            all_pages(&core)
        }
        Err(VmcoreError::NoMemory(1)) => Pages::new(),
        Err(error) => panic!("{error}"),
    }
}

fn all_pages(core: &Vmcore) -> Pages {
    let mut reader = core.page_reader();
    let pfns = core.ranges().iter().flat_map(|range| range.start().0..range.end().0);
    pfns.map(|pfn| {
        let mut page = vec![0; 4096];
        reader.read_page(Pfn(pfn), &mut page).unwrap();
        (pfn, page)
    })
    .collect()
}

fn lime_pages(mut bytes: &[u8]) -> Pages {
    let mut pages = Pages::new();
    while let Some((header, rest)) = bytes.split_at_checked(lime::HEADER_LEN) {
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        let (first, last) = (word(8), word(16));
        assert_eq!(header, lime::emit(first, last));
        let (data, rest) = rest.split_at(to_usize(last + 1 - first));
        pages.extend((first >> 12..).zip(data.chunks_exact(4096).map(<[u8]>::to_vec)));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "volatility3 refuses a file with {} bytes behind the last range", bytes.len());
    pages
}

fn raw_pages(bytes: &[u8]) -> Pages {
    assert_eq!(bytes.len() % 4096, 0);
    (0..).zip(bytes.chunks_exact(4096).map(<[u8]>::to_vec)).collect()
}

fn of(format: Format) -> Request {
    Request { format, ..request(1, Compress::None, 1) }
}

/// Checks pages that were found against the core; says how many pages of the core these are.
fn check(core: &Pages, found: &Pages, format: Format) -> u64 {
    for (pfn, page) in found {
        match core.get(pfn) {
            Some(expected) => assert!(page == expected, "page {pfn:#x} of {format}"),
            None => assert!(format == Format::Raw && page.iter().all(|&byte| byte == 0), "page {pfn:#x}"),
        }
    }
    to_u64(found.keys().filter(|pfn| core.contains_key(pfn)).count())
}

/// Takes a file apart.
type Reader = fn(&[u8]) -> Pages;

const READERS: [(Format, Reader); 3] =
    [(Format::Elf, elf_pages), (Format::Lime, lime_pages), (Format::Raw, raw_pages)];

#[test]
fn every_page_comes_back() {
    let file = sample().write();
    let core = open(file.path());
    let expected = all_pages(&core);
    for (format, pages) in READERS {
        let mut one = MemorySink::default();
        let (result, written) = dump(&core, &of(format), &mut one);
        result.unwrap();
        assert_eq!((written.pages.total(), written.pages.zero), (1762, 588));
        assert_eq!(written.bytes, to_u64(one.bytes.len()));
        assert_eq!(check(&expected, &pages(&one.bytes), format), 1762);
        let mut many = MemorySink::default();
        let more = Request { budget: Budget { workers: 3, plan: 0 }, ..of(format) };
        dump(&core, &more, &mut many).0.unwrap();
        assert!(one.bytes == many.bytes, "{format}");
    }
}

#[test]
fn a_full_sink_leaves_what_the_headers_say() {
    let file = sample().write();
    let core = open(file.path());
    let expected = all_pages(&core);
    for (format, pages) in READERS {
        let mut whole = MemorySink::default();
        dump(&core, &of(format), &mut whole).0.unwrap();
        for room in (0..whole.bytes.len()).step_by(149_993) {
            let mut sink = MemorySink { room: Some(room), ..MemorySink::default() };
            let (result, written) = dump(&core, &of(format), &mut sink);
            assert!(matches!(result, Err(DumpError::Sink { source, .. }) if source.is_full()), "room {room}");
            if format == Format::Elf && room < 4096 {
                assert_eq!(written.pages.total(), 0); // no room for the headers
                continue;
            }
            assert_eq!(written.bytes, to_u64(sink.bytes.len()), "{format} with room for {room}");
            let found = check(&expected, &pages(&sink.bytes), format);
            assert_eq!(found, written.pages.total(), "{format} with room for {room}");
        }
    }
}

#[test]
fn headers_hold_after_a_sync_that_failed_and_a_cut_at_any_time() {
    /// Loses what was written since the last sync at the sync number `failing`; later syncs
    /// succeed. From `silent` on nothing arrives any more, as when the power fails.
    struct Lossy {
        durable: MemorySink,
        dirty: Vec<(u64, Vec<u8>)>,
        syncs: usize,
        failing: usize,
        silent: usize,
    }
    impl Sink for Lossy {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
            self.dirty.push((offset, bytes.to_vec()));
            Ok(())
        }
        fn sync(&mut self) -> Result<(), SinkError> {
            let dirty = core::mem::take(&mut self.dirty);
            self.syncs += 1;
            if self.syncs == self.failing {
                return Err(SinkError::Sync(io::Error::other("lost writes")));
            }
            if self.syncs >= self.silent {
                return Ok(());
            }
            dirty.iter().try_for_each(|(offset, bytes)| self.durable.write_at(*offset, bytes))
        }
        fn truncate(&mut self, len: u64) -> Result<(), SinkError> {
            self.durable.truncate(len)
        }
    }
    let file = CoreFile::new().memory(0x1000, 50, 1).memory(0x10_0000, 13_000, 2).write();
    let core = open(file.path());
    let expected = all_pages(&core);
    for (format, pages) in READERS {
        for at in 2..=5 {
            for power_fails in [false, true] {
                let (failing, silent) = if power_fails { (0, at) } else { (at, usize::MAX) };
                let durable = MemorySink::default();
                let mut sink = Lossy { durable, dirty: Vec::new(), syncs: 0, failing, silent };
                let mut written = Written::default();
                let result = write(&core, None, &of(format), &mut sink, &mut written);
                assert_eq!(result.is_ok(), power_fails || sink.syncs < at, "{format} {at}");
                if !power_fails {
                    let found = check(&expected, &pages(&sink.durable.bytes), format);
                    assert_eq!(found, written.pages.total(), "{format} after sync {at} failed");
                } else if format == Format::Elf {
                    check(&expected, &pages(&sink.durable.bytes), format);
                }
            }
        }
    }
}

#[test]
fn pages_that_cannot_be_read_are_zeros_or_left_out() {
    let file = sample().write();
    let core = open(file.path());
    let len = file.as_file().metadata().unwrap().len();
    file.as_file().set_len(len - 100 * 4096).unwrap();
    for (format, pages) in READERS {
        let mut sink = MemorySink::default();
        let (result, written) = dump(&core, &of(format), &mut sink);
        result.unwrap();
        assert_eq!(written.pages.unreadable, 100);
        let found = pages(&sink.bytes);
        match (format, found.get(&0x803)) {
            (Format::Lime, lost) => assert!(lost.is_none()),
            (_, lost) => assert!(lost.unwrap().iter().all(|&byte| byte == 0)),
        }
    }
}

#[test]
fn more_segments_than_a_header_counts() {
    let mut core = CoreFile::new();
    for index in 0..65_540_u64 {
        core = core.segment((2 * index + 1) << 12, &[u8::try_from(index % 255 + 1).unwrap(); 4096]);
    }
    let file = core.write();
    let core = open(file.path());
    let mut sink = MemorySink::default();
    dump(&core, &of(Format::Elf), &mut sink).0.unwrap();
    assert_eq!(sink.bytes[56..58], [0xff, 0xff]);
    let found = elf_pages(&sink.bytes);
    assert_eq!(found.len(), 65_540);
    assert_eq!(found[&(2 * 65_539 + 1)][0], 5); // 65,539 % 255 + 1
    check(&all_pages(&core), &found, Format::Elf);
    if let Some(path) = std::env::var_os("AFTERIMAGE_KEEP_XNUM") {
        fs::write(path, &sink.bytes).unwrap();
    }
}

#[test]
fn an_elf_of_more_runs_than_fit_becomes_a_kdump() {
    let mut core = CoreFile::new();
    for index in 0..140_000_u64 {
        core = core.segment(0x1_0000 + index * 0x2000, &[5]);
    }
    let file = core.write();
    let core = open(file.path());
    let request = Request { budget: Budget { workers: 1, plan: 0 }, ..of(Format::Elf) };
    let mut sink = MemorySink::default();
    let (result, written) = dump(&core, &request, &mut sink);
    result.unwrap();
    assert_eq!((written.format, written.pages.total()), (Format::Kdump, 140_000));
    assert!(crate::format::kdump::has_signature(&sink.bytes));
    let roomy = Request { budget: Budget { workers: 1, plan: 1 << 30 }, ..request };
    let mut sink = MemorySink::default();
    let (result, written) = dump(&core, &roomy, &mut sink);
    result.unwrap();
    assert_eq!((written.format, written.pages.total()), (Format::Elf, 140_000));
}
