//! A device without a file system as a target: it takes one capture at a time.
//!
//! It never writes over what it does not know, nor over a capture that nobody has collected, unless
//! the configuration names exactly that thing.

mod error;
mod log;
mod look;
mod scan;
#[cfg(test)]
mod tests;

use core::fmt;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;

use nix::libc;

use crate::format::rawdump::{
    Contents, Kind, LOG_START, LogId, MIN_LEN, Name, Nonce, SLOT_LEN, State, Superblock, contents, is_uuid,
};
use crate::format::superblock::Foreign;
use crate::prepared::PreparedDevice;
use crate::stack::Active;
use crate::targets::file::FileSink;
use base::addr::{to_u64, to_usize};
use base::beat;
use base::config;
use base::fields::Uuid;
use base::read_at::read_up_to;
use vmcore::sink::{Sink, SinkError};
use vmcore::target::{Artifact, Capture, Ledger, Target, TargetError};

pub use error::RawError;
pub use look::{check_kind, refusal, superblock};
pub use scan::{Found, Scan};

use log::{Log, RawSink};

/// Where random bytes come from. Unlike getrandom(2) it does not wait for a pool that fills slowly
/// right after boot.
const RANDOM: &str = "/dev/urandom";
/// Where the last signature ends that a device given up by its UUID can have: the superblock of
/// btrfs, after 64 KiB.
const LAST_SIGNATURE: u64 = 72 << 10;
/// Characters of what a superblock says of how its capture was collected.
const LONGEST_HOW: usize = 300;
/// What [`Artifact::Signature`] is called in records.
pub const SIGNATURE: &str = "manifest.minisig";
/// The word in `overwrite` for a capture that was not collected.
const UNCOLLECTED: &str = "uncollected";

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
    /// Opens a block device for us alone, or the image of one: a device that is mounted, swapped
    /// to, or a part of another device is refused by the kernel with EBUSY.
    pub fn open(node: &Path) -> Result<Self, RawError> {
        let io = |what| failed(what, node.display().to_string());
        check_kind(node).map_err(io("opening"))?;
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

    /// What it holds. A device of zeros has them at its end, too: MD of version 0.90 and 1.0, DDF
    /// and the second GPT stand there.
    pub fn contents(&self) -> Result<Contents, RawError> {
        let head = read_up_to(&self.file, 0, to_usize(LOG_START));
        let found = contents(&head.map_err(failed("reading the start of", self.name.clone()))?);
        if found != Contents::Blank {
            return Ok(found);
        }
        let tail = self.tail();
        let mut bytes = vec![0; to_usize(self.len.saturating_sub(tail))];
        let read = self.file.read_exact_at(&mut bytes, tail);
        read.map_err(failed("reading the end of", self.name.clone()))?;
        Ok(if bytes.iter().all(|&byte| byte == 0) { found } else { Contents::Unknown })
    }

    /// The superblock, whatever else there is.
    pub fn superblock(&self) -> Result<Superblock, RawError> {
        superblock(&self.file, &self.name)
    }

    /// The superblock of a device that is ours and nobody else's: only that one may be followed by
    /// another.
    fn ours(&self) -> Result<Superblock, RawError> {
        let not_ours = |what: String| RawError::NotOurs { device: self.name.clone(), what };
        match self.contents()? {
            Contents::Ours(superblock) => Ok(*superblock),
            Contents::Blank => Err(RawError::NoSuperblock(self.name.clone())),
            Contents::Foreign(Foreign { what, uuid }) => {
                self.superblock()?;
                Err(not_ours(format!("{what}{}", error::named(&uuid))))
            }
            Contents::Unknown => {
                self.superblock()?;
                Err(not_ours("something that is neither zeros nor ours".to_owned()))
            }
        }
    }

    /// Where the last MiB begins.
    fn tail(&self) -> u64 {
        self.len.saturating_sub(1 << 20)
    }

    /// Makes `superblock` the one that holds, durably.
    pub fn write_superblock(&mut self, superblock: &Superblock) -> Result<(), RawError> {
        write_superblock(self.sink.as_mut(), &self.name, superblock)
    }

    /// Fills with zeros what stands before the log, durably: whatever it was, it is gone. So is
    /// what stands at the end, where arrays and partition tables keep theirs.
    pub fn wipe(&mut self) -> Result<(), RawError> {
        self.zero(self.tail(), self.len, "the end")?;
        self.zero(0, LOG_START, "the start")
    }

    /// Makes the device an empty raw target, with the identity and the memory of `before` if it was
    /// one. Gives its UUID.
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

    /// Marks as collected the capture of the superblock `generation`, if that is still the one that
    /// holds. `how` says when and to where, for who tries to collect it again.
    pub fn mark_collected(&mut self, generation: u64, how: &str) -> Result<(), RawError> {
        let superblock = self.ours()?;
        if superblock.generation != generation {
            let found = superblock.generation;
            return Err(RawError::Changed { device: self.name.clone(), expected: generation, found });
        }
        let generation = generation.saturating_add(1);
        let collected = how.chars().take(LONGEST_HOW).collect();
        self.write_superblock(&Superblock { generation, state: State::Collected, collected, ..superblock })
    }

    /// Forgets the crashes that the device remembers: a loop of crashes is over.
    pub fn reset_ledger(&mut self) -> Result<(), RawError> {
        let superblock = self.ours()?;
        let mut ledger = ledger_of(&superblock);
        ledger.reset();
        let generation = superblock.generation.saturating_add(1);
        self.write_superblock(&Superblock { generation, ledger: ledger_value(&ledger), ..superblock })
    }

    /// What stood before a first superblock that replaces `foreign`. It keeps the UUID, by which
    /// the configuration names the device: the next attempt and the next crash must find it. Its
    /// successor goes to the second slot, as the signatures that have a UUID stand in front of that
    /// or behind it, and is later than what is left of ours.
    fn successor_of(&self, foreign: &Foreign) -> Result<Superblock, RawError> {
        let mut before = empty()?;
        if is_uuid(&foreign.uuid) {
            before.uuid.clone_from(&foreign.uuid);
        }
        if let Ok(left) = self.superblock() {
            before.generation = left.generation.saturating_add(1) & !1;
        }
        Ok(before)
    }

    /// Fills with zeros what stands between the superblocks and the log. The signatures are there
    /// or in the first slot, and go last: without them, but with other bytes left, the device would
    /// be one of nobody that we know. That of swap in the first slot stands behind its UUID, so it
    /// has to go before the slot is written over from the front.
    fn zero_around_second_slot(&mut self) -> Result<(), RawError> {
        let slot = to_u64(SLOT_LEN);
        let behind = slot.saturating_mul(2);
        for (start, end) in [(LAST_SIGNATURE, LOG_START), (behind, LAST_SIGNATURE), (slot >> 1, slot)] {
            self.zero(start, end, "the start")?;
        }
        Ok(())
    }

    fn zero(&mut self, start: u64, end: u64, what: &'static str) -> Result<(), RawError> {
        let zeros = vec![0; to_usize(end.saturating_sub(start))];
        let zeroed = self.sink.write_at(start, &zeros).and_then(|()| self.sink.sync());
        zeroed.map_err(write_failed(what, &self.name))
    }

    /// Whether the log has a record, or a block that cannot be read and may be one.
    fn has_records(&self, superblock: &Superblock) -> bool {
        let mut scan = Scan::new(&self.file, self.len, superblock);
        scan.next().is_some() || scan.read_errors() > 0
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

/// A device that takes a capture.
pub struct Raw {
    name: String,
    log: Rc<RefCell<Log>>,
    /// The device, to be read.
    file: File,
    /// Files that are whole.
    published: BTreeSet<Name>,
    superblock: Superblock,
    ledger: Ledger,
    /// What the device stands on, taken down when all is written.
    layers: Option<Active>,
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Raw {
    pub(super) fn open(
        wanted: &config::Raw,
        found: PreparedDevice,
        capture: Capture<'_>,
    ) -> Result<Self, TargetError> {
        let PreparedDevice { device, layers } = found;
        ::log::info!("target {} is {} (raw)", wanted.device, device.node.display());
        let device = Device::open(&device.node)?;
        Ok(Self { layers, ..Self::start(device, &wanted.overwrite, &capture)? })
    }

    /// Begins a capture on `device`, or another attempt at the one that is there under the same
    /// name: that one goes on behind the records of the first, in files of its own. They may be all
    /// that is ever saved.
    pub fn start(mut device: Device, overwrite: &[String], capture: &Capture<'_>) -> Result<Self, RawError> {
        let found = device.contents()?;
        device.may_be_written(&found, overwrite, capture)?;
        let before = match found {
            Contents::Ours(ref superblock) => superblock.as_ref().clone(),
            Contents::Blank => empty()?,
            Contents::Foreign(ref foreign) => device.successor_of(foreign)?,
            Contents::Unknown => return Err(RawError::Unknown(device.name)),
        };
        let wipe = matches!(found, Contents::Foreign(_));
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
            collected: String::new(),
            uuid: before.uuid.clone(),
        };
        let (mut base, mut sequence) = (LOG_START, 0);
        if retry {
            for found in Scan::new(&device.file, device.len, &before) {
                beat::alive();
                base = found.end();
                sequence = found.header.sequence.saturating_add(1);
            }
        }
        // Both slots: until the capture is sealed, the nonce of its records stands nowhere else.
        device.write_superblock(&superblock)?;
        if wipe {
            device.zero_around_second_slot()?;
        }
        superblock.generation = superblock.generation.saturating_add(1);
        device.write_superblock(&superblock)?;
        let id = LogId { log: superblock.log, nonce: superblock.nonce };
        let log = Log::new(device.sink, device.len, id, superblock.attempt, base, sequence);
        let log = Rc::new(RefCell::new(log));
        let (name, published) = (device.name, BTreeSet::new());
        Ok(Self { name, log, file: device.file, published, superblock, ledger, layers: None })
    }

    fn control(&self, artifact: Artifact, kind: Kind, durable: bool) -> Result<(), TargetError> {
        let failed = |source| TargetError::artifact(artifact.name(), source);
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
        // What was begun and not ended is cut to nothing, and begins anew.
        if self.published.contains(&name) {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(TargetError::file("creating", name, source));
        }
        self.control(artifact, Kind::Truncate, false)?;
        Ok(Box::new(RawSink::new(Rc::clone(&self.log), name, artifact == Artifact::Vmcore)))
    }

    /// Only the front of the dump: it is known where that lies.
    fn read_back(&mut self, artifact: Artifact, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(to_u64(buffer.len()));
        let log = self.log.borrow();
        let parts = log.front().parts(offset, end).filter(|_| artifact == Artifact::Vmcore);
        buffer.fill(0); // what was never written
        for (start, len, device) in parts.ok_or(io::ErrorKind::Unsupported)? {
            let (from, to) = (start.max(offset), start.saturating_add(len).min(end));
            let place = to_usize(from.saturating_sub(offset))..to_usize(to.saturating_sub(offset));
            let at = device.saturating_add(from.saturating_sub(start));
            self.file.read_exact_at(buffer.get_mut(place).unwrap_or_default(), at)?;
        }
        Ok(())
    }

    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError> {
        self.control(artifact, Kind::Publish, true)?;
        self.published.insert(name_of(artifact)?);
        Ok(())
    }

    /// Seals the capture. If that fails it stays marked as being written, and its records are found
    /// all the same.
    fn close(self: Box<Self>) -> Result<(), TargetError> {
        let Self { name, log, file, superblock, layers, .. } = *self;
        let sealed = seal(&mut log.borrow_mut(), &name, superblock);
        drop((log, file)); // their descriptors would keep the device busy
        drop(layers);
        Ok(sealed?)
    }
}

/// Writes that the capture is complete.
fn seal(log: &mut Log, name: &str, writing: Superblock) -> Result<(), RawError> {
    log.sync().map_err(write_failed("the log", name))?;
    let superblock = Superblock {
        generation: writing.generation.saturating_add(1),
        state: State::Sealed,
        end: log.end(),
        records: log.records(),
        ..writing
    };
    write_superblock(log.device(), name, &superblock)
}

fn is_retry(before: &Superblock, capture: &Capture<'_>) -> bool {
    matches!(before.state, State::Writing | State::Sealed) && before.capture == capture.name
}

fn name_of(artifact: Artifact) -> Result<Name, TargetError> {
    // Names in a record have no more than 20 bytes; `afterimage recover` gives it the name that minisign
    // looks for.
    let name = if artifact == Artifact::Signature { SIGNATURE } else { artifact.name() };
    Name::new(name).ok_or_else(|| TargetError::file("creating", name, io::ErrorKind::InvalidFilename.into()))
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
        collected: String::new(),
    })
}

fn random() -> Result<[u8; 16], RawError> {
    let mut bytes = [0; 16];
    let read = File::open(RANDOM).and_then(|mut file| file.read_exact(&mut bytes));
    read.map(|()| bytes).map_err(RawError::Random)
}

/// What cannot be read as a ledger is an empty one: a crash too many is saved, which is the safe
/// mistake.
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
