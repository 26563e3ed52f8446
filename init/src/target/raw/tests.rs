//! The target over an image file, and over a device that fails.

use super::*;
use crate::addr::to_u64;
use crate::config::CrashLoop;
use crate::format::rawdump::LOG_START;
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
    let capture = Capture { name, time: 5, crash_loop, heartbeat: &|| (), index: 0, stacks: &[] };
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
        let capture = Capture { name: "one", time: 5, crash_loop, heartbeat: &|| (), index: 0, stacks: &[] };
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
