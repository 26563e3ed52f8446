//! A dump on a raw device that was cut off or damaged: what `recover` gives is the original, or
//! says that it is not.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]
#![expect(clippy::arithmetic_side_effects, reason = "likewise")]

use std::cell::Cell;
use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use afterimage::raw::{self, LogDamage, RecoverError};
use base::addr::Pfn;
use base::config::{Compress, CrashLoop, DumpLevel, Format};
use storage::format::rawdump::{HEADER_LEN, Kind, LogId, RecordHeader, latest};
use storage::targets::raw::{Device, Raw};
use vmcore::budget::Budget;
use vmcore::dump::{self, Request, Written};
use vmcore::format::kdump::Utsname;
use vmcore::format::vmcoreinfo::VmcoreInfo;
use vmcore::sink::{Sink, SinkError};
use vmcore::source::testing::CoreFile;
use vmcore::source::{Access, Kdump, PhysicalMemory, Vmcore};
use vmcore::target::{Artifact, Capture, Target};

use tempfile::NamedTempFile;

const LOG: usize = 1 << 20;
const TEXT: &[u8] = b"<0>Kernel panic\n";

fn core() -> CoreFile {
    CoreFile::new().memory(0x1000, 30, 1).memory(0x10_0000, 10, 2).note("CORE", 1, &[0; 336])
}

/// The image of a device with a capture of [`core`], sealed or not.
fn image(sealed: bool) -> Vec<u8> {
    let image = empty();
    capture(Device::open(image.path()).unwrap(), sealed).unwrap();
    fs::read(image.path()).unwrap()
}

fn empty() -> NamedTempFile {
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(2 << 20).unwrap();
    raw::prepare(image.path(), false).unwrap();
    image
}

/// Writes a capture of [`core`] to a device, as far as that takes it.
fn capture(device: Device, sealed: bool) -> Result<(), Box<dyn Error>> {
    let crash_loop = CrashLoop { crashes: 3, within: 100 };
    let capture = Capture::new("one", 5, crash_loop);
    let mut target: Box<dyn Target> = Box::new(Raw::start(device, &[], &capture)?);
    let mut sink = target.create(Artifact::Dmesg)?;
    sink.write_at(0, TEXT)?;
    sink.sync()?;
    drop(sink);
    target.publish(Artifact::Dmesg)?;
    let file = core().write();
    let vmcore = Vmcore::open(file.path(), Access::Mmap)?;
    let request = Request {
        exclude: DumpLevel::new(0).unwrap().into(),
        format: Format::Kdump,
        compress: Compress::Zstd(1),
        utsname: Utsname { machine: "x86_64".into(), ..Utsname::default() },
        info: VmcoreInfo::default(),
        budget: Budget { workers: 1, plan: 1 << 20 },
        skip: Vec::new(),
        careful: false,
    };
    let mut sink = target.create(Artifact::Vmcore)?;
    dump::write(&vmcore, None, &request, sink.as_mut(), &mut Written::default())?;
    drop(sink);
    target.publish(Artifact::Vmcore)?;
    if sealed {
        target.close()?;
    }
    Ok(())
}

/// Recovers an image and checks every page that the dump still gives. Gives how many there are, of
/// 40.
fn check(bytes: &[u8], what: &str) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("image");
    fs::write(&device, bytes).unwrap();
    let out = dir.path().join("out");
    let recovered = match raw::recover(&device, &out, false) {
        Ok(recovered) => recovered,
        Err(RecoverError::Nothing(_) | RecoverError::Unreadable { .. }) => return 0,
        Err(error) => panic!("{what}: {error}"),
    };
    if recovered.iter().all(|one| one.whole) {
        assert_eq!(recovered.len(), 2, "{what}: a whole capture has all of its files");
    }
    for one in recovered.iter().filter(|one| one.log.is_none()) {
        assert_eq!(fs::metadata(&one.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(one.whole, !one.path.to_str().unwrap().ends_with("-incomplete"), "{what}");
        if one.whole && one.path.ends_with("dmesg.txt") {
            assert_eq!(fs::read(&one.path).unwrap(), TEXT, "{what}");
        }
    }
    let Some(one) = recovered.iter().find(|one| one.path.to_str().unwrap().contains("/vmcore")) else {
        return 0;
    };
    let pages = read_back(&one.path, what);
    if one.whole {
        assert_eq!(pages, Some((40, false)), "{what}");
    }
    if let Some((pages, incomplete)) = pages.filter(|_| !one.whole) {
        assert!(incomplete || one.lost_records == 0 || pages == 0, "{what}: {one:?}");
    }
    pages.map_or(0, |(pages, _)| pages)
}

/// Pages that a dump gives, each of which must be right, and whether it calls itself incomplete.
fn read_back(path: &Path, what: &str) -> Option<(usize, bool)> {
    let dump = Kdump::open(path).ok()?;
    let mut reader = dump.page_reader();
    let mut page = vec![0; 4096];
    let pages = (1..31).chain(0x100..0x10a);
    let right = pages.filter(|&pfn| {
        let read = reader.read_page(Pfn(pfn), &mut page).is_ok();
        assert!(!read || page == core().page(pfn), "{what}: page {pfn:#x} is another one");
        read
    });
    Some((right.count(), dump.header().incomplete))
}

fn end_of_log(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1
}

#[test]
fn a_log_that_ends_anywhere_is_true_as_far_as_it_goes() {
    let bytes = image(false);
    let end = end_of_log(&bytes);
    let mut best = 0;
    for cut in (LOG..=end + 512).step_by(512) {
        let mut bytes = bytes.clone();
        bytes[cut..].fill(0);
        best = check(&bytes, &format!("cut at {cut}"));
    }
    assert_eq!(best, 40, "nothing was cut off at last");
}

#[test]
fn a_lost_sector_loses_pages_and_changes_none() {
    let bytes = image(true);
    let mut partly = 0;
    for at in (LOG..end_of_log(&bytes)).step_by(512) {
        let mut bytes = bytes.clone();
        bytes[at..at + 512].fill(0);
        partly += usize::from((1..40).contains(&check(&bytes, &format!("sector at {at}"))));
    }
    assert!(partly > 0, "some losses leave the other pages");
}

#[test]
fn wrong_bits_change_no_page() {
    let bytes = image(true);
    let end = end_of_log(&bytes);
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    for turn in 0..300 {
        let mut bytes = bytes.clone();
        for _ in 0..=turn % 4 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let at = LOG + usize::try_from(x >> 8).unwrap() % (end - LOG);
            bytes[at] ^= 1 << (x & 7);
        }
        check(&bytes, &format!("turn {turn}"));
    }
}

#[test]
fn a_capture_is_collected_once_all_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("image");
    fs::write(&device, image(true)).unwrap();
    let out = dir.path().join("out");
    assert!(raw::prepare(&device, false).is_err(), "not collected");
    assert!(raw::recover(&device, &out, true).unwrap().iter().all(|one| one.whole));
    assert!(raw::prepare(&device, false).is_err(), "kept uncollected");
    let again = raw::recover(&device, &out, false).unwrap();
    assert!(again.iter().all(|one| one.whole && one.path.starts_with(out.join("one-2"))), "{again:?}");
    raw::reset(&device).unwrap();
    raw::prepare(&device, false).unwrap();
    assert!(matches!(raw::recover(&device, &out, false), Err(RecoverError::Nothing(_))));
    fs::write(&device, vec![1; 4 << 20]).unwrap();
    assert!(raw::prepare(&device, false).is_err(), "unknown content");
    raw::prepare(&device, true).unwrap();
}

#[test]
fn a_capture_that_lost_a_file_is_not_whole() {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("image");
    let out = dir.path().join("out");
    let mut bytes = image(true);
    bytes[LOG..LOG + 8192].fill(0); // all of the log of the kernel: three records
    fs::write(&device, &bytes).unwrap();
    let recovered = raw::recover(&device, &out, false).unwrap();
    let [vmcore, capture] = recovered.as_slice() else { panic!("{recovered:?}") };
    assert!(vmcore.whole && !capture.whole, "{recovered:?}");
    let log = capture.log.clone().unwrap();
    assert_eq!(log, LogDamage { missing: 3, ..LogDamage::default() });
    assert!(capture.text().ends_with("image: the capture misses 3 records"), "{}", capture.text());

    fs::write(&device, image(false)).unwrap();
    for turn in 0..2 {
        let recovered = raw::recover(&device, &out, false).unwrap();
        let log = recovered.last().unwrap().log.clone().unwrap();
        assert_eq!(log, LogDamage { unsealed: true, ..LogDamage::default() }, "{turn}: collected or not");
    }
    bytes[LOG..].fill(0);
    fs::write(&device, &bytes).unwrap();
    let error = raw::recover(&device, &out, false).unwrap_err();
    assert!(
        matches!(error, RecoverError::Unreadable { missing, read_errors: 0, .. } if missing > 4),
        "{error}"
    );
}

#[test]
fn a_capture_beside_foreign_data_is_copied_and_the_device_left_alone() {
    for (at, stray, told) in [(4086, &b"SWAPSPACE2"[..], "swap"), (4096, b"\xfc\x4e\x2b\xa9", "MD RAID")] {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("image");
        let mut bytes = image(true);
        bytes[at..at + stray.len()].copy_from_slice(stray);
        fs::write(&device, &bytes).unwrap();
        let recovered = raw::recover(&device, &dir.path().join("out"), false).unwrap();
        let (capture, files) = recovered.split_last().unwrap();
        let unmarked = capture.log.as_ref().and_then(|log| log.unmarked.as_deref()).unwrap();
        assert!(files.len() == 2 && unmarked.contains(told), "{recovered:?}");
        assert!(raw::reset(&device).unwrap_err().to_string().contains(told));
        assert!(fs::read(&device).unwrap() == bytes, "{told} was written to");
    }
}

#[test]
fn a_wrong_bit_before_the_pages_costs_little() {
    let bytes = image(true);
    let superblock = latest(&bytes).unwrap();
    let id = LogId { log: superblock.log, nonce: superblock.nonce };
    let mut left = Vec::new();
    let mut at = LOG;
    while at + HEADER_LEN <= bytes.len() {
        let header = RecordHeader::parse(&bytes[at..], &id);
        if let Some(header) = header.filter(|header| header.name.as_str() == "vmcore" && header.len > 0) {
            let mut bytes = bytes.clone();
            bytes[at + HEADER_LEN] ^= 1;
            left.push((header.offset, check(&bytes, &format!("record at {at}"))));
        }
        at += 512;
    }
    let (block, bitmap1, bitmap2) = (4096, 2 * 4096, 3 * 4096);
    let pages = |range: core::ops::Range<u64>| {
        left.iter().filter(|(offset, _)| range.contains(offset)).map(|&(_, pages)| pages).collect::<Vec<_>>()
    };
    assert_eq!(pages(0..1), [40, 40], "one header is enough");
    assert_eq!(pages(block..block + 1), [40, 40], "and one sub header");
    assert_eq!(pages(block + 1..bitmap1), [40], "the notes");
    assert_eq!(pages(bitmap1..bitmap2), [40], "{left:?}");
    assert_eq!(pages(bitmap2..bitmap2 + block), [0], "{left:?}");
}

/// The image of a capture in which one record of the dump was changed, checksum and all.
fn spoiled(bytes: &[u8], change: &dyn Fn(&mut RecordHeader) -> bool) -> Vec<u8> {
    let superblock = latest(bytes).unwrap();
    let id = LogId { log: superblock.log, nonce: superblock.nonce };
    let mut bytes = bytes.to_vec();
    for at in (LOG..bytes.len() - HEADER_LEN).step_by(512) {
        let Some(mut header) = RecordHeader::parse(bytes.get(at..).unwrap(), &id) else { continue };
        if header.name.as_str() == "vmcore" && change(&mut header) {
            let payload = at + HEADER_LEN..at + HEADER_LEN + usize::try_from(header.len).unwrap();
            let payload = bytes.get(payload).unwrap().to_vec();
            let mut record = Vec::new();
            header.emit(&id, &payload, &mut record);
            bytes.get_mut(at..at + record.len()).unwrap().copy_from_slice(&record);
            break;
        }
    }
    bytes
}

#[test]
fn a_record_with_an_absurd_place_costs_itself_only() {
    let bytes = image(true);
    let is_pages = |header: &RecordHeader| header.kind == Kind::Data && header.offset > 5 * 4096;
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for offset in [u64::MAX, u64::MAX - 100, 1 << 63, (1 << 63) - 1, 1 << 62] {
        let data = |header: &mut RecordHeader| {
            let found = is_pages(header);
            header.offset = offset;
            found
        };
        all.push((format!("data at {offset:#x}"), spoiled(&bytes, &data)));
        let cut = |header: &mut RecordHeader| {
            let found = header.kind == Kind::Truncate && header.index == 0;
            header.offset = offset;
            found
        };
        all.push((format!("cut at {offset:#x}"), spoiled(&bytes, &cut)));
    }
    let number = |set: fn(&mut RecordHeader)| {
        spoiled(&bytes, &move |header| {
            let found = is_pages(header);
            set(header);
            found
        })
    };
    all.push(("sequence".to_owned(), number(|header| header.sequence = u64::MAX)));
    all.push(("attempt".to_owned(), number(|header| header.attempt = u32::MAX)));
    all.push(("index".to_owned(), number(|header| header.index = u64::MAX)));
    for (what, image) in all {
        assert!(image != bytes, "{what} changed nothing");
        let left = check(&image, &what);
        let may_be_whole = what.starts_with("cut") || what == "index";
        assert!(left < 40 || may_be_whole, "{what}: a page is lost without a word");
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("image"), &image).unwrap();
        let recovered = raw::recover(&out.path().join("image"), &out.path().join("out"), false).unwrap();
        let log = recovered.iter().any(|one| one.path.ends_with("dmesg.txt") && one.whole);
        assert!(log && recovered.iter().any(|one| !one.whole), "{what}: {recovered:?}");
    }
}

/// A device that is gone for good after `left` bytes, or whose one write after so many is lost.
struct Failing {
    file: fs::File,
    left: Cell<u64>,
    for_good: bool,
}

impl Sink for Failing {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let left = self.left.get();
        let fits = usize::try_from(left).unwrap().min(bytes.len());
        self.file.write_all_at(bytes.split_at(fits).0, offset).unwrap();
        let failed = fits < bytes.len();
        self.left.set(if failed && !self.for_good {
            u64::MAX >> 1
        } else {
            left - u64::try_from(fits).unwrap()
        });
        let source = io::Error::from_raw_os_error(5); // EIO
        if failed { Err(SinkError::Write { offset, len: bytes.len(), source }) } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

#[test]
fn a_device_that_fails_during_the_dump_gives_true_pages_or_none() {
    let file = |image: &NamedTempFile| image.reopen().unwrap();
    for for_good in [true, false] {
        let (mut best, mut failures) = (0, 0);
        for budget in (0..).step_by(7 * 512) {
            let image = empty();
            let sink = Failing { file: file(&image), left: Cell::new(budget), for_good };
            let device = Device::new("image".to_owned(), file(&image), Box::new(sink)).unwrap();
            let failed = capture(device, true).is_err();
            best = check(&fs::read(image.path()).unwrap(), &format!("failed after {budget}, {for_good}"));
            failures += usize::from(failed);
            if !failed && (budget > 1 << 20 || best == 40) {
                break;
            }
        }
        assert!(failures > 5 && best == 40, "{failures} failures, {best} pages");
    }
}
