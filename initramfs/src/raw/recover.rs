//! `afterimage recover`: copies a capture off a raw device, verifying every record.
//!
//! A file gets its final name only if all of its records are there. It never writes over a file, and marks the capture
//! collected only when all that could be saved is durable.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use capture::format::rawdump::{Kind, Name, State};
use capture::target::TargetError;
use capture::target::directory::Directory;
use capture::target::raw::{Device, Found, RawError, Scan, superblock};

use super::cover::Cover;
use super::repair::repair;

pub use super::repair::Repair;

const VMCORE: &str = "vmcore";

/// Why nothing was recovered, or not marked collected.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The device.
    #[error(transparent)]
    Device(#[from] RawError),
    /// No capture on it.
    #[error("{0} holds no capture")]
    Nothing(PathBuf),
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

/// A file of the capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Where it is now.
    pub path: PathBuf,
    /// Whether it is what the capture wrote and called whole.
    pub whole: bool,
    /// Whether the capture called it whole.
    pub published: bool,
    /// Records of it that are lost, as far as that is known.
    pub lost_records: u64,
    /// Ranges of bytes that are lost, as far as they are known.
    pub lost: Vec<(u64, u64)>,
    /// What was done to a dump that is not whole.
    pub repair: Option<Repair>,
}

/// A file that is being put together.
struct Output {
    file: File,
    /// Under the name that says incomplete.
    path: PathBuf,
    cover: Cover,
    next_index: u64,
    lost_records: u64,
    lost: Vec<(u64, u64)>,
    published: bool,
    /// End of the furthest byte before the first lost record.
    intact: u64,
    /// End of the last data.
    last_end: u64,
}

/// Copies the capture on the device or image at `node` into a new directory in `dir`, each attempt at it into its own, and
/// marks it collected, unless it is to be kept as it is. A damaged record costs its own bytes.
pub fn recover(node: &Path, dir: &Path, keep_uncollected: bool) -> Result<Vec<Recovered>, RecoverError> {
    let name = node.display().to_string();
    let file = File::open(node).map_err(failed("opening", node))?;
    let len = (&file).seek(SeekFrom::End(0)).map_err(failed("measuring", node))?;
    let superblock = superblock(&file, &name)?;
    if superblock.state == State::Empty || superblock.capture.is_empty() {
        return Err(RecoverError::Nothing(node.to_owned()));
    }
    let mut directories: BTreeMap<u32, PathBuf> = BTreeMap::new();
    let mut outputs: BTreeMap<(u32, Name), Output> = BTreeMap::new();
    for found in Scan::new(&file, len, &superblock) {
        let attempt = found.header.attempt;
        let at = match directories.entry(attempt) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(make_directory(dir, &superblock.capture)?),
        };
        let output = match outputs.entry((attempt, found.header.name)) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(Output::create(at, found.header.name)?),
        };
        output.take(&found)?;
    }
    if outputs.is_empty() {
        return Err(RecoverError::Nothing(node.to_owned()));
    }
    let mut recovered = Vec::new();
    for ((_, name), output) in outputs {
        recovered.push(output.finish(name)?);
    }
    for path in directories.values().map(PathBuf::as_path).chain([dir]) {
        File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("syncing", path))?;
    }
    if !keep_uncollected && superblock.state != State::Collected {
        let mut device = Device::open(node)?;
        let generation = superblock.generation.saturating_add(1);
        device.write_superblock(&capture::format::rawdump::Superblock {
            generation,
            state: State::Collected,
            ..superblock
        })?;
    }
    Ok(recovered)
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
            next_index: 0,
            lost_records: 0,
            lost: Vec::new(),
            published: false,
            intact: 0,
            last_end: 0,
        })
    }

    fn take(&mut self, found: &Found) -> Result<(), RecoverError> {
        let header = &found.header;
        let (start, end) = (header.offset, header.offset.saturating_add(u64::from(header.len)));
        let missing = header.index.saturating_sub(self.next_index);
        if missing > 0 {
            self.lost_records = self.lost_records.saturating_add(missing);
            // Most files grow from front to back, so what is missing most likely stood here.
            if header.kind == Kind::Data && self.last_end < start {
                self.lost.push((self.last_end, start));
            }
        }
        self.next_index = header.index.saturating_add(1);
        let output = |what| failed(what, &self.path);
        match (header.kind, &found.payload) {
            (Kind::Data, Some(payload)) => {
                self.file.write_all_at(payload, start).map_err(output("writing"))?;
                self.cover.add(start, end);
                if self.lost_records == 0 {
                    self.intact = self.intact.max(end);
                }
            }
            (Kind::Data, None) => {
                self.lost_records = self.lost_records.saturating_add(1);
                self.lost.push((start, end));
                self.cover.remove(start, end);
            }
            (Kind::Truncate, _) => {
                self.file.set_len(start).map_err(output("cutting"))?;
                self.cover.remove(start, u64::MAX);
            }
            (Kind::Publish, _) => self.published = true,
        }
        if header.kind == Kind::Data {
            self.last_end = end;
        }
        Ok(())
    }

    fn finish(self, name: Name) -> Result<Recovered, RecoverError> {
        let whole = self.published && self.lost_records == 0;
        let mut path = self.path;
        let is_dump = !whole && name.as_str() == VMCORE;
        let repaired = is_dump.then(|| repair(&self.file, &self.cover, self.intact));
        let repair = repaired.transpose().map_err(failed("repairing", &path))?;
        self.file.sync_all().map_err(failed("syncing", &path))?;
        if whole {
            let published = path.with_file_name(name.as_str());
            fs::rename(&path, &published).map_err(failed("renaming", &path))?;
            path = published;
        }
        let (published, lost_records, lost) = (self.published, self.lost_records, self.lost);
        Ok(Recovered { path, whole, published, lost_records, lost, repair })
    }
}

impl Recovered {
    /// A line for people.
    #[must_use]
    pub fn text(&self) -> String {
        let path = self.path.display();
        if self.whole {
            return format!("{path}: whole");
        }
        let mut text = format!("{path}: incomplete");
        if self.lost_records > 0 {
            let _ = write!(text, ", {} records lost", self.lost_records);
        } else if !self.published {
            text.push_str(", the capture ended early");
        }
        for (start, end) in self.lost.iter().take(16) {
            let _ = write!(text, ", bytes {start}..{end}");
        }
        match self.repair {
            Some(Repair::Pages(pages)) => {
                let _ = write!(text, "; opens, {pages} pages are lost");
            }
            Some(Repair::NoHeader) => {
                text.push_str("; its header is lost, or it is no kdump-compressed dump");
            }
            Some(Repair::NoBitmap) => {
                text.push_str("; its bitmaps are damaged: no page can be told from another");
            }
            None => (),
        }
        text
    }
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> RecoverError + 'a {
    move |source| RecoverError::Output { what, path: path.to_owned(), source }
}
