//! Core files of processes that `afterimage gcore` makes of a dump, judged by drgn, which reads the
//! same process in the kernel's memory with the distribution's debug file, and by gdb.

use crate::binaries::Binaries;
use crate::command::{Run, command};
use crate::initramfs::SLEEPER;
use crate::marker::{self, Kind, PAGE, THREADS, on_stack};
use crate::readers;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Exit code where something is absent.
const ABSENT: i32 = 3;

/// What drgn says about a core.
#[derive(Debug, Deserialize)]
pub struct Judged {
    /// Pages that `access_remote_vm` finds and that are the same.
    pub same: u64,
    /// Pages of files that no table leads to, and that are as in the page cache.
    pub cache: u64,
    /// Pages that the kernel provides.
    pub kernel: u64,
    /// Pages that nobody has touched.
    pub zeros: u64,
    /// Pages in no segment.
    pub absent: u64,
    /// Pages in segments.
    pub covered: u64,
    /// Addresses of pages that differ.
    pub wrong: Vec<String>,
    /// Mapped files that differ.
    pub files: Vec<(String, String, String)>,
    /// Threads, and whether their registers are those on their kernel stacks.
    pub registers: BTreeMap<u32, bool>,
    /// The first thread.
    pub first: u32,
    /// Whether the auxiliary vector is the kernel's.
    pub auxv: bool,
    /// Arguments.
    pub psargs: String,
}

/// The core files of one dump.
#[derive(Debug)]
pub struct Cores<'a> {
    dump: &'a Path,
    vmlinux: &'a Path,
    work: &'a Path,
}

impl<'a> Cores<'a> {
    /// Of a dump with the debug file of its kernel; files go to `work`.
    #[must_use]
    pub fn new(dump: &'a Path, vmlinux: &'a Path, work: &'a Path) -> Self {
        Self { dump, vmlinux, work }
    }

    /// Both processes of the guest, in all of it.
    pub fn check(&self) -> Result<()> {
        let witness = Self::listed(self.dump)?;
        let core = self.make(self.dump, witness, 0)?.0;
        let judged = self.judge(witness, &core)?;
        ensure!(judged.registers.len() == THREADS + 1, "threads: {:?}", judged.registers);
        ensure!(judged.psargs == format!("/{SLEEPER}"), "arguments: {:?}", judged.psargs);
        gdb_finds_the_threads(witness, &core)?;
        let core = self.make(self.dump, 1, 0)?.0;
        let judged = self.judge(1, &core)?;
        ensure!(judged.first == 1 && judged.same > 4096, "{judged:?}");
        ensure_markers(&core)
    }

    /// The number of the witness, of which all must be there.
    fn listed(dump: &Path) -> Result<u32> {
        let text = afterimage(&["--list".as_ref(), dump.as_os_str()], 0)?;
        let row = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = row.into_iter().find(|row| row.get(3) == Some(&SLEEPER));
        let row = row.with_context(|| format!("no {SLEEPER} in:\n{text}"))?;
        let [pid, pages, there, _, argument] = row.as_slice() else { anyhow::bail!("{row:?}") };
        ensure!(pages == there && *argument == format!("/{SLEEPER}"), "{row:?}");
        for number in 1..=THREADS {
            ensure!(text.contains(&format!("(witness-{number})")), "thread {number} is not in:\n{text}");
        }
        Ok(pid.parse()?)
    }

    /// Makes a core, which ends with an exit code; what is said about it.
    fn make(&self, dump: &Path, pid: u32, code: i32) -> Result<(PathBuf, String)> {
        let out = self.work.join(format!("core-{pid}"));
        let pid = pid.to_string();
        let arguments = [dump.as_os_str(), pid.as_ref(), "-o".as_ref(), out.as_os_str()];
        let text = afterimage(&arguments, code)?;
        Ok((out, text))
    }

    fn judge(&self, pid: u32, core: &Path) -> Result<Judged> {
        let judged = readers::process_core(self.vmlinux, self.dump, pid, core)?;
        eprintln!("PID {pid}: {judged:?}");
        ensure!(judged.wrong.is_empty() && judged.auxv, "{judged:?}");
        let pages = [judged.same, judged.cache, judged.kernel, judged.zeros].iter().sum::<u64>();
        ensure!(judged.covered == pages, "{} pages are covered, {pages} are known", judged.covered);
        ensure!(judged.registers.values().all(|same| *same), "{:?}", judged.registers);
        // drgn names file systems that are mounted nowhere, /proc/PID/maps their files.
        let differs = judged.files.iter().find(|(_, _, theirs)| !theirs.contains("'["));
        ensure!(differs.is_none(), "{differs:?}");
        Ok(judged)
    }

    /// A dump with all pages gives the same core, one of level 31 gives one without memory, and says
    /// so.
    pub fn check_dumps(&self) -> Result<()> {
        let witness = Self::listed(self.dump)?;
        let whole = fs::read(self.make(self.dump, witness, 0)?.0)?;
        for (level, code) in [("1", 0), ("31", ABSENT)] {
            let dump = self.work.join("dump");
            let program = Binaries::get()?.afterimage.display().to_string();
            let arguments = ["dump", "--force", "--level", level].map(str::to_owned);
            command(&program).args(arguments).arg(self.dump).arg(&dump).run()?;
            let (core, text) = self.make(&dump, witness, code)?;
            if code == 0 {
                ensure!(fs::read(&core)? == whole, "another core of level {level}");
                continue;
            }
            ensure!(text.contains("level 31 leaves out memory of processes"), "{text}");
            // Debuggers do not take it for zeros.
            let message = gdb(&core, &["info threads", "x/2gx $rsp"])?;
            ensure!(message.matches("LWP").count() > THREADS, "threads:\n{message}");
            ensure!(message.contains("Cannot access memory"), "{message}");
        }
        Ok(())
    }

    /// The thread that was running in user space has the registers that its CPU had: its stack is
    /// that on which its marker lies.
    pub fn check_running(&self) -> Result<()> {
        let witness = Self::listed(self.dump)?;
        let text = afterimage(&["--list".as_ref(), self.dump.as_os_str()], 0)?;
        let name = format!(" (witness-{THREADS})");
        let before = text.split(&name).next().context("no thread")?;
        let running: u32 = before.rsplit(' ').next().context("no number")?.parse()?;
        let (core, text) = self.make(self.dump, running, 0)?;
        ensure!(text.contains(&format!("first thread: {running}")), "{text}");
        ensure!(!text.contains("last entry into the kernel"), "{text}");
        let find = format!("find /1 $rsp, +1024, \"{}\"", on_stack(THREADS));
        let message = gdb(&core, &["info threads", "p $cs", "info registers rip", &find, "x/s $_"])?;
        ensure!(message.contains(&on_stack(THREADS)), "{message}");
        gdb_finds_the_threads(witness, &core)
    }
}

/// Runs gcore; what it says.
fn afterimage(arguments: &[&std::ffi::OsStr], code: i32) -> Result<String> {
    let program = Binaries::get()?.afterimage.display().to_string();
    let output = command(&program).arg("gcore").args(arguments).output().context("starting afterimage")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "gcore {arguments:?}: {}\n{text}{errors}", output.status);
    Ok(text)
}

/// What gdb says to commands about a core of the witness.
fn gdb(core: &Path, commands: &[&str]) -> Result<String> {
    let program = &Binaries::get()?.production_init;
    let commands = commands.iter().flat_map(|one| ["-ex", one]);
    let output = command("gdb").args(["-nx", "-batch"]).args(commands).args([program, core]).output();
    let output = output.context("starting gdb")?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// gdb lists all threads of the witness, and finds the marker of each on its stack.
fn gdb_finds_the_threads(witness: u32, core: &Path) -> Result<()> {
    let mut commands = vec!["info threads".to_owned(), "info proc mappings".to_owned()];
    for number in 1..=THREADS {
        // Not beyond the end of a stack, or nothing of the piece is searched.
        let find = format!("find /1 $rsp, +1024, \"{}\"", on_stack(number));
        commands.push(format!("thread apply all -s {find}"));
        commands.push("x/s $_".to_owned());
    }
    commands.push("thread apply all bt 3".to_owned());
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let message = gdb(core, &commands)?;
    eprintln!("{message}");
    ensure!(message.contains(&format!("LWP {witness}")), "gdb knows no thread {witness}:\n{message}");
    ensure!(message.contains(&format!("/{SLEEPER}")), "no mapping of the program:\n{message}");
    for number in 1..=THREADS {
        ensure!(message.contains(&format!("\"{}\"", on_stack(number))), "no marker {number}:\n{message}");
    }
    Ok(())
}

/// All pages with markers of anonymous memory are in the core.
fn ensure_markers(core: &Path) -> Result<()> {
    let bytes = fs::read(core)?;
    let head = format!("marker-{}-", Kind::Anonymous);
    let len = marker::text("", Kind::Anonymous, 0).len();
    let pages = bytes.chunks_exact(PAGE).filter(|page| page.starts_with(head.as_bytes()));
    let found: BTreeSet<&[u8]> = pages.filter_map(|page| page.get(..len)).collect();
    ensure!(found.len() == Kind::Anonymous.count(), "{} markers are in the core", found.len());
    Ok(())
}
