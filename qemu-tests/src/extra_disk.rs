//! Disks beside the production disk: what is on them, what is wrong with them, what a run left on
//! them.

use crate::capture_config::{DUMPS, Target};
use crate::command::{Run, command};
use crate::disk::Disk;
use crate::fault::Fault;
use crate::outcome::Dump;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What a disk holds at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// An empty file system labelled with the disk's name.
    Filesystem(&'static str),
    /// Zeros.
    Empty,
    /// A copy of this file, at its start.
    Image(PathBuf),
}

/// A disk to be made.
#[derive(Clone, Debug)]
pub struct ExtraDisk {
    /// Names the image file, QEMU's devices, and the file system: 11 lower-case letters or digits
    /// at most.
    pub name: String,
    /// What it holds.
    pub content: Content,
    /// Bytes.
    pub size: u64,
    /// Bytes that its ext4 file system has left.
    pub room: Option<u64>,
    /// Whether the guest is kept from writing to it.
    pub read_only: bool,
    /// More arguments for the program that makes its file system.
    pub mkfs: Vec<String>,
    /// Arguments of tune2fs, if it is run afterwards.
    pub tune: Vec<String>,
    /// What is wrong with it. With any, even [`Fault::None`], it can be stalled and pulled out.
    pub faults: Vec<Fault>,
}

/// What a run left on a disk.
#[derive(Clone, Debug)]
pub struct DiskLeft {
    /// The disk's name.
    pub name: String,
    /// Its image, as the guest left it.
    pub image: PathBuf,
    /// The dumps in its ext4 file system, when it has one that can be read.
    pub dumps: Vec<Dump>,
    /// What e2fsck says about the file system after its journal is replayed; nothing if all is
    /// well.
    pub complaint: Option<String>,
}

impl ExtraDisk {
    /// A healthy disk of `mib` MiB with an empty ext4 file system.
    #[must_use]
    pub fn ext4(name: &str, mib: u64) -> Self {
        Self::of(name, mib, Content::Filesystem("ext4"))
    }

    /// A healthy disk of `mib` MiB with something else on it.
    #[must_use]
    pub fn of(name: &str, mib: u64, content: Content) -> Self {
        let size = mib.saturating_mul(1 << 20);
        Self {
            name: name.into(),
            content,
            size,
            room: None,
            read_only: false,
            mkfs: Vec::new(),
            tune: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// The same with faults.
    #[must_use]
    pub fn with(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.faults.extend(faults);
        self
    }

    /// The same, made with these arguments, too.
    #[must_use]
    pub fn made_with(mut self, arguments: &[&str]) -> Self {
        self.mkfs.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// The same, changed by tune2fs.
    #[must_use]
    pub fn tuned(mut self, arguments: &[&str]) -> Self {
        self.tune.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// The name for `device` in the configuration.
    #[must_use]
    pub fn device(&self) -> String {
        format!("LABEL={}", self.label())
    }

    /// The target it is, with the type of its file system: the image builder cannot see the disk.
    #[must_use]
    pub fn target(&self) -> Target {
        let target = Target::filesystem(&self.device());
        match self.content {
            Content::Filesystem(kind) => target.key("fstype", kind),
            Content::Empty | Content::Image(_) => target,
        }
    }

    /// Where its image lies in the work directory of a run.
    pub(crate) fn image(&self, work: &Path) -> PathBuf {
        work.join(format!("extra-{}.img", self.name))
    }

    /// The disk with what an earlier run left on it, or a new one.
    pub(crate) fn disk(&self, work: &Path) -> Result<Disk> {
        let path = self.image(work);
        if !path.exists() {
            self.make(&path).with_context(|| format!("the disk {}", self.name))?;
        }
        Ok(Disk {
            path,
            read_only: self.read_only,
            name: Some(self.name.clone()).filter(|_| !self.faults.is_empty()),
            faults: self.faults.clone(),
        })
    }

    /// Looks at what a run left on it; the image stays untouched.
    pub(crate) fn look(&self, work: &Path, into: &Path) -> Result<DiskLeft> {
        let image = self.image(work);
        let mut left =
            DiskLeft { name: self.name.clone(), image: image.clone(), dumps: Vec::new(), complaint: None };
        if self.content == Content::Filesystem("ext4") {
            let copy = Disk::raw(&image.with_extension("copy"), 0)?;
            command("cp").arg("--sparse=always").args([&image, &copy.path]).run()?;
            // A journal that cannot be replayed is a finding, not a failure of the harness.
            let checked = copy.replay().and_then(|()| command("e2fsck").arg("-fn").arg(&copy.path).run());
            left.complaint = checked.err().map(|error| format!("{error:#}"));
            if copy.read_back(DUMPS, into).is_ok() && into.join("crash").is_dir() {
                left.dumps = Dump::all_in(&into.join("crash"))?;
            }
            fs::remove_file(&copy.path).context("removing the copy of a disk")?;
        }
        Ok(left)
    }

    fn make(&self, path: &Path) -> Result<()> {
        let disk = Disk::raw(path, self.size)?;
        let label = self.label();
        let mut make = match self.content {
            Content::Filesystem("ext4") => {
                let mut make = command("mke2fs");
                make.args(["-q", "-F", "-t", "ext4", "-L", &label]);
                make
            }
            Content::Filesystem("vfat") => {
                let mut make = command("mkfs.vfat");
                make.args(["-F", "32", "-n", &label]);
                make
            }
            Content::Filesystem(kind) => {
                let mut make = command(&format!("mkfs.{kind}"));
                make.args(["-q", "-f", "-L", &label]);
                make
            }
            Content::Empty => return Ok(()),
            Content::Image(ref image) => {
                let mut from = File::open(image).with_context(|| format!("opening {}", image.display()))?;
                let mut to = File::options().write(true).open(path).context("opening the disk")?;
                std::io::copy(&mut from, &mut to).context("filling the disk")?;
                return Ok(());
            }
        };
        make.args(&self.mkfs).arg(path).run()?;
        if !self.tune.is_empty() {
            command("tune2fs").args(&self.tune).arg(path).run()?;
        }
        self.room.map_or(Ok(()), |room| disk.leave(room))
    }

    fn label(&self) -> String {
        match self.content {
            // mkfs.vfat takes other labels, with a warning.
            Content::Filesystem("vfat") => self.name.to_uppercase(),
            _ => self.name.clone(),
        }
    }
}

/// A hash of a region of an image, to see whether a run changed it. Only for comparison within a
/// process.
pub fn hash(image: &Path, region: Range<u64>) -> Result<u64> {
    let context = || format!("reading {region:?} of {}", image.display());
    let mut file = BufReader::with_capacity(1 << 20, File::open(image).with_context(context)?);
    file.seek(SeekFrom::Start(region.start)).with_context(context)?;
    let length = region.end.checked_sub(region.start).with_context(context)?;
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut left = length;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let piece = buffer.get_mut(..wanted).with_context(context)?;
        file.read_exact(piece).with_context(context)?;
        hasher.write(piece);
        left = left.saturating_sub(u64::try_from(wanted)?);
    }
    ensure!(length > 0, "an empty region proves nothing");
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_inside_the_region_count() {
        let work = tempfile::tempdir().unwrap();
        let path = work.path().join("image");
        let mut bytes = vec![7; 3 << 20];
        fs::write(&path, &bytes).unwrap();
        let region = 4096..(2 << 20) + 1;
        let before = hash(&path, region.clone()).unwrap();
        bytes[4095] = 0;
        bytes[(2 << 20) + 1] = 0;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(hash(&path, region.clone()).unwrap(), before);
        bytes[2 << 20] = 0;
        fs::write(&path, &bytes).unwrap();
        assert_ne!(hash(&path, region).unwrap(), before);
        assert!(hash(&path, 0..4 << 20).is_err() && hash(&path, 5..5).is_err());
    }
}
