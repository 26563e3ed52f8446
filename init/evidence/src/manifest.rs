//! `manifest.json`: what a capture is, of what, by whom, and the sums of its files. Canonical JSON, so that
//! its signature is over one form of it.
//!
//! It is the last but one thing that is written: a directory without it holds a capture that was not ended.

use std::collections::BTreeMap;

use base::facts::Intent;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::canonical::{self, CanonicalError};
use crate::hex;
use crate::sums::{self, FileSums};

/// What this version writes.
pub const SCHEMA: &str = "afterimage-manifest-1";

/// All of it. Numbers are bytes, pages, milliseconds or seconds since 1970, as their names say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: String,
    /// Number of this evidence: no other capture has it.
    pub evidence: String,
    /// Where and when, as the name of the capture's directory says it.
    pub capture: String,
    /// complete, incomplete, log-only or failed.
    pub verdict: String,
    /// The machine.
    pub host: Host,
    /// Who wanted it.
    pub asked: Asked,
    /// What happened.
    pub event: Event,
    /// When.
    pub times: Times,
    /// What captured it.
    pub tools: Tools,
    /// The memory that was read.
    pub source: Source,
    /// What became of each page.
    pub pages: Pages,
    /// The files of this directory, but for this one, its signature and `SHA256SUMS`.
    pub files: Vec<File>,
    /// The chain of events.
    pub events: Chain,
    /// The arm record that names the key.
    pub arm: Option<Digest>,
    /// The key that signs this, as `minisign -P` takes it; none where it is not signed.
    pub public_key: Option<String>,
    /// What was made do with, each as in `result.json`.
    pub degradations: Vec<Value>,
}

/// The machine whose memory it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Its name.
    pub name: Option<String>,
    /// `/etc/machine-id`.
    pub machine_id: Option<String>,
    /// `/proc/sys/kernel/random/boot_id` of the boot that ended.
    pub boot_id: Option<String>,
    /// What the firmware calls it (`/sys/class/dmi/id`): vendor, product, serial number, UUID.
    pub dmi: BTreeMap<String, String>,
}

/// Who wanted this capture, and what was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asked {
    /// Who armed the machine; a panic asks nobody.
    pub armed_by: Option<String>,
    /// When, seconds since 1970.
    pub armed_at: Option<u64>,
    /// Of a planned switch: who wanted it, why, and the ticket.
    pub intent: Option<Intent>,
    /// The case that the configuration names.
    pub case: Option<String>,
    /// Page classes that were to be left out.
    pub exclude: Vec<String>,
    /// Format of the dump.
    pub format: String,
    /// Compression.
    pub compress: String,
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// panic or planned.
    pub trigger: Option<String>,
    /// The kind of the kernel's end.
    pub cause: Option<String>,
    /// The signature by which crashes of one kind are recognised.
    pub signature: Option<String>,
}

/// Clocks. The capture kernel takes its time from the machine's clock (RTC) when it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// When the kernel came to its end, by its own clock; RFC 3339.
    pub crash: Option<String>,
    /// When the capture began, by the capture kernel's clock; RFC 3339.
    pub begun: Option<String>,
    /// When this was written, by the same clock.
    pub ended: Option<String>,
    /// Milliseconds between both, by a clock that does not jump.
    pub took_ms: u64,
    /// What the old kernel said of its clock.
    pub old_clock: Option<OldClock>,
}

/// The old kernel's clock, as adjtimex(2) would have told it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OldClock {
    /// Whether NTP kept it (`STA_UNSYNC` is not set).
    pub synchronised: bool,
    /// Estimated error, microseconds (`time_esterror`).
    pub estimated_error_us: u64,
    /// Largest error, microseconds (`time_maxerror`).
    pub largest_error_us: u64,
}

/// What captured it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tools {
    /// Version of afterimage.
    pub afterimage: String,
    /// SHA-256 of the program that ran (`/proc/self/exe`).
    pub init_sha256: Option<String>,
    /// Release of the capture kernel.
    pub capture_kernel: Option<String>,
    /// Its command line.
    pub cmdline: Option<String>,
}

/// The memory that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// Release of the kernel in it.
    pub kernel: Option<String>,
    /// Its build id.
    pub build_id: Option<String>,
    /// SHA-256 of its VMCOREINFO, as text.
    pub vmcoreinfo_sha256: Option<String>,
    /// Its ranges of physical memory.
    pub ranges: Vec<Range>,
    /// Pages that could not be read, or were not to be: the runs that are known.
    pub not_read: Vec<Range>,
    /// Memory that the vmcore does not have: the reservation of the capture kernel, and what it took of
    /// users' pages.
    pub reserved: Vec<Range>,
}

/// Bytes of physical memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First address.
    pub address: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// Every page of the source has one fate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pages {
    /// Bytes of a page.
    pub size: u64,
    /// Pages of the source, and of what is reserved.
    pub total: u64,
    /// With data in the dump.
    pub written: u64,
    /// All zero: in the dump, without data of their own.
    pub zero: u64,
    /// Left out, by class; pages whose class is not known apart are in `other`.
    pub left_out: BTreeMap<String, u64>,
    /// Could not be read.
    pub unreadable: u64,
    /// Not in the source.
    pub reserved: u64,
    /// Not dealt with: the dump ends before them.
    pub missing: u64,
}

impl Pages {
    /// What is wrong with the account; `None` if it adds up.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let parts = [self.written, self.zero, self.unreadable, self.reserved, self.missing];
        let sum = parts.iter().chain(self.left_out.values()).try_fold(0_u64, |sum, n| sum.checked_add(*n));
        match sum {
            Some(sum) if sum == self.total => None,
            Some(sum) => Some(format!("the fates of {sum} pages are told, of {} in all", self.total)),
            None => Some("its numbers are too large".to_owned()),
        }
    }
}

/// A file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct File {
    /// Its name in the directory.
    pub name: String,
    /// What it is.
    pub role: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256; none where it was not written from front to back: then it has pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Of a dump: sums of its pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pieces: Option<Pieces>,
    /// Whether it ends early.
    #[serde(skip_serializing_if = "is_false")]
    pub incomplete: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Sums of a file's pieces, from its beginning to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pieces {
    /// Length of the first part, which has pieces of its own: the headers of a kdump file.
    pub front: u64,
    /// Length of a piece, but for the last one of each part.
    pub size: u64,
    /// Root of the Merkle tree over them: see `evidence::sums::merkle_root`. None where a sum is missing.
    pub merkle_root: Option<String>,
    /// SHA-256 of each; null: what lies there is not known.
    pub sha256: Vec<Option<String>>,
}

/// The chain of events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Chain {
    /// Lines.
    pub count: u64,
    /// SHA-256 of the last one.
    pub head: String,
}

/// A file that is named by its sum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Digest {
    /// Number of the load.
    pub id: String,
    /// SHA-256 of `arm.json`.
    pub sha256: String,
}

impl Manifest {
    /// The bytes that are signed.
    pub fn to_json(&self) -> Result<String, CanonicalError> {
        canonical::to_string(self)
    }
}

impl File {
    /// A file with these sums.
    #[must_use]
    pub fn new(name: String, role: &str, sums: &FileSums) -> Self {
        let pieces = match sums.pieces.as_slice() {
            // One piece that is the whole, or a file that has none.
            [] | [_] if sums.whole.is_some() => None,
            pieces => Some(Pieces::of(pieces)),
        };
        let sha256 = sums.whole.map(|sum| hex(&sum));
        Self { name, role: role.to_owned(), bytes: sums.bytes, sha256, pieces, incomplete: false }
    }
}

impl Pieces {
    fn of(pieces: &[sums::Piece]) -> Self {
        let size = sums::PIECE;
        // The first that is not full ends the front, unless it is the last one of all.
        let end_of_front = pieces.iter().position(|piece| piece.bytes != size);
        let is_front = |at: &usize| at.saturating_add(1) < pieces.len();
        let front = end_of_front.filter(is_front).and_then(|at| pieces.get(at));
        Self {
            front: front.map_or(0, |piece| piece.offset.saturating_add(piece.bytes)),
            size,
            merkle_root: sums::merkle_root(pieces).map(|root| hex(&root)),
            sha256: pieces.iter().map(|piece| piece.sum.map(|sum| hex(&sum))).collect(),
        }
    }

    /// Where the pieces of a file of so many bytes lie, as offset and length. `None` if their sizes are none
    /// that a file can be cut into, or if their number is not that of the sums.
    #[must_use]
    pub fn places(&self, bytes: u64) -> Option<Vec<(u64, u64)>> {
        let size = Some(self.size).filter(|size| *size > 0)?;
        let front = self.front.min(bytes);
        let count = front.div_ceil(size).saturating_add(bytes.saturating_sub(front).div_ceil(size));
        if count != base::addr::to_u64(self.sha256.len()) {
            return None;
        }
        let part = |start: u64, end: u64| {
            let step = usize::try_from(size).unwrap_or(usize::MAX);
            (start..end).step_by(step).map(move |at| (at, size.min(end.saturating_sub(at))))
        };
        Some(part(0, front).chain(part(front, bytes)).collect())
    }
}

/// `SHA256SUMS` as coreutils write it: the files that have a sum of the whole.
#[must_use]
pub fn sums_file<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    files.fold(String::new(), |text, (sum, name)| text + sum + "  " + name + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sums::Piece;

    #[test]
    fn pieces_are_where_they_were_cut() {
        let size = sums::PIECE;
        let cut = |lens: &[u64]| {
            let mut at = 0;
            let piece = |len: &u64| {
                let piece = Piece { offset: at, bytes: *len, sum: Some([7; 32]) };
                at += len;
                piece
            };
            let pieces: Vec<_> = lens.iter().map(piece).collect();
            (pieces, at)
        };
        for lens in [
            &[5][..],
            &[size],
            &[size, 3],
            &[4, size],
            &[4, size, 9],
            &[size, 4, size, 9],
            &[size, size],
            &[7, 9],
            &[size, 7, 9],
        ] {
            let (pieces, end) = cut(lens);
            let wanted: Vec<_> = pieces.iter().map(|piece| (piece.offset, piece.bytes)).collect();
            assert_eq!(Pieces::of(&pieces).places(end), Some(wanted), "{lens:?}");
        }
        let (pieces, end) = cut(&[4, size, 9]);
        let told = Pieces::of(&pieces);
        assert_eq!(told.places(end - 10), None);
        assert_eq!(Pieces { size: 0, ..told }.places(end), None);
    }

    #[test]
    fn an_account_adds_up_or_says_why_not() {
        let left_out = [("free".to_owned(), 5), ("cache".to_owned(), 2)].into();
        let pages = Pages { total: 10, written: 1, zero: 1, left_out, reserved: 1, ..Pages::default() };
        assert_eq!(pages.fault(), None);
        let wrong = Pages { written: 2, ..pages.clone() };
        assert!(wrong.fault().unwrap().contains("11 pages"));
        assert!(Pages { written: u64::MAX, ..pages }.fault().is_some());
    }

    #[test]
    fn the_text_is_the_same_after_it_was_read() {
        let manifest = Manifest { schema: SCHEMA.into(), verdict: "complete".into(), ..Manifest::default() };
        let text = manifest.to_json().unwrap();
        let read: Manifest = serde_json::from_str(&text).unwrap();
        assert_eq!((read.to_json().unwrap(), read), (text, manifest));
    }
}
