//! `afterimage check`: whether a crash of this host now would be saved.
//!
//! [`observe`] looks at the host, once; `judge` makes findings of what was seen, and looks at nothing
//! itself.

mod finding;
mod judge;
pub mod observe;
mod verdict;

use std::fmt::Write;
use std::process::ExitCode;

use serde::Serialize;

use crate::loader::Loaded;

pub use finding::{Finding, Level};
pub use observe::host::{CheckError, Host, IMAGE, Options};
pub use verdict::Verdict;

/// All findings, and the worst of their levels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Failure: a crash now would not be saved.
    pub verdict: Level,
    /// In the order of reading: image, loading, kernel, targets, final actions.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Judges a host.
    #[must_use]
    pub fn of(host: &Host) -> Self {
        let findings = judge::findings(host);
        let verdict = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Failure);
        Self { verdict, findings }
    }

    /// A line per finding with its remedy below, and the verdict.
    #[must_use]
    pub fn to_text(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.id.len()).max().unwrap_or(0);
        let mut out = String::new();
        for Finding { id, level, found, remedy } in &self.findings {
            let _ = writeln!(out, "{:<7}  {id:<width$}  {}", level.name(), base::text::line(found));
            if let Some(remedy) = remedy {
                let _ = writeln!(
                    out,
                    "{:>indent$}  {}",
                    "→",
                    base::text::line(remedy),
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
        base::text::json(&text)
    }

    /// 0: would be saved, 1: would not be.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        if self.verdict == Level::Failure { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// Keeps the verdict of a report for `status`.
pub fn keep(report: &Report, loaded: Option<&Loaded>) {
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    if let Err(error) = Verdict::of(report, loaded, now).save() {
        log::warn!("{}: {error}", verdict::PATH);
    }
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
        let report = Report::of(&observe::host::testing::healthy());
        assert_eq!(report.verdict, Level::Ok, "{}", report.to_text());
    }
}
