//! What the last check said, for who asks often: `afterimage status`.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Level, Report};
use crate::host;
use crate::loader::Loaded;

/// Where it is kept.
pub(super) const PATH: &str = "/run/afterimage/check.toml";

/// The verdict of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Boot during which it was made.
    pub boot_id: String,
    /// When, seconds since 1970.
    pub at: u64,
    /// When the image was loaded that it is about.
    pub loaded_at: u64,
    /// Whether a crash would be saved.
    pub saved: bool,
    /// The failures, by name.
    pub failures: Vec<String>,
}

impl Verdict {
    /// Of a report about what is loaded.
    #[must_use]
    pub fn of(report: &Report, loaded: Option<&Loaded>, now: u64) -> Self {
        let failures = report.findings.iter().filter(|finding| finding.level == Level::Failure);
        Self {
            boot_id: host::read("/proc/sys/kernel/random/boot_id"),
            at: now,
            loaded_at: loaded.map_or(0, |loaded| loaded.at),
            saved: report.verdict != Level::Failure,
            failures: failures.map(|finding| finding.id.clone()).collect(),
        }
    }

    /// Keeps it until the next boot.
    pub fn save(&self) -> io::Result<()> {
        self.save_to(Path::new(PATH))
    }

    fn save_to(&self, path: &Path) -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir)?;
        let mut file =
            tempfile::Builder::new().permissions(Permissions::from_mode(0o644)).tempfile_in(dir)?;
        file.write_all(toml::to_string(self).unwrap_or_default().as_bytes())?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// The last one, if it is about this load.
    #[must_use]
    pub fn last(loaded: &Loaded) -> Option<Self> {
        Self::read_from(Path::new(PATH), loaded)
    }

    fn read_from(path: &Path, loaded: &Loaded) -> Option<Self> {
        let verdict: Self = toml::from_str(&fs::read_to_string(path).ok()?).ok()?;
        (verdict.boot_id == loaded.boot_id && verdict.loaded_at == loaded.at).then_some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Finding;
    use super::*;

    #[test]
    fn a_verdict_is_about_one_load() {
        let findings = vec![Finding::ok("a", ""), Finding::failure("target-1", "gone", "plug it in")];
        let report = Report { verdict: Level::Failure, findings };
        let boot_id = host::read("/proc/sys/kernel/random/boot_id");
        let loaded = Loaded { boot_id, at: 7, ..Loaded::default() };
        let verdict = Verdict::of(&report, Some(&loaded), 99);
        assert!(!verdict.saved && verdict.failures == ["target-1"]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("afterimage/check.toml");
        assert_eq!(Verdict::read_from(&path, &loaded), None);
        verdict.save_to(&path).unwrap();
        assert_eq!(Verdict::read_from(&path, &loaded), Some(verdict));
        assert_eq!(Verdict::read_from(&path, &Loaded { at: 8, ..loaded.clone() }), None);
        assert_eq!(Verdict::read_from(&path, &Loaded { boot_id: "other".into(), ..loaded }), None);
    }
}
