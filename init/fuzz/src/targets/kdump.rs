//! kdump-compressed dumps, plain, flattened and split: descriptors stand at their ranks, pages come
//! back as stored or as an error. A flattened file reads as the file that it unpacks to.

use crate::build::{Stored, flatten, kdump, note, put};
use crate::{Scratch, check_ranges, chosen_pages, page};
use base::addr::Pfn;
use base::log::chain;
use vmcore::format::kdump::{DESC_LEN, PageDesc};
use vmcore::kernel::Kernel;
use vmcore::source::{Core, Kdump, PhysicalMemory};

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let file = Scratch::new(data);
    let flat = data.starts_with(b"makedumpfile\0\0\0\0");
    assert_eq!(Kdump::has_signature(data), flat || data.starts_with(b"KDUMP   "));
    let dump = match Kdump::open(&file.path()) {
        Ok(dump) => dump,
        Err(error) => return assert!(!chain(&error).is_empty()),
    };
    check_ranges(&dump);
    assert!(dump.max_pfn().0 <= dump.layout().max_mapnr);
    assert_eq!(dump.is_flattened(), flat);
    check_notes(&dump);
    check_absent(&dump);
    if flat {
        check_unpacked(&dump, data);
    } else if !dump.is_split() {
        check_descs(&dump, data);
    }
    check_pages(&dump, (!flat).then_some(data));
    let twice = Kdump::open_set(&[file.path(), file.path()]);
    assert!(twice.is_err() || dump.is_split()); // a part without pages does not overlap itself
    let kernel = Kernel::new(&dump, dump.info(), &[]);
    let _ = vmcore::kernel::uts::discover(&kernel);
}

fn check_notes(dump: &Kdump) {
    for note in &dump.notes().notes {
        assert!(note.len >= 12, "{note:?}");
        let mut head = [0; 12];
        dump.read_note_bytes(note.offset, &mut head).expect("a note that is listed is in the file");
    }
}

/// What is absent is memory and has no descriptor.
fn check_absent(dump: &Kdump) {
    for &range in dump.ranges().iter().take(8) {
        let mut end = range.start();
        dump.absent(range, &mut |run| {
            assert!(run.start() >= end && run.intersect(range) == Some(run), "{run} of {range}");
            end = run.end();
            assert_eq!(dump.desc(run.start()).unwrap(), None, "page {}", run.start());
        });
    }
}

/// Unpacks a flattened file in the simplest way and compares; streams that are not complete, or
/// large when unpacked, are left to the other checks.
fn check_unpacked(dump: &Kdump, data: &[u8]) {
    let mut unpacked = Vec::new();
    let mut rest = &data[4096..];
    loop {
        let Some((numbers, behind)) = rest.split_first_chunk::<16>() else { return };
        let number = |at: usize| i64::from_be_bytes(numbers[at..at + 8].try_into().expect("8 bytes"));
        if (number(0), number(8)) == (-1, -1) {
            break;
        }
        let (Ok(offset), Ok(len)) = (usize::try_from(number(0)), usize::try_from(number(8))) else { return };
        if offset > 1 << 20 || len > behind.len() {
            return;
        }
        if len > 0 {
            unpacked.resize(unpacked.len().max(offset + len), 0);
            unpacked[offset..offset + len].copy_from_slice(&behind[..len]);
        }
        rest = &behind[len..];
    }
    let file = Scratch::new(&unpacked);
    let plain = Kdump::open(&file.path()).expect("the unpacked dump opens too");
    assert_eq!((dump.header(), dump.ranges(), dump.kept()), (plain.header(), plain.ranges(), plain.kept()));
    assert_eq!(dump.notes().notes, plain.notes().notes);
    if !plain.is_split() {
        check_descs(&plain, &unpacked);
    }
    for pfn in chosen_pages(dump) {
        let (mut a, mut b) = (page(dump, 0xa5), page(dump, 0xa5));
        let ours = dump.page_reader().read_page(pfn, &mut a);
        let theirs = plain.page_reader().read_page(pfn, &mut b);
        assert_eq!(ours.is_ok(), theirs.is_ok(), "page {pfn}: {ours:?} and {theirs:?}");
        assert!(ours.is_err() || a == b, "page {pfn} differs");
    }
}

/// The descriptor of the n-th set bit of bitmap 2 is the n-th descriptor.
fn check_descs(dump: &Kdump, data: &[u8]) {
    let range = |at: u64, len: u64| {
        let (at, len) = (usize::try_from(at).ok()?, usize::try_from(len).ok()?);
        data.get(at..at.checked_add(len)?)
    };
    let layout = dump.layout();
    let bitmap =
        range(layout.bitmap2_offset(), layout.max_mapnr.div_ceil(8)).expect("an open dump has its bitmaps");
    let ones: u64 = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
    assert_eq!(dump.kept(), ones);
    let set = (0_u64..).zip(bitmap).flat_map(|(at, byte)| {
        (0..8).filter(move |shift| byte >> shift & 1 == 1).map(move |shift| Pfn(at * 8 + shift))
    });
    let desc_len = u64::try_from(DESC_LEN).unwrap();
    for (rank, pfn) in (0_u64..).zip(set).take(64) {
        let stored = layout.desc_offset(rank).and_then(|at| range(at, desc_len));
        match (dump.desc(pfn), stored) {
            (Ok(got), Some(stored)) => assert_eq!(got, PageDesc::parse(stored), "page {pfn}"),
            (Ok(got), None) => assert_eq!(got, Some(PageDesc::default()), "page {pfn} was cut off"),
            (got, stored) => panic!("page {pfn}: {got:?} of {stored:?}"),
        }
    }
    let mut seen = 0_u64;
    dump.for_each_desc(|_, _| seen += 1).unwrap();
    assert_eq!(seen, dump.kept());
}

fn check_pages(dump: &Kdump, data: Option<&[u8]>) {
    let size = dump.page_size();
    let mut reader = dump.page_reader();
    for pfn in chosen_pages(dump) {
        let (mut a, mut b) = (page(dump, 0xa5), page(dump, 0x5a));
        let by_page = reader.read_page(pfn, &mut a);
        let by_addr = size.addr_of(pfn).map(|addr| dump.read_exact_at(addr, &mut b));
        assert_eq!(Some(by_page.is_ok()), by_addr.map(|result| result.is_ok()), "page {pfn}: {by_page:?}");
        if by_page.is_err() {
            continue;
        }
        assert!(a == b, "page {pfn} differs");
        let desc = dump.desc(pfn).unwrap().expect("a page that reads has a descriptor");
        if let Some(data) = data.filter(|_| desc.flags == 0) {
            let at = usize::try_from(desc.offset).unwrap();
            assert_eq!(Some(&a[..]), data.get(at..at + a.len()), "page {pfn}");
        }
    }
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // A page of zeros, as zstd(1), zlib, LZO1X-1 and snappy make it.
    let zstd = [
        0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f, 0x4d, 0x00, 0x00, 0x10, 0x00, 0x00, 0x01, 0x00, 0xfb, 0xf7,
        0x01, 0x16,
    ];
    let zlib = [
        0x78, 0x01, 0xed, 0xd0, 0x01, 0x0d, 0x00, 0x00, 0x00, 0xc2, 0xa0, 0xf7, 0x4f, 0x6d, 0x0f, 0x07, 0x11,
        0x28, 0x0c, 0x18, 0x30, 0x60, 0xc0, 0x80, 0x01, 0x03, 0x06, 0x0c, 0x18, 0x30, 0x60, 0xc0, 0x80, 0x81,
        0xf7, 0x81, 0x01, 0x10, 0x00, 0x00, 0x01,
    ];
    let lzo = [
        0x12, 0x00, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xe6, 0x00, 0x00, 0x20, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0xe5, 0x00, 0x00, 0x11, 0x00, 0x00,
    ];
    // One byte, and 4095 that repeat it, 64 at a time.
    let snappy =
        [&[0x80, 0x20, 0x00, 0x00][..], &[0xfe, 0x01, 0x00].repeat(63), &[0xfa, 0x01, 0x00]].concat();
    let raw = [7; 4096];
    let stored = |pfn, flags, bytes| Stored { pfn, flags, bytes };
    let notes = [note("CORE", 1, &[7; 336]), note("VMCOREINFO", 0, b"PAGESIZE=4096\n")].concat();
    let info = b"OSRELEASE=6.1\nPAGESIZE=4096\n";
    let mixed = [
        stored(3, 0x20, &zstd[..]),
        stored(4, 1, &zlib[..]),
        stored(9, 0, &raw[..]),
        stored(200, 2, &lzo[..]),
        stored(201, 4, &snappy[..]),
        stored(300, 8, &[]), // no compression of the format
    ];
    let mixed = kdump(&notes, info, &mixed);
    let file = Scratch::new(&mixed);
    let dump = Kdump::open(&file.path()).expect("a well-formed dump");
    let readable =
        chosen_pages(&dump).into_iter().map(|pfn| dump.page_reader().read_page(pfn, &mut page(&dump, 1)));
    assert_eq!(readable.flatten().count(), 5, "the fuzzer starts from pages that can be read");
    let mut part = mixed.clone();
    put(&mut part, 4096 + 12, &1_u32.to_le_bytes()); // split
    put(&mut part, 4096 + 88, &1000_u64.to_le_bytes()); // end_pfn_64
    let whole = flatten(&mixed, 3000, true);
    let cut = flatten(&mixed, 3000, false);
    let one = kdump(&notes, info, &[stored(1, 0, &raw[..])]);
    let mended = mended(&one);
    [one, mixed, part, whole, cut, kdump(&[], &[], &[])].into_iter().chain(mended).collect()
}

/// What drgn mended in July and August 2026 in what it reads itself, done to a dump, which libkdumpfile reads
/// for it; the commits are drgn's.
fn mended(dump: &[u8]) -> Vec<Vec<u8>> {
    let (vmcoreinfo, notes) = (4096 + 32, 4096 + 48);
    let words = |changes: &[(usize, u64)]| {
        let mut dump = dump.to_vec();
        for (at, value) in changes {
            put(&mut dump, *at, &value.to_le_bytes());
        }
        dump
    };
    let end = u64::try_from(dump.len()).unwrap();
    let mut files = vec![
        // 046b94f0: a length that overflows with one more byte, or with its place; text that ends with the
        // file.
        words(&[(vmcoreinfo + 8, u64::MAX)]),
        words(&[(vmcoreinfo, u64::MAX - 3), (vmcoreinfo + 8, 8)]),
        words(&[(vmcoreinfo, end - 3), (vmcoreinfo + 8, 3)]),
        words(&[(notes, end - 1), (notes + 8, u64::MAX)]),
        // ca6d0fa9: nothing, at a place that is not there.
        words(&[(vmcoreinfo, u64::MAX), (vmcoreinfo + 8, 0), (notes, u64::MAX), (notes + 8, 0)]),
        // 494911c3: counts that no machine has: of pages, of CPUs.
        words(&[(4096 + 96, u64::MAX)]),
        words(&[(436, u64::MAX)]),
    ];
    // ca6d0fa9: a stream with records of nothing, in front and behind; 3ff7fcfa: a length that is negative as
    // int.
    let stream = flatten(dump, 3000, false);
    let record = |offset: u64, len: u64| [offset.to_be_bytes(), len.to_be_bytes()].concat();
    let (head, rest) = stream.split_at(4096);
    files.push([head, &record(0, 0), &record(u64::MAX >> 1, 0), rest, &record(0, 0), &[0xff; 16]].concat());
    files.extend([1 << 31, 1 << 63, u64::MAX].map(|len| [&stream[..], &record(0, len)].concat()));
    files
}
