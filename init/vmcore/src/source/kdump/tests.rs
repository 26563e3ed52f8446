//! Dumps built from their parts, read back. The real tool's dumps are read in `qemu-tests`.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::format::flattened::Record;
use crate::format::kdump::{Compression, Utsname};
use crate::format::note;
use crate::sink::{Sink, SinkError};
use crate::source::faults;
use base::addr::PageSize;

const PAGE: usize = 4096;
const ALL: [Compression; 5] =
    [Compression::Raw, Compression::Zlib, Compression::Lzo, Compression::Snappy, Compression::Zstd];

/// The content of every page of the dumps here.
fn page(pfn: u64) -> Vec<u8> {
    (0..4096_u64).map(|at| (pfn * 7 + at / 5).to_le_bytes()[0]).collect()
}

fn pack(compression: Compression, page: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Raw => page.to_vec(),
        Compression::Zlib => {
            let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut out, page).unwrap();
            out.finish().unwrap()
        }
        Compression::Lzo => lzokay::compress::compress(page).unwrap(),
        Compression::Snappy => snap::raw::Encoder::new().compress_vec(page).unwrap(),
        Compression::Zstd => zstd::bulk::compress(page, 1).unwrap(),
    }
}

fn compression(pfn: u64) -> Compression {
    ALL[to_usize(pfn % 5)]
}

/// A dump of `max` pages. A page is memory unless 10 divides its number, and kept unless 3 does.
struct Builder {
    max: u64,
    level: u32,
    /// Descriptors of pages that are lost.
    lost: Vec<u64>,
}

fn is_memory(pfn: u64) -> bool {
    !pfn.is_multiple_of(10)
}

fn is_kept(pfn: u64) -> bool {
    is_memory(pfn) && !pfn.is_multiple_of(3)
}

impl Builder {
    fn new(max: u64) -> Self {
        Self { max, level: 31, lost: Vec::new() }
    }

    /// The file with the pages `split`, or the only one.
    fn part(&self, split: Option<(u64, u64)>) -> Vec<u8> {
        let info = b"PAGESIZE=4096\nOSRELEASE=6.1\n";
        let notes = [note::build("CORE", 1, &[7; 336]), note::build("VMCOREINFO", 0, info)].concat();
        let layout = Layout::new(PageSize::FOUR_KIB, self.max, to_u64(notes.len())).unwrap();
        let notes_at = layout.notes_offset();
        let header = Header {
            utsname: Utsname { machine: "x86_64".into(), ..Utsname::default() },
            dump_level: self.level,
            vmcoreinfo: (notes_at + 12 + 8 + 336 + 12 + 12, to_u64(info.len())),
            notes: (notes_at, to_u64(notes.len())),
            ..Header::default()
        };
        let (block0, mut sub) = layout.emit_headers(&header);
        let (start, end) = split.unwrap_or((0, self.max));
        if split.is_some() {
            sub[12] = 1;
            sub[80..88].copy_from_slice(&start.to_le_bytes());
            sub[88..96].copy_from_slice(&end.to_le_bytes());
        }
        let mut out = [block0, sub.to_vec(), notes].concat();
        out.resize(to_usize(layout.descs_offset()), 0);
        for pfn in 0..self.max {
            for (base, set) in
                [(layout.bitmap1_offset(), is_memory(pfn)), (layout.bitmap2_offset(), is_kept(pfn))]
            {
                out[to_usize(base + pfn / 8)] |= u8::from(set) << (pfn % 8);
            }
        }
        let pages: Vec<u64> = (start..end).filter(|&pfn| is_kept(pfn)).collect();
        let mut at = layout.data_offset(to_u64(pages.len())).unwrap();
        let mut data = Vec::new();
        for pfn in pages {
            let packed = pack(compression(pfn), &page(pfn));
            let size = u32::try_from(packed.len()).unwrap();
            let lost = self.lost.contains(&pfn);
            let desc = PageDesc { offset: if lost { 0 } else { at }, size, flags: compression(pfn).flag() };
            out.extend(desc.emit());
            at += to_u64(packed.len());
            data.extend(packed);
        }
        out.resize(out.len().next_multiple_of(PAGE), 0);
        out.extend(data);
        out
    }
}

/// Flattens in pieces of odd sizes, the first one last.
fn flatten(bytes: &[u8]) -> Vec<u8> {
    let pieces: Vec<(u64, &[u8])> =
        bytes.chunks(5003).enumerate().map(|(index, chunk)| (to_u64(index) * 5003, chunk)).collect();
    let mut out = flattened::emit_header().to_vec();
    for (offset, chunk) in pieces.iter().skip(1).chain(pieces.first()) {
        out.extend(Record::Piece { offset: *offset, len: to_u64(chunk.len()) }.emit());
        out.extend(*chunk);
    }
    out.extend(Record::End.emit());
    out
}

fn open(files: &[Vec<u8>]) -> (TempDir, Result<Kdump, KdumpOpenError>) {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..files.len()).map(|index| dir.path().join(format!("part{index}"))).collect();
    for (path, bytes) in paths.iter().zip(files) {
        fs::write(path, bytes).unwrap();
        assert!(Kdump::has_signature(&fs::read(path).unwrap()));
    }
    let dump = Kdump::open_set(&paths);
    (dir, dump)
}

fn good(files: &[Vec<u8>]) -> Kdump {
    let (_dir, dump) = open(files);
    dump.unwrap()
}

fn refused(files: &[Vec<u8>]) -> String {
    base::log::chain(&open(files).1.unwrap_err())
}

/// Every page reads as it was, by page and by address, but those that are `lost`.
fn assert_pages(dump: &Kdump, max: u64, lost: impl Fn(u64) -> bool) {
    let mut reader = dump.page_reader();
    let (mut a, mut b) = (vec![1; PAGE], vec![2; PAGE]);
    for pfn in (0..max).chain([max, u64::MAX]) {
        let by_page = reader.read_page(Pfn(pfn), &mut a);
        if !is_kept(pfn) || pfn >= max {
            assert!(matches!(by_page, Err(ReadError::Excluded(_))), "page {pfn}: {by_page:?}");
            continue;
        }
        let by_addr = dump.read_exact_at(PhysAddr(pfn * 4096), &mut b);
        assert_eq!((by_page.is_ok(), by_addr.is_ok()), (!lost(pfn), !lost(pfn)), "page {pfn}: {by_page:?}");
        if !lost(pfn) {
            assert!(a == page(pfn) && b == a, "page {pfn}");
        }
    }
}

fn absent(dump: &Kdump, start: u64, end: u64) -> Vec<u64> {
    let mut out = Vec::new();
    let window = PfnRange::new(Pfn(start), Pfn(end)).unwrap();
    dump.absent(window, &mut |range| out.extend(range.start().0..range.end().0));
    out
}

#[test]
fn every_compression_plain_and_flattened() {
    let bytes = Builder::new(3000).part(None);
    for (file, is_flattened) in [(bytes.clone(), false), (flatten(&bytes), true)] {
        let dump = good(&[file]);
        assert_eq!((dump.is_flattened(), dump.is_split()), (is_flattened, false));
        assert_pages(&dump, 3000, |_| false);
        assert_eq!(dump.kept(), to_u64((0..3000).filter(|&pfn| is_kept(pfn)).count()));
        assert_eq!(dump.anomalies(), &[]);
        assert_eq!((dump.machine(), dump.notes().cpus()), (Some("x86_64"), 1));
        assert_eq!(dump.info().get("OSRELEASE"), Some("6.1"));
        let mut note = vec![0; 4];
        dump.read_note_bytes(dump.notes().notes[0].offset, &mut note).unwrap();
        assert_eq!(note, b"\x05\0\0\0");
    }
}

#[test]
fn absent_pages_are_memory_that_is_not_kept() {
    let dump = good(&[Builder::new(70_000).part(None)]);
    let expected = |start: u64, end: u64| -> Vec<u64> {
        (start..end.min(70_000)).filter(|&pfn| is_memory(pfn) && !is_kept(pfn)).collect()
    };
    for (start, end) in
        [(0, 70_000), (1, 2), (3, 4), (63, 65), (32_700, 32_900), (69_999, 80_000), (80_000, 90_000)]
    {
        assert_eq!(absent(&dump, start, end), expected(start, end), "{start}..{end}");
    }
    assert_eq!(absent(&dump, 0, u64::MAX), expected(0, 70_000));
}

#[test]
fn bytes_across_pages() {
    let dump = good(&[Builder::new(100).part(None)]);
    let mut bytes = vec![0; 4096];
    dump.read_exact_at(PhysAddr(4 * 4096 + 100), &mut bytes).unwrap();
    assert_eq!(bytes, [&page(4)[100..], &page(5)[..100]].concat());
    let over_the_end = dump.read_exact_at(PhysAddr(5 * 4096 + 100), &mut bytes);
    assert!(matches!(over_the_end, Err(ReadError::Excluded(PhysAddr(0x6000)))), "{over_the_end:?}");
}

#[test]
fn parts_in_any_order_are_one_dump() {
    let max = 40_000;
    let builder = Builder::new(max);
    let parts = [(33_001, max), (0, 5), (5, 33_001), (max, max)].map(|range| builder.part(Some(range)));
    let dump = good(&parts);
    assert!(dump.is_split());
    assert_eq!(dump.anomalies(), &[]);
    assert_eq!(dump.files().count(), 4);
    assert_pages(&dump, max, |_| false);
    let mut descs = 0;
    dump.for_each_desc(|_, _| descs += 1).unwrap();
    assert_eq!(descs, dump.kept());
    let window = PfnRange::new(Pfn(0), Pfn(max + 10)).unwrap();
    dump.for_each_page(window, |pfn, found| {
        let found = found.unwrap();
        assert_eq!(found.map(|(_, desc)| desc), dump.desc(pfn).unwrap());
        let file = if pfn.0 < 5 {
            0
        } else if pfn.0 < 33_001 {
            1
        } else {
            2
        };
        assert_eq!(found.map(|(file, _)| file), (pfn.0 < max && is_kept(pfn.0)).then_some(file), "{pfn}");
    });
    let [a, b, c, _] = parts;
    assert_pages(&good(&[flatten(&a), b, flatten(&c)]), max, |_| false);
}

#[test]
fn a_missing_part_is_told_and_its_pages_are_lost() {
    let builder = Builder::new(3000);
    let parts = [(0, 1000), (1000, 2000), (2000, 3000)].map(|range| builder.part(Some(range)));
    let missing = |start_pfn, end_pfn| Anomaly::MissingPart { start_pfn, end_pfn };
    let dump = good(&[parts[2].clone(), parts[0].clone()]);
    assert_eq!(dump.anomalies(), &[missing(1000, 2000)]);
    assert_pages(&dump, 3000, |pfn| (1000..2000).contains(&pfn));
    let error = dump.read_exact_at(PhysAddr(1001 * 4096), &mut [0]).unwrap_err();
    let message = base::log::chain(&error);
    assert!(message.contains("the part of the dump with the pages 0x3e8..0x7d0 is missing"), "{message}");
    assert_eq!(absent(&dump, 1001, 1005), [1002]);

    let dump = good(&parts[1..2]);
    assert_eq!(dump.anomalies(), &[missing(0, 1000), missing(2000, 3000)]);
    assert_pages(&dump, 3000, |pfn| !(1000..2000).contains(&pfn));
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let builder = Builder::new(3000);
    let a = builder.part(Some((0, 1000)));
    let b = builder.part(Some((1000, 3000)));
    let message = refused(&[a.clone(), builder.part(None)]);
    assert!(message.contains("part1: not a part of a split dump"), "{message}");
    let message = refused(&[b.clone(), builder.part(Some((0, 1001)))]);
    assert!(
        message.contains("part0: pages from 0x3e8 on are in ") && message.contains("part1 too"),
        "{message}"
    );
    let message = refused(&[a.clone(), Builder { level: 1, ..Builder::new(3000) }.part(Some((1000, 3000)))]);
    assert!(message.contains("its header is not that of "), "{message}");
    let message = refused(&[a.clone(), Builder::new(4000).part(Some((1000, 4000)))]);
    assert!(message.contains("its layout is not that of "), "{message}");
    let mut other = b.clone();
    let at = other.windows(9).position(|text| text == b"OSRELEASE").unwrap();
    other[at] = b'o';
    let message = refused(&[a, other]);
    assert!(message.contains("its VMCOREINFO is not that of "), "{message}");
    let message = refused(&[builder.part(Some((2, 1)))]);
    assert!(message.contains("a part with the pages from 0x2 up to 0x1"), "{message}");
    let message = refused(&[flatten(b"\x7fELF\x02\x01\x01")]);
    assert!(message.contains("a flattened ELF core"), "{message}");
    assert!(Kdump::open_set(&[]).is_err());
}

#[test]
fn an_incomplete_part_makes_the_dump_incomplete() {
    let builder = Builder::new(3000);
    let mut b = builder.part(Some((1000, 3000)));
    b[424] |= 8; // status
    let dump = good(&[builder.part(Some((0, 1000))), b]);
    assert!(dump.header().incomplete);
    assert_pages(&dump, 3000, |_| false);
}

#[test]
fn a_dump_that_was_cut_loses_its_end() {
    let bytes = Builder { lost: vec![4], ..Builder::new(3000) }.part(None);
    let layout = *good(core::slice::from_ref(&bytes)).layout();
    let cut = |len: u64| good(&[bytes[..to_usize(len)].to_vec()]);
    let half = cut(to_u64(bytes.len() / 2));
    let read = (0..3000).filter(|&pfn| half.read_exact_at(PhysAddr(pfn * 4096), &mut [0]).is_ok()).count();
    assert!(read > 100 && to_u64(read) < half.kept() - 100, "{read}");
    let (mut here, mut lost) = (0, 0);
    half.for_each_page(PfnRange::new(Pfn(0), Pfn(3000)).unwrap(), |_, found| match found.unwrap() {
        Some((_, PageDesc { offset: 0, .. })) => lost += 1,
        found => here += usize::from(found.is_some()),
    });
    assert_eq!((here, to_u64(here) + lost), (read, half.kept()));
    // In the descriptors: what has none is lost, not excluded by mistake and no error.
    let few = cut(layout.desc_offset(10).unwrap() + 5);
    assert_eq!(few.desc(Pfn(2999)).unwrap(), Some(PageDesc::default()));
    assert_pages(&few, 3000, |_| true);
    let message = refused(&[bytes[..to_usize(layout.bitmap2_offset())].to_vec()]);
    assert!(message.ends_with("the file ends inside the headers of the dump"), "{message}");
}

#[test]
fn a_stream_that_was_cut_is_told() {
    let bytes = Builder::new(3000).part(None);
    let layout = *good(core::slice::from_ref(&bytes)).layout();
    // As makedumpfile does it: no padding behind headers and bitmaps, and descriptors after their
    // data.
    let mut flat = flattened::emit_header().to_vec();
    let mut stored = 0;
    let descs = layout.descs_offset()..layout.data_offset(1800).unwrap();
    let mut ranges = vec![(0, 464), (4096, 4096 + 104 + 500)];
    ranges.extend([layout.bitmap1_offset(), layout.bitmap2_offset()].map(|at| (at, at + 375)));
    for tenth in 0..10 {
        let cut = |start: u64, end: u64| {
            (start + (end - start) * tenth / 10, start + (end - start) * (tenth + 1) / 10)
        };
        ranges.extend([cut(descs.end, to_u64(bytes.len())), cut(descs.start, descs.end)]);
    }
    for (start, end) in ranges {
        let chunk = &bytes[to_usize(start)..to_usize(end)];
        flat.extend(Record::Piece { offset: start, len: to_u64(chunk.len()) }.emit());
        flat.extend(chunk);
        stored += to_u64(chunk.len());
    }
    let dump = good(core::slice::from_ref(&flat));
    assert_eq!(dump.anomalies(), &[Anomaly::UnfinishedStream { bytes: stored }]);
    assert_pages(&dump, 3000, |_| false);
    flat.truncate(flat.len() / 2);
    let dump = good(&[flat]);
    let read = (0..3000).filter(|&pfn| dump.read_exact_at(PhysAddr(pfn * 4096), &mut [0]).is_ok()).count();
    assert!(read > 100 && to_u64(read) < dump.kept() - 100, "{read}");
}

#[test]
fn promises_far_beyond_the_file_are_refused() {
    let mut bytes = Builder::new(3000).part(None);
    bytes[436..440].copy_from_slice(&u32::MAX.to_le_bytes()); // bitmap_blocks
    let mut flat = flattened::emit_header().to_vec();
    for (offset, data) in [(0, &bytes[..]), (1 << 62, b"x")] {
        flat.extend(Record::Piece { offset, len: to_u64(data.len()) }.emit());
        flat.extend(data);
    }
    flat.extend(Record::End.emit());
    let message = refused(&[flat]);
    assert!(message.ends_with("the file ends inside the headers of the dump"), "{message}");
}

#[test]
fn page_data_that_is_no_page_is_an_error() {
    let mut unpacker = unpack::Unpacker::default();
    for compression in ALL {
        let whole = pack(compression, &page(1));
        let mut out = vec![0; PAGE];
        unpacker.unpack(compression, &whole, &mut out).unwrap();
        assert!(out == page(1), "{compression:?}");
        for wrong in [pack(compression, &page(1)[1..]), pack(compression, &[page(1), page(2)].concat())] {
            assert!(unpacker.unpack(compression, &wrong, &mut out).is_err(), "{compression:?}");
        }
        assert!(
            unpacker.unpack(compression, &whole[..whole.len() - 1], &mut out).is_err(),
            "{compression:?}"
        );
        assert!(unpacker.unpack(compression, &[], &mut out).is_err(), "{compression:?}");
        unpacker.unpack(compression, &whole, &mut out).unwrap();
        assert!(out == page(1), "{compression:?}");
    }
}

#[test]
fn no_cut_of_a_part_passes_for_whole() {
    let builder = Builder::new(3000);
    let parts = [(0, 900), (900, 2100), (2100, 3000)].map(|pages| builder.part(Some(pages)));
    assert_eq!(faults(&good(&parts)).unwrap(), [""; 0]);
    let len = parts.iter().map(Vec::len).sum::<usize>();
    for number in 0..100 {
        // Places that are spread over all parts, each at another distance from the blocks of the file.
        let (mut parts, mut at) = (parts.clone(), (64 + number * len / 100 + number * 37) % len);
        for part in &mut parts {
            if at < part.len() {
                part.truncate(at.max(64)); // it is still a dump by its first bytes
                break;
            }
            at -= part.len();
        }
        let told = open(&parts).1.map_or(true, |dump| !faults(&dump).unwrap().is_empty());
        assert!(told, "cut {number} passes");
    }
    for missing in 0..3 {
        let some: Vec<_> =
            parts.iter().enumerate().filter(|&(n, _)| n != missing).map(|(_, p)| p.clone()).collect();
        let dump = good(&some);
        let kept = (0..3000).filter(|&pfn| is_kept(pfn)).count();
        let lost =
            kept - (0..3000).filter(|&pfn| dump.desc(Pfn(pfn)).is_ok_and(|desc| desc.is_some())).count();
        assert_eq!(dump.lost_pages().unwrap(), to_u64(lost));
        assert!(faults(&dump).unwrap().iter().any(|fault| fault.contains("is missing")));
    }
}

/// A file in memory.
#[derive(Default)]
struct Buffer(Vec<u8>);

impl Sink for Buffer {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let (at, end) = (to_usize(offset), to_usize(offset) + bytes.len());
        self.0.resize(self.0.len().max(end), 0);
        self.0[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

#[test]
fn what_there_is_of_a_dump_is_copied_and_marked() {
    let builder = Builder { lost: vec![4, 7], ..Builder::new(3000) };
    let whole = Builder::new(3000).part(None);
    for (bytes, is_whole) in
        [(whole.clone(), true), (builder.part(None), false), (whole[..whole.len() / 2].to_vec(), false)]
    {
        for bytes in [flatten(&bytes), bytes] {
            let dump = good(&[bytes]);
            let mut sink = Buffer::default();
            let lost = dump.copy_to(&mut sink).unwrap();
            assert_eq!((lost == 0, lost), (is_whole, dump.lost_pages().unwrap()));
            let copy = good(&[sink.0.clone()]);
            assert_eq!((copy.header().incomplete, copy.lost_pages().unwrap()), (!is_whole, lost));
            assert!(!is_whole || sink.0 == whole, "a copy of all of it is the same");
            assert_eq!((copy.kept(), copy.info(), copy.ranges()), (dump.kept(), dump.info(), dump.ranges()));
        }
    }
}
