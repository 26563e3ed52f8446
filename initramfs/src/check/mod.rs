//! `afterimage check`: whether a crash of this host now would be saved.
//!
//! [`host`] and [`storage`] look at the host, once; everything else makes findings of what they saw
//! and looks at nothing itself.

mod finish;
pub mod host;
mod image;
mod kernel;
pub mod remote;
mod size;
pub mod storage;
mod target;

use std::fmt::Write;
use std::process::ExitCode;

use serde::Serialize;

pub use host::{CheckError, Host, Options};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// A crash is saved, or some crashes are; but see to it.
    Warning,
    /// A crash is not saved.
    Failure,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name for scripts; those of a target end in its number, from 1.
    pub id: String,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; of a warning or failure.
    pub remedy: Option<String>,
}

/// All findings, and the worst of their levels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Failure: a crash now would not be saved.
    pub verdict: Level,
    /// In the order of reading: image, loading, kernel, targets, final actions.
    pub findings: Vec<Finding>,
}

impl Finding {
    fn ok(id: &str, found: impl Into<String>) -> Self {
        Self { id: id.to_owned(), level: Level::Ok, found: found.into(), remedy: None }
    }

    fn warning(id: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(id, Level::Warning, found, remedy)
    }

    fn failure(id: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(id, Level::Failure, found, remedy)
    }

    fn bad(id: &str, level: Level, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { id: id.to_owned(), level, found: found.into(), remedy: Some(remedy.into()) }
    }
}

impl Report {
    /// Judges a host.
    #[must_use]
    pub fn of(host: &Host) -> Self {
        let parts =
            [image::findings(host), kernel::findings(host), target::findings(host), finish::findings(host)];
        let findings: Vec<Finding> = parts.into_iter().flatten().collect();
        let verdict = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Failure);
        Self { verdict, findings }
    }

    /// A line per finding with its remedy below, and the verdict.
    #[must_use]
    pub fn to_text(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.id.len()).max().unwrap_or(0);
        let mut out = String::new();
        for Finding { id, level, found, remedy } in &self.findings {
            let _ = writeln!(out, "{:<7}  {id:<width$}  {}", level.name(), printable(found));
            if let Some(remedy) = remedy {
                let _ = writeln!(
                    out,
                    "{:>indent$}  {}",
                    "→",
                    printable(remedy),
                    indent = width.saturating_add(10)
                );
            }
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        let (failures, warnings) = (count(Level::Failure), count(Level::Warning));
        let _ = match self.verdict {
            Level::Ok => writeln!(out, "a crash now would be saved"),
            Level::Warning => writeln!(out, "a crash now would be saved; warnings: {warnings}"),
            Level::Failure => {
                writeln!(out, "a crash now would NOT be saved; failures: {failures}, warnings: {warnings}")
            }
        };
        out
    }

    /// The report as JSON, an object with `verdict` and `findings`.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings and lists of structures, which JSON can always hold.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// 0: would be saved, 1: would not be.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        if self.verdict == Level::Failure { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
        }
    }
}

/// Labels of file systems and names of watchdogs come from devices: no control character of theirs
/// goes to a terminal.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(findings: Vec<Finding>) -> Report {
        let verdict = findings.iter().map(|finding| finding.level).max().unwrap();
        Report { verdict, findings }
    }

    #[test]
    fn text_is_aligned_and_ends_with_the_verdict() {
        let report = report(vec![
            Finding::ok("loaded", "yes"),
            Finding::warning("panic_on_oops", "0", "set it\x1b[2J"),
            Finding::failure("target-1", "gone", "plug it in"),
        ]);
        assert_eq!(
            report.to_text(),
            "ok       loaded         yes\n\
             warning  panic_on_oops  0\n\
            \x20                     →  set it\\u{1b}[2J\n\
             FAILURE  target-1       gone\n\
            \x20                     →  plug it in\n\
             a crash now would NOT be saved; failures: 1, warnings: 1\n"
        );
        assert_eq!(report.exit_code(), ExitCode::FAILURE);
    }

    #[test]
    fn json_has_stable_keys() {
        let report = report(vec![Finding::ok("a", "b"), Finding::warning("c", "d", "e")]);
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        let expected = serde_json::json!({"verdict": "warning", "findings": [
            {"id": "a", "level": "ok", "found": "b", "remedy": null},
            {"id": "c", "level": "warning", "found": "d", "remedy": "e"},
        ]});
        assert_eq!(json, expected);
        assert_eq!(report.exit_code(), ExitCode::SUCCESS);
    }

    #[test]
    fn a_host_in_good_order_is_saved() {
        let report = Report::of(&host::testing::healthy());
        assert_eq!(report.verdict, Level::Ok, "{}", report.to_text());
    }
}
