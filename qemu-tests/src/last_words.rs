//! What a system says right before its end, and whether triage finds it again: `production-init`'s
//! `prod.last` writes it.

pub mod kernel_state;
pub mod machine;
pub mod network;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// What /proc shows, in a tmpfs.
pub const SNAPSHOT: &str = "/tmp/proc-snapshot";
/// A file that nobody writes to the disk, in each directory that is asked for.
pub const UNSYNCED: &str = "unsynced.log";
/// Lines of it.
pub const UNSYNCED_LINES: usize = 300;

/// A line of it.
#[must_use]
pub fn unsynced_line(seed: &str, number: usize) -> String {
    format!("line {number} of {seed} is in memory only\n")
}

/// A folder that `afterimage triage` made.
#[derive(Debug)]
pub struct Triage<'a>(pub &'a Path);

/// Facts by what they are of.
type Facts = BTreeMap<String, BTreeSet<String>>;

fn fact(facts: &mut Facts, of: &str, what: &str) {
    facts.entry(of.to_owned()).or_default().insert(what.to_owned());
}

impl Triage<'_> {
    fn rows(&self, artefact: &str) -> Result<Vec<Value>> {
        let path = self.0.join(format!("{artefact}.jsonl"));
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        text.lines().map(|line| serde_json::from_str(line).context("a row")).collect()
    }

    /// A file that was recovered, by its path on the machine.
    pub fn recovered(&self, path: &str) -> Result<Vec<u8>> {
        let path = self.0.join("[root]").join(path.trim_start_matches('/'));
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Compares rows and files with those of another folder, made of the same memory.
    pub fn ensure_like(&self, other: &Self) -> Result<()> {
        let (ours, theirs) = (self.names()?, other.names()?);
        ensure!(ours == theirs, "{ours:?} instead of {theirs:?}");
        ensure!(ours.iter().any(|name| name == "processes.jsonl"), "{ours:?}");
        for name in ours.iter().filter(|name| name.contains(".jsonl")) {
            let read = |dir: &Path| fs::read(dir.join(name)).with_context(|| format!("reading {name}"));
            ensure!(read(self.0)? == read(other.0)?, "{name} is not the same");
        }
        for row in self.rows("recovered")? {
            let Some(name) = row.pointer("/linux/recovered/name").and_then(Value::as_str) else { continue };
            let read = |dir: &Path| fs::read(dir.join(name)).with_context(|| format!("reading {name}"));
            ensure!(read(self.0)? == read(other.0)?, "{name} is not the same");
        }
        Ok(())
    }

    /// Names of what lies in the folder, but of the summary, which captures save beside it.
    fn names(&self) -> Result<BTreeSet<String>> {
        let names = fs::read_dir(self.0)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<Result<BTreeSet<_>>>()?;
        names.retain(|name| !name.starts_with("summary."));
        Ok(names)
    }

    /// Compares the rows with what /proc showed. Threads of the kernel come and go with their work.
    pub fn ensure_like_proc(&self) -> Result<()> {
        let snapshot = String::from_utf8(self.recovered(SNAPSHOT)?).context("the snapshot")?;
        let (theirs, ours) = (said(&snapshot), self.facts()?);
        for of in ["process", "args", "env", "exe", "cwd", "root", "mount", "module", "fd"] {
            let none = BTreeSet::new();
            let (theirs, ours) = (theirs.get(of).unwrap_or(&none), ours.get(of).unwrap_or(&none));
            let lacks: Vec<_> = theirs.difference(ours).collect();
            let more: Vec<_> = ours.difference(theirs).collect();
            ensure!(lacks.is_empty() && more.is_empty(), "{of}: rows lack {lacks:?} and have {more:?}");
            ensure!(!theirs.is_empty(), "/proc showed no {of}");
        }
        self.ensure_network(&snapshot)?;
        self.ensure_kernel_state(&snapshot)?;
        self.ensure_machine(&snapshot)
    }

    /// What the rows say, in the words of the snapshot.
    fn facts(&self) -> Result<Facts> {
        let mut facts = Facts::new();
        let text = |row: &Value, path: &str| match row.pointer(path) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => String::new(),
        };
        let words = |row: &Value, path: &str| {
            let words = row.pointer(path).and_then(Value::as_array).into_iter().flatten();
            words.filter_map(Value::as_str).collect::<Vec<_>>().join("\t")
        };
        for row in self.rows("processes")? {
            if row.pointer("/linux/kernel_thread") == Some(&true.into()) {
                continue;
            }
            let pid = text(&row, "/process/pid");
            let who = [
                &pid,
                &text(&row, "/process/parent/pid"),
                &text(&row, "/user/id"),
                &text(&row, "/process/name"),
            ];
            fact(&mut facts, "process", &who.map(String::as_str).join("\t"));
            for (of, path) in [("args", "/process/args"), ("env", "/process/env_vars")] {
                fact(&mut facts, of, &format!("{pid}\t{}", words(&row, path)));
            }
            for (of, path) in [
                ("exe", "/process/executable"),
                ("cwd", "/process/working_directory"),
                ("root", "/linux/root"),
            ] {
                fact(&mut facts, of, &format!("{pid}\t{}", text(&row, path)));
            }
        }
        for row in self.rows("mounts")? {
            let words = ["/linux/mount/source", "/linux/mount/path", "/linux/mount/type"]
                .map(|path| text(&row, path));
            // What all others stand on in 7.x is not shown.
            if !words.ends_with(&["nullfs".to_owned()]) {
                fact(&mut facts, "mount", &words.join("\t"));
            }
        }
        for row in self.rows("modules")? {
            fact(&mut facts, "module", &text(&row, "/linux/module/name"));
        }
        for row in self.rows("files")? {
            let words = ["/process/pid", "/linux/fd", "/file/path"].map(|path| text(&row, path));
            // Opened after /proc was looked at: to write the lines, and to panic.
            let words = words.join("\t");
            if !["/proc/sysrq-trigger", UNSYNCED].iter().any(|late| words.ends_with(late)) {
                fact(&mut facts, "fd", &words);
            }
        }
        Ok(facts)
    }
}

/// What the snapshot says of processes of user space, mounts and modules.
fn said(snapshot: &str) -> Facts {
    let mut facts = Facts::new();
    let lines = || snapshot.lines().filter_map(|line| line.split_once('\t'));
    // Threads of the kernel have no arguments.
    let is_of_user =
        |pid: &str| lines().any(|(of, rest)| of == "args" && rest.split('\t').next() == Some(pid));
    for (of, rest) in lines() {
        let pid = rest.split('\t').next().unwrap_or_default();
        // Directories of /proc were open to be read.
        let own = of == "fd" && (rest.ends_with("/fd") || rest.ends_with("\t/proc"));
        let hidden = of == "mount" && rest.starts_with("nullfs\t");
        if (matches!(of, "mount" | "module") || is_of_user(pid)) && !own && !hidden {
            fact(&mut facts, of, rest);
        }
    }
    facts
}
