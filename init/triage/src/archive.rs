//! Triage as one file: a tar, compressed by zstd, that grows at its end only. It is made of frames
//! that are compressed each for itself, so that whoever receives them can end the archive properly
//! behind any of them, whatever became of the sender ([`Chunk::owed`], [`ending`]).
//!
//! Lines wait, compressed, until their number is known, since a tar says first how long a file is.
//! Files with holes are in the form that GNU tar calls PAX 1.0, which Python's `tarfile`, bsdtar and GNU
//! tar read (GNU tar manual, "Storing Sparse Files").

use std::collections::BTreeMap;
use std::io;

use base::addr::{to_u64, to_usize};
use base::fields::Fields;
use tar::{EntryType, Header};

use crate::artefacts::{Output, Recovered};
use crate::places::{Places, ROOT};

/// Bytes of a tar's header, to which contents are padded, too.
const BLOCK: usize = 512;
/// Bytes that are compressed at once.
const FRAME: usize = 256 << 10;
/// Bytes of compressed lines of one file that wait in memory.
const LINES: usize = 4 << 20;
/// As the pages of a dump by default: the machine waits to come back.
const LEVEL: i32 = 1;
/// Longest name that the old header of a tar has room for.
const SHORT: usize = 100;

/// A part of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// A frame of zstd.
    pub frame: Vec<u8>,
    /// Bytes of contents that have to follow before the archive can end: of the file that is not
    /// complete yet.
    pub owed: u64,
}

/// What is said of a part before it comes through a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the frame; none is the end of the archive.
    pub bytes: u32,
    /// See [`Chunk::owed`].
    pub owed: u64,
}

/// Bytes of it.
pub const HEAD: usize = 12;
/// Bytes that a file in an archive may still need: more than the greatest limit of one file.
pub const MOST_OWED: u64 = 1 << 40;

impl Head {
    /// Behind the last part.
    pub const END: Self = Self { bytes: 0, owed: 0 };

    /// Of a part.
    #[must_use]
    pub fn of(chunk: &Chunk) -> Self {
        Self { bytes: u32::try_from(chunk.frame.len()).unwrap_or(u32::MAX), owed: chunk.owed }
    }

    /// As bytes: both numbers, little endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        let numbers = self.bytes.to_le_bytes().into_iter().chain(self.owed.to_le_bytes());
        bytes.iter_mut().zip(numbers).for_each(|(at, byte)| *at = byte);
        bytes
    }

    /// From bytes.
    #[must_use]
    pub fn parse(bytes: &[u8; HEAD]) -> Self {
        let fields = Fields(bytes);
        Self { bytes: fields.u32(0).unwrap_or(0), owed: fields.u64(4).unwrap_or(u64::MAX) }
    }
}

/// An archive that is being made.
#[expect(missing_debug_implementations, reason = "it holds a closure")]
pub struct Archive<'a> {
    send: &'a mut dyn FnMut(Chunk) -> io::Result<()>,
    packer: Packer,
    /// What is not compressed yet.
    plain: Vec<u8>,
    /// Bytes that the entry still needs.
    owed: u64,
    lines: BTreeMap<String, Spool>,
    places: Places,
    /// Seconds since 1970, of what has no time itself.
    time: u64,
}

/// Lines that wait.
#[derive(Default)]
struct Spool {
    frames: Vec<(Vec<u8>, usize)>,
    /// Bytes of the frames.
    packed: usize,
    plain: Vec<u8>,
}

struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    fn pack(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.0.compress(bytes)
    }
}

impl<'a> Archive<'a> {
    /// An archive whose parts go to `send`. `time` is that of files that have none themselves, in
    /// seconds since 1970.
    pub fn new(time: u64, send: &'a mut dyn FnMut(Chunk) -> io::Result<()>) -> io::Result<Self> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        Ok(Self {
            send,
            packer: Packer(compressor),
            plain: Vec::with_capacity(FRAME),
            owed: 0,
            lines: BTreeMap::new(),
            places: Places::default(),
            time,
        })
    }

    /// Adds a small file.
    pub fn text(&mut self, name: &str, text: &str) -> io::Result<()> {
        self.plain.extend_from_slice(&small(name, text.as_bytes(), self.time));
        self.flush_full()
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<()> {
        self.plain.extend_from_slice(&[0; 2 * BLOCK]);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let frame = self.packer.pack(&self.plain)?;
        self.plain.clear();
        (self.send)(Chunk { frame, owed: self.owed })
    }

    fn flush_full(&mut self) -> io::Result<()> {
        if self.plain.len() >= FRAME { self.flush() } else { Ok(()) }
    }

    /// Takes contents of the entry.
    fn contents(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let len = FRAME.saturating_sub(self.plain.len()).min(bytes.len());
            let (now, later) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
            self.plain.extend_from_slice(now);
            self.owed = self.owed.saturating_sub(to_u64(now.len()));
            bytes = later;
            self.flush_full()?;
        }
        Ok(())
    }

    /// Fills the entry up with zeros: what it lacks, and up to the next block.
    fn fill(&mut self) -> io::Result<()> {
        while self.owed > 0 {
            let len = to_usize(self.owed).min(BLOCK);
            self.contents([0; BLOCK].get(..len).unwrap_or_default())?;
        }
        Ok(())
    }

    fn begin_entry(&mut self, header: &[u8], bytes: u64) -> io::Result<()> {
        self.plain.extend_from_slice(header);
        self.owed = padded(bytes);
        self.flush_full()
    }

    /// Writes a file of lines.
    fn release(&mut self, file: &str, spool: Spool) -> io::Result<()> {
        let bytes = spool.frames.iter().map(|(_, bytes)| *bytes).chain([spool.plain.len()]);
        let bytes = to_u64(bytes.fold(0, usize::saturating_add));
        let header = header(file, bytes, self.time, 0o600, EntryType::Regular);
        self.begin_entry(header.as_bytes(), bytes)?;
        self.flush()?;
        for (frame, bytes) in spool.frames {
            self.owed = self.owed.saturating_sub(to_u64(bytes));
            (self.send)(Chunk { frame, owed: self.owed })?;
        }
        self.contents(&spool.plain)?;
        self.fill()
    }
}

impl Output for Archive<'_> {
    fn line(&mut self, file: &str, line: &str) -> io::Result<()> {
        if !self.lines.contains_key(file) {
            self.lines.insert(file.to_owned(), Spool::default());
        }
        let Some(spool) = self.lines.get_mut(file) else { return Ok(()) };
        if spool.packed > LINES {
            let message = format!("{file} takes more than {} MiB, compressed", LINES >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        spool.plain.extend_from_slice(line.as_bytes());
        if spool.plain.len() < FRAME {
            return Ok(());
        }
        let frame = self.packer.pack(&spool.plain)?;
        spool.packed = spool.packed.saturating_add(frame.len());
        spool.frames.push((frame, spool.plain.len()));
        spool.plain.clear();
        Ok(())
    }

    fn done(&mut self, file: &str) -> io::Result<()> {
        let spool = self.lines.remove(file).unwrap_or_default();
        self.release(file, spool)
    }

    fn begin(&mut self, file: &Recovered<'_>) -> io::Result<String> {
        let name = format!("{ROOT}/{}", self.places.give(file.path));
        let data = file.ranges.iter().map(|(start, end)| end.saturating_sub(*start));
        let data = data.fold(0, u64::saturating_add);
        let time = file.modified.unwrap_or(self.time);
        let mode = u32::from(file.mode) & 0o777;
        if file.ranges == [(0, file.bytes)] || file.bytes == 0 {
            let mut entry = long_name(&name, time);
            entry.extend_from_slice(header(&name, data, time, mode, EntryType::Regular).as_bytes());
            self.begin_entry(&entry, data)?;
            return Ok(name);
        }
        let map = sparse_map(file);
        let len = data.saturating_add(to_u64(map.len()));
        let mut entry = extension(
            &[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", &name),
                ("GNU.sparse.realsize", &file.bytes.to_string()),
            ],
            time,
        );
        // Readers that do not know the form find the map and the ranges under this name.
        let ranges = header("GNUSparseFile.0/ranges", len, time, mode, EntryType::Regular);
        entry.extend_from_slice(ranges.as_bytes());
        self.begin_entry(&entry, len)?;
        self.contents(&map)?;
        Ok(name)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.contents(bytes)
    }

    fn end(&mut self) -> io::Result<()> {
        self.fill()
    }
}

/// What has to follow the last part that came of an archive whose sender is gone: the rest of the file
/// that is not complete, as zeros, a file that says `why`, and the end. In frames.
pub fn ending(owed: u64, why: &str, time: u64) -> io::Result<Vec<Vec<u8>>> {
    let mut packer = Packer(zstd::bulk::Compressor::new(LEVEL)?);
    let mut frames = Vec::new();
    let mut left = to_usize(owed);
    let zeros = vec![0; FRAME];
    while left > 0 {
        let len = left.min(FRAME);
        frames.push(packer.pack(zeros.get(..len).unwrap_or_default())?);
        left = left.saturating_sub(len);
    }
    let mut last = small("INCOMPLETE.txt", format!("{why}\n").as_bytes(), time);
    last.extend_from_slice(&[0; 2 * BLOCK]);
    frames.push(packer.pack(&last)?);
    Ok(frames)
}

fn padded(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(to_u64(BLOCK)).unwrap_or(u64::MAX)
}

/// A whole entry.
fn small(name: &str, contents: &[u8], time: u64) -> Vec<u8> {
    let header = header(name, to_u64(contents.len()), time, 0o600, EntryType::Regular);
    entry(&header, contents)
}

fn entry(header: &Header, contents: &[u8]) -> Vec<u8> {
    let mut entry = header.as_bytes().to_vec();
    entry.extend_from_slice(contents);
    entry.resize(entry.len().next_multiple_of(BLOCK), 0);
    entry
}

fn header(name: &str, bytes: u64, time: u64, mode: u32, kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    // One that is longer stands in a header of its own before this one.
    let end = name.floor_char_boundary(SHORT);
    let field = header.as_old_mut().name.iter_mut();
    field.zip(name.get(..end).unwrap_or_default().bytes()).for_each(|(at, byte)| *at = byte);
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(mode);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    header
}

/// The name in a header of its own, if the old one has no room for it or knows no such letters.
fn long_name(name: &str, time: u64) -> Vec<u8> {
    if name.len() <= SHORT && name.is_ascii() { Vec::new() } else { extension(&[("path", name)], time) }
}

/// An entry that says more of the next one (POSIX.1-2001, pax).
fn extension(records: &[(&str, &str)], time: u64) -> Vec<u8> {
    let contents: String = records.iter().map(|(key, value)| record(key, value)).collect();
    let bytes = to_u64(contents.len());
    let header = header("PaxHeaders.0/next", bytes, time, 0o600, EntryType::XHeader);
    entry(&header, contents.as_bytes())
}

/// `LENGTH KEY=VALUE` and a newline; the length counts itself.
fn record(key: &str, value: &str) -> String {
    let rest = key.len().saturating_add(value.len()).saturating_add(3);
    let digits = |number: usize| number.to_string().len();
    let mut len = rest.saturating_add(digits(rest));
    if rest.saturating_add(digits(len)) != len {
        len = rest.saturating_add(digits(len));
    }
    format!("{len} {key}={value}\n")
}

/// Where the ranges belong: their number, then offset and length of each, decimal, a line each; padded.
fn sparse_map(file: &Recovered<'_>) -> Vec<u8> {
    let ends_in_hole = file.ranges.last().is_none_or(|(_, end)| *end < file.bytes);
    let pairs = file.ranges.iter().map(|(start, end)| (*start, end.saturating_sub(*start)));
    let pairs: Vec<_> = pairs.chain(ends_in_hole.then_some((file.bytes, 0))).collect();
    let lines = pairs.iter().flat_map(|(offset, len)| [*offset, *len]);
    let lines = [to_u64(pairs.len())].into_iter().chain(lines).map(|number| format!("{number}\n"));
    let mut map = lines.collect::<String>().into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

#[cfg(test)]
mod tests;
