//! `afterimage triage`: what was running, as rows, and the files that were in memory only, in a folder.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base::addr::{to_u64, to_usize};
use triage::archive::{Archive, Chunk};
use triage::artefacts::{self, Done, Limits, Output, Recovered, WalkError};
use triage::places::{Places, ROOT};
use triage::summary::{self, Subject};
use vmcore::budget;

use crate::input::{Input, InputError};

/// Why there is no triage.
#[derive(Debug, thiserror::Error)]
pub enum TriageError {
    /// The dump.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The walk.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The folder exists.
    #[error("{0} is there already and is not empty: name a new folder")]
    Taken(PathBuf),
    /// The folder.
    #[error("writing {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// Ending of the name of an output that is one file.
const ARCHIVE: &str = ".tar.zst";

/// Walks through the memory of the dump in `files` and fills `out`: a new folder, or a tar if its name says
/// so; how each artefact did.
pub fn make(files: &[PathBuf], out: &Path, limits: &Limits) -> Result<Vec<Done>, TriageError> {
    let input = Input::open_x86_64(files)?;
    let failed = |source| TriageError::Write { path: out.to_owned(), source };
    let is_archive = out.to_str().is_some_and(|name| name.ends_with(ARCHIVE));
    if !is_archive {
        let mut folder = Folder::new(out)?;
        let done = run(&input, limits, &mut folder)?;
        texts(&input, &done, |name, text| folder.text(name, text)).map_err(failed)?;
        folder.finish().map_err(failed)?;
        return Ok(done);
    }
    let mut file = Folder::create(out).map_err(failed)?;
    let mut send = |chunk: Chunk| file.write_all(&chunk.frame);
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let mut archive = Archive::new(now, &mut send).map_err(failed)?;
    let done = run(&input, limits, &mut archive)?;
    texts(&input, &done, |name, text| archive.text(name, text)).map_err(failed)?;
    archive.finish().and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(done)
}

/// What stands beside the rows.
fn texts(
    input: &Input,
    done: &[Done],
    mut write: impl FnMut(&str, &str) -> io::Result<()>,
) -> io::Result<()> {
    let kernel = input.kernel();
    let findings =
        summary::of(Subject { core: input.core(), kernel: &kernel, answers: None, planned: false });
    write("summary.txt", &findings.to_text(usize::MAX))?;
    write("summary.json", &findings.to_json(usize::MAX))?;
    write("index.json", &artefacts::index(done, env!("CARGO_PKG_VERSION"), budget::peak_memory()))
}

fn run(input: &Input, limits: &Limits, output: &mut dyn Output) -> Result<Vec<Done>, TriageError> {
    Ok(artefacts::walk(&input.kernel(), None, limits, output)?)
}

/// For people: a line for each artefact.
#[must_use]
pub fn text(done: &[Done], out: &Path) -> String {
    let line = |done: &Done| {
        let errors = if done.with_errors > 0 {
            format!(", {} of them with something that could not be read", done.with_errors)
        } else {
            String::new()
        };
        let stopped = done.stopped.as_ref().map(|why| format!("; ended: {}", base::text::line(why)));
        format!("{}.jsonl: {} rows{errors}{}\n", done.artefact, done.rows, stopped.unwrap_or_default())
    };
    let lines: String = done.iter().map(line).collect();
    format!("{lines}recovered files: {}/{ROOT}\n", out.display())
}

/// Rows and files in a folder that nobody else can write to.
#[derive(Debug)]
struct Folder {
    dir: PathBuf,
    lines: BTreeMap<String, BufWriter<File>>,
    open: Option<Open>,
    places: Places,
}

/// A recovered file that is being written.
#[derive(Debug)]
struct Open {
    file: File,
    /// What is still to be written of its ranges.
    ranges: VecDeque<(u64, u64)>,
    modified: Option<SystemTime>,
}

impl Folder {
    fn new(dir: &Path) -> Result<Self, TriageError> {
        let failed = |source| TriageError::Write { path: dir.to_owned(), source };
        match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if fs::read_dir(dir).map_err(failed)?.next().is_some() {
                    return Err(TriageError::Taken(dir.to_owned()));
                }
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(Self { dir: dir.to_owned(), lines: BTreeMap::new(), open: None, places: Places::default() })
    }

    fn create(path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    }

    fn text(&self, name: &str, text: &str) -> io::Result<()> {
        Self::create(&self.dir.join(name))?.write_all(text.as_bytes())
    }

    fn finish(self) -> io::Result<()> {
        self.lines.into_values().try_for_each(|mut lines| lines.flush())
    }
}

impl Output for Folder {
    fn line(&mut self, file: &str, line: &str) -> io::Result<()> {
        if !self.lines.contains_key(file) {
            let made = Self::create(&self.dir.join(file))?;
            self.lines.insert(file.to_owned(), BufWriter::new(made));
        }
        self.lines.get_mut(file).map_or(Ok(()), |lines| lines.write_all(line.as_bytes()))
    }

    fn done(&mut self, file: &str) -> io::Result<()> {
        // A file without lines says that there were none.
        match self.lines.remove(file) {
            Some(mut lines) => lines.flush(),
            None => Self::create(&self.dir.join(file)).map(drop),
        }
    }

    fn begin(&mut self, file: &Recovered<'_>) -> io::Result<String> {
        let name = format!("{ROOT}/{}", self.places.give(file.path));
        let at = self.dir.join(&name);
        if let Some(parent) = at.parent() {
            // Nothing in the folder is a link, so that no path leads out of it.
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let made = Self::create(&at)?;
        made.set_len(file.bytes)?;
        let modified =
            file.modified.and_then(|at| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at)));
        self.open = Some(Open { file: made, ranges: file.ranges.iter().copied().collect(), modified });
        Ok(name)
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        while let (Some((at, end)), false) = (open.ranges.front_mut(), bytes.is_empty()) {
            let len = to_usize(end.saturating_sub(*at)).min(bytes.len());
            let (now, later) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
            open.file.write_all_at(now, *at)?;
            *at = at.saturating_add(to_u64(now.len()));
            if *at >= *end {
                open.ranges.pop_front();
            }
            bytes = later;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(Open { file, modified, .. }) = self.open.take() else { return Ok(()) };
        modified.map_or(Ok(()), |modified| file.set_modified(modified))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_one_name_are_all_there() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut folder = Folder::new(&out).unwrap();
        let mut write = |path: &str, text: &[u8]| {
            let ranges = [(2, 4), (5, 8)];
            let file = Recovered { path, bytes: 9, ranges: &ranges, mode: 0o644, modified: Some(1_000_000) };
            let name = folder.begin(&file).unwrap();
            folder.write(&text[..1]).unwrap();
            folder.write(&text[1..]).unwrap();
            folder.end().unwrap();
            let at = out.join(name);
            let modified = fs::metadata(&at).unwrap().modified().unwrap();
            assert_eq!(modified.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 1_000_000);
            fs::read(at).unwrap()
        };
        assert_eq!(write("/tmp/a", b"first"), b"\0\0fi\0rst\0");
        assert_eq!(write("/tmp/a", b"other"), b"\0\0ot\0her\0", "the same name again");
        assert_eq!(write("/tmp/a/b", b"third"), b"\0\0th\0ird\0", "a file where a folder would have to be");
        assert!(fs::read_dir(out.join(ROOT).join("tmp")).unwrap().count() == 1);
        assert!(matches!(Folder::new(&out), Err(TriageError::Taken(_))));
    }
}
