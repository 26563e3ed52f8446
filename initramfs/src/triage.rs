//! `afterimage triage`: what was running, as rows, and the files that were in memory only, in a folder.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use processes::resident::Held;
use processes::system::{System, SystemError};
use processes::tasks;
use symbols::btf::{self, BtfError};
use symbols::kallsyms::{KallsymsError, index};
use symbols::knowledge::Read;
use symbols::unwind::Unwinder;
use triage::artefacts::{self, Done, Ground, Limits, Output, Row};
use triage::summary::{self, Subject};
use vmcore::kernel::Kernel;

use crate::input::{Input, InputError};

/// Where recovered files are, at their paths: analysts' tools take such a folder for a machine's root.
const ROOT: &str = "[root]";
/// Bytes of a name in a path (`NAME_MAX`), and of a path in a folder that may have a long name itself.
const NAME: usize = 255;
const PATH: usize = 3000;

/// Why there is no triage.
#[derive(Debug, thiserror::Error)]
pub enum TriageError {
    /// The dump.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The kernel's own symbols.
    #[error("reading the kernel's symbols")]
    Symbols(#[from] KallsymsError),
    /// The kernel's own types.
    #[error("reading the kernel's types")]
    Types(#[from] BtfError),
    /// What is known of the kernel is not enough.
    #[error("finding the processes")]
    System(#[from] SystemError),
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

/// Walks through the memory of the dump in `files` and fills the folder `out`; how each artefact did.
pub fn make(files: &[PathBuf], out: &Path, limits: Limits) -> Result<Vec<Done>, TriageError> {
    let input = Input::open_x86_64(files)?;
    let failed = |source| TriageError::Write { path: out.to_owned(), source };
    let kernel = input.kernel();
    let names = index::read(&kernel)?;
    let types = btf::read(&kernel, &names)?;
    let known = Read { symbols: &names, types: &types };
    let mut folder = Folder::new(out)?;
    let done = run(&kernel, &known, limits, &mut folder)?;
    let subject = Subject { core: input.core(), kernel: &kernel, answers: None, planned: false };
    let findings = summary::of(subject);
    folder.text("summary.txt", &findings.to_text(usize::MAX)).map_err(failed)?;
    folder.text("summary.json", &findings.to_json(usize::MAX)).map_err(failed)?;
    let index =
        serde_json::json!({ "format": 1, "afterimage": env!("CARGO_PKG_VERSION"), "artefacts": done });
    folder.text("index.json", &format!("{index:#}\n")).map_err(failed)?;
    folder.finish().map_err(failed)?;
    Ok(done)
}

fn run(
    kernel: &Kernel<'_>,
    known: &Read<'_>,
    limits: Limits,
    output: &mut dyn Output,
) -> Result<Vec<Done>, TriageError> {
    let system = System::new(kernel, known)?;
    let processes = tasks::all(&system)?;
    let held = Held::new(kernel.memory());
    let clock = summary::clock(kernel, known);
    let code = &Unwinder::new(kernel, known.symbols, known);
    let ground = Ground { system: &system, known, processes: &processes, held: &held, code, clock, limits };
    Ok(artefacts::run_all(&ground, output))
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
    rows: BTreeMap<&'static str, BufWriter<File>>,
    open: Option<File>,
    /// Names that were given, so that no file takes the place of another.
    number: u64,
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
        Ok(Self { dir: dir.to_owned(), rows: BTreeMap::new(), open: None, number: 0 })
    }

    fn create(path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    }

    fn text(&self, name: &str, text: &str) -> io::Result<()> {
        Self::create(&self.dir.join(name))?.write_all(text.as_bytes())
    }

    /// Adds a line to a file of this name, which is made with the first one.
    fn append(&mut self, name: &'static str, ending: &str, line: &str) -> io::Result<()> {
        if !self.rows.contains_key(name) {
            let file = Self::create(&self.dir.join(format!("{name}{ending}")))?;
            self.rows.insert(name, BufWriter::new(file));
        }
        self.rows.get_mut(name).map_or(Ok(()), |file| file.write_all(line.as_bytes()))
    }

    fn finish(self) -> io::Result<()> {
        for (_, mut rows) in self.rows {
            rows.flush()?;
        }
        Ok(())
    }

    /// Makes the file and the folders above it. Nothing in the folder is a link, so that no path leads
    /// out of it.
    fn place(&mut self, path: &str) -> io::Result<(String, File)> {
        let wanted = safe(path);
        let parent = wanted.rsplit_once('/').map_or("", |(parent, _)| parent);
        let root = self.dir.join(ROOT);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(root.join(parent));
        let file = made.and_then(|()| Self::create(&root.join(&wanted)));
        if let Ok(file) = file {
            return Ok((wanted, file));
        }
        // There is a file of that name, or one where a folder would have to be.
        self.number = self.number.saturating_add(1);
        let other = format!("[other]/{}", self.number);
        DirBuilder::new().recursive(true).mode(0o700).create(root.join("[other]"))?;
        let file = Self::create(&root.join(&other))?;
        Ok((other, file))
    }
}

/// A path below the root: no part of it leads up, is too long or has a NUL.
fn safe(path: &str) -> String {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "." | "..") && !part.contains('\0'));
    let mut whole = String::new();
    for part in parts {
        let end = part.floor_char_boundary(NAME);
        let part = part.get(..end).unwrap_or_default();
        if whole.len().saturating_add(part.len()) > PATH {
            break;
        }
        if !whole.is_empty() {
            whole.push('/');
        }
        whole.push_str(part);
    }
    if whole.is_empty() { "[no name]".to_owned() } else { whole }
}

impl Output for Folder {
    fn row(&mut self, artefact: &'static str, row: &Row) -> io::Result<()> {
        self.append(artefact, ".jsonl", &row.to_line())
    }

    fn line(&mut self, file: &'static str, line: &str) -> io::Result<()> {
        self.append(file, "", line)
    }

    fn begin(&mut self, path: &str, bytes: u64) -> io::Result<String> {
        let (name, file) = self.place(path)?;
        file.set_len(bytes)?;
        self.open = Some(file);
        Ok(format!("{ROOT}/{name}"))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.open.as_ref().map_or(Ok(()), |file| file.write_all_at(bytes, offset))
    }

    fn end(&mut self) -> io::Result<()> {
        self.open = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_out() {
        assert_eq!(safe("/var/log/../../etc/./passwd"), "var/log/etc/passwd");
        assert_eq!(safe("/../.."), "[no name]");
        assert_eq!(safe("/a\0b/c"), "c");
        assert!(safe(&format!("/{}", "x".repeat(400))).len() <= NAME);
        assert!(safe(&"/xxxxxxxx".repeat(2000)).len() <= PATH + 300);
        assert!(safe("/é".repeat(300).as_str()).is_char_boundary(3));
    }

    #[test]
    fn files_of_one_name_are_all_there() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut folder = Folder::new(&out).unwrap();
        let mut write = |path: &str, text: &[u8]| {
            let name = folder.begin(path, 8).unwrap();
            folder.write_at(2, text).unwrap();
            folder.end().unwrap();
            fs::read(out.join(name)).unwrap()
        };
        assert_eq!(write("/tmp/a", b"one"), b"\0\0one\0\0\0");
        assert_eq!(write("/tmp/a", b"two"), b"\0\0two\0\0\0", "the same name again");
        assert_eq!(write("/tmp/a/b", b"three"), b"\0\0three\0", "a file where a folder would have to be");
        assert!(fs::read_dir(out.join(ROOT).join("tmp")).unwrap().count() == 1);
        assert!(matches!(Folder::new(&out), Err(TriageError::Taken(_))));
    }
}
