//! kdump-compressed dumps: descriptors stand at their ranks, pages come back as stored or as an error.
#![no_main]

use afterimage_fuzz::build::{Stored, kdump, note};
use afterimage_fuzz::{Scratch, check_ranges, chosen_pages, page};
use capture::addr::Pfn;
use capture::format::kdump::{DESC_LEN, PageDesc};
use capture::format::note::parse_all;
use capture::kernel::Kernel;
use capture::log::chain;
use capture::source::{Kdump, PhysicalMemory};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: afterimage_fuzz::seed(&seeds()),
    |data: &[u8]| {
        let file = Scratch::new(data);
        assert_eq!(Kdump::is_dump(&file.path()).unwrap(), data.starts_with(b"KDUMP   "));
        let dump = match Kdump::open(&file.path()) {
            Ok(dump) => dump,
            Err(error) => return assert!(!chain(&error).is_empty()),
        };
        check_ranges(&dump);
        assert!(dump.max_pfn().0 <= dump.layout().max_mapnr);
        check_notes(&dump);
        check_descs(&dump, data);
        check_pages(&dump, data);
        let kernel = Kernel::new(&dump, dump.info(), &[]);
        let _ = capture::kernel::uts::discover(&kernel);
    }
);

fn check_notes(dump: &Kdump) {
    let Ok(bytes) = dump.notes() else { return };
    let mut end = 0;
    for note in parse_all(&bytes) {
        assert!(note.offset == end && note.len >= 12, "{note:?}");
        assert!(note.desc_offset + note.desc_len <= u64::try_from(bytes.len()).unwrap(), "{note:?}");
        end = note.offset + note.len;
    }
}

/// The descriptor of the n-th set bit of bitmap 2 is the n-th descriptor.
fn check_descs(dump: &Kdump, data: &[u8]) {
    let range = |at: u64, len: u64| {
        let (at, len) = (usize::try_from(at).ok()?, usize::try_from(len).ok()?);
        data.get(at..at.checked_add(len)?)
    };
    let layout = dump.layout();
    let bitmap = range(layout.bitmap2_offset(), layout.bitmap_bytes()).expect("an open dump has its bitmaps");
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
            (Err(_), None) => (),
            (got, stored) => panic!("page {pfn}: {got:?} of {stored:?}"),
        }
    }
    let mut seen = 0_u64;
    match dump.for_each_desc(|_| seen += 1) {
        Ok(()) => assert_eq!(seen, dump.kept()),
        Err(_) => assert!(seen < dump.kept()),
    }
}

fn check_pages(dump: &Kdump, data: &[u8]) {
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
        if desc.flags == 0 {
            let at = usize::try_from(desc.offset).unwrap();
            assert_eq!(Some(&a[..]), data.get(at..at + a.len()), "page {pfn}");
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    // A page of zeros, as zstd(1) and zlib make it.
    let zstd = [
        0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f, 0x4d, 0x00, 0x00, 0x10, 0x00, 0x00, 0x01, 0x00, 0xfb, 0xf7,
        0x01, 0x16,
    ];
    let zlib = [
        0x78, 0x01, 0xed, 0xd0, 0x01, 0x0d, 0x00, 0x00, 0x00, 0xc2, 0xa0, 0xf7, 0x4f, 0x6d, 0x0f, 0x07, 0x11,
        0x28, 0x0c, 0x18, 0x30, 0x60, 0xc0, 0x80, 0x01, 0x03, 0x06, 0x0c, 0x18, 0x30, 0x60, 0xc0, 0x80, 0x81,
        0xf7, 0x81, 0x01, 0x10, 0x00, 0x00, 0x01,
    ];
    let raw = [7; 4096];
    let stored = |pfn, flags, bytes| Stored { pfn, flags, bytes };
    let notes = [note("CORE", 1, &[7; 336]), note("VMCOREINFO", 0, b"PAGESIZE=4096\n")].concat();
    let info = b"OSRELEASE=6.1\nPAGESIZE=4096\n";
    let mixed = [
        stored(3, 0x20, &zstd[..]),
        stored(4, 1, &zlib[..]),
        stored(9, 0, &raw[..]),
        stored(200, 2, &[]), // LZO, which is not read
    ];
    let mixed = kdump(&notes, info, &mixed);
    let file = Scratch::new(&mixed);
    let dump = Kdump::open(&file.path()).expect("a well-formed dump");
    let readable =
        chosen_pages(&dump).into_iter().map(|pfn| dump.page_reader().read_page(pfn, &mut page(&dump, 1)));
    assert_eq!(readable.flatten().count(), 3, "the fuzzer starts from pages that can be read");
    vec![kdump(&notes, info, &[stored(1, 0, &raw[..])]), mixed, kdump(&[], &[], &[])]
}
