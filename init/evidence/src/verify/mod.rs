//! Checks the directory of a capture: signature, arm record, sums, events, account. Says what does not hold,
//! and what is good all the same.
//!
//! The directory is hostile: whoever had it in hand may have changed anything in it.

mod files;
mod folder;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use serde::Serialize;
use vmcore::target::{Artifact, DEBUG_FILE};

use crate::arm::{self, ArmRecord};
use crate::events;
use crate::manifest::{self, Manifest};
use crate::minisign::{PublicKey, Signature};
use crate::{canonical, hex, sha256};

use folder::Folder;

const MANIFEST: &str = Artifact::Manifest.name();
const SIGNATURE: &str = Artifact::Signature.name();
const ARM: &str = Artifact::Arm.name();
const ARM_SIGNATURE: &str = Artifact::ArmSignature.name();
const EVENTS: &str = Artifact::Events.name();
const SUMS: &str = Artifact::Sums.name();
/// What the host, or whoever collects, may put beside a capture.
const OF_OTHERS: [&str; 3] = [".afterimage", DEBUG_FILE, "custody.jsonl"];

/// Keys that the caller trusts, because they came from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Keys of hosts, which sign arm records, and of loads, which sign manifests.
    pub keys: Vec<PublicKey>,
}

/// Whether something is as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holds {
    /// It is.
    Yes,
    /// It cannot be said.
    Unknown,
    /// It is not.
    No,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What: the manifest's signature, a file by its name.
    pub what: String,
    /// Whether it holds.
    pub holds: Holds,
    /// What was found.
    pub found: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order in which they were checked.
    pub checks: Vec<Check>,
    /// What the manifest says of the capture: complete, incomplete, log-only.
    pub verdict: Option<String>,
    /// Files, and parts of files, that are what the manifest says.
    pub good: Vec<String>,
    /// SHA-256 of each whole file that was read, with its name.
    #[serde(skip)]
    pub sums: Vec<(String, String)>,
    /// The manifest, as far as it could be read.
    #[serde(skip)]
    pub manifest: Option<Manifest>,
}

impl Report {
    /// Whether all of it holds: no, if anything does not; unknown, if something cannot be said.
    #[must_use]
    pub fn holds(&self) -> Holds {
        let any = |state| self.checks.iter().any(|check| check.holds == state);
        if any(Holds::No) {
            Holds::No
        } else if any(Holds::Unknown) || self.checks.is_empty() {
            Holds::Unknown
        } else {
            Holds::Yes
        }
    }

    fn add(&mut self, what: &str, holds: Holds, found: impl Into<String>) {
        self.checks.push(Check { what: what.to_owned(), holds, found: found.into() });
    }
}

/// Checks the capture in a directory, or of it only the files that are named. `progress` is told of bytes
/// that were read.
pub fn verify(
    directory: &Path,
    trust: &Trust,
    only: &[String],
    progress: &mut dyn FnMut(u64),
) -> io::Result<Report> {
    let folder = Folder::new(directory);
    let names = folder.names()?;
    let mut report = Report::default();
    let text = match folder.text(MANIFEST) {
        Ok(text) => text,
        Err(error) => {
            // What is no text was changed; what cannot be read says nothing.
            let holds = if error.kind() == io::ErrorKind::InvalidData { Holds::No } else { Holds::Unknown };
            report.add(MANIFEST, holds, without_manifest(&error));
            return Ok(report);
        }
    };
    let manifest = match parse(&text) {
        Ok(manifest) => manifest,
        Err(fault) => {
            report.add(MANIFEST, Holds::No, fault);
            return Ok(report);
        }
    };
    report.add(MANIFEST, Holds::Yes, format!("evidence {}, {}", manifest.evidence, manifest.schema));
    report.verdict = Some(manifest.verdict.clone());
    let is_trusted = check_signature(&folder, &text, &manifest, trust, &mut report);
    check_arm(&folder, &manifest, trust, is_trusted, &mut report);
    files::check(&folder, &manifest, only, progress, &mut report);
    if only.is_empty() {
        files::check_names(&folder, &names, &manifest, &mut report);
        check_events(&folder, &manifest, &mut report);
        check_sums(&folder, &manifest, &mut report);
    }
    check_account(&manifest, &mut report);
    report.manifest = Some(manifest);
    Ok(report)
}

fn without_manifest(error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::NotFound {
        return format!("it cannot be read: {error}");
    }
    "there is none: the capture did not come to its end, or was made without evidence. Whether the files are \
     what was captured cannot be said; none of them counts as whole"
        .to_owned()
}

fn parse(text: &str) -> Result<Manifest, String> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
    let schema = value.get("schema").and_then(serde_json::Value::as_str).unwrap_or_default();
    if schema != manifest::SCHEMA {
        let (schema, known) = (base::text::line(schema), manifest::SCHEMA);
        return Err(format!("its schema is \"{schema}\", and this version knows {known}"));
    }
    // What was signed is one form of it; another form may mean two things to two readers.
    if canonical::to_string(&value).ok().as_deref() != Some(text) {
        return Err("it is not in the canonical form (RFC 8785) that it was written in".to_owned());
    }
    serde_json::from_value(value).map_err(|error| format!("it is no manifest: {error}"))
}

/// Whether the key that has signed is one that the caller trusts.
fn check_signature(
    folder: &Folder,
    text: &str,
    manifest: &Manifest,
    trust: &Trust,
    report: &mut Report,
) -> bool {
    let Some(key) = &manifest.public_key else {
        report.add(
            SIGNATURE,
            Holds::Unknown,
            "the image had no key: it was not loaded by `afterimage load`, or its facts were lost",
        );
        return false;
    };
    let check = || -> Result<PublicKey, String> {
        let key = PublicKey::parse(key).map_err(|error| format!("the key in the manifest: {error}"))?;
        let text_of = folder.text(SIGNATURE).map_err(|error| format!("it cannot be read: {error}"))?;
        let signature = Signature::parse(&text_of).map_err(|error| error.to_string())?;
        key.verify(text.as_bytes(), &signature).map_err(|error| error.to_string())?;
        if !signature.comment().contains(&manifest.evidence) {
            return Err("its comment is of another evidence".to_owned());
        }
        Ok(key)
    };
    match check() {
        Ok(key) => {
            report.add(SIGNATURE, Holds::Yes, format!("by the load key {:016X}", key.number()));
            trust.keys.contains(&key)
        }
        Err(fault) => {
            report.add(SIGNATURE, Holds::No, fault);
            false
        }
    }
}

/// `is_trusted`: the caller knows the load key itself.
fn check_arm(folder: &Folder, manifest: &Manifest, trust: &Trust, is_trusted: bool, report: &mut Report) {
    let Some(wanted) = &manifest.arm else {
        let holds = if is_trusted { Holds::Yes } else { Holds::Unknown };
        report.add(ARM, holds, "the capture has none");
        return;
    };
    let text = match folder.text(ARM) {
        Ok(text) => text,
        Err(error) => return report.add(ARM, Holds::No, format!("it cannot be read: {error}")),
    };
    let record: ArmRecord = match serde_json::from_str(&text) {
        Ok(record) => record,
        Err(error) => return report.add(ARM, Holds::No, format!("it is no arm record: {error}")),
    };
    let faults = [
        (hex(&sha256(text.as_bytes())) != wanted.sha256, "it is not the one that the manifest names"),
        (record.id != wanted.id, "it is of another load"),
        (record.schema != arm::SCHEMA, "its schema is not known"),
        (Some(&record.public_key) != manifest.public_key.as_ref(), "it names another load key"),
        (
            manifest.host.boot_id.as_ref().is_some_and(|boot| *boot != record.boot_id),
            "it is of another boot than the capture",
        ),
        (
            manifest.tools.init_sha256.as_ref().is_some_and(|init| *init != record.init_sha256),
            "the program that captured is not the one that was armed",
        ),
    ];
    if let Some((_, fault)) = faults.iter().find(|(is_fault, _)| *is_fault) {
        return report.add(ARM, Holds::No, *fault);
    }
    report.add(ARM, Holds::Yes, format!("load {}, by {}", record.id, base::text::line(&record.by)));
    check_host_key(folder, &text, &record, trust, is_trusted, report);
}

fn check_host_key(
    folder: &Folder,
    text: &str,
    record: &ArmRecord,
    trust: &Trust,
    is_trusted: bool,
    report: &mut Report,
) {
    if record.host_key.is_empty() {
        let holds = if is_trusted { Holds::Yes } else { Holds::Unknown };
        return report.add(ARM_SIGNATURE, holds, "the host had no key; `afterimage keys` makes one");
    }
    let check = || -> Result<PublicKey, String> {
        let key = PublicKey::parse(&record.host_key).map_err(|error| format!("the key in it: {error}"))?;
        let signature = folder.text(ARM_SIGNATURE).map_err(|error| format!("it cannot be read: {error}"))?;
        let signature = Signature::parse(&signature).map_err(|error| error.to_string())?;
        key.verify(text.as_bytes(), &signature).map_err(|error| error.to_string())?;
        Ok(key)
    };
    match check() {
        Err(fault) => report.add(ARM_SIGNATURE, Holds::No, fault),
        Ok(key) if is_trusted || trust.keys.contains(&key) => {
            report.add(
                ARM_SIGNATURE,
                Holds::Yes,
                format!("by the host key {:016X}, which is known", key.number()),
            );
        }
        Ok(key) => {
            let (number, host) = (key.number(), base::text::line(&record.host));
            report.add(
                ARM_SIGNATURE,
                Holds::Unknown,
                format!(
                    "it is by the host key {number:016X}, which nobody has vouched for. All is consistent in \
                     itself; whoever could replace all of these files could have made that, too. Ask the owner \
                     of {host} for its key (`afterimage keys` shows it) and name it: --key {key}"
                ),
            );
        }
    }
}

fn check_events(folder: &Folder, manifest: &Manifest, report: &mut Report) {
    let arm = manifest.arm.as_ref().map_or("", |arm| arm.sha256.as_str());
    match folder.text(EVENTS).map_err(|error| format!("it cannot be read: {error}")) {
        Err(fault) => report.add(EVENTS, Holds::No, fault),
        Ok(text) => match events::check(&text, arm, &manifest.events) {
            Ok(lines) => report.add(EVENTS, Holds::Yes, format!("a chain of {} events", lines.len())),
            Err(error) => report.add(EVENTS, Holds::No, error.to_string()),
        },
    }
}

/// Whether `SHA256SUMS` says what the manifest says. It has no signature of its own.
fn check_sums(folder: &Folder, manifest: &Manifest, report: &mut Report) {
    let text = match folder.text(SUMS) {
        Ok(text) => text,
        Err(error) => {
            let fault = format!("it cannot be read: {error}; the sums in the manifest count");
            return report.add(SUMS, Holds::No, fault);
        }
    };
    let differs = text.lines().find(|line| {
        let Some((sum, name)) = line.split_once("  ") else { return true };
        let file = manifest.files.iter().find(|file| file.name == name);
        match file {
            // Made by who read the whole: the pieces prove it.
            Some(file) => file.sha256.as_ref().is_some_and(|known| known != sum),
            None => name != MANIFEST && name != SIGNATURE,
        }
    });
    match differs {
        None => report.add(SUMS, Holds::Yes, "it says what the manifest says"),
        Some(line) => {
            let line = base::text::line(line);
            report.add(SUMS, Holds::No, format!("its line \"{line}\" is not what the manifest says"));
        }
    }
}

fn check_account(manifest: &Manifest, report: &mut Report) {
    const WHAT: &str = "page account";
    let incomplete = manifest.files.iter().find(|file| file.incomplete);
    let is_complete = manifest.verdict == "complete";
    match (manifest.pages.fault(), incomplete) {
        (Some(fault), _) if is_complete => report.add(WHAT, Holds::No, fault),
        (_, Some(file)) if is_complete => {
            let name = base::text::line(&file.name);
            report.add(WHAT, Holds::No, format!("the verdict is complete, and {name} is not"));
        }
        _ if is_complete && manifest.pages.missing > 0 => {
            let missing = manifest.pages.missing;
            report.add(WHAT, Holds::No, format!("the verdict is complete, and {missing} pages are missing"));
        }
        (fault, _) => {
            let text = fault.unwrap_or_else(|| format!("it adds up to {} pages", manifest.pages.total));
            report.add(WHAT, Holds::Yes, text);
        }
    }
}
