//! What an operator wants to stand still before a switch: units that are stopped, cgroups that are
//! frozen, dirty data on its way to the disks. All but the data is undone when this is dropped, so
//! that a switch which does not come about leaves a host that runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use super::process::{self, Ended};

/// How long a unit may take to stop, and dirty data to the disks.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long a cgroup may take to freeze.
const FREEZE: Duration = Duration::from_secs(10);
/// More than systemctl says.
const SAID: u64 = 64 << 10;

/// Why something does not stand still.
#[derive(Debug, thiserror::Error)]
pub enum QuietError {
    /// A unit does not stop.
    #[error("stopping {unit}: systemctl {how}: {message}")]
    Stop {
        /// Which.
        unit: String,
        /// How systemctl ended.
        how: String,
        /// What it said.
        message: String,
    },
    /// We would freeze with it.
    #[error("freezing {0}: this command runs in it; start it elsewhere, as with systemd-run")]
    Ourselves(String),
    /// A cgroup cannot be frozen.
    #[error("freezing {cgroup}")]
    Freeze {
        /// Which.
        cgroup: String,
        /// Cause.
        source: io::Error,
    },
    /// A process in it does not let itself be frozen.
    #[error("freezing {cgroup}: it was not frozen after {} s", FREEZE.as_secs())]
    NotFrozen {
        /// Which.
        cgroup: String,
    },
}

/// Where to ask.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The program that stops units.
    pub(super) systemctl: PathBuf,
    /// The root of cgroups, version 2.
    pub(super) cgroups: PathBuf,
    /// /proc/self/cgroup.
    pub(super) own: PathBuf,
}

/// What stands still because of us.
#[derive(Debug)]
pub(super) struct Quiet {
    places: Places,
    stopped: Vec<String>,
    frozen: Vec<String>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            systemctl: "systemctl".into(),
            cgroups: "/sys/fs/cgroup".into(),
            own: "/proc/self/cgroup".into(),
        }
    }
}

impl Quiet {
    /// Nothing does yet.
    pub(super) fn new(places: Places) -> Self {
        Self { places, stopped: Vec::new(), frozen: Vec::new() }
    }

    /// Stops a unit; says whether it was active, and so will be started again.
    pub(super) fn stop(&mut self, unit: &str) -> Result<bool, QuietError> {
        if !self.systemctl(&["is-active", "--quiet", "--", unit]).is_success() {
            return Ok(false);
        }
        // Before it is: one that has stopped by half is started again, too.
        self.stopped.push(unit.to_owned());
        let ended = self.systemctl(&["stop", "--", unit]);
        let message = || String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        let failed =
            || QuietError::Stop { unit: unit.to_owned(), how: ended.how.to_string(), message: message() };
        ended.is_success().then_some(true).ok_or_else(failed)
    }

    /// Freezes a cgroup, all of it.
    pub(super) fn freeze(&mut self, cgroup: &str) -> Result<(), QuietError> {
        let own = fs::read_to_string(&self.places.own).unwrap_or_default();
        if is_within(&own, cgroup) {
            return Err(QuietError::Ourselves(cgroup.to_owned()));
        }
        let failed = |source| QuietError::Freeze { cgroup: cgroup.to_owned(), source };
        self.set_frozen(cgroup, true).map_err(failed)?;
        self.frozen.push(cgroup.to_owned());
        let start = Instant::now();
        loop {
            let events = fs::read_to_string(self.file(cgroup, "cgroup.events")).map_err(failed)?;
            if events.lines().any(|line| line == "frozen 1") {
                return Ok(());
            }
            if start.elapsed() >= FREEZE {
                return Err(QuietError::NotFrozen { cgroup: cgroup.to_owned() });
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Lets everything go on, last things first; says what would not.
    pub(super) fn undo(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for cgroup in std::mem::take(&mut self.frozen).iter().rev() {
            if let Err(error) = self.set_frozen(cgroup, false) {
                left.push(format!("cgroup {cgroup} is still frozen: {error}"));
            }
        }
        for unit in std::mem::take(&mut self.stopped).iter().rev() {
            let ended = self.systemctl(&["start", "--", unit]);
            if !ended.is_success() {
                left.push(format!("unit {unit} is not started again: {}", ended.how));
            }
        }
        left
    }

    fn systemctl(&self, arguments: &[&str]) -> Ended {
        process::run(Command::new(&self.places.systemctl).args(arguments), PATIENCE, SAID)
    }

    fn set_frozen(&self, cgroup: &str, frozen: bool) -> io::Result<()> {
        fs::OpenOptions::new() // not created: a name that is none is an error
            .write(true)
            .open(self.file(cgroup, "cgroup.freeze"))
            .and_then(|mut file| io::Write::write_all(&mut file, if frozen { b"1" } else { b"0" }))
    }

    fn file(&self, cgroup: &str, name: &str) -> PathBuf {
        self.places.cgroups.join(cgroup).join(name)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        for left in self.undo() {
            log::warn!("{left}");
        }
    }
}

/// Whether the process whose /proc/PID/cgroup is `text` is in `cgroup` or below.
fn is_within(text: &str, cgroup: &str) -> bool {
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    own.is_some_and(|own| Path::new(own).starts_with(cgroup))
}

/// Writes dirty data back; says whether that came to its end in time. A disk that is gone would
/// keep us for ever.
pub(super) fn sync() -> bool {
    let (done, waiting) = mpsc::channel();
    thread::spawn(move || {
        nix::unistd::sync();
        done.send(())
    });
    waiting.recv_timeout(PATIENCE).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Fake {
        dir: tempfile::TempDir,
    }

    impl Fake {
        /// A systemctl that knows the units `db` (active), `stuck` (active, does not stop) and a
        /// cgroup `app.slice`.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            let script = format!(
                "#!/bin/sh\necho \"$@\" >> {}\ncase \"$*\" in\n\
                 *stop*stuck) echo no >&2; exit 1;;\nis-active*idle) exit 3;;\nesac\n",
                path("said").display()
            );
            fs::write(path("systemctl"), script).unwrap();
            fs::set_permissions(path("systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
            fs::create_dir_all(path("cgroup/app.slice")).unwrap();
            fs::write(path("cgroup/app.slice/cgroup.freeze"), "0").unwrap();
            fs::write(path("cgroup/app.slice/cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
            fs::write(path("own"), "0::/user.slice/session-1.scope\n").unwrap();
            Self { dir }
        }

        fn quiet(&self) -> Quiet {
            let path = |name: &str| self.dir.path().join(name);
            Quiet::new(Places { systemctl: path("systemctl"), cgroups: path("cgroup"), own: path("own") })
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
        }
    }

    #[test]
    fn what_was_stopped_goes_on_when_dropped() {
        let fake = Fake::new();
        let mut quiet = fake.quiet();
        assert!(quiet.stop("db").unwrap());
        assert!(!quiet.stop("idle").unwrap());
        quiet.freeze("app.slice").unwrap();
        assert_eq!(fake.read("cgroup/app.slice/cgroup.freeze"), "1");
        drop(quiet);
        assert_eq!(fake.read("cgroup/app.slice/cgroup.freeze"), "0");
        let message = fake.read("said");
        let message: Vec<&str> = message.lines().collect();
        let expected = ["is-active --quiet -- db", "stop -- db", "is-active --quiet -- idle", "start -- db"];
        assert_eq!(message, expected);
    }

    #[test]
    fn what_does_not_stand_still_has_a_name() {
        let fake = Fake::new();
        let mut quiet = fake.quiet();
        let error = quiet.stop("stuck").unwrap_err();
        assert_eq!(error.to_string(), "stopping stuck: systemctl exit code 1: no");
        assert!(matches!(quiet.freeze("none.slice"), Err(QuietError::Freeze { .. })));
        assert!(!fake.dir.path().join("cgroup/none.slice").exists());
        assert!(matches!(quiet.freeze("user.slice"), Err(QuietError::Ourselves(_))));
        assert!(quiet.undo().is_empty());
        assert!(fake.read("said").ends_with("start -- stuck\n"), "it may have stopped by half");
    }

    #[test]
    fn our_own_cgroup_is_known() {
        let text = "1:name=systemd:/x\n0::/user.slice/user-0.slice/session.scope\n";
        assert!(is_within(text, "user.slice") && is_within(text, "user.slice/user-0.slice"));
        assert!(
            !is_within(text, "user.slice/user-1.slice") && !is_within(text, "user") && !is_within("", "a")
        );
    }

    #[test]
    fn data_is_synced() {
        assert!(sync());
    }
}
