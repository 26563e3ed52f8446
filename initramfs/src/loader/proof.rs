//! Whether what the kernel would start on a panic is what `load` recorded.
//!
//! The kernel tells users only that something is loaded. What it is shows in its memory: its own
//! description of the image (`struct kimage`, by /proc/kallsyms and /proc/kcore), which any other
//! loader replaces, and the bytes in the reservation. Both are noted right after the load, and
//! compared before anything relies on them.

use std::io;
use std::ops::Range;

use base::fields::Fields;
use serde::{Deserialize, Serialize};

use super::kcore::{self, Kcore};
use super::record::Loaded;
use crate::fingerprint::crc32;
use crate::host;

/// Where the kernel keeps the address of the image for panics (kernel/kexec_core.c).
const SYMBOL: &str = "kexec_crash_image";
/// Offsets in `struct kimage` (include/linux/kexec.h), which have been so since 4.13: `start`,
/// `nr_segments`, `segment`.
const START: usize = 24;
const COUNT: usize = 56;
const SEGMENTS: usize = 64;
/// Bytes of a `struct kexec_segment`, and where in it are `bufsz`, `mem` and `memsz`.
const SEGMENT: usize = 32;
const BUFSZ: usize = 8;
const MEM: usize = 16;
const MEMSZ: usize = 24;
const MOST_SEGMENTS: u64 = 16;

/// What was found right after a load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Print {
    /// Seal of the record that it belongs to.
    #[serde(default)]
    pub seal: String,
    /// Bytes of the reservation; 0 in a record that has none of this.
    pub reservation: u64,
    /// Virtual address of the kernel's pointer to the description; it is found once, since all of
    /// /proc/kallsyms takes long to read.
    #[serde(default)]
    pub symbol: Option<u64>,
    /// The kernel's description of the image; `None` where it is not shown.
    #[serde(default)]
    pub description: Option<Description>,
    /// Why it is not shown, or the pieces cannot be read; empty if all is known.
    #[serde(default)]
    pub unknown: String,
    /// Pieces of the reservation that nobody changes before a panic.
    #[serde(default)]
    pub pieces: Vec<Piece>,
}

/// The kernel's description of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its virtual address.
    pub at: u64,
    /// Where the image is entered, physical address.
    pub entry: u64,
    /// CRC32 of it up to its last segment, hex.
    pub crc32: String,
}

/// A piece of the reservation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Physical address.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// CRC32 of them, hex.
    pub crc32: String,
}

/// What is known of what is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It is what was recorded.
    Same,
    /// It is something else; a sentence says what shows that.
    Other(String),
    /// Nothing speaks against it, and not all can be looked at; a sentence says why not.
    Unproved(String),
}

impl Print {
    /// Of what is loaded now, right after it was: by our own road with the entry and the pieces that
    /// were placed.
    #[must_use]
    pub(super) fn take(entry: Option<u64>, placed: Vec<Piece>) -> Self {
        let print = Self { reservation: host::reservation(), ..Self::default() };
        match Kcore::open() {
            Ok(kcore) => print.complete(&kcore, entry, placed),
            Err(error) => Self { unknown: format!("/proc/kcore: {error}"), ..print },
        }
    }

    fn complete(mut self, kcore: &Kcore, entry: Option<u64>, placed: Vec<Piece>) -> Self {
        let regions = reservations();
        self.symbol = kcore::symbol(SYMBOL);
        let seen = seen(kcore, self.symbol, &regions);
        let (description, segments) = match seen {
            Ok((found, segments)) if entry.is_none_or(|entry| entry == found.entry) => {
                (Some(found), segments)
            }
            Ok((found, _)) => {
                self.unknown = format!("the kernel names {:#x} as the entry", found.entry);
                (None, Vec::new())
            }
            Err(why) => {
                self.unknown = why;
                (None, Vec::new())
            }
        };
        self.description = description;
        self.pieces = placed;
        if self.pieces.is_empty() {
            // What begins as an ELF file is the core header, which the kernel may write anew.
            let piece = |range: Range<u64>| {
                let len = range.end.saturating_sub(range.start);
                let (crc32, is_elf) = kcore.crc32(range.start, len).ok()?;
                (!is_elf && len > 0).then_some(Piece { at: range.start, len, crc32 })
            };
            self.pieces = segments.into_iter().filter_map(piece).collect();
        }
        if let Err(why) = compare(kcore, &self.pieces) {
            self.unknown = why;
            self.pieces = Vec::new();
        }
        self
    }
}

impl Proof {
    /// Compares what is loaded with its record.
    #[must_use]
    pub fn of(record: &Loaded) -> Self {
        let print = &record.print;
        if !host::is_loaded() {
            return Self::Other("no panic kernel is loaded any more".to_owned());
        }
        if let Some(why) = contradiction(record, host::reservation()) {
            return Self::Other(why);
        }
        if print.reservation == 0 {
            let why = if nix::unistd::geteuid().is_root() {
                "the load has noted nothing to compare with"
            } else {
                "only root can look into memory"
            };
            return Self::Unproved(why.to_owned());
        }
        match Kcore::open() {
            Ok(kcore) => Self::by(&kcore, &reservations(), print),
            Err(error) => Self::Unproved(format!("/proc/kcore: {error}")),
        }
    }

    fn by(kcore: &Kcore, regions: &[Range<u64>], print: &Print) -> Self {
        if let Some(expected) = &print.description {
            match seen(kcore, print.symbol, regions) {
                Ok((found, _)) if found != *expected => {
                    return Self::Other(format!(
                        "another image was loaded since: the kernel would enter {:#x}, and {:#x} was recorded",
                        found.entry, expected.entry
                    ));
                }
                Ok(_) => (),
                Err(why) => {
                    return compare(kcore, &print.pieces).map_or_else(Self::Other, |()| Self::Unproved(why));
                }
            }
        }
        if let Err(why) = compare(kcore, &print.pieces) {
            return Self::Other(why);
        }
        match (&print.description, print.pieces.is_empty()) {
            (Some(_), false) => Self::Same,
            _ => Self::Unproved(print.unknown.clone()),
        }
    }
}

/// What of a record cannot be, without a look at memory.
fn contradiction(record: &Loaded, reservation: u64) -> Option<String> {
    let print = &record.print;
    if record.is_changed {
        return Some("its record in /run/afterimage was changed since the load".to_owned());
    }
    if print.reservation != 0 && print.reservation != reservation {
        return Some(format!(
            "the reservation has {reservation} bytes, and had {} when the image was loaded",
            print.reservation
        ));
    }
    let described = print.description.as_ref().map(|description| description.entry);
    match (described, record.entry) {
        (Some(described), Some(entry)) if described != entry => {
            Some(format!("its record names {entry:#x} as the entry, and the kernel named {described:#x}"))
        }
        _ => None,
    }
}

/// The kernel's description of the image for panics, and the memory of its segments. The error says
/// why it is not to be had.
fn seen(
    kcore: &Kcore,
    symbol: Option<u64>,
    regions: &[Range<u64>],
) -> Result<(Description, Vec<Range<u64>>), String> {
    let symbol = symbol.ok_or_else(|| {
        format!("/proc/kallsyms does not show where {SYMBOL} is (kernel.kptr_restrict is 2, or no CONFIG_KALLSYMS_ALL)")
    })?;
    let read =
        |at, len| kcore.at_virtual(at, len).map_err(|error: io::Error| format!("/proc/kcore: {error}"));
    let at = Fields(&read(symbol, 8)?).u64(0).unwrap_or(0);
    let head = read(at, SEGMENTS)?;
    let f = Fields(&head);
    let (entry, count) = (f.u64(START).unwrap_or(0), f.u64(COUNT).unwrap_or(0));
    let strange = || "the kernel's description of the image has another layout than is known".to_owned();
    let count =
        usize::try_from(count).ok().filter(|_| (1..=MOST_SEGMENTS).contains(&count)).ok_or_else(strange)?;
    let all = read(at, SEGMENTS.saturating_add(count.saturating_mul(SEGMENT)))?;
    let list = all.get(SEGMENTS..).unwrap_or_default().chunks_exact(SEGMENT).map(Fields);
    let segments = list.map(|f| {
        let (len, start, size) = (f.u64(BUFSZ)?, f.u64(MEM)?, f.u64(MEMSZ)?);
        let end = start.checked_add(size)?;
        let inside = regions.iter().any(|region| region.start <= start && end <= region.end);
        (inside && len <= size).then_some(start..start.saturating_add(len))
    });
    let segments = segments.collect::<Option<Vec<_>>>().ok_or_else(strange)?;
    Ok((Description { at, entry, crc32: crc32(&all) }, segments))
}

/// Whether the reservation holds these pieces. The error is a sentence.
fn compare(kcore: &Kcore, pieces: &[Piece]) -> Result<(), String> {
    for piece in pieces {
        let (found, _) = kcore
            .crc32(piece.at, piece.len)
            .map_err(|error| format!("the reservation cannot be read at {:#x}: {error}", piece.at))?;
        if found != piece.crc32 {
            return Err(format!(
                "the {} bytes at {:#x} of the reservation are not those that were loaded (CRC32 {found}, not {})",
                piece.len, piece.at, piece.crc32
            ));
        }
    }
    Ok(())
}

fn reservations() -> Vec<Range<u64>> {
    placement::production::regions(&host::read("/proc/iomem"), host::reservation())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const VIRTUAL: u64 = 0xffff_8880_0000_0000;
    const PHYSICAL: u64 = 0x10_0000;
    const KIMAGE: u64 = VIRTUAL + 0x100;
    /// A page of the made-up reservation.
    const REGION: Range<u64> = PHYSICAL + 0x1000..PHYSICAL + 0x3000;

    /// A kernel with an image of two segments, the second one a core header.
    fn memory(entry: u64) -> Vec<u8> {
        let mut memory = vec![0; 0x4000];
        let mut put = |at: usize, value: u64| memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(0, KIMAGE);
        put(0x100 + START, entry);
        put(0x100 + COUNT, 2);
        for (index, mem) in [REGION.start, REGION.start + 0x1000].into_iter().enumerate() {
            let at = 0x100 + SEGMENTS + index * SEGMENT;
            put(at + BUFSZ, 0x800);
            put(at + MEM, mem);
            put(at + MEMSZ, 0x1000);
        }
        memory[0x1000..0x1800].fill(7);
        memory[0x2000..0x2004].copy_from_slice(b"\x7fELF");
        memory
    }

    fn with(memory: &[u8], check: impl FnOnce(&Kcore)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kcore");
        kcore::testing::kcore(&path, VIRTUAL, PHYSICAL, memory);
        check(&Kcore::open_at(Path::new(&path)).unwrap());
    }

    /// The print of an image that is entered at 0x5000.
    fn print() -> Print {
        let piece = Piece { at: REGION.start, len: 0x800, crc32: crc32(&[7; 0x800]) };
        let all = &memory(0x5000)[0x100..0x100 + SEGMENTS + 2 * SEGMENT];
        let description = Description { at: KIMAGE, entry: 0x5000, crc32: crc32(all) };
        Print {
            seal: String::new(),
            reservation: 0x2000,
            symbol: Some(VIRTUAL),
            description: Some(description),
            unknown: String::new(),
            pieces: vec![piece],
        }
    }

    fn proof(memory: &[u8], print: &Print) -> Proof {
        let mut found = Proof::Same;
        with(memory, |kcore| found = Proof::by(kcore, &[REGION], print));
        found
    }

    #[test]
    fn what_was_loaded_is_proved() {
        assert_eq!(proof(&memory(0x5000), &print()), Proof::Same);
    }

    #[test]
    fn another_entry_another_place_and_other_bytes_are_seen() {
        let other = |memory: &[u8], words: &str| {
            let Proof::Other(why) = proof(memory, &print()) else { panic!("{words}") };
            assert!(why.contains(words), "{why}");
        };
        other(&memory(0x6000), "would enter 0x6000");
        let mut moved = memory(0x5000);
        moved.copy_within(0x100..0x300, 0x400);
        moved[..8].copy_from_slice(&(VIRTUAL + 0x400).to_le_bytes());
        other(&moved, "another image");
        let mut emptied = memory(0x5000);
        emptied[0x1000..0x1800].fill(0);
        other(&emptied, "are not those that were loaded");
        let mut resized = memory(0x5000);
        resized[0x100 + SEGMENTS + BUFSZ] = 1;
        other(&resized, "another image");
    }

    #[test]
    fn the_core_header_may_be_written_anew() {
        let mut updated = memory(0x5000);
        updated[0x2010..0x2800].fill(3);
        assert_eq!(proof(&updated, &print()), Proof::Same);
    }

    #[test]
    fn what_cannot_be_looked_at_is_said() {
        let unproved = |print: &Print, words: &str| {
            let found = proof(&memory(0x5000), print);
            let Proof::Unproved(why) = &found else { panic!("{words}: {found:?}") };
            assert!(why.contains(words), "{why}");
        };
        let hidden = Print { symbol: None, ..print() };
        unproved(&hidden, "kptr_restrict");
        unproved(&Print { description: None, unknown: "no symbols".into(), ..hidden.clone() }, "no symbols");
        unproved(&Print { pieces: Vec::new(), unknown: "no bytes".into(), ..print() }, "no bytes");
        // Even so the bytes tell.
        let mut emptied = memory(0x5000);
        emptied[0x1000..0x1800].fill(0);
        assert!(matches!(proof(&emptied, &hidden), Proof::Other(_)));
    }

    #[test]
    fn a_layout_that_is_not_known_is_not_believed() {
        for (offset, value) in
            [(COUNT, 0), (COUNT, 17), (SEGMENTS + MEM, 0x1000_0000), (SEGMENTS + BUFSZ, 0x9000)]
        {
            let mut strange = memory(0x5000);
            strange[0x100 + offset..0x108 + offset].copy_from_slice(&u64::to_le_bytes(value));
            with(&strange, |kcore| {
                let error = seen(kcore, Some(VIRTUAL), &[REGION]).unwrap_err();
                assert!(error.contains("another layout"), "{error}");
            });
        }
    }

    #[test]
    fn a_record_that_contradicts_itself_is_refused() {
        let record = |change: fn(&mut Loaded)| {
            let mut record = Loaded { entry: Some(0x5000), print: print(), ..Loaded::default() };
            change(&mut record);
            contradiction(&record, 0x2000)
        };
        assert_eq!(record(|_| ()), None);
        assert!(record(|record| record.entry = Some(0x9000)).unwrap().contains("0x9000"));
        assert!(record(|record| record.is_changed = true).unwrap().contains("was changed"));
        assert!(record(|record| record.print.reservation = 0x3000).unwrap().contains("8192 bytes"));
    }
}
