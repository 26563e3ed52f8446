//! Dumps of a raw core that are cut short on purpose, by the means that cut dumps short in the
//! field.

use crate::binaries::Binaries;
use crate::command::{Run, command};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Slow enough that a process can be killed in the middle.
const SLOW: &str = "zstd:9";
const PATIENCE: Duration = Duration::from_mins(5);

/// What cuts a dump short, when it has so many bytes.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// No more room.
    FullDisk(u64),
    /// SIGKILL.
    Killed(u64),
}

/// A dump that was made.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its length when its vital part was durable.
    pub vital_bytes: u64,
}

/// A dump that was cut short.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where it is.
    pub path: PathBuf,
    /// How long it was at the cut.
    pub length_at_cut: u64,
}

/// Makes dumps of one core at level 31 in a folder.
#[derive(Debug)]
pub struct Dumper<'a> {
    raw: &'a Path,
    work: &'a Path,
}

impl<'a> Dumper<'a> {
    /// Dumps of the ELF core `raw`, which go to the folder `work`.
    #[must_use]
    pub fn new(raw: &'a Path, work: &'a Path) -> Self {
        Self { raw, work }
    }

    /// A dump that nothing cuts short.
    pub fn whole(&self) -> Result<Whole> {
        /// What the program says of it.
        #[derive(Deserialize)]
        struct Said {
            dump_bytes: u64,
            vital_bytes: Option<u64>,
        }
        let path = self.work.join("whole");
        let output = command(&Binaries::get()?.afterimage.to_string_lossy())
            .args(["dump", "--level", "31", "--compress", SLOW])
            .args([self.raw, &path])
            .run()?;
        let message: Said = serde_json::from_slice(&output.stdout).context("the result of a dump")?;
        let vital_bytes = message.vital_bytes.context("a whole dump without a vital part")?;
        ensure!(fs::metadata(&path)?.len() == message.dump_bytes, "the dump has not the length that it says");
        Ok(Whole { path, bytes: message.dump_bytes, vital_bytes })
    }

    /// A dump that is cut short.
    pub fn cut(&self, cut: &Cut) -> Result<Piece> {
        let path = self.work.join("cut-incomplete");
        let _ = fs::remove_file(&path); // of the last cut
        let length_at_cut = match *cut {
            Cut::FullDisk(bytes) => self.fill(bytes)?,
            Cut::Killed(bytes) => self.kill(&path, bytes)?,
        };
        ensure!(path.exists(), "{cut:?} left nothing");
        ensure!(!self.work.join("cut").exists(), "{cut:?} came too late");
        Ok(Piece { path, length_at_cut })
    }

    /// The arguments of a dump to `cut`, behind a shell that limits the length of files.
    fn arguments(&self, limit: Option<u64>) -> Result<Vec<String>> {
        let binary = Binaries::get()?.afterimage.display().to_string();
        let limit = limit.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string());
        // A write beyond the limit is to fail, as one to a full disk does, and not to raise a
        // signal.
        let script = "trap '' XFSZ; limit=$1; shift; exec prlimit --fsize=$limit \"$@\"";
        let words = ["-c", script, "sh", &limit, &binary, "dump", "--level", "31", "--compress", SLOW];
        let paths = [self.raw.display().to_string(), self.work.join("cut").display().to_string()];
        Ok(words.into_iter().map(str::to_owned).chain(paths).collect())
    }

    fn fill(&self, bytes: u64) -> Result<u64> {
        let output = command("sh").args(self.arguments(Some(bytes))?).output().context("starting sh")?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && message.contains("File too large"),
            "the limit did nothing:\n{message}"
        );
        Ok(bytes)
    }

    fn kill(&self, path: &Path, bytes: u64) -> Result<u64> {
        let mut child = command("sh")
            .args(self.arguments(None)?)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting sh")?;
        let started = Instant::now();
        loop {
            let length = fs::metadata(path).map_or(0, |metadata| metadata.len());
            if length >= bytes {
                child.kill().context("killing the dump")?;
                child.wait().context("waiting for the dump")?;
                return Ok(length);
            }
            if let Some(status) = child.try_wait().context("watching the dump")? {
                bail!("the dump ended with {status} before it had {bytes} bytes");
            }
            ensure!(started.elapsed() < PATIENCE, "the dump does not come to {bytes} bytes");
            sleep(Duration::from_micros(200));
        }
    }
}
