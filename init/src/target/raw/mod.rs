//! A device without a file system as a target: it takes one capture at a time.
//!
//! It never writes over what it does not know, nor over a capture that nobody has collected, unless the configuration
//! names exactly that thing.

mod log;
mod scan;
#[cfg(test)]
mod tests;

use core::fmt;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::libc;

use crate::addr::to_usize;
use crate::config;
use crate::format::fields::Uuid;
use crate::format::rawdump::{
    Contents, Kind, LOG_START, LogId, MIN_LEN, Name, Nonce, State, Superblock, SuperblockTooLong, contents,
    latest,
};
use crate::setup::block;
use crate::sink::{Sink, SinkError};
use crate::source::read_up_to;
use crate::target::file::FileSink;
use crate::target::{Artifact, Capture, Ledger, Target, TargetError};

pub use scan::{Found, Scan};

use log::{Log, RawSink};

/// Where random bytes come from. Unlike getrandom(2) it does not wait for a pool that fills slowly right after boot.
const RANDOM: &str = "/dev/urandom";
/// The word in `overwrite` for a capture that was not collected.
const UNCOLLECTED: &str = "uncollected";

/// Why a device is no raw target, or stopped to be one.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// The device takes no writes.
    #[error("{0} is read-only")]
    ReadOnly(String),
    /// The device has no room for anything.
    #[error("{device} has {len} bytes; a raw target needs at least {MIN_LEN}")]
    TooSmall {
        /// Which device.
        device: String,
        /// Its bytes.
        len: u64,
    },
    /// Somebody else's data.
    #[error(
        "{device} holds {what}{}: take another device, or give this one up with `afterimage prepare --force`{}",
        named(uuid),
        remedy(uuid)
    )]
    Foreign {
        /// Which device.
        device: String,
        /// What it holds.
        what: &'static str,
        /// UUID of that; may be empty.
        uuid: String,
    },
    /// Data of nobody that we know.
    #[error("{0} holds something that is neither zeros nor ours: `afterimage prepare` makes it a raw target")]
    Unknown(String),
    /// A capture that nobody has copied off.
    #[error(
        "{device} holds the capture {capture}, which was not collected: `afterimage recover` it, or allow overwrite = \
         [\"uncollected\"]"
    )]
    Uncollected {
        /// Which device.
        device: String,
        /// Name of the capture.
        capture: String,
    },
    /// No superblock of ours that can be read.
    #[error("{0} has no superblock of afterimage")]
    NoSuperblock(String),
    /// The device cannot be opened, read or written.
    #[error("{what} {device}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Which device.
        device: String,
        /// Cause.
        source: io::Error,
    },
    /// The superblock or the log cannot be written.
    #[error("{what} of {device}")]
    Write {
        /// What was being written.
        what: &'static str,
        /// Which device.
        device: String,
        /// Cause.
        source: SinkError,
    },
    /// The superblock does not hold what it is to say.
    #[error("the superblock of {device} does not fit")]
    Superblock {
        /// Which device.
        device: String,
        /// Cause.
        source: SuperblockTooLong,
    },
    /// No random bytes.
    #[error("reading random bytes")]
    Random(#[source] io::Error),
}

fn named(uuid: &str) -> String {
    if uuid.is_empty() { String::new() } else { format!(" (UUID={uuid})") }
}

fn remedy(uuid: &str) -> String {
    if uuid.is_empty() { String::new() } else { format!(", or allow overwrite = [\"UUID={uuid}\"]") }
}

/// An open device: bytes to read, and the sink that writes them.
pub struct Device {
    name: String,
    file: File,
    sink: Box<dyn Sink>,
    len: u64,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.name).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Device {
    /// Opens a block device for us alone, or the image of one: a device that is mounted, swapped to, or a part of another
    /// device is refused by the kernel with EBUSY.
    pub fn open(node: &Path) -> Result<Self, RawError> {
        let io = |what| failed(what, node.display().to_string());
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_EXCL);
        let file = options.open(node).map_err(io("opening, for us alone,"))?;
        let sink = FileSink::new(file.try_clone().map_err(io("opening"))?);
        Self::new(node.display().to_string(), file, Box::new(sink))
    }

    /// A device that is read from `file` and written through `sink`.
    pub fn new(name: String, file: File, sink: Box<dyn Sink>) -> Result<Self, RawError> {
        let len = (&file).seek(SeekFrom::End(0)).map_err(failed("measuring", name.clone()))?;
        if len < MIN_LEN {
            return Err(RawError::TooSmall { device: name, len });
        }
        Ok(Self { name, file, sink, len })
    }

    /// What it holds.
    pub fn contents(&self) -> Result<Contents, RawError> {
        let head = read_up_to(&self.file, 0, to_usize(LOG_START));
        head.map(|head| contents(&head)).map_err(failed("reading the start of", self.name.clone()))
    }

    /// The superblock, whatever else there is.
    pub fn superblock(&self) -> Result<Superblock, RawError> {
        superblock(&self.file, &self.name)
    }

    /// Makes `superblock` the one that holds, durably.
    pub fn write_superblock(&mut self, superblock: &Superblock) -> Result<(), RawError> {
        write_superblock(self.sink.as_mut(), &self.name, superblock)
    }

    /// Fills with zeros what stands before the log, durably: whatever it was, it is gone.
    pub fn wipe(&mut self) -> Result<(), RawError> {
        let zeros = vec![0; to_usize(LOG_START)];
        let wiped = self.sink.write_at(0, &zeros).and_then(|()| self.sink.sync());
        wiped.map_err(write_failed("the start", &self.name))
    }

    /// Makes the device an empty raw target, with the identity and the memory of `before` if it was one. Gives its UUID.
    pub fn format(&mut self, before: Option<&Superblock>) -> Result<String, RawError> {
        let fresh = empty()?;
        let (uuid, ledger) = match before {
            Some(before) => (before.uuid.clone(), before.ledger.clone()),
            None => (fresh.uuid.clone(), fresh.ledger.clone()),
        };
        self.wipe()?;
        for generation in [1, 2] {
            let superblock =
                Superblock { generation, uuid: uuid.clone(), ledger: ledger.clone(), ..fresh.clone() };
            self.write_superblock(&superblock)?;
        }
        Ok(uuid)
    }

    /// Forgets the crashes that the device remembers: a loop of crashes is over.
    pub fn reset_ledger(&mut self) -> Result<(), RawError> {
        let superblock = self.superblock()?;
        let mut ledger = ledger_of(&superblock);
        ledger.reset();
        let generation = superblock.generation.saturating_add(1);
        self.write_superblock(&Superblock { generation, ledger: ledger_value(&ledger), ..superblock })
    }

    fn has_records(&self, superblock: &Superblock) -> bool {
        Scan::new(&self.file, self.len, superblock).next().is_some()
    }

    fn may_be_written(
        &self,
        found: &Contents,
        overwrite: &[String],
        capture: &Capture<'_>,
    ) -> Result<(), RawError> {
        let device = self.name.clone();
        match found {
            Contents::Blank => Ok(()),
            Contents::Unknown => Err(RawError::Unknown(device)),
            Contents::Foreign(foreign) => {
                let allowed = |word: &String| {
                    word.strip_prefix("UUID=").is_some_and(|uuid| uuid.eq_ignore_ascii_case(&foreign.uuid))
                };
                if !foreign.uuid.is_empty() && overwrite.iter().any(allowed) {
                    return Ok(());
                }
                Err(RawError::Foreign { device, what: foreign.what, uuid: foreign.uuid.clone() })
            }
            Contents::Ours(superblock) => {
                let held = match superblock.state {
                    State::Empty | State::Collected => false,
                    State::Writing => self.has_records(superblock),
                    State::Sealed => true,
                };
                let allowed = overwrite.iter().any(|word| word == UNCOLLECTED);
                if !held || allowed || is_retry(superblock, capture) {
                    return Ok(());
                }
                Err(RawError::Uncollected { device, capture: superblock.capture.clone() })
            }
        }
    }
}

/// The superblock of the device or image that `file` is.
pub fn superblock(file: &File, name: &str) -> Result<Superblock, RawError> {
    let mut head = vec![0; 8192];
    // One bad sector must not hide the other slot.
    let halves = head.chunks_mut(4096).zip([0, 4096]);
    let read = halves.map(|(half, at)| file.read_exact_at(half, at)).collect::<Vec<_>>();
    match latest(&head) {
        Some(superblock) => Ok(superblock),
        None => match read.into_iter().find_map(Result::err) {
            Some(source) => Err(failed("reading the superblocks of", name.to_owned())(source)),
            None => Err(RawError::NoSuperblock(name.to_owned())),
        },
    }
}

/// A device that takes a capture.
pub struct Raw {
    name: String,
    log: Rc<RefCell<Log>>,
    superblock: Superblock,
    ledger: Ledger,
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Raw {
    pub(super) fn open(config: &config::Target, capture: Capture<'_>) -> Result<Self, TargetError> {
        let found = block::find(&config.device, Duration::from_secs(config.wait), capture.heartbeat)?;
        let name = found.node.display().to_string();
        if found.read_only {
            return Err(RawError::ReadOnly(name).into());
        }
        let device = Device::open(&found.node)?;
        ::log::info!("target {} is {name} (raw)", config.device);
        Ok(Self::start(device, &config.overwrite, &capture)?)
    }

    /// Begins a capture on `device`, or another attempt at the one that is there under the same name: that one goes on
    /// behind the records of the first, in files of its own. They may be all that is ever saved.
    pub fn start(mut device: Device, overwrite: &[String], capture: &Capture<'_>) -> Result<Self, RawError> {
        let found = device.contents()?;
        device.may_be_written(&found, overwrite, capture)?;
        let before = match found {
            Contents::Ours(superblock) => *superblock,
            Contents::Blank => empty()?,
            Contents::Foreign(_) | Contents::Unknown => {
                device.wipe()?;
                empty()?
            }
        };
        let mut ledger = ledger_of(&before);
        ledger.count(capture.name, capture.time, capture.crash_loop);
        let generation = before.generation.saturating_add(1);
        let retry = is_retry(&before, capture);
        let mut superblock = Superblock {
            generation,
            state: State::Writing,
            log: if retry { before.log } else { generation },
            nonce: if retry { before.nonce } else { Nonce(random()?) },
            attempt: if retry { before.attempt.saturating_add(1) } else { 1 },
            ledger: ledger_value(&ledger),
            capture: capture.name.to_owned(),
            end: 0,
            records: 0,
            uuid: before.uuid.clone(),
        };
        let (mut base, mut sequence) = (LOG_START, 0);
        if retry {
            for found in Scan::new(&device.file, device.len, &before) {
                (capture.heartbeat)();
                base = found.end();
                sequence = found.header.sequence.saturating_add(1);
            }
        }
        // Both slots: until the capture is sealed, the nonce of its records stands nowhere else.
        device.write_superblock(&superblock)?;
        superblock.generation = superblock.generation.saturating_add(1);
        device.write_superblock(&superblock)?;
        let id = LogId { log: superblock.log, nonce: superblock.nonce };
        let log = Log::new(device.sink, device.len, id, superblock.attempt, base, sequence);
        Ok(Self { name: device.name, log: Rc::new(RefCell::new(log)), superblock, ledger })
    }

    fn control(&self, artifact: Artifact, kind: Kind, durable: bool) -> Result<(), TargetError> {
        let failed = |source| TargetError::Sink { name: artifact.name(), source };
        let name = name_of(artifact)?;
        let mut log = self.log.borrow_mut();
        log.control(name, kind, 0).map_err(failed)?;
        if durable { log.sync().map_err(failed) } else { Ok(()) }
    }
}

impl Target for Raw {
    fn location(&self) -> String {
        format!("{} (raw)", self.name)
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn room(&self) -> Option<u64> {
        Some(self.log.borrow().room())
    }

    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError> {
        let name = name_of(artifact)?;
        if self.log.borrow().has(name) {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(TargetError::File { what: "creating", name: name.to_string(), source });
        }
        self.control(artifact, Kind::Truncate, false)?;
        Ok(Box::new(RawSink::new(Rc::clone(&self.log), name)))
    }

    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError> {
        self.control(artifact, Kind::Publish, true)
    }

    /// Seals the capture. If that fails it stays marked as being written, and its records are found all the same.
    fn close(self: Box<Self>) -> Result<(), TargetError> {
        let mut log = self.log.borrow_mut();
        log.sync().map_err(write_failed("the log", &self.name))?;
        let superblock = Superblock {
            generation: self.superblock.generation.saturating_add(1),
            state: State::Sealed,
            end: log.end(),
            records: log.records(),
            ..self.superblock.clone()
        };
        write_superblock(log.device(), &self.name, &superblock)?;
        Ok(())
    }
}

fn is_retry(before: &Superblock, capture: &Capture<'_>) -> bool {
    matches!(before.state, State::Writing | State::Sealed) && before.capture == capture.name
}

fn name_of(artifact: Artifact) -> Result<Name, TargetError> {
    let name = artifact.name();
    let source = || io::ErrorKind::InvalidFilename.into();
    Name::new(name).ok_or_else(|| TargetError::File {
        what: "creating",
        name: name.to_owned(),
        source: source(),
    })
}

/// A superblock of generation 0 for a device that never was ours, with a UUID of version 4.
fn empty() -> Result<Superblock, RawError> {
    let mut uuid = random()?;
    let [.., version, _, variant, _, _, _, _, _, _, _] = &mut uuid;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    Ok(Superblock {
        generation: 0,
        state: State::Empty,
        uuid: Uuid(&uuid).to_string(),
        log: 0,
        nonce: Nonce([0; 16]),
        attempt: 0,
        ledger: ledger_value(&Ledger::default()),
        capture: String::new(),
        end: 0,
        records: 0,
    })
}

fn random() -> Result<[u8; 16], RawError> {
    let mut bytes = [0; 16];
    let read = File::open(RANDOM).and_then(|mut file| file.read_exact(&mut bytes));
    read.map(|()| bytes).map_err(RawError::Random)
}

/// What cannot be read as a ledger is an empty one: a crash too many is saved, which is the safe mistake.
fn ledger_of(superblock: &Superblock) -> Ledger {
    serde_json::from_value(superblock.ledger.clone()).unwrap_or_default()
}

fn ledger_value(ledger: &Ledger) -> serde_json::Value {
    serde_json::to_value(ledger).unwrap_or_default()
}

fn write_superblock(sink: &mut dyn Sink, device: &str, superblock: &Superblock) -> Result<(), RawError> {
    let too_long = |source| RawError::Superblock { device: device.to_owned(), source };
    let bytes = superblock.emit().map_err(too_long)?;
    let written = sink.write_at(superblock.offset(), &bytes).and_then(|()| sink.sync());
    written.map_err(write_failed("the superblock", device))
}

fn failed(what: &'static str, device: String) -> impl Fn(io::Error) -> RawError {
    move |source| RawError::Io { what, device: device.clone(), source }
}

fn write_failed(what: &'static str, device: &str) -> impl Fn(SinkError) -> RawError {
    move |source| RawError::Write { what, device: device.to_owned(), source }
}
