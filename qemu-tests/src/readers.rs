//! Independent judges of a dump: crash, drgn, makedumpfile and volatility3. None of them shares
//! code with the product.

use crate::bitmap::Bitmap;
use crate::cache::{cache, workspace};
use crate::command::{Run, command};
use crate::initramfs::SLEEPER;
use crate::marker::{self, Kind};
use crate::process_core::Judged;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

/// What differs between a dump and the raw copy of the same memory.
#[derive(Debug, Deserialize)]
pub struct Comparison {
    /// Pages compared: all that the raw copy holds.
    pub pages: u64,
    /// Pages with other content in the dump.
    pub different: u64,
    /// Pages that the reader does not get from the dump.
    pub unreadable: u64,
    /// The first pages of either kind.
    pub first: Vec<BTreeMap<String, String>>,
    /// Marker prefix → number of different markers found in the dump.
    pub markers: BTreeMap<String, usize>,
}

impl Comparison {
    /// Fails unless every page is there and the same.
    pub fn ensure_equal(&self) -> Result<()> {
        ensure!(self.pages > 0, "the raw copy holds no page");
        ensure!(
            self.different == 0 && self.unreadable == 0,
            "of {} pages {} differ and {} are unreadable, the first: {:?}",
            self.pages,
            self.different,
            self.unreadable,
            self.first
        );
        Ok(())
    }

    /// Fails unless every marker that was planted with `seed` was found.
    pub fn ensure_markers(&self, seed: &str) -> Result<()> {
        for kind in Kind::ALL {
            let found = self.markers.get(&marker::prefix(seed, kind)).copied().unwrap_or(0);
            ensure!(found == kind.count(), "{found} of {} {kind} markers are in the dump", kind.count());
        }
        Ok(())
    }
}

/// Compares all memory in `dump` with the raw ELF copy, and counts the markers of `seed` in the
/// dump.
pub fn compare(raw: &Path, dump: &Path, seed: &str) -> Result<Comparison> {
    let mut arguments: Vec<OsString> = vec![raw.into(), dump.into()];
    arguments.extend(Kind::ALL.iter().map(|kind| marker::prefix(seed, *kind).into()));
    python(&drgn_python()?, include_str!("compare.py"), &arguments)
}

/// What drgn says about a dump with the symbols of its kernel.
#[derive(Debug, Deserialize)]
pub struct System {
    /// Kernel release in `init_uts_ns`.
    pub release: String,
    /// Host name in `init_uts_ns`.
    pub host: String,
    /// Names of all processes.
    pub tasks: Vec<String>,
    /// Name of the process that crashed; none where the kernel did not panic.
    pub crashed: Option<String>,
    /// Functions on its stack, the innermost first.
    pub trace: Vec<Option<String>>,
    /// The same of the sleeping witness.
    pub asleep: Vec<Option<String>>,
}

/// Opens a dump with symbols in drgn.
pub fn symbols(vmlinux: &Path, dump: &Path) -> Result<System> {
    python(&drgn_python()?, include_str!("symbols.py"), &[vmlinux.into(), dump.into(), SLEEPER.into()])
}

/// A reader of a dump's physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// drgn, with libkdumpfile.
    Drgn,
    /// The ELF layer of volatility3.
    VolatilityElf,
    /// The LiME layer of volatility3.
    VolatilityLime,
    /// Memory at its physical address.
    Raw,
}

/// What a reader finds in a dump.
#[derive(Debug, Deserialize)]
pub struct Found {
    /// Kept pages that are as in the raw copy.
    pub same: u64,
    /// Those that are not all zeros.
    pub data_pages: u64,
    /// Runs of kept pages.
    pub runs: u64,
    /// Pages that are left out and that the reader does not get.
    pub absent: u64,
    /// All other pages.
    pub wrong: u64,
    /// The first of these.
    pub first: Vec<String>,
    /// Bytes that the file takes on disk.
    pub disk: u64,
    /// ELF segments with less bytes than memory.
    pub short_segments: u64,
    /// ELF segments that end behind the file.
    pub past_end: u64,
}

/// Compares the pages in `dump` with the raw ELF copy: those whose bits are set in the file `bits`
/// must be in it, others not.
pub fn layer(raw: &Path, bits: &Path, layer: Layer, dump: &Path) -> Result<Found> {
    let (name, python_path) = match layer {
        Layer::Drgn => ("drgn", drgn_python()?),
        Layer::VolatilityElf => ("volatility3-elf", volatility_python()?),
        Layer::VolatilityLime => ("volatility3-lime", volatility_python()?),
        Layer::Raw => ("raw", "python3".into()),
    };
    let arguments = [raw.into(), bits.into(), name.into(), dump.into()];
    python(&python_path, include_str!("formats.py"), &arguments)
}

/// Has makedumpfile make a file of a flattened dump.
pub fn reassemble(flattened: &Path, out: &Path) -> Result<()> {
    command(&makedumpfile()?.to_string_lossy())
        .args(["-R", "-f"])
        .arg(out)
        .stdin(File::open(flattened)?)
        .run()?;
    Ok(())
}

/// The notes of a kdump-compressed file: name, type, size of the content.
pub fn notes(dump: &Path) -> Result<Vec<(String, u32, u32)>> {
    python(Path::new("python3"), include_str!("notes.py"), &[dump.into()])
}

/// Writes the raw dump `dump` to `out` with its pages compressed by libsnappy; gives how many
/// became smaller.
pub fn snappy(dump: &Path, out: &Path) -> Result<u64> {
    python(Path::new("python3"), include_str!("snappy.py"), &[dump.into(), out.into()])
}

/// Which pages a kdump-compressed file knows.
#[derive(Clone, Debug)]
pub struct Bitmaps {
    /// The pages that exist: bitmap 1.
    pub existing: Bitmap,
    /// The pages that are in the dump: bitmap 2.
    pub dumped: Bitmap,
}

/// Takes the bitmaps out of a kdump-compressed file.
pub fn bitmaps(dump: &Path) -> Result<Bitmaps> {
    /// What the script says beside them.
    #[derive(Deserialize)]
    struct Said {
        max_mapnr: u64,
    }
    let work = tempfile::tempdir()?;
    let (first, second) = (work.path().join("1"), work.path().join("2"));
    let arguments = [dump.into(), first.clone().into(), second.clone().into()];
    let message: Said = python(Path::new("python3"), include_str!("bitmaps.py"), &arguments)?;
    ensure!(message.max_mapnr > 0, "{} knows no page", dump.display());
    let read = |path: &Path| fs::read(path).map(Bitmap::new).context("reading a bitmap");
    Ok(Bitmaps { existing: read(&first)?, dumped: read(&second)? })
}

/// The page frames of an ELF core in which each of some texts begins.
pub fn find(core: &Path, texts: &[String]) -> Result<BTreeMap<String, Vec<u64>>> {
    let mut arguments: Vec<OsString> = vec![core.into()];
    arguments.extend(texts.iter().map(OsString::from));
    python(Path::new("python3"), include_str!("find.py"), &arguments)
}

/// Makes a kdump-compressed dump of an ELF core with the reference implementation.
pub fn makedumpfile_dump(core: &Path, out: &Path, level: u8) -> Result<()> {
    let makedumpfile = makedumpfile()?;
    command(&makedumpfile.to_string_lossy())
        .args(["-c", "-d", &level.to_string(), "--message-level", "1"])
        .args([core, out])
        .run()?;
    Ok(())
}

/// The kernel log that makedumpfile finds in a dump. It leaves a backslash in the text as it is,
/// and we escape it: those that begin none of its own escapes ("\\x1b") are replaced by ours.
pub fn makedumpfile_dmesg(dump: &Path) -> Result<Vec<u8>> {
    let work = tempfile::tempdir()?;
    let out = work.path().join("dmesg");
    command(&makedumpfile()?.to_string_lossy()).arg("--dump-dmesg").args([dump, &out]).run()?;
    let text = fs::read(&out).with_context(|| format!("reading {}", out.display()))?;
    let mut escaped = Vec::with_capacity(text.len());
    let mut bytes = text.iter().peekable();
    while let Some(&byte) = bytes.next() {
        escaped.push(byte);
        if byte == b'\\' && bytes.peek() != Some(&&b'x') {
            escaped.extend(b"x5c");
        }
    }
    Ok(escaped)
}

/// The newest makedumpfile of the archive's suites: the system's may not know zstd.
pub fn makedumpfile() -> Result<PathBuf> {
    newest("makedumpfile")
}

/// The newest version of a reader that the archive's suites have, in the cache. The script is asked every
/// time: it answers from its cache in milliseconds.
fn newest(name: &str) -> Result<PathBuf> {
    fetched(&[name])
}

/// The crash of one suite.
pub fn crash_of(suite: &str) -> Result<PathBuf> {
    fetched(&["crash", suite])
}

fn fetched(arguments: &[&str]) -> Result<PathBuf> {
    let script = workspace().join("scripts/fetch-reader");
    let output = command(&script.to_string_lossy()).args(arguments).run()?;
    let path = String::from_utf8(output.stdout).with_context(|| format!("the path of {arguments:?}"))?;
    Ok(path.trim_end().into())
}

/// A crash that judges dumps.
#[derive(Debug)]
struct Crash {
    program: PathBuf,
    /// Its major version. Before 9 crash does not find the tasks of recent 6.1 kernels ("not found in PID
    /// hash").
    major: u32,
}

/// The newest crash of the archive's suites; the system's, which is as old as the system, only where none can
/// be had.
fn newest_crash() -> Result<&'static Crash> {
    static CRASH: OnceLock<Crash> = OnceLock::new();
    if let Some(crash) = CRASH.get() {
        return Ok(crash);
    }
    let program = newest("crash").unwrap_or_else(|error| {
        eprintln!("no newer crash can be fetched, so the system's is the judge: {error:#}");
        "crash".into()
    });
    let output = command(&program.to_string_lossy()).arg("--version").run()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let major = major_version(&text).with_context(|| format!("the version of crash in {text:?}"))?;
    Ok(CRASH.get_or_init(|| Crash { program, major }))
}

/// The program of the newest crash.
pub(crate) fn crash_program() -> Result<&'static Path> {
    Ok(&newest_crash()?.program)
}

/// The major version in what `crash --version` prints.
fn major_version(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix("crash "))?;
    line.split('.').next()?.parse().ok()
}

/// Fails unless crash's `ps` lists each of these tasks, as drgn found them in the same memory. A crash before
/// version 9 is not asked: it does not find them.
pub fn ensure_tasks(ps: &str, tasks: &[String]) -> Result<()> {
    let major = newest_crash()?.major;
    if major < 9 {
        eprintln!("crash {major} cannot list all tasks: not judged");
        return Ok(());
    }
    ensure!(tasks.len() > 10, "drgn finds {} tasks", tasks.len());
    let listed = listed_tasks(ps);
    let missing: Vec<_> = tasks.iter().filter(|task| !listed.contains(task.as_str())).collect();
    ensure!(missing.is_empty(), "crash {major} does not list {missing:?}:\n{ps}");
    Ok(())
}

/// The names of the tasks in `ps`.
fn listed_tasks(ps: &str) -> BTreeSet<&str> {
    ps.lines().filter_map(task_name).collect()
}

/// The last column of a line of `ps`, behind PID, PPID, CPU, TASK, ST, %MEM, VSZ and RSS. Names may have
/// blanks, and those of kernel threads stand in brackets.
fn task_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start_matches('>').trim_start();
    for _ in 0..8 {
        rest = rest.split_once(char::is_whitespace)?.1.trim_start();
    }
    Some(rest.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(rest))
}

/// What readelf says about the notes of an ELF file.
pub fn elf_notes(file: &Path) -> Result<String> {
    let message = command("readelf").args(["--wide", "--notes"]).arg(file).run()?;
    ensure!(message.stderr.is_empty(), "readelf: {}", String::from_utf8_lossy(&message.stderr));
    Ok(String::from_utf8_lossy(&message.stdout).into_owned())
}

/// Runs commands in crash and gives what each printed. Fails when one did not run or complained.
pub fn crash(vmlinux: &Path, dump: &Path, commands: &[&str]) -> Result<Vec<String>> {
    let work = tempfile::tempdir()?;
    let paths =
        |index: usize| (work.path().join(format!("{index}.out")), work.path().join(format!("{index}.ran")));
    let script = work.path().join("commands");
    let mut file = File::create(&script)?;
    for (index, command) in commands.iter().enumerate() {
        // A file per command keeps outputs apart; the file behind it appears only if crash got that
        // far.
        let (out, ran) = paths(index);
        writeln!(file, "{command} > {}\n!touch {}", out.display(), ran.display())?;
    }
    writeln!(file, "quit")?;
    drop(file);
    let message = command(&newest_crash()?.program.to_string_lossy())
        .arg("-s")
        .args([vmlinux, dump])
        .stdin(Stdio::from(File::open(&script)?))
        .env("HOME", work.path()) // no .crashrc
        .run()?;
    let message = [message.stdout, message.stderr].concat();
    let message = String::from_utf8_lossy(&message);
    complaints("crash", &message)?;
    let mut outputs = Vec::new();
    for (index, command) in commands.iter().enumerate() {
        let (out, ran) = paths(index);
        ensure!(ran.exists(), "crash did not get past {command:?}:\n{message}");
        let output = String::from_utf8_lossy(&fs::read(&out)?).into_owned();
        ensure!(!output.trim().is_empty(), "crash prints nothing for {command:?}:\n{message}");
        complaints(command, &output)?;
        outputs.push(output);
    }
    Ok(outputs)
}

/// crash starts an error with its own name or with that of the command.
fn complaints(command: &str, output: &str) -> Result<()> {
    let name = command.split_whitespace().next().unwrap_or(command);
    let found = output.lines().find(|line| {
        let line = line.trim_start();
        [name, "crash"].iter().any(|name| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(": ")))
    });
    match found {
        Some(line) => bail!("crash, {command:?}: {line}\n{output}"),
        None => Ok(()),
    }
}

/// Compares the core file of a process with the process in the memory of its kernel.
pub fn process_core(vmlinux: &Path, dump: &Path, pid: u32, core: &Path) -> Result<Judged> {
    let arguments = [vmlinux.into(), dump.into(), pid.to_string().into(), core.into()];
    python(&drgn_python()?, include_str!("gcore.py"), &arguments)
}

/// Runs a script that prints one JSON value.
pub(crate) fn python<T: DeserializeOwned>(python: &Path, script: &str, arguments: &[OsString]) -> Result<T> {
    let output = command(&python.to_string_lossy()).args(["-c", script]).args(arguments).run()?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("a script printed {:?}", String::from_utf8_lossy(&output.stdout)))
}

/// A Python with drgn.
pub(crate) fn drgn_python() -> Result<PathBuf> {
    python_with("venv", "drgn")
}

/// A Python with volatility3.
pub(crate) fn volatility_python() -> Result<PathBuf> {
    python_with("venv-volatility3", "volatility3")
}

/// A Python with a package, in an environment of its own that is made on first use.
fn python_with(name: &str, package: &str) -> Result<PathBuf> {
    let venv = cache()?.join(name);
    let python = venv.join("bin/python");
    // The last step of making it: an environment without this file was interrupted.
    let complete = venv.join("complete");
    if !complete.exists() {
        command("python3").args(["-m", "venv", "--clear"]).arg(&venv).run()?;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", package];
        command(&python.to_string_lossy()).args(install).run()?;
        command(&python.to_string_lossy()).args(["-c", &format!("import {package}")]).run()?;
        File::create(&complete).with_context(|| format!("making {}", complete.display()))?;
    }
    Ok(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_crash_are_told_from_output() {
        assert!(complaints("kmem -i", "  PAGES  TOTAL\n").is_ok());
        assert!(complaints("kmem -i", "\nkmem: invalid structure member offset\n").is_err());
        assert!(complaints("bt", "crash: page excluded: kernel virtual address\n").is_err());
        assert!(complaints("log", "[1.0] crashkernel: reserved\n").is_ok());
    }

    #[test]
    fn versions_and_tasks_are_found_in_what_crash_prints() {
        assert_eq!(major_version("\ncrash 9.0.2\nCopyright (C) 2002-2026  Red Hat, Inc.\n"), Some(9));
        assert_eq!(major_version("\ncrash 10.1.0++\n"), Some(10));
        assert_eq!(major_version("crash: cannot start\n"), None);
        let ps = "      PID    PPID  CPU       TASK        ST  %MEM      VSZ      RSS  COMM\n\
            \x20       0       0   0  ffffffff92e1aa40  RU   0.0        0        0  [swapper/0]\n\
            >       1       0   0  ff361deb411f20c0  RU   5.2    53228    41156  init\n\
            \x20      82       1   0  ff361deb426620c0  IN   0.2     2028     1444  a b\n";
        assert_eq!(listed_tasks(ps), ["COMM", "swapper/0", "init", "a b"].into());
    }
}
