//! The files of a capture, against their sums.

use std::collections::BTreeSet;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

use base::addr::{to_u64, to_usize};

use super::folder::Folder;
use super::{ARM, ARM_SIGNATURE, EVENTS, Holds, MANIFEST, OF_OTHERS, Report, SIGNATURE, SUMS};
use crate::hex;
use crate::manifest::{File, Manifest};

/// Bytes that are read at a time.
const READ: usize = 1 << 20;
/// Places that are named when pieces do not hold.
const MOST_PLACES: usize = 8;

pub(super) fn check(
    folder: &Folder,
    manifest: &Manifest,
    only: &[String],
    progress: &mut dyn FnMut(u64),
    report: &mut Report,
) {
    for name in only {
        if !manifest.files.iter().any(|file| file.name == *name) {
            report.add(name, Holds::Unknown, "the manifest does not name it");
        }
    }
    for file in &manifest.files {
        if !only.is_empty() && !only.contains(&file.name) {
            continue;
        }
        let name = base::text::line(&file.name);
        match folder.open(&file.name) {
            Ok((bytes, len)) => check_file(file, &name, (bytes, len), progress, report),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                report.add(&name, Holds::No, "it is missing");
            }
            Err(error) => report.add(&name, Holds::No, format!("it cannot be read: {error}")),
        }
    }
}

fn check_file(
    file: &File,
    name: &str,
    (mut bytes, len): (Box<dyn Read>, u64),
    progress: &mut dyn FnMut(u64),
    report: &mut Report,
) {
    let pieces = match &file.pieces {
        Some(pieces) => match pieces.places(file.bytes) {
            Some(places) => places.into_iter().zip(pieces.sha256.iter().cloned()).collect(),
            None => return report.add(name, Holds::No, "its pieces are not those of a file of its length"),
        },
        None => Vec::new(),
    };
    let mut reader = Hasher::new(&mut bytes, progress);
    let mut tally = Tally::default();
    for ((offset, len), wanted) in &pieces {
        match reader.piece(*len) {
            Err(error) => return report.add(name, Holds::No, format!("reading it at {offset}: {error}")),
            Ok(found) => tally.add(*offset, *len, wanted.as_deref(), found.as_deref()),
        }
    }
    let whole = match reader.rest() {
        Err(error) => return report.add(name, Holds::No, format!("reading it: {error}")),
        Ok(whole) => whole,
    };
    let said = if file.incomplete { ", of a file that ends early" } else { "" };
    let is_whole = file.sha256.as_ref().is_some_and(|wanted| *wanted == whole);
    report.sums.push((whole, file.name.clone()));
    // A write that failed may have left some bytes behind those that count.
    if len < file.bytes || (len > file.bytes && !file.incomplete) {
        report.add(name, Holds::No, format!("it has {len} bytes, and had {}", file.bytes));
    } else if file.sha256.is_some() && is_whole {
        report.add(name, Holds::Yes, format!("{len} bytes{said}"));
        report.good.push(name.to_owned());
        return;
    } else if file.sha256.is_none() && pieces.is_empty() {
        report.add(name, Holds::Unknown, "the capture could not tell its sum");
        return;
    } else if file.sha256.is_some() && pieces.is_empty() {
        report.add(name, Holds::No, "its SHA-256 is not the one in the manifest: it was changed");
        return;
    } else {
        let (holds, found) = tally.result(file.sha256.is_some());
        report.add(name, holds, format!("{found}{said}"));
    }
    if tally.good > 0 {
        report.good.push(format!("{name}: {} of {} bytes, in whole pieces", tally.good, file.bytes));
    }
}

/// What became of the pieces.
#[derive(Default)]
struct Tally {
    good: u64,
    unknown: u64,
    bad: Vec<(u64, u64)>,
}

impl Tally {
    fn add(&mut self, offset: u64, len: u64, wanted: Option<&str>, found: Option<&str>) {
        match (wanted, found) {
            (Some(wanted), Some(found)) if wanted == found => self.good = self.good.saturating_add(len),
            (None, Some(_)) => self.unknown = self.unknown.saturating_add(len),
            _ => self.bad.push((offset, len)),
        }
    }

    /// `has_whole`: there was a sum of the whole, too, and it does not hold.
    fn result(&self, has_whole: bool) -> (Holds, String) {
        let Self { good, unknown, bad } = self;
        let places: Vec<String> = bad
            .iter()
            .take(MOST_PLACES)
            .map(|(offset, len)| format!("{offset} to {}", offset.saturating_add(*len)))
            .collect();
        let more = bad.len().saturating_sub(MOST_PLACES);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        if !bad.is_empty() {
            return (Holds::No, format!("it was changed, or cut, within bytes {}{more}", places.join(", ")));
        }
        match (has_whole, unknown) {
            (true, _) => (Holds::No, "its SHA-256 is not the one in the manifest".to_owned()),
            (false, 0) => (Holds::Yes, format!("{good} bytes, in pieces")),
            (false, unknown) => (
                Holds::Unknown,
                format!("{good} bytes hold; of {unknown} the capture could not tell the sum"),
            ),
        }
    }
}

/// Hashes pieces and the whole at a time.
struct Hasher<'a> {
    bytes: &'a mut dyn Read,
    progress: &'a mut dyn FnMut(u64),
    whole: Sha256,
    buffer: Vec<u8>,
}

impl<'a> Hasher<'a> {
    fn new(bytes: &'a mut dyn Read, progress: &'a mut dyn FnMut(u64)) -> Self {
        Self { bytes, progress, whole: Sha256::new(), buffer: vec![0; READ] }
    }

    /// The sum of the next `len` bytes; none if there are not so many.
    fn piece(&mut self, len: u64) -> io::Result<Option<String>> {
        let (mut hash, mut left) = (Sha256::new(), len);
        while left > 0 {
            let wanted = self.buffer.get_mut(..to_usize(left).min(READ)).unwrap_or_default();
            let read = self.bytes.read(wanted)?;
            if read == 0 {
                return Ok(None);
            }
            let some = wanted.get(..read).unwrap_or_default();
            hash.update(some);
            self.whole.update(some);
            left = left.saturating_sub(to_u64(read));
            (self.progress)(to_u64(read));
        }
        Ok(Some(hex(&hash.finalize())))
    }

    /// Reads to the end. Returns the sum of the whole.
    fn rest(mut self) -> io::Result<String> {
        loop {
            let read = self.bytes.read(&mut self.buffer)?;
            if read == 0 {
                return Ok(hex(&self.whole.finalize()));
            }
            self.whole.update(self.buffer.get(..read).unwrap_or_default());
            (self.progress)(to_u64(read));
        }
    }
}

/// Names in the directory that nobody put there.
pub(super) fn check_names(
    folder: &Folder,
    names: &BTreeSet<String>,
    manifest: &Manifest,
    report: &mut Report,
) {
    let mut known: BTreeSet<String> = [MANIFEST, SIGNATURE, SUMS, ARM, ARM_SIGNATURE, EVENTS]
        .iter()
        .chain(&OF_OTHERS)
        .map(|&name| name.to_owned())
        .collect();
    for file in &manifest.files {
        known.insert(file.name.clone());
        if let Some((index, parts)) = folder.parts(&file.name) {
            known.insert(index);
            known.extend(parts);
        }
    }
    for name in names.difference(&known).filter(|name| !is_seal(name)) {
        report.add(
            &base::text::line(name),
            Holds::No,
            "it is not of this capture: the manifest does not name it",
        );
    }
}

/// The directory by which an SSH target knows captures of its own host: see `network`.
fn is_seal(name: &str) -> bool {
    let seal = name.strip_prefix(".afterimage-").unwrap_or_default();
    seal.len() == 32 && seal.bytes().all(|byte| byte.is_ascii_hexdigit())
}
