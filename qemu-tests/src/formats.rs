//! Dumps of a raw core in every format, and dumps made of dumps, judged page by page by readers
//! that share no code with the product.

use crate::binaries::Binaries;
use crate::command::{Run, command};
use crate::inputs;
use crate::readers::{self, Layer};
use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Formats that hold memory as it is, with the reader that judges each.
const PLAIN: [(&str, Layer); 4] = [
    ("elf", Layer::Drgn),
    ("elf", Layer::VolatilityElf),
    ("lime", Layer::VolatilityLime),
    ("raw", Layer::Raw),
];

/// Dumps of one core in a folder.
#[derive(Debug)]
pub struct Dumps<'a> {
    raw: &'a Path,
    work: &'a Path,
}

impl<'a> Dumps<'a> {
    /// Dumps of the ELF core `raw`, which go to the folder `work`.
    #[must_use]
    pub fn new(raw: &'a Path, work: &'a Path) -> Self {
        Self { raw, work }
    }

    /// Every format at one level has the pages that the kdump-compressed dump of that level keeps,
    /// and no other; gives how many.
    pub fn check_level(&self, level: u8) -> Result<u64> {
        let kdump = self.dump(self.raw, "kdump", level, "kdump")?;
        let bits = Self::kept(&kdump)?;
        for (format, reader) in PLAIN {
            let path = self.dump(self.raw, format, level, format)?;
            self.check(&bits, reader, &path)
                .with_context(|| format!("level {level}, {format}, {reader:?}"))?;
        }
        let flattened = self.dump(self.raw, "flattened", level, "flattened")?;
        let rebuilt = self.work.join("rebuilt");
        readers::reassemble(&flattened, &rebuilt)?;
        // The same pages, in another order: a stream has them by address.
        self.check(&bits, Layer::Drgn, &rebuilt).with_context(|| format!("level {level}, rebuilt"))?;
        ensure!(
            fs::read(Self::kept(&rebuilt)?)? == fs::read(&bits)?,
            "level {level}: the stream keeps other pages"
        );
        let found = self
            .check(&bits, Layer::Drgn, &flattened)
            .with_context(|| format!("level {level}, flattened"))?;
        let piped = self.work.join("piped");
        Self::run(&[self.raw.as_os_str(), "-".as_ref()], "flattened", level, Some(&piped))?;
        ensure!(fs::read(&piped)? == fs::read(&flattened)?, "level {level}: the pipe got another stream");
        Ok(found)
    }

    /// A dump of a dump is as good as one of the core. What a dump does not have is not in those
    /// that are made of it.
    pub fn check_conversions(&self) -> Result<()> {
        let direct = Self::kept(&self.dump(self.raw, "kdump", 31, "direct")?)?;
        let forensic = self.dump(self.raw, "kdump", 1, "forensic")?;
        let again = self.dump(&forensic, "kdump", 31, "again")?;
        ensure!(
            fs::read(Self::kept(&again)?)? == fs::read(&direct)?,
            "level 31 of level 1 keeps other pages"
        );
        for (format, reader) in PLAIN.into_iter().chain([("flattened", Layer::Drgn)]) {
            // Level 1 would keep what level 31 drops, if the input had it.
            let path = self.dump(&again, format, 1, "converted")?;
            self.check(&direct, reader, &path).with_context(|| format!("{format} of a dump, {reader:?}"))?;
        }
        for arguments in [&["--split", "-l", "-d", "31"][..], &["-F", "-l", "-d", "31"]] {
            let parts = inputs::make(self.raw, self.work, arguments)?;
            let out = self.work.join("joined");
            let paths: Vec<&OsStr> = parts.iter().chain([&out]).map(|path| path.as_os_str()).collect();
            Self::run(&paths, "kdump", 1, None)?;
            let bits = Self::kept(&out)?;
            self.check(&bits, Layer::Drgn, &out).with_context(|| format!("kdump of {arguments:?}"))?;
        }
        Ok(())
    }

    /// The dump for a format and level as it was made last.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    fn dump(&self, input: &Path, format: &str, level: u8, name: &str) -> Result<PathBuf> {
        let out = self.path(name);
        Self::run(&[input.as_os_str(), out.as_os_str()], format, level, None)?;
        Ok(out)
    }

    fn run(files: &[&OsStr], format: &str, level: u8, stdout: Option<&Path>) -> Result<()> {
        let mut afterimage = command(&Binaries::get()?.afterimage.to_string_lossy());
        afterimage.args(["dump", "--force", "--format", format, "--level", &level.to_string()]).args(files);
        if let Some(path) = stdout {
            afterimage.stdout(File::create(path)?);
        }
        afterimage.run()?;
        Ok(())
    }

    /// A file with a bit for each page that a kdump-compressed dump keeps.
    fn kept(kdump: &Path) -> Result<PathBuf> {
        let path = kdump.with_extension("bits");
        fs::write(&path, readers::bitmaps(kdump)?.dumped.bytes())?;
        Ok(path)
    }

    fn check(&self, bits: &Path, reader: Layer, dump: &Path) -> Result<u64> {
        let found = readers::layer(self.raw, bits, reader, dump)?;
        ensure!(found.wrong == 0, "{} pages are wrong, the first: {:?}", found.wrong, found.first);
        ensure!(found.same > 0, "no page was found");
        ensure!(found.short_segments == 0 && found.past_end == 0, "segments without bytes: {found:?}");
        if reader != Layer::Drgn {
            // Pages of zeros are holes. LiME's headers shift the data: a run may touch one block
            // more.
            let limit = found.data_pages.saturating_add(found.runs.saturating_mul(2)).saturating_add(64);
            ensure!(found.disk <= limit.saturating_mul(PAGE), "{} bytes on disk: {found:?}", found.disk);
        }
        Ok(found.same)
    }
}
