//! Two debug files of one kernel, judged by what debuggers print with each of them.

use crate::binaries::Binaries;
use crate::cache::workspace;
use crate::command::{Run, command};
use crate::readers::{crash_program, drgn_python, python};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

/// Commands of crash, a line each: something of every command that looks at memory.
const COMMANDS: &str = include_str!("crash_commands.txt");
/// What comes before the output of a command.
const MARK: &str = "@@@@ ";

/// What was printed, by check or command.
pub type Texts = BTreeMap<String, String>;

/// How the types of two debug files compare.
#[derive(Debug, Deserialize)]
pub struct Layouts {
    /// Types that both have.
    pub compared: u64,
    /// Of these, the ones that differ in size, or in the place or type of a member.
    pub differ: Vec<String>,
    /// Of these, the ones of whose name the kernel has several types.
    pub ambiguous: Vec<String>,
    /// Enumerations in which a value differs.
    pub values: Vec<String>,
}

/// Makes the debug file `out` of a dump.
pub fn make(dump: &[PathBuf], out: &Path) -> Result<String> {
    let message = command(&Binaries::get()?.afterimage.to_string_lossy())
        .arg("debuginfo")
        .args(dump)
        .arg("-o")
        .arg(out)
        .run()?;
    Ok(String::from_utf8_lossy(&message.stdout).into_owned())
}

/// Makes the debug files of the modules in a dump.
pub fn make_modules(dump: &[PathBuf], folder: &Path) -> Result<String> {
    let message = command(&Binaries::get()?.afterimage.to_string_lossy())
        .arg("debuginfo")
        .args(dump)
        .arg("--split-modules")
        .arg(folder)
        .run()?;
    Ok(String::from_utf8_lossy(&message.stdout).into_owned())
}

/// What drgn says of a module with its debug file.
#[derive(Debug, Deserialize)]
pub struct OfModule {
    /// The name of the file.
    pub file: String,
    /// Modules that have a file, and the kernel.
    pub loaded: Vec<String>,
    /// What lies at the second byte of the function.
    pub symbol: String,
    /// Whether that is where the module lies.
    pub is_in_module: bool,
    /// Whether the function in DWARF lies where the symbol does.
    pub is_function: bool,
    /// The function's type.
    pub function: String,
    /// Members of the structure.
    pub members: Vec<String>,
    /// Whether a structure of the kernel, of which the file has the name, is found whole.
    pub resolved: bool,
}

/// Asks drgn for a function and a structure of a module.
pub fn of_module(
    core: &Path,
    vmlinux: &Path,
    folder: &Path,
    [module, function, structure]: [&str; 3],
) -> Result<OfModule> {
    let arguments: [OsString; 6] =
        [core.into(), vmlinux.into(), folder.into(), module.into(), function.into(), structure.into()];
    python(&drgn_python()?, include_str!("modules.py"), &arguments)
}

/// Compares all types by their layout.
pub fn layouts(theirs: &Path, ours: &Path) -> Result<Layouts> {
    python(&drgn_python()?, include_str!("layouts.py"), &[theirs.into(), ours.into()])
}

/// What drgn says of a core.
pub fn drgn(core: &Path, vmlinux: &Path) -> Result<Texts> {
    let texts: Texts =
        python(&drgn_python()?, include_str!("drgn_checks.py"), &[core.into(), vmlinux.into()])?;
    Ok(texts.into_iter().map(|(check, text)| (check, plain(&text))).collect())
}

/// Names of functions as both files have them: DWARF does not know that a part of a function is
/// called `.cold`, and ends the entry of system calls elsewhere. BTF cannot tell `[0]` from `[]`.
fn plain(text: &str) -> String {
    text.replace(".cold", "").replace("_after_hwframe", "").replace("[0])", "[])")
}

/// What the newest crash, started with some options, says of a core, command by command. Fails if it did not
/// get to the last one.
pub fn crash(core: &Path, vmlinux: &Path, options: &[&str]) -> Result<Texts> {
    crash_by(crash_program()?, core, vmlinux, options)
}

/// The same of another crash.
pub fn crash_by(program: &Path, core: &Path, vmlinux: &Path, options: &[&str]) -> Result<Texts> {
    let work = tempfile::tempdir()?;
    let script = work.path().join("commands");
    let mut lines = String::new();
    for line in COMMANDS.lines().chain(["end"]) {
        let run = if line == "end" { "quit" } else { line };
        writeln!(lines, "!echo '{MARK}{line}'\n{run}")?;
    }
    fs::write(&script, lines)?;
    let message = command(&program.to_string_lossy())
        .arg("-s")
        .args(options)
        .args([vmlinux, core])
        .arg("-i")
        .arg(&script)
        .env("HOME", work.path()) // no .crashrc
        .run()?;
    let text = String::from_utf8_lossy(&message.stdout).into_owned();
    let mut texts = Texts::new();
    for part in text.split(MARK).skip(1) {
        let (name, output) = part.split_once('\n').unwrap_or((part, ""));
        // The path of the debug file is told by `sys`.
        let lines =
            output.lines().map(str::trim_end).filter(|line| !line.trim_start().starts_with("KERNEL:"));
        texts.insert(name.trim().to_owned(), lines.collect::<Vec<_>>().join("\n"));
    }
    let missing: Vec<_> = COMMANDS.lines().filter(|line| !texts.contains_key(line.trim())).collect();
    ensure!(missing.is_empty() && texts.contains_key("end"), "crash did not run {missing:?}:\n{text}");
    Ok(texts)
}

/// The checks or commands whose texts differ.
#[must_use]
pub fn differ(theirs: &Texts, ours: &Texts) -> Vec<String> {
    theirs.iter().filter(|(name, text)| ours.get(*name) != Some(text)).map(|(name, _)| name.clone()).collect()
}

/// Fails unless the texts are equal but for those that are expected to differ; shows what differs.
pub fn ensure_equal(theirs: &Texts, ours: &Texts, expected: &[&str]) -> Result<()> {
    ensure!(theirs.keys().eq(ours.keys()), "other checks were made");
    let wrong: Vec<_> =
        differ(theirs, ours).into_iter().filter(|name| !expected.contains(&name.as_str())).collect();
    let show = |texts: &Texts, name: &str| -> String {
        texts.get(name).map_or("", String::as_str).chars().take(600).collect()
    };
    let first =
        wrong.first().map(|name| format!("{}\n--- instead of\n{}", show(ours, name), show(theirs, name)));
    ensure!(wrong.is_empty(), "{wrong:?} differ, the first:\n{}", first.unwrap_or_default());
    Ok(())
}

/// What a script prints in drgn, which is given the dump only and has the plugin of this source.
pub fn with_plugin(dump: &Path, script: &str) -> Result<String> {
    let work = tempfile::tempdir()?;
    let (source, site) = (work.path().join("source"), work.path().join("site"));
    // A copy, since pip builds beside what it builds from.
    command("cp").arg("-r").arg(workspace().join("scripts/drgn-plugin")).arg(&source).run()?;
    let python = drgn_python()?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"];
    command(&python.to_string_lossy()).args(install).args([&site, &source]).run()?;
    let drgn = python.with_file_name("drgn");
    let message = command(&drgn.to_string_lossy())
        .env("PYTHONPATH", &site)
        .env("AFTERIMAGE", &Binaries::get()?.afterimage)
        .arg("-c")
        .arg(dump)
        .args(["-e", script])
        .run()?;
    Ok(String::from_utf8_lossy(&message.stdout).into_owned())
}

/// What `afterimage` does when it starts a debugger, which is looked for in `path`.
pub fn launched(debugger: &str, dump: &Path, arguments: &[&str], path: &Path) -> Result<Output> {
    let mut afterimage = command(&Binaries::get()?.afterimage.to_string_lossy());
    afterimage.arg(debugger).arg(dump).arg("--").args(arguments).env("PATH", path);
    afterimage.output().with_context(|| format!("starting afterimage {debugger}"))
}

/// The directories of the newest drgn and crash.
pub fn places() -> Result<[PathBuf; 2]> {
    let directory = |program: &Path| program.parent().map(Path::to_path_buf).unwrap_or_default();
    Ok([directory(&drgn_python()?), directory(crash_program()?)])
}

/// Fails if a debug file lacks a section that a reader wants.
pub fn ensure_sections(vmlinux: &Path, names: &[&str]) -> Result<()> {
    let message = command("readelf").args(["--wide", "--sections"]).arg(vmlinux).run()?;
    let text = String::from_utf8_lossy(&message.stdout).into_owned();
    for name in names {
        text.find(&format!(" {name} ")).with_context(|| format!("no section {name}:\n{text}"))?;
    }
    Ok(())
}

/// Functions on the stack of each process that does not run, by PID, as drgn finds them.
pub fn stacks(core: &Path, vmlinux: &Path) -> Result<BTreeMap<u32, Vec<String>>> {
    python(&drgn_python()?, include_str!("stacks.py"), &[core.into(), vmlinux.into()])
}
