//! The writer against our own reader, and against sinks that fail. Independent readers judge in
//! `qemu-tests`.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::Path;

use super::*;
use crate::format::flattened::{self as flattened_format, Record};
use crate::kernel::testing::{Generation, LRU, PAGES, TestKernel};
use crate::source::testing::CoreFile;
use crate::source::{Access, Kdump, ReadError, Vmcore};
use base::addr::{Pfn, to_usize};
use base::config::DumpLevel;

mod faults;
mod notes;

/// A sink in memory with room for so many bytes. As on a disk, of what does not fit a part is
/// written.
#[derive(Default)]
pub(super) struct MemorySink {
    pub(super) bytes: Vec<u8>,
    pub(super) room: Option<usize>,
    pub(super) syncs: usize,
}

impl Sink for MemorySink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let at = to_usize(offset);
        let end = at + bytes.len();
        if let Some(room) = self.room.filter(|room| end > *room) {
            if let Some(fits) =
                room.checked_sub(at).and_then(|fits| bytes.get(..fits)).filter(|fits| !fits.is_empty())
            {
                self.write_at(offset, fits).unwrap();
            }
            let source = io::ErrorKind::StorageFull.into();
            return Err(SinkError::Write { offset, len: bytes.len(), source });
        }
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.syncs += 1;
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> Result<(), SinkError> {
        self.bytes.resize(to_usize(len), 0);
        Ok(())
    }
}

const INFO: &[u8] = b"OSRELEASE=6.1-test\nPAGESIZE=4096\nCRASHTIME=1763900000\nNUMBER(phys_base)=-4096\n";

pub(super) fn sample() -> CoreFile {
    CoreFile::new()
        .memory(0x1000, 159, 1)
        .memory(0x10_0000, 1500, 2)
        .memory(0x8000_0000, 3, 3)
        .note("CORE", 1, &[1; 336])
        .note("LINUX", 0x700, &[9; 300])
        .note("CORE", 1, &[2; 336])
        .note("VMCOREINFO", 0, INFO)
}

pub(super) fn request(level: u32, compress: Compress, workers: usize) -> Request {
    let utsname = Utsname { machine: "x86_64".into(), ..Utsname::default() };
    Request {
        skip: Vec::new(),
        careful: false,
        exclude: DumpLevel::new(level).unwrap().into(),
        format: Format::Kdump,
        compress,
        utsname,
        info: VmcoreInfo::parse(INFO),
        budget: Budget { workers, plan: 1 << 20 },
    }
}

pub(super) fn dump(
    core: &Vmcore,
    request: &Request,
    sink: &mut MemorySink,
) -> (Result<(), DumpError>, Written) {
    let mut written = Written::default();
    let result = write(core, None, request, sink, &mut written);
    (result, written)
}

pub(super) fn open(file: &Path) -> Vmcore {
    Vmcore::open(file, Access::Mmap).unwrap()
}

fn reopen(bytes: &[u8]) -> Kdump {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    Kdump::open(file.path()).unwrap()
}

fn assert_same_pages(core: &Vmcore, dump: &Kdump) {
    assert_eq!(core.ranges(), dump.ranges());
    let (mut a, mut b) = (core.page_reader(), dump.page_reader());
    let (mut x, mut y) = (vec![0; 4096], vec![0; 4096]);
    for range in core.ranges() {
        for pfn in range.start().0..range.end().0 {
            a.read_page(Pfn(pfn), &mut x).unwrap();
            b.read_page(Pfn(pfn), &mut y).unwrap();
            assert!(x == y, "page {pfn:#x}");
        }
    }
}

#[test]
fn every_page_comes_back_at_every_level_and_compression() {
    let file = sample().write();
    let core = open(file.path());
    for level in [0, 1] {
        for (compress, workers) in [
            (Compress::Zstd(1), 1),
            (Compress::Zstd(-3), 1),
            (Compress::Zlib, 1),
            (Compress::None, 1),
            (Compress::Auto, 1),
            (Compress::Auto, 2),
        ] {
            let mut sink = MemorySink::default();
            let (result, written) = dump(&core, &request(level, compress, workers), &mut sink);
            result.unwrap();
            let back = reopen(&sink.bytes);
            assert_same_pages(&core, &back);
            assert_eq!(written.pages.total(), 1662);
            assert_eq!(written.pages.zero, 554);
            assert_eq!(written.bytes, u64::try_from(sink.bytes.len()).unwrap());
            assert!(!back.header().incomplete);
            assert_eq!((back.header().nr_cpus, back.header().crash_time), (2, 1_763_900_000));
            assert_eq!(back.header().phys_base.cast_signed(), -4096);
            assert_eq!(back.info(), core.info());
        }
    }
}

#[test]
fn the_number_of_workers_does_not_show() {
    let file = sample().write();
    let core = open(file.path());
    let bytes = |workers| {
        let mut sink = MemorySink::default();
        dump(&core, &request(1, Compress::Zstd(1), workers), &mut sink).0.unwrap();
        sink.bytes
    };
    let one = bytes(1);
    assert!([2, 3, 8].into_iter().all(|workers| bytes(workers) == one));
}

#[test]
fn a_full_sink_leaves_a_readable_incomplete_dump_or_none() {
    let file = sample().write();
    let core = open(file.path());
    let mut whole = MemorySink::default();
    dump(&core, &request(1, Compress::Zstd(1), 1), &mut whole).0.unwrap();
    let data_start = to_usize(reopen(&whole.bytes).layout().data_offset(1662).unwrap());
    for workers in [1, 2] {
        for room in (0..whole.bytes.len()).step_by(49_999) {
            let mut sink = MemorySink { room: Some(room), ..MemorySink::default() };
            let (result, written) = dump(&core, &request(1, Compress::Zstd(1), workers), &mut sink);
            let error = result.unwrap_err();
            assert!(matches!(&error, DumpError::Sink { source, .. } if source.is_full()), "{error}");
            if room < data_start + 4096 {
                continue; // the headers did not fit
            }
            let back = reopen(&sink.bytes);
            assert!(back.header().incomplete, "room {room}");
            let mut found = 0;
            let mut page = vec![0; 4096];
            let mut source = core.page_reader();
            let mut expected = vec![0; 4096];
            for range in core.ranges() {
                for pfn in range.start().0..range.end().0 {
                    match back.page_reader().read_page(Pfn(pfn), &mut page) {
                        Ok(()) => {
                            source.read_page(Pfn(pfn), &mut expected).unwrap();
                            assert!(page == expected, "page {pfn:#x} with room for {room}");
                            found += 1;
                        }
                        Err(ReadError::Excluded(_)) => (),
                        Err(error) => panic!("page {pfn:#x}: {error}"),
                    }
                }
            }
            assert_eq!(found, written.pages.total(), "room {room}");
        }
    }
}

#[test]
fn a_file_that_shrinks_loses_pages_not_the_dump() {
    let file = sample().write();
    let core = open(file.path());
    let len = file.as_file().metadata().unwrap().len();
    file.as_file().set_len(len - 100 * 4096).unwrap();
    for access in [1, 2] {
        let mut sink = MemorySink::default();
        let (result, written) = dump(&core, &request(1, Compress::Zstd(1), access), &mut sink);
        result.unwrap();
        assert_eq!(written.pages.unreadable, 100);
        let back = reopen(&sink.bytes);
        assert!(!back.header().incomplete);
        let mut page = vec![0; 4096];
        let lost = back.page_reader().read_page(Pfn(0x8_0000), &mut page);
        assert!(matches!(lost, Err(ReadError::Excluded(_))));
    }
}

#[test]
fn data_is_durable_before_its_descriptors() {
    /// Fails the test if a descriptor is written while data is not synced.
    struct Order {
        descs: core::ops::Range<u64>,
        dirty_data: Cell<bool>,
        bytes: u64,
    }
    impl Sink for Order {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
            if offset >= self.descs.end {
                self.dirty_data.set(true);
            } else if offset >= self.descs.start {
                assert!(!self.dirty_data.get(), "descriptors at {offset} before their data");
            }
            self.bytes += u64::try_from(bytes.len()).unwrap();
            Ok(())
        }
        fn sync(&mut self) -> Result<(), SinkError> {
            self.dirty_data.set(false);
            Ok(())
        }
    }
    let file = CoreFile::new().memory(0x10_0000, 9000, 2).write();
    let core = open(file.path());
    let layout = crate::format::kdump::Layout::new(core.page_size(), core.max_pfn().0, 0).unwrap();
    let descs = layout.descs_offset()..layout.data_offset(9000).unwrap();
    let mut sink = Order { descs, dirty_data: Cell::new(false), bytes: 0 };
    write(&core, None, &request(0, Compress::None, 1), &mut sink, &mut Written::default()).unwrap();
    assert!(sink.bytes > 6000 * 4096);
}

#[test]
fn a_sync_that_fails_takes_its_pages_with_it() {
    /// Loses what was written since the last sync at the sync number `failing`, and succeeds again
    /// later, as the kernel does with a disk that lost writes.
    struct Lossy {
        durable: MemorySink,
        dirty: Vec<(u64, Vec<u8>)>,
        syncs_left: usize,
    }
    impl Sink for Lossy {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
            self.dirty.push((offset, bytes.to_vec()));
            Ok(())
        }
        fn sync(&mut self) -> Result<(), SinkError> {
            let dirty = core::mem::take(&mut self.dirty);
            self.syncs_left = self.syncs_left.wrapping_sub(1);
            if self.syncs_left == 0 {
                return Err(SinkError::Sync(io::Error::other("lost writes")));
            }
            dirty.iter().try_for_each(|(offset, bytes)| self.durable.write_at(*offset, bytes))
        }
    }
    let file = CoreFile::new().memory(0x10_0000, 9000, 2).write();
    let core = open(file.path());
    for failing in 2..=3 {
        let mut sink = Lossy { durable: MemorySink::default(), dirty: Vec::new(), syncs_left: failing };
        let mut written = Written::default();
        let result = write(&core, None, &request(0, Compress::None, 1), &mut sink, &mut written);
        assert!(matches!(result, Err(DumpError::Sink { source: SinkError::Sync(_), .. })), "{failing}");
        let back = reopen(&sink.durable.bytes);
        assert!(back.header().incomplete);
        let (mut page, mut expected, mut found) = (vec![0; 4096], vec![0; 4096], 0);
        for pfn in 0x100..0x100 + 9000 {
            if back.page_reader().read_page(Pfn(pfn), &mut page).is_ok() {
                core.page_reader().read_page(Pfn(pfn), &mut expected).unwrap();
                assert!(page == expected, "page {pfn:#x} is wrong after sync {failing} failed");
                found += 1;
            }
        }
        assert_eq!(found, written.pages.total(), "after sync {failing}");
    }
}

#[test]
fn a_full_sink_ends_a_flattened_dump_where_it_can() {
    let file = sample().write();
    let core = open(file.path());
    let request = Request { format: Format::Flattened, ..request(0, Compress::None, 1) };
    let mut whole = MemorySink::default();
    let (result, written) = dump(&core, &request, &mut whole);
    result.unwrap();
    assert_eq!(written.bytes, u64::try_from(whole.bytes.len()).unwrap());
    assert_same_pages(&core, &reopen(&whole.bytes));
    let mut ended = 0;
    for room in (100_000..whole.bytes.len()).step_by(149_993) {
        let mut sink = MemorySink { room: Some(room), ..MemorySink::default() };
        let (result, written) = dump(&core, &request, &mut sink);
        assert!(matches!(result, Err(DumpError::Sink { source, .. }) if source.is_full()), "room {room}");
        let has_header = sink.bytes.windows(8).any(|bytes| bytes == b"KDUMP   ");
        if !sink.bytes.ends_with(&[0xff; 16]) || !has_header {
            continue; // no room for the header, which comes last
        }
        ended += 1;
        let back = reopen(&sink.bytes);
        assert!(back.header().incomplete && back.anomalies().is_empty(), "{:?}", back.anomalies());
        let (mut page, mut expected, mut found) = (vec![0; 4096], vec![0; 4096], 0);
        for pfn in core.ranges().iter().flat_map(|range| range.start().0..range.end().0) {
            if back.page_reader().read_page(Pfn(pfn), &mut page).is_ok() {
                core.page_reader().read_page(Pfn(pfn), &mut expected).unwrap();
                assert!(page == expected, "page {pfn:#x} with room for {room}");
                found += 1;
            }
        }
        assert_eq!(found, written.pages.total(), "room {room}");
    }
    assert!(ended > 25, "{ended} dumps could be ended");
}

/// The file that a stream's records make up.
fn rearranged(stream: &[u8]) -> Vec<u8> {
    let mut out = MemorySink::default();
    let mut rest = &stream[flattened_format::HEADER_LEN..];
    loop {
        let (head, body) = rest.split_at(flattened_format::RECORD_LEN);
        match Record::parse(head).unwrap() {
            Record::Piece { offset, len } => {
                let (bytes, next) = body.split_at(to_usize(len));
                out.write_at(offset, bytes).unwrap();
                rest = next;
            }
            Record::End => return out.bytes,
        }
    }
}

#[test]
fn a_stream_makes_up_the_same_file() {
    let kernel = with_struct_pages();
    for (level, plan) in [(0, 1 << 20), (31, 1 << 20), (31, 0)] {
        let exclude = DumpLevel::new(level).unwrap().into();
        let (file, written) = filtered(&kernel, exclude, plan, Format::Kdump);
        let (stream, streamed) = filtered(&kernel, exclude, plan, Format::Flattened);
        assert!(rearranged(&stream) == file, "level {level}");
        assert!(written.pages.written > 0 && streamed.pages == written.pages);
        assert!(written.vital_bytes.is_some() && streamed.vital_bytes == written.vital_bytes);
    }
}

#[test]
fn a_pipe_that_breaks_gets_nothing_more() {
    /// Takes some bytes, then half of a write, and then must not be asked again.
    struct Pipe {
        left: usize,
        broken: bool,
    }
    impl Sink for Pipe {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
            assert!(!self.broken, "a write after the pipe broke");
            self.broken = bytes.len() > self.left;
            self.left = self.left.saturating_sub(bytes.len());
            let source = io::ErrorKind::BrokenPipe.into();
            if self.broken { Err(SinkError::Write { offset, len: bytes.len(), source }) } else { Ok(()) }
        }
        fn sync(&mut self) -> Result<(), SinkError> {
            Ok(())
        }
        fn is_rewritable(&self) -> bool {
            false
        }
    }
    let file = sample().write();
    let core = open(file.path());
    let request = Request { format: Format::Flattened, ..request(0, Compress::None, 1) };
    for left in [0, 5000, 100_000, 3_000_000] {
        let mut pipe = Pipe { left, broken: false };
        let result = write(&core, None, &request, &mut pipe, &mut Written::default());
        let Err(DumpError::Sink { source: SinkError::Write { source, .. }, .. }) = result else {
            panic!("{result:?} after {left} bytes")
        };
        assert_eq!(source.kind(), io::ErrorKind::BrokenPipe);
    }
}

/// A made-up kernel with pages of several classes.
fn with_struct_pages() -> TestKernel {
    let mut kernel = TestKernel::new(Generation::V6_12, 4);
    kernel.free(0x600, 9);
    kernel.compound(0x800, 4).flags(LRU).mapping(0xffff_8880_0000_0001);
    kernel.free(0x901, 0);
    kernel
}

fn filtered(kernel: &TestKernel, exclude: Exclude, plan: u64, format: Format) -> (Vec<u8>, Written) {
    let (_file, core, info) = kernel.core();
    let filter = PageFilter::discover(&core, &info, core.mappings(), &mut |_| ()).unwrap();
    let budget = Budget { workers: 2, plan };
    let request =
        Request { exclude, format, info: info.clone(), budget, ..request(31, Compress::Zstd(1), 1) };
    let (mut sink, mut written) = (MemorySink::default(), Written::default());
    write(&core, Some(&filter), &request, &mut sink, &mut written).unwrap();
    (sink.bytes, written)
}

#[test]
fn bits_that_are_forgotten_are_found_again() {
    let kernel = with_struct_pages();
    let everything = Exclude::classes(&["zero", "private-cache", "user", "free", "unused-vmemmap"]).unwrap();
    for exclude in [DumpLevel::new(31).unwrap().into(), DumpLevel::new(16).unwrap().into(), everything] {
        let (roomy, with_room) = filtered(&kernel, exclude, 1 << 20, Format::Kdump);
        let (tight, without) = filtered(&kernel, exclude, 0, Format::Kdump);
        assert!(with_room.pages.excluded > 512);
        assert_eq!(without.pages, with_room.pages);
        assert!(tight == roomy);
    }
}

#[test]
fn struct_pages_of_pages_that_are_all_dropped_are_dropped() {
    let kernel = with_struct_pages();
    let exclude = Exclude::classes(&["free", "unused-vmemmap"]).unwrap();
    let (bytes, written) = filtered(&kernel, exclude, 1 << 20, Format::Kdump);
    let back = reopen(&bytes);
    let mut page = vec![0; 4096];
    let kept = (0..PAGES).filter(|&pfn| back.page_reader().read_page(Pfn(pfn), &mut page).is_ok());
    // A page of struct pages describes 64 pages; 0x901 is not alone in its one. Struct pages of
    // absent memory describe nothing that is kept.
    let dropped = |pfn: u64| {
        let described = pfn.saturating_sub(0x200) * 64;
        let struct_pages = (0x200..0x400).contains(&pfn);
        let free = (0x600..0x800).contains(&pfn) || pfn == 0x901;
        free || struct_pages && ((0x600..0x800).contains(&described) || described >= PAGES)
    };
    assert_eq!(kept.collect::<Vec<_>>(), (0..PAGES).filter(|&pfn| !dropped(pfn)).collect::<Vec<_>>());
    assert_eq!(written.found.classes.of(crate::filter::PageClass::UnusedVmemmap), 8 + 512 - 64);
}

#[test]
fn a_dump_of_a_dump_says_what_its_source_lacks() {
    let file = sample().write();
    let core = open(file.path());
    let mut whole = MemorySink::default();
    dump(&core, &request(1, Compress::Zstd(1), 1), &mut whole).0.unwrap();
    let mut cut = MemorySink { room: Some(whole.bytes.len() - 100_000), ..MemorySink::default() };
    dump(&core, &request(1, Compress::Zstd(1), 1), &mut cut).0.unwrap_err();
    for (source, incomplete) in [(whole.bytes, false), (cut.bytes, true)] {
        let source = reopen(&source);
        let (mut sink, mut written) = (MemorySink::default(), Written::default());
        let request = request(0, Compress::Zlib, 1);
        write(&source, None, &request, &mut sink, &mut written).unwrap();
        let again = reopen(&sink.bytes);
        assert_eq!((again.header().dump_level, again.header().incomplete), (1, incomplete));
        assert_eq!(written.pages.unreadable > 0, incomplete);
    }
}

#[test]
fn without_page_types_forgotten_bits_lose_no_page() {
    // A dump that leaves pages out, of a kernel without VMCOREINFO, and no room to remember which.
    let (bytes, written) =
        filtered(&with_struct_pages(), DumpLevel::new(31).unwrap().into(), 1 << 20, Format::Kdump);
    assert!(written.pages.excluded > 0);
    let source = reopen(&bytes);
    let request = Request { budget: Budget { workers: 1, plan: 0 }, ..request(1, Compress::Zstd(1), 1) };
    let (mut sink, mut again) = (MemorySink::default(), Written::default());
    write(&source, None, &request, &mut sink, &mut again).unwrap();
    assert_eq!(again.pages, written.pages);
}
