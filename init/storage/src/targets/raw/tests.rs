//! The target over an image file, and over a device that fails.

use super::*;
use crate::format::rawdump::LOG_START;
use crate::format::rawdump::latest;
use base::addr::to_u64;
use base::config::CrashLoop;
use std::cell::Cell;
use tempfile::NamedTempFile;

const LEN: u64 = 4 << 20;

/// Writes to an image until `left` bytes have been written; the write in between is torn.
struct Failing {
    sink: FileSink,
    left: Rc<Cell<u64>>,
}

impl Sink for Failing {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let fits = to_usize(self.left.get()).min(bytes.len());
        self.left.set(self.left.get() - to_u64(fits));
        self.sink.write_at(offset, &bytes[..fits])?;
        if fits == bytes.len() {
            return Ok(());
        }
        let source = io::Error::from_raw_os_error(libc::EIO);
        Err(SinkError::Write { offset, len: bytes.len(), source })
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.sink.sync()
    }
}

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(LEN).unwrap();
    file
}

fn device(image: &NamedTempFile, left: &Rc<Cell<u64>>) -> Device {
    let sink = Failing { sink: FileSink::new(image.reopen().unwrap()), left: Rc::clone(left) };
    Device::new("image".into(), image.reopen().unwrap(), Box::new(sink)).unwrap()
}

fn start(image: &NamedTempFile, name: &str, overwrite: &[&str]) -> Result<Box<Raw>, RawError> {
    let overwrite: Vec<_> = overwrite.iter().map(|&word| word.to_owned()).collect();
    let crash_loop = CrashLoop { crashes: 3, within: 100 };
    let capture = Capture::new(name, 5, crash_loop);
    Raw::start(Device::open(image.path())?, &overwrite, &capture).map(Box::new)
}

fn log_of(image: &NamedTempFile) -> (Superblock, Vec<Found>) {
    let superblock = superblock(image.as_file(), "image").unwrap();
    let found = Scan::new(image.as_file(), LEN, &superblock).collect();
    (superblock, found)
}

fn save(target: &mut Raw, bytes: &[u8]) {
    let mut sink = target.create(Artifact::Dmesg).unwrap();
    sink.write_at(0, bytes).unwrap();
    sink.sync().unwrap();
    drop(sink);
    target.publish(Artifact::Dmesg).unwrap();
}

#[test]
fn a_capture_is_sealed_and_not_written_over() {
    let image = image();
    let mut target = start(&image, "one", &[]).unwrap();
    save(&mut target, &vec![7; 100_000]);
    assert!(target.create(Artifact::Dmesg).is_err());
    target.close().unwrap();
    let (superblock, found) = log_of(&image);
    assert_eq!((superblock.state, superblock.records), (State::Sealed, 4));
    assert_eq!(found.iter().map(|found| found.header.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let data: Vec<u8> = found.iter().flat_map(|found| found.payload.clone().unwrap()).collect();
    assert_eq!(data, vec![7; 100_000]);
    assert!(matches!(start(&image, "two", &["UUID=1"]), Err(RawError::Uncollected { .. })));
    let target = start(&image, "two", &["uncollected"]).unwrap();
    assert_eq!(target.ledger().sequence, 2);
    assert!(log_of(&image).1.is_empty(), "records of another nonce are data");
    drop(target);
    start(&image, "three", &[]).expect("a capture without a record is no loss");
}

#[test]
fn a_second_attempt_goes_on_behind_the_first() {
    let image = image();
    let mut target = start(&image, "one", &[]).unwrap();
    save(&mut target, b"first");
    drop(target); // killed
    let mut target = start(&image, "one", &[]).unwrap();
    assert_eq!(target.ledger().sequence, 1);
    save(&mut target, b"second");
    target.close().unwrap();
    let found = log_of(&image).1;
    let data =
        |attempt| found.iter().find(move |found| found.header.attempt == attempt && found.header.len > 0);
    assert_eq!(data(1).unwrap().payload.as_deref(), Some(&b"first"[..]));
    assert_eq!(data(2).unwrap().payload.as_deref(), Some(&b"second"[..]));
    assert!(found.windows(2).all(|pair| pair[0].header.sequence + 1 == pair[1].header.sequence));
}

#[test]
fn what_is_not_ours_is_refused_by_name() {
    let image = image();
    let write = |at: u64, bytes: &[u8]| image.as_file().write_all_at(bytes, at).unwrap();
    write(4086, b"SWAPSPACE2");
    write(1036, &[0xab; 16]);
    let uuid = "abababab-abab-abab-abab-abababababab";
    let refused = start(&image, "one", &["uncollected"]).unwrap_err().to_string();
    assert!(refused.contains("swap (UUID=abab") && refused.contains("overwrite"), "{refused}");
    start(&image, "one", &[&format!("UUID={uuid}")]).unwrap();
    assert_eq!(log_of(&image).0.capture, "one");
    write(70_000, b"x");
    assert!(matches!(start(&image, "two", &["uncollected"]), Err(RawError::Unknown(_))));
    image.as_file().set_len(MIN_LEN - 1).unwrap();
    assert!(matches!(start(&image, "two", &[]), Err(RawError::TooSmall { .. })));
}

#[test]
fn a_full_device_says_so_and_keeps_what_was_promised() {
    let image = image();
    let mut target = start(&image, "one", &[]).unwrap();
    let mut result = target.create(Artifact::Result).unwrap();
    result.reserve(64 << 10).unwrap();
    let mut sink = target.create(Artifact::Vmcore).unwrap();
    let room = target.room().unwrap();
    assert!(room < LEN - LOG_START && room > LEN / 2, "{room}");
    let mut at = 0;
    let error = loop {
        match sink.write_at(at, &vec![3; 50_000]) {
            Ok(()) => at += 50_000,
            Err(error) => break error,
        }
    };
    assert!(error.is_full() && at > LEN / 2, "{error:?}");
    drop(sink);
    result.write_at(0, &vec![4; 64 << 10]).unwrap();
    result.sync().unwrap();
    drop(result);
    target.publish(Artifact::Result).unwrap();
    target.close().unwrap();
    let (superblock, found) = log_of(&image);
    assert_eq!(to_u64(found.len()), superblock.records);
    assert!(superblock.end <= LEN && found.iter().all(|found| found.payload.is_some()));
}

#[test]
fn a_device_that_fails_anywhere_leaves_what_was_durable() {
    for budget in (0..300 * 512_u64).step_by(512) {
        let image = image();
        let left = Rc::new(Cell::new(budget));
        let crash_loop = CrashLoop { crashes: 3, within: 100 };
        let capture = Capture::new("one", 5, crash_loop);
        let Ok(mut target) = Raw::start(device(&image, &left), &[], &capture) else {
            assert!(budget < 8192, "{budget}");
            continue;
        };
        let mut durable = 0_u64;
        let mut sink = target.create(Artifact::Vmcore).unwrap();
        for at in 0..40_u8 {
            let written = sink.write_at(u64::from(at) * 3000, &[at + 1; 3000]);
            if written.and_then(|()| sink.sync()).is_err() {
                break;
            }
            durable = u64::from(at) + 1;
        }
        drop(sink);
        let _ = Box::new(target).close();
        let found = log_of(&image).1;
        let whole = found.iter().filter(|found| found.header.len > 0).filter_map(|found| {
            let value = u8::try_from(found.header.offset / 3000).unwrap() + 1;
            found.payload.as_ref().map(|payload| assert_eq!(payload, &[value; 3000]))
        });
        assert!(to_u64(whole.count()) >= durable, "{budget}: {durable} were durable");
    }
}

#[test]
fn the_memory_of_crashes_outlives_the_captures() {
    let image = image();
    let mut device = Device::open(image.path()).unwrap();
    let uuid = device.format(None).unwrap();
    drop(device);
    for turn in 0..5 {
        let target = start(&image, &format!("capture-{turn}"), &["uncollected"]).unwrap();
        assert_eq!(target.ledger().looping, turn > 2);
        target.close().unwrap();
    }
    let mut device = Device::open(image.path()).unwrap();
    device.reset_ledger().unwrap();
    let superblock = device.superblock().unwrap();
    assert_eq!((superblock.uuid, superblock.state), (uuid, State::Sealed));
    assert!(!start(&image, "later", &["uncollected"]).unwrap().ledger().looping);
}

const SWAP: &str = "abababab-abab-abab-abab-abababababab";

fn mkswap(image: &NamedTempFile) {
    image.as_file().write_all_at(b"SWAPSPACE2", 4086).unwrap();
    image.as_file().write_all_at(&[0xab; 16], 1036).unwrap();
}

fn head_of(image: &NamedTempFile) -> Vec<u8> {
    read_up_to(image.as_file(), 0, to_usize(LOG_START)).unwrap()
}

#[test]
fn a_device_named_by_what_it_held_is_found_by_that_name_again() {
    let overwrite = [format!("UUID={SWAP}")];
    let image = image();
    mkswap(&image);
    let mut target = start(&image, "one", &[&overwrite[0]]).unwrap();
    save(&mut target, b"first");
    target.close().unwrap();
    assert_eq!(log_of(&image).0.uuid, SWAP);
    start(&image, "one", &[&overwrite[0]]).expect("a second attempt");
    assert_eq!(log_of(&image).0.uuid, SWAP);

    for (left_generation, offset) in [(6, 0), (7, 4096)] {
        let image = self::image();
        let left = Superblock { generation: left_generation, ..empty().unwrap() };
        image.as_file().write_all_at(&left.emit().unwrap(), offset).unwrap();
        // A btrfs: magic and fsid behind 64 KiB.
        image.as_file().write_all_at(b"_BHRfS_M", (64 << 10) + 64).unwrap();
        image.as_file().write_all_at(&[0xab; 16], (64 << 10) + 32).unwrap();
        start(&image, "one", &[&overwrite[0]]).unwrap();
        assert_eq!(log_of(&image).0.uuid, SWAP, "what was left of ours is older");
    }
}

#[test]
fn a_device_that_is_given_up_has_its_name_at_each_moment() {
    let overwrite = [format!("UUID={SWAP}")];
    let all = (1 << 20) + 2048;
    let middle = (8192..all).step_by(61 * 512);
    for budget in (0..8192).step_by(512).chain(middle).chain((all - (80 << 10)..=all).step_by(512)) {
        let image = image();
        image.as_file().write_all_at(&vec![0x55; 1 << 20], 8192).unwrap();
        mkswap(&image);
        let left = Rc::new(Cell::new(budget));
        let crash_loop = CrashLoop { crashes: 3, within: 100 };
        let capture = Capture::new("one", 5, crash_loop);
        let started = Raw::start(device(&image, &left), &overwrite, &capture);
        assert_eq!(started.is_ok(), budget == all, "{budget}");
        drop(started);
        let head = head_of(&image);
        let uuid = latest(&head).map(|ours| ours.uuid).or_else(|| crate::format::superblock::swap(&head));
        assert_eq!(uuid.as_deref(), Some(SWAP), "{budget}");
        start(&image, "one", &[&overwrite[0]]).unwrap_or_else(|error| panic!("{budget}: {error}"));
        assert_eq!(contents(&head_of(&image)), Contents::Ours(Box::new(log_of(&image).0)), "{budget}");
    }
}

#[test]
fn a_device_with_something_at_its_end_is_not_blank() {
    for stray in [LEN - 1, LEN - (64 << 10), LEN - (1 << 20)] {
        let image = image();
        image.as_file().write_all_at(b"x", stray).unwrap();
        assert!(matches!(start(&image, "one", &["uncollected"]), Err(RawError::Unknown(_))), "{stray}");
        Device::open(image.path()).unwrap().format(None).unwrap();
        let mut end = [1];
        image.as_file().read_exact_at(&mut end, stray).unwrap();
        assert_eq!(end, [0], "what is given up does not come back");
        start(&image, "one", &[]).unwrap();
    }
}

#[test]
fn foreign_data_beside_our_superblock_is_not_written_to() {
    let what = |stray: &'static [u8], at| {
        let image = image();
        save(&mut start(&image, "one", &[]).unwrap(), b"x");
        image.as_file().write_all_at(stray, at).unwrap();
        let generation = log_of(&image).0.generation;
        let before = head_of(&image);
        let mut device = Device::open(image.path()).unwrap();
        let errors = [device.mark_collected(generation, "now"), device.reset_ledger()];
        assert_eq!(head_of(&image), before);
        errors.map(|error| match error.unwrap_err() {
            RawError::NotOurs { what, .. } => what,
            error => panic!("{error}"),
        })
    };
    assert_eq!(what(b"SWAPSPACE2", 4086)[0], "swap (UUID=00000000-0000-0000-0000-000000000000)");
    assert_eq!(what(b"\xfc\x4e\x2b\xa9", 4096)[1], "an MD RAID member");
    assert!(what(b"x", 70_000).iter().all(|what| what.starts_with("something")));

    let image = image();
    let mut device = Device::open(image.path()).unwrap();
    assert!(matches!(device.reset_ledger(), Err(RawError::NoSuperblock(_))));
    drop(start(&image, "one", &[]).unwrap());
    let generation = log_of(&image).0.generation;
    let error = device.mark_collected(generation - 1, "now").unwrap_err();
    assert!(matches!(error, RawError::Changed { found, .. } if found == generation), "{error}");
    device.mark_collected(generation, "now").unwrap();
    assert_eq!(log_of(&image).0.state, State::Collected);
}

#[test]
fn a_log_that_cannot_be_read_may_have_records() {
    let image = image();
    drop(start(&image, "one", &[]).unwrap());
    let other = |len| {
        let mut device = Device::open(image.path()).unwrap();
        device.len = len; // reads behind the end of the image fail
        let crash_loop = CrashLoop { crashes: 3, within: 100 };
        let capture = Capture::new("two", 5, crash_loop);
        Raw::start(device, &[], &capture).map(drop)
    };
    assert!(matches!(other(LEN + 4096), Err(RawError::Uncollected { .. })));
    let (superblock, _) = log_of(&image);
    let mut scan = Scan::new(image.as_file(), LEN + 8192, &superblock);
    assert_eq!((scan.next(), scan.read_errors()), (None, 2));
    other(LEN).unwrap();
}
