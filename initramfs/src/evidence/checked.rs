//! `afterimage verify`: what holds of a capture.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use evidence::manifest;
use evidence::minisign::{PublicKey, SignatureError};
use evidence::verify::{self, Check, Holds, Report, Trust};

use super::custody::{self, Handover};
use super::{inside, key};

/// Why a capture cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum CheckedError {
    /// Not a key.
    #[error("--key {key}: it is neither a public key of minisign nor a file with one")]
    Key {
        /// What was given.
        key: String,
        /// Cause.
        source: SignatureError,
    },
    /// The directory cannot be read.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// `SHA256SUMS` cannot be written.
    #[error("writing {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// A capture, and what holds of it.
#[derive(Debug, serde::Serialize)]
pub struct Checked {
    /// Its directory.
    pub directory: PathBuf,
    /// Whether all of it holds.
    pub holds: Holds,
    /// What was checked.
    #[serde(flatten)]
    pub report: Report,
}

/// What is to be checked, and how.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Each is the directory of a capture, or a file in it.
    pub paths: Vec<PathBuf>,
    /// Public keys that are trusted, or files with them; the key of this host is, too.
    pub keys: Vec<String>,
    /// Whether files of which the capture had no sum of the whole get their line in `SHA256SUMS`, if their
    /// pieces hold.
    pub write_sums: bool,
    /// Whether the chain of custody gets a line where the directory can be written.
    pub adds_custody: bool,
}

/// Checks captures.
pub fn check(wanted: &Wanted) -> Result<Vec<Checked>, CheckedError> {
    let trust = trust(&wanted.keys, &Path::new(key::PATH).with_extension("pub"))?;
    let mut checked = Vec::new();
    for (directory, only) in by_directory(&wanted.paths) {
        let read = |source| CheckedError::Read { path: directory.clone(), source };
        let mut report = verify::verify(&directory, &trust, &only, &mut |_| {}).map_err(read)?;
        if let Some(manifest) = report.manifest.take().filter(|_| only.is_empty()) {
            inside::check(&directory, &manifest, &mut report);
        }
        check_custody(&directory, &mut report);
        if wanted.write_sums && report.holds() != Holds::No {
            add_sums(&directory, &report)?;
        }
        let checked_now = Checked { holds: report.holds(), directory, report };
        if wanted.adds_custody {
            checked_now.add_custody();
        }
        checked.push(checked_now);
    }
    Ok(checked)
}

/// Directories of captures, with the files that are wanted of each; none: all.
fn by_directory(paths: &[PathBuf]) -> BTreeMap<PathBuf, Vec<String>> {
    let mut wanted: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for path in paths {
        let is_directory = fs::metadata(path).is_ok_and(|metadata| metadata.is_dir());
        let name = path.file_name().filter(|_| !is_directory).map(|name| name.to_string_lossy().into_owned());
        let directory = match (&name, path.parent()) {
            (None, _) => path.clone(),
            (Some(_), Some(parent)) if parent != Path::new("") => parent.to_owned(),
            (Some(_), _) => PathBuf::from("."),
        };
        wanted.entry(directory).or_default().extend(name);
    }
    wanted
}

/// Adds what the chain of custody says, if there is one.
fn check_custody(directory: &Path, report: &mut Report) {
    let (holds, found) = match custody::show(directory) {
        Ok(lines) if lines.is_empty() => return,
        Ok(lines) => match lines.iter().find(|line| !line.fault.is_empty()) {
            Some(line) => (Holds::No, line.text()),
            None => (Holds::Yes, format!("{} hand-overs", lines.len())),
        },
        // Without a manifest there is nothing that it could be about.
        Err(_) if report.verdict.is_none() => return,
        Err(error) => (Holds::No, base::log::chain(&error)),
    };
    report.checks.push(Check { what: custody::NAME.to_owned(), holds, found });
}

fn trust(keys: &[String], own: &Path) -> Result<Trust, CheckedError> {
    let parse = |key: &String| {
        let text = fs::read_to_string(key).unwrap_or_else(|_| key.clone());
        PublicKey::parse(&text).map_err(|source| CheckedError::Key { key: base::text::line(key), source })
    };
    let mut keys = keys.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    keys.extend(fs::read_to_string(own).ok().and_then(|text| PublicKey::parse(&text).ok()));
    Ok(Trust { keys })
}

/// Adds the lines that `SHA256SUMS` lacks, of files that hold.
fn add_sums(directory: &Path, report: &Report) -> Result<(), CheckedError> {
    let path = directory.join("SHA256SUMS");
    let failed = |source| CheckedError::Write { path: path.clone(), source };
    let text = fs::read_to_string(&path).map_err(failed)?;
    let holds =
        |name: &String| report.checks.iter().any(|check| check.what == *name && check.holds == Holds::Yes);
    let lacks =
        |name: &String| !text.lines().any(|line| line.split_once("  ").is_some_and(|(_, n)| n == name));
    let missing = report.sums.iter().filter(|(_, name)| holds(name) && lacks(name));
    let lines = manifest::sums_file(missing.map(|(sum, name)| (sum.as_str(), name.as_str())));
    if lines.is_empty() {
        return Ok(());
    }
    let mut file = OpenOptions::new().append(true).open(&path).map_err(failed)?;
    file.write_all(lines.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

impl Checked {
    /// Takes down that it was checked, where that can be written.
    fn add_custody(&self) {
        let found = match self.holds {
            Holds::Yes => "all of it holds",
            Holds::Unknown => "nothing is known to be changed, not all can be said",
            Holds::No => "something does not hold",
        };
        let handover = Handover { why: format!("afterimage verify: {found}"), ..Handover::default() };
        if let Err(error) = custody::add(&self.directory, &handover) {
            log::debug!("no line of custody: {}", base::log::chain(&error));
        }
    }

    /// As people read it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let line = |holds: Holds, what: &str, found: &str| {
            let mark = match holds {
                Holds::Yes => "holds",
                Holds::Unknown => "cannot say",
                Holds::No => "DOES NOT HOLD",
            };
            format!("  {mark:<14} {what}: {found}\n")
        };
        let mut text = format!("{}\n", base::text::line(&self.directory.to_string_lossy()));
        for check in &self.report.checks {
            text.push_str(&line(check.holds, &check.what, &check.found));
        }
        let verdict = self.report.verdict.as_deref().map(base::text::line).unwrap_or_default();
        let capture =
            if verdict.is_empty() { String::new() } else { format!(" of a capture that is {verdict}") };
        let end = match self.holds {
            Holds::Yes => format!("all{capture} is what was captured"),
            Holds::Unknown => format!("nothing{capture} is known to be changed; not all can be said"),
            Holds::No if self.report.good.is_empty() => {
                format!("NOT all{capture} is what was captured, and nothing is known to be good")
            }
            Holds::No => {
                let good = self.report.good.join(", ");
                format!("NOT all{capture} is what was captured; still good: {good}")
            }
        };
        text.push_str(&end);
        text.push('\n');
        base::text::lines(&text)
    }
}
