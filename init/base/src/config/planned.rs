//! `[planned]` and `[[collector]]`: what `afterimage switch` does on the production kernel before
//! it switches.
//!
//! The host side reads it from the image that is loaded; the capture side has no use for it.

use core::fmt;

use serde::{Deserialize, Serialize};

use super::{Size, checked};

/// Most bytes that live collectors may find: they pass through the memory of a machine that is to
/// stay as it is.
pub const MAX_LIVE: u64 = 32 << 20;
/// Longest name of a collector.
const MAX_NAME: usize = 32;

/// `[planned]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Planned {
    /// Refuse a switch for which nobody gives a reason, or whose intent cannot be written down.
    pub evidence: bool,
    /// How the kernels are switched.
    pub via: Via,
    /// Write dirty data back before the switch. On by default: what programs have written is meant
    /// to be on the disk when the machine comes back, and the page cache keeps it all the same;
    /// only what was dirty is no longer told from what was not.
    pub sync: bool,
    /// systemd units that are stopped before the switch.
    pub stop: Vec<String>,
    /// cgroups (v2) that are frozen before the switch, as paths below /sys/fs/cgroup.
    #[serde(deserialize_with = "checked::paths")]
    pub freeze: Vec<String>,
    /// File that keeps the intents, a line of JSON each.
    #[serde(deserialize_with = "checked::program")]
    pub intents: String,
    /// Bytes that all live collectors together may find.
    #[serde(deserialize_with = "checked::live_limit")]
    pub live_limit: Size,
}

/// How the kernels are switched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// An orderly kexec: devices are shut down; no CPU registers in the dump.
    #[default]
    Kexec,
    /// A deliberate panic: CPU registers in the dump, devices stay as they are.
    Panic,
}

/// `[[collector]]`: something to find out while the production kernel still runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collector {
    /// Its name, which is a directory in `live.tar`.
    pub name: String,
    /// Program, absolute, and arguments: what it prints is kept. This or `files`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Files to copy, absolute, as patterns. Of links below /proc the targets are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// What it looks at, and by that its turn.
    pub class: Volatility,
    /// Seconds that it may take.
    #[serde(default = "default_timeout", deserialize_with = "checked::stall_timeout")]
    pub timeout: u64,
    /// Bytes that it may find.
    #[serde(default = "default_limit")]
    pub limit: Size,
}

/// What changes soonest comes first: the order of NIST SP 800-86, 5.2.1.3, without memory, which is
/// in the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Volatility {
    /// Network connections.
    Network,
    /// Login sessions.
    Logins,
    /// Running processes.
    Processes,
    /// Open files.
    Files,
    /// Network and kernel configuration.
    Config,
    /// The clocks.
    Time,
}

impl Collector {
    /// Refuses what cannot be run.
    pub(super) fn check(&self) -> Result<(), String> {
        let safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.chars().all(safe) {
            return Err(format!(
                "name {:?}: use 1 to {MAX_NAME} lower-case letters, digits, - and _",
                self.name
            ));
        }
        if self.command.is_empty() == self.files.is_empty() {
            return Err("give either command or files".to_owned());
        }
        let mut paths = self.command.iter().take(1).chain(&self.files);
        match paths.find(|path| !path.starts_with('/')) {
            Some(path) => Err(format!("{path:?} is not an absolute path")),
            None => Ok(()),
        }
    }
}

impl Default for Planned {
    fn default() -> Self {
        Self {
            evidence: false,
            via: Via::default(),
            sync: true,
            stop: Vec::new(),
            freeze: Vec::new(),
            intents: "/var/log/afterimage/intents.jsonl".to_owned(),
            live_limit: Size(16 << 20),
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kexec => "kexec",
            Self::Panic => "panic",
        })
    }
}

impl fmt::Display for Volatility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Logins => "logins",
            Self::Processes => "processes",
            Self::Files => "files",
            Self::Config => "config",
            Self::Time => "time",
        })
    }
}

fn default_timeout() -> u64 {
    10
}

fn default_limit() -> Size {
    Size(4 << 20)
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn a_full_section_round_trips() {
        let text = r#"
            [planned]
            evidence = true
            via = "panic"
            sync = false
            stop = ["postgresql.service"]
            freeze = ["system.slice/app.service"]
            intents = "/srv/intents.jsonl"
            live_limit = "2M"
            [[collector]]
            name = "sockets"
            command = ["/usr/bin/ss", "-tanp"]
            class = "network"
            timeout = 3
            limit = "1M"
            [[collector]]
            name = "app-state"
            files = ["/run/app/*.state"]
            class = "files"
        "#;
        let config = Config::parse(text).unwrap();
        assert_eq!((config.planned.via, config.planned.sync), (Via::Panic, false));
        assert_eq!((config.collector[1].timeout, config.collector[1].limit), (10, Size(4 << 20)));
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let collector = |keys: &str| format!("[[collector]]\nclass = \"time\"\n{keys}\n");
        for (text, reason) in [
            ("[planned]\nlive_limit = \"33M\"\n".to_owned(), "at most 32M"),
            ("[planned]\nlive_limit = \"0\"\n".to_owned(), "at least"),
            ("[planned]\nintents = \"x\"\n".to_owned(), "absolute path"),
            ("[planned]\nfreeze = [\"a/../b\"]\n".to_owned(), "a/../b"),
            ("[planned]\nfreeze = [\"/\"]\n".to_owned(), "\"/\""),
            ("[planned]\nvia = \"reset\"\n".to_owned(), "reset"),
            (collector("name = \"a\""), "either command or files"),
            (collector("name = \"a\"\nfiles = [\"/a\"]\ncommand = [\"/b\"]"), "either command or files"),
            (collector("name = \"a\"\ncommand = [\"ss\"]"), "\"ss\" is not an absolute path"),
            (collector("name = \"a\"\nfiles = [\"/a\", \"b\"]"), "\"b\" is not an absolute path"),
            (collector("name = \"A/b\"\nfiles = [\"/a\"]"), "[[collector]] number 1: name"),
            (collector("name = \"a\"\nfiles = [\"/a\"]\ntimeout = 0"), "at least 1 second"),
            ("[[collector]]\nname = \"a\"\nfiles = [\"/a\"]\nclass = \"fun\"\n".to_owned(), "fun"),
        ] {
            let error = Config::parse(&text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}{error}");
        }
    }

    #[test]
    fn what_is_most_volatile_comes_first() {
        use Volatility::{Config, Files, Logins, Network, Processes, Time};
        let mut classes = [Time, Config, Files, Processes, Logins, Network];
        classes.sort();
        assert_eq!(classes, [Network, Logins, Processes, Files, Config, Time]);
    }
}
