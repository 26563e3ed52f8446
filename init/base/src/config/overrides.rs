//! The configuration as the capture side sees it: the file in the image, and the `afterimage.*`
//! keys of the kernel command line on top of it.

use core::str::FromStr;
use std::fs;

use serde::Deserialize;
use serde::de::value::{Error, StrDeserializer};

use super::checked::{absolute_path, at_least_a_second};
use super::duration::Seconds;
use super::{Compress, Config, DeviceId, DumpLevel, Exclude, Filesystem, Nfs, PATH, Place, Raw};

/// Reads the configuration in the image and takes over the overrides of the running kernel's
/// command line. Never fails: what cannot be used is in the list of complaints, and the default
/// stands in for it.
#[must_use]
pub fn load() -> (Config, Vec<String>) {
    let mut complaints = Vec::new();
    let read = fs::read_to_string(PATH).map_err(|error| error.to_string());
    let parsed = read.and_then(|text| Config::parse(&text).map_err(|error| error.to_string()));
    let mut config = parsed.unwrap_or_else(|cause| {
        complaints.push(format!("{PATH}: {cause}"));
        Config::default()
    });
    complaints.extend(config.apply_cmdline(&fs::read_to_string("/proc/cmdline").unwrap_or_default()));
    (config, complaints)
}

impl Config {
    /// Takes over the `afterimage.*` keys of a kernel command line: `level`, `exclude`, `compress`,
    /// `device`, `path`, `action`, `stall_timeout`, `deadline`, `log`. Returns what was wrong with
    /// the others; those change nothing.
    pub fn apply_cmdline(&mut self, cmdline: &str) -> Vec<String> {
        let pairs = cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix("afterimage."));
        let set = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            self.set(key, value).err().map(|reason| format!("afterimage.{pair}: {reason}"))
        };
        pairs.filter_map(set).collect()
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "level" => {
                let exclude = Exclude::from(parse::<DumpLevel>(value)?);
                self.dump.exclude = exclude.reading_poisoned(self.dump.exclude.reads_poisoned());
            }
            "exclude" => {
                let exclude = Exclude::classes(&value.split(',').collect::<Vec<_>>());
                let exclude = exclude.map_err(|error| error.to_string())?;
                self.dump.exclude = exclude.reading_poisoned(self.dump.exclude.reads_poisoned());
            }
            "compress" => self.dump.compress = parse::<Compress>(value)?,
            "action" => self.finish.always(word(value)?),
            "log" => self.capture.log = word(value)?,
            "stall_timeout" => self.capture.stall_timeout = at_least_a_second(seconds(value)?)?,
            "deadline" => self.capture.deadline = Some(seconds(value)?),
            "device" => self.set_device(parse::<DeviceId>(value)?)?,
            "path" => self.set_path(absolute_path(value.to_owned())?)?,
            _ => return Err("unknown key".to_owned()),
        }
        Ok(())
    }

    fn set_device(&mut self, wanted: DeviceId) -> Result<(), String> {
        match &mut self.first_target()?.place {
            Place::Filesystem(Filesystem { device, .. }) | Place::Raw(Raw { device, .. }) => *device = wanted,
            _ => return Err("the first target has no device".to_owned()),
        }
        Ok(())
    }

    fn set_path(&mut self, wanted: String) -> Result<(), String> {
        match &mut self.first_target()?.place {
            Place::Filesystem(Filesystem { path, .. }) | Place::Nfs(Nfs { path, .. }) => *path = wanted,
            _ => return Err("the first target has no path".to_owned()),
        }
        Ok(())
    }

    fn first_target(&mut self) -> Result<&mut super::Target, String> {
        self.target.first_mut().ok_or_else(|| "there is no target to change".to_owned())
    }
}

fn seconds(value: &str) -> Result<u64, String> {
    Seconds::parse(value).map(|Seconds(seconds)| seconds)
}

fn parse<T: FromStr<Err: ToString>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: T::Err| error.to_string())
}

/// A value that serde knows as a word, such as the final action.
fn word<T: for<'de> Deserialize<'de>>(value: &str) -> Result<T, String> {
    T::deserialize(StrDeserializer::<Error>::new(value)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FinalAction, LogLevel};

    const FILE: &str =
        "[dump]\nlevel = 0\n[[target]]\ntype = \"filesystem\"\ndevice = \"LABEL=a\"\npath = \"/crash\"\n";

    #[test]
    fn overrides_are_taken_over_or_refused() {
        let mut config = Config::parse(FILE).unwrap();
        let refused = config.apply_cmdline(
            "quiet afterimage.level=1 afterimage.action=halt afterimage.device=LABEL=x afterimage.nope=1 \
             afterimage.level=32 afterimage.log=debug afterimage.path=relative",
        );
        assert!(config.dump.exclude.zero());
        assert_eq!((config.finish.action, config.capture.log), (FinalAction::Halt, LogLevel::Debug));
        assert_eq!(config.target[0].device(), Some(&DeviceId::Label("x".into())));
        assert!(config.target[0].to_string().ends_with(":/crash"));
        assert_eq!(refused.len(), 3, "{refused:?}");
    }

    #[test]
    fn overrides_pass_the_checks_of_the_file() {
        let mut config = Config::default();
        let refused =
            config.apply_cmdline("afterimage.stall_timeout=0 afterimage.deadline=soon afterimage.path=/x");
        assert_eq!(
            refused,
            [
                "afterimage.stall_timeout=0: must be at least 1 second",
                "afterimage.deadline=soon: \"soon\" is not a duration: write seconds, or a text such as \
                 \"90s\", \"5m\", \"1h30m\" or \"2d\"",
                "afterimage.path=/x: there is no target to change",
            ]
        );
        assert_eq!(config, Config::default());
    }
}
