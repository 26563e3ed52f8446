//! `afterimage recover`: copies a capture off a raw device, verifying every record.
//!
//! A file gets its final name only if all of its records are there. It never writes over a file,
//! and marks the capture collected only when all that could be saved is durable, all of the log
//! could be read, and the device is still ours.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use base::time::utc;
use storage::format::rawdump::{Kind, Name, State, Superblock};
use storage::targets::directory::Directory;
use storage::targets::raw::{Device, Found, RawError, SIGNATURE, Scan, check_kind, superblock};
use vmcore::target::{Artifact, TargetError};

use super::cover::Cover;
use super::repair::repair;
use super::report::{LogDamage, Recovered};
use crate::host;

const VMCORE: &str = "vmcore";

/// Why nothing was recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The device.
    #[error(transparent)]
    Device(#[from] RawError),
    /// No capture on it.
    #[error("{0} holds no capture")]
    Nothing(PathBuf),
    /// It was copied off before.
    #[error(
        "the capture {capture} on {device} was collected before, {how}: to copy it once more, \
         `afterimage recover --again`"
    )]
    Collected {
        /// Which device.
        device: PathBuf,
        /// Name of the capture.
        capture: String,
        /// When and where.
        how: String,
    },
    /// A capture of which no record is left or can be read.
    #[error(
        "no record of the capture on {device} can be read: {missing} are missing, {read_errors} blocks are \
         unreadable"
    )]
    Unreadable {
        /// Which device.
        device: PathBuf,
        /// Records that are missing, as far as that is known.
        missing: u64,
        /// Blocks of the log that could not be read.
        read_errors: u64,
    },
    /// A directory cannot be made.
    #[error("the directory of the capture in {dir}")]
    Directory {
        /// Where.
        dir: PathBuf,
        /// Cause.
        source: Box<TargetError>,
    },
    /// A file cannot be written.
    #[error("{what} {path}")]
    Output {
        /// What was being done.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// A file that is being put together.
struct Output {
    file: File,
    /// Under the name that says incomplete.
    path: PathBuf,
    cover: Cover,
    /// Likewise, with what a lost record would have written again.
    written: Cover,
    next_index: u64,
    lost_records: u64,
    lost: Vec<(u64, u64)>,
    published: bool,
    /// Bytes of lost records whose place is known, unless a later record wrote them again.
    holes: Cover,
    /// Whether a record was missing whose place is not known.
    gap: bool,
    /// End of the furthest byte before the first such record.
    intact: u64,
    /// End of the last data.
    last_end: u64,
}

/// Copies the capture on the device or image at `node` into a new directory in `dir`, each attempt
/// at it into its own, and marks it collected, unless it is to be kept as it is. A damaged record
/// costs its own bytes. The last of what it gives is the capture itself, if not all is well with
/// it.
pub fn recover(node: &Path, dir: &Path, keep_uncollected: bool) -> Result<Vec<Recovered>, RecoverError> {
    check_kind(node).map_err(failed("opening", node))?;
    let file = File::open(node).map_err(failed("opening", node))?;
    let len = (&file).seek(SeekFrom::End(0)).map_err(failed("measuring", node))?;
    let superblock = superblock(&file, &node.display().to_string())?;
    let (mut recovered, mut damage) = copy_files(&file, len, &superblock, node, dir)?;
    if !keep_uncollected && superblock.state != State::Collected {
        damage.unmarked = mark(node, &superblock, damage.read_errors, dir).err();
    }
    if damage != LogDamage::default() {
        recovered.push(Recovered::of_log(node, damage));
    }
    Ok(recovered)
}

/// Marks the capture collected, if nothing of it can still be had and the device is ours; else
/// gives the reason.
fn mark(node: &Path, superblock: &Superblock, read_errors: u64, dir: &Path) -> Result<(), String> {
    if read_errors > 0 {
        return Err("another attempt may read more".to_owned());
    }
    let now = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let how = format!(
        "{} to {} on host {}",
        utc(now).as_deref().unwrap_or("at a time unknown"),
        std::path::absolute(dir).unwrap_or(dir.to_owned()).display(),
        host::read("/proc/sys/kernel/hostname")
    );
    let mark = |mut device: Device| device.mark_collected(superblock.generation, &how);
    Device::open(node).and_then(mark).map_err(|error| base::log::chain(&error))
}

/// Refuses a capture that was collected before: another copy of it may fill a disk. The error says
/// when that was, and where the copy is.
pub fn refuse_collected(node: &Path) -> Result<(), RecoverError> {
    check_kind(node).map_err(failed("opening", node))?;
    let file = File::open(node).map_err(failed("opening", node))?;
    let found = superblock(&file, &node.display().to_string())?;
    if found.state != State::Collected {
        return Ok(());
    }
    let how = if found.collected.is_empty() { "by an older version".to_owned() } else { found.collected };
    Err(RecoverError::Collected { device: node.to_owned(), capture: found.capture, how })
}

/// Copies the files, durably, and compares the records that are there with those that were to be.
fn copy_files(
    file: &File,
    len: u64,
    superblock: &Superblock,
    node: &Path,
    dir: &Path,
) -> Result<(Vec<Recovered>, LogDamage), RecoverError> {
    if superblock.state == State::Empty || superblock.capture.is_empty() {
        return Err(RecoverError::Nothing(node.to_owned()));
    }
    let mut directories: BTreeMap<u32, PathBuf> = BTreeMap::new();
    let mut outputs: BTreeMap<(u32, Name), Output> = BTreeMap::new();
    let mut scan = Scan::new(file, len, superblock);
    let (mut records, mut next_sequence) = (0_u64, 0_u64);
    for found in scan.by_ref() {
        let attempt = found.header.attempt;
        // The superblock of the last attempt may be the one that was lost. Any later one is damage,
        // and would make a directory.
        if attempt > superblock.attempt.saturating_add(1) {
            continue;
        }
        let at = match directories.entry(attempt) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(make_directory(dir, &superblock.capture)?),
        };
        let output = match outputs.entry((attempt, found.header.name)) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(Output::create(at, found.header.name)?),
        };
        output.take(&found)?;
        records = records.saturating_add(1);
        next_sequence = found.header.sequence.saturating_add(1);
    }
    let sealed = superblock.is_sealed();
    let wanted = if sealed { superblock.records.max(next_sequence) } else { next_sequence };
    let damage = LogDamage {
        unsealed: !sealed,
        missing: wanted.saturating_sub(records),
        surplus: if sealed { records.saturating_sub(superblock.records) } else { 0 },
        read_errors: scan.read_errors(),
        unmarked: None,
    };
    if outputs.is_empty() {
        return Err(match damage {
            LogDamage { missing: 0, read_errors: 0, .. } => RecoverError::Nothing(node.to_owned()),
            LogDamage { missing, read_errors, .. } => {
                RecoverError::Unreadable { device: node.to_owned(), missing, read_errors }
            }
        });
    }
    let mut recovered = Vec::new();
    for ((_, name), output) in outputs {
        recovered.push(output.finish(name)?);
    }
    for path in directories.values().map(PathBuf::as_path).chain([dir]) {
        File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("syncing", path))?;
    }
    Ok((recovered, damage))
}

/// A new directory for the capture, with a number behind the name if that is taken.
fn make_directory(dir: &Path, capture: &str) -> Result<PathBuf, RecoverError> {
    if !dir.is_dir() {
        DirBuilder::new().mode(0o700).create(dir).map_err(failed("making", dir))?;
    }
    let made = Directory::create(dir, "", capture);
    let made =
        made.map_err(|source| RecoverError::Directory { dir: dir.to_owned(), source: Box::new(source) })?;
    Ok(dir.join(made.path()))
}

/// Whether no file can have a byte there: the record is damaged or was made up, and the others are
/// as good as ever. A full disk is something else.
fn is_no_place(error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(errno) => matches!(errno, nix::libc::EFBIG | nix::libc::EINVAL | nix::libc::EOVERFLOW),
        None => error.kind() == io::ErrorKind::InvalidInput, // std's own: no off_t
    }
}

impl Output {
    fn create(dir: &Path, name: Name) -> Result<Self, RecoverError> {
        let path = dir.join(format!("{name}-incomplete"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(failed("creating", &path))?;
        Ok(Self {
            file,
            path,
            cover: Cover::default(),
            written: Cover::default(),
            next_index: 0,
            lost_records: 0,
            lost: Vec::new(),
            published: false,
            holes: Cover::default(),
            gap: false,
            intact: 0,
            last_end: 0,
        })
    }

    fn take(&mut self, found: &Found) -> Result<(), RecoverError> {
        let header = &found.header;
        let (start, end) = (header.offset, header.offset.saturating_add(u64::from(header.len)));
        let missing = header.index.saturating_sub(self.next_index);
        if missing > 0 {
            self.gap = true;
            self.lost_records = self.lost_records.saturating_add(missing);
            // Most files grow from front to back, so what is missing most likely stood here.
            if header.kind == Kind::Data && self.last_end < start {
                self.lost.push((self.last_end, start));
            }
        }
        self.next_index = header.index.saturating_add(1);
        let output = |what| failed(what, &self.path);
        match (header.kind, &found.payload) {
            (Kind::Data, Some(payload)) => match self.file.write_all_at(payload, start) {
                Ok(()) => {
                    self.cover.add(start, end);
                    self.written.add(start, end);
                    self.holes.remove(start, end);
                }
                Err(error) if is_no_place(&error) => {
                    self.lost_records = self.lost_records.saturating_add(1);
                    return Ok(()); // not where a later record could stand
                }
                Err(error) => return Err(output("writing")(error)),
            },
            (Kind::Data, None) => {
                self.lost_records = self.lost_records.saturating_add(1);
                self.lost.push((start, end));
                self.cover.remove(start, end);
                self.holes.add(start, end);
            }
            (Kind::Truncate, _) => match self.file.set_len(start) {
                Ok(()) => {
                    self.cover.remove(start, u64::MAX);
                    self.written.remove(start, u64::MAX);
                    self.holes.remove(start, u64::MAX);
                }
                Err(error) if is_no_place(&error) => {
                    self.lost_records = self.lost_records.saturating_add(1);
                }
                Err(error) => return Err(output("cutting")(error)),
            },
            (Kind::Publish, _) => self.published = true,
        }
        if header.kind == Kind::Data {
            if !self.gap {
                self.intact = self.intact.max(end);
            }
            self.last_end = end;
        }
        Ok(())
    }

    fn finish(self, name: Name) -> Result<Recovered, RecoverError> {
        let whole = self.published && self.lost_records == 0;
        let mut path = self.path;
        let is_dump = !whole && name.as_str() == VMCORE;
        let repaired =
            is_dump.then(|| repair(&self.file, &self.cover, &self.written, &self.holes, self.intact));
        let repair = repaired.transpose().map_err(failed("repairing", &path))?;
        self.file.sync_all().map_err(failed("syncing", &path))?;
        if whole {
            let published = path.with_file_name(match name.as_str() {
                SIGNATURE => Artifact::Signature.name(),
                name => name,
            });
            fs::rename(&path, &published).map_err(failed("renaming", &path))?;
            path = published;
        }
        let (published, lost_records, lost) = (self.published, self.lost_records, self.lost);
        Ok(Recovered { path, log: None, whole, published, lost_records, lost, repair })
    }
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> RecoverError + 'a {
    move |source| RecoverError::Output { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::config::CrashLoop;
    use storage::format::rawdump::RecordHeader;
    use storage::targets::raw::Raw;
    use vmcore::target::{Artifact, Capture, Target};

    #[test]
    fn a_log_that_could_not_be_read_to_its_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("image");
        File::create(&node).unwrap().set_len(2 << 20).unwrap();
        let crash_loop = CrashLoop { crashes: 3, within: 100 };
        let capture = Capture::new("one", 5, crash_loop);
        let mut target = Raw::start(Device::open(&node).unwrap(), &[], &capture).unwrap();
        target.create(Artifact::Dmesg).unwrap().write_at(0, b"x").unwrap();
        target.publish(Artifact::Dmesg).unwrap();
        drop(target);
        let file = File::open(&node).unwrap();
        let superblock = superblock(&file, "image").unwrap();
        // Reads behind the end of the image fail.
        let (files, damage) = copy_files(&file, (2 << 20) + 4096, &superblock, &node, dir.path()).unwrap();
        assert!(files.iter().all(|one| one.whole));
        let expected = LogDamage { unsealed: true, read_errors: 1, ..LogDamage::default() };
        assert_eq!(damage, expected);
        let reason = mark(&node, &superblock, damage.read_errors, Path::new("/out")).unwrap_err();
        assert_eq!(storage::targets::raw::superblock(&file, "image").unwrap().state, State::Writing);
        let text = Recovered::of_log(&node, LogDamage { unmarked: Some(reason), ..damage }).text();
        let told =
            "never came to its end, has 1 blocks that cannot be read, is not marked collected: another";
        assert!(text.contains(told), "{text}");
        mark(&node, &superblock, 0, Path::new("/out")).unwrap();
        let said = refuse_collected(&node).unwrap_err().to_string();
        assert!(said.contains(" to /out on host ") && said.contains("--again"), "{said}");
        assert_eq!(storage::targets::raw::superblock(&file, "image").unwrap().state, State::Collected);
    }

    #[test]
    fn a_lost_record_is_a_hole_until_its_bytes_are_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let name = Name::new(VMCORE).unwrap();
        let mut output = Output::create(dir.path(), name).unwrap();
        let mut take = |index, offset, payload: Option<&[u8]>| {
            let header = RecordHeader {
                sequence: index,
                attempt: 1,
                name,
                index,
                kind: Kind::Data,
                offset,
                len: 8,
                crc: 0,
            };
            output.take(&Found { at: 0, header, payload: payload.map(<[u8]>::to_vec) }).unwrap();
            (output.holes.within(0, 100), output.intact)
        };
        assert_eq!(take(0, 0, Some(&[1; 8])), (vec![], 8));
        assert_eq!(take(1, 8, None), (vec![(8, 16)], 16), "its place is known");
        assert_eq!(take(2, 12, Some(&[2; 8])), (vec![(8, 12)], 20));
        assert_eq!(take(3, 0, None), (vec![(0, 12)], 20));
        assert_eq!(take(5, 40, Some(&[3; 8])), (vec![(0, 12)], 20), "nobody knows what record 4 wrote");
        assert!(output.written.has(0, 8) && !output.cover.has(0, 8) && output.cover.has(12, 20));
    }
}
