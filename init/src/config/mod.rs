//! The configuration: one TOML file, checked on the host when the image is built, read again by PID 1.
//!
//! Every key has a default except what names the target. Unknown keys and bad values are errors with line and
//! reason, on the host; the capture side falls back to [`Config::default`] and says so, because a machine that
//! does not come back is worse than a missing dump. This module knows what values mean, not what is done.

mod compress;
mod device;
mod level;

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

pub use compress::{Compress, CompressError};
pub use device::{DeviceId, DeviceIdError};
pub use level::{DumpLevel, LevelError};

/// Where the configuration lies in the image.
pub const PATH: &str = "/etc/afterimage/config.toml";
/// Where the facts about the production kernel lie; appended to the image when it is loaded.
pub const FACTS_PATH: &str = "/etc/afterimage/facts.toml";
/// Where the ordered module list lies in the image: a path per line.
pub const MODULES_PATH: &str = "/etc/afterimage/modules";
/// What the image was built for; read by `afterimage load`.
pub const MANIFEST_PATH: &str = "/etc/afterimage/manifest.toml";

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is saved.
    pub dump: Dump,
    /// Where it is saved, in the order of preference.
    pub target: Vec<Target>,
    /// How the capture kernel runs.
    pub capture: Capture,
    /// What happens afterwards.
    pub finish: Finish,
    /// What goes into the image.
    pub image: Image,
}

/// `[dump]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dump {
    /// Which page types are left out.
    pub level: DumpLevel,
    /// Compression of page data.
    pub compress: Compress,
}

/// `[[target]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Target {
    /// A directory in a file system on a block device.
    Filesystem(Filesystem),
}

/// A directory in a file system on a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filesystem {
    /// The device.
    pub device: DeviceId,
    /// Directory on it, absolute; made if missing.
    #[serde(default = "default_path")]
    pub path: String,
    /// File system type; read from the superblock if not given.
    #[serde(default)]
    pub fstype: Option<FsType>,
    /// Seconds to wait for the device to appear.
    #[serde(default = "default_wait")]
    pub wait: u64,
}

/// A file system that a dump can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// ext2, ext3, ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// FAT.
    Vfat,
}

/// `[capture]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capture {
    /// CPUs that the capture kernel starts; each costs some hundred KiB.
    pub cpus: u32,
    /// Seconds without any progress after which the capture is given up.
    pub stall_timeout: u64,
    /// Seconds after which the capture is given up in any case; 0 is no limit.
    pub deadline: u64,
    /// Least severe messages that are printed.
    pub log: LogLevel,
    /// Added to the capture kernel's command line.
    pub cmdline_append: String,
    /// Parameters taken out of it, by name.
    pub cmdline_remove: Vec<String>,
}

/// Severity of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what went wrong.
    Error,
    /// And what was made do with.
    Warn,
    /// And what is done.
    #[default]
    Info,
    /// And why.
    Debug,
}

/// `[finish]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Finish {
    /// What PID 1 does when the capture is over, however it ended.
    pub action: FinalAction,
}

/// What becomes of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinalAction {
    /// Restart through the firmware.
    #[default]
    Reboot,
    /// Switch off.
    Poweroff,
    /// Stop and stay.
    Halt,
}

/// `[image]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Image {
    /// Compression of the image.
    pub compress: ImageCompress,
    /// Modules to load besides those of the file system, by name; not given: those of the target device on
    /// this host.
    pub modules: Option<Vec<String>>,
    /// Whether modules lose their signature and debug sections.
    pub strip: Strip,
}

/// Compression of the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageCompress {
    /// gzip: the smallest boot peak together with xz (README, "Memory").
    #[default]
    Gzip,
    /// xz with a dictionary of 512 KiB: smaller, slower to unpack.
    Xz,
    /// zstd with a window of 512 KiB.
    Zstd,
}

/// Whether modules are stripped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strip {
    /// Unless this host enforces module signatures.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never: modules stay as they are, byte for byte.
    Never,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// TOML syntax, an unknown key or a value of the wrong kind; the text names line and reason.
    #[error("{0}")]
    Toml(Box<toml::de::Error>),
    /// A value that is well formed and makes no sense.
    #[error("{key}: {reason}")]
    Value {
        /// Which key.
        key: &'static str,
        /// Why.
        reason: String,
    },
}

fn default_path() -> String {
    "/var/crash".to_owned()
}

fn default_wait() -> u64 {
    30
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            cpus: 1,
            stall_timeout: 300,
            deadline: 0,
            log: LogLevel::default(),
            cmdline_append: String::new(),
            cmdline_remove: Vec::new(),
        }
    }
}

impl Config {
    /// Parses and checks a configuration file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Toml(Box::new(error)))?;
        config.check()?;
        Ok(config)
    }

    /// The configuration as TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        // Every type in it is a table, a string, a number or a list of those, which TOML can always hold.
        toml::to_string(self).unwrap_or_default()
    }

    /// Takes over the `afterimage.*` keys of a kernel command line: `level`, `compress`, `device`, `path`,
    /// `action`, `stall_timeout`, `deadline`, `log`. Returns what was wrong with the others; those change nothing.
    pub fn apply_cmdline(&mut self, cmdline: &str) -> Vec<String> {
        let pairs = cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix("afterimage."));
        let mut refused = Vec::new();
        for pair in pairs {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let mut changed = self.clone();
            match changed.set(key, value).and_then(|()| changed.check().map_err(|error| error.to_string())) {
                Ok(()) => *self = changed,
                Err(reason) => refused.push(format!("afterimage.{pair}: {reason}")),
            }
        }
        refused
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let text = |error: &dyn fmt::Display| error.to_string();
        match key {
            "level" => self.dump.level = DumpLevel::from_str(value).map_err(|e| text(&e))?,
            "compress" => self.dump.compress = Compress::from_str(value).map_err(|e| text(&e))?,
            "action" => self.finish.action = word(value)?,
            "log" => self.capture.log = word(value)?,
            "stall_timeout" => self.capture.stall_timeout = number(value)?,
            "deadline" => self.capture.deadline = number(value)?,
            "device" | "path" => {
                let Some(Target::Filesystem(fs)) = self.target.first_mut() else {
                    return Err("there is no target to change".to_owned());
                };
                match key {
                    "device" => fs.device = DeviceId::from_str(value).map_err(|e| text(&e))?,
                    _ => fs.path = checked_path(value)?,
                }
            }
            _ => return Err("unknown key".to_owned()),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |key, reason: &str| Err(ConfigError::Value { key, reason: reason.to_owned() });
        for Target::Filesystem(fs) in &self.target {
            checked_path(&fs.path).map_err(|reason| ConfigError::Value { key: "target.path", reason })?;
        }
        if !(1..=1024).contains(&self.capture.cpus) {
            return value("capture.cpus", "must be from 1 to 1024");
        }
        if self.capture.stall_timeout == 0 {
            return value("capture.stall_timeout", "must be at least 1 second");
        }
        if self.capture.cmdline_append.contains(['\n', '\0']) {
            return value("capture.cmdline_append", "must be one line");
        }
        Ok(())
    }
}

/// The configuration in the image with the overrides of the running kernel's command line, and complaints about
/// what could not be used. Never fails: what is left is the default.
#[must_use]
pub fn load() -> (Config, Vec<String>) {
    let mut complaints = Vec::new();
    let read = std::fs::read_to_string(PATH).map_err(|error| error.to_string());
    let parsed = read.and_then(|text| Config::parse(&text).map_err(|error| error.to_string()));
    let mut config = parsed.unwrap_or_else(|cause| {
        complaints.push(format!("{PATH}: {cause}"));
        Config::default()
    });
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    complaints.extend(config.apply_cmdline(&cmdline));
    (config, complaints)
}

/// A value that serde knows as a word, such as a [`FinalAction`].
fn word<T: for<'de> Deserialize<'de>>(value: &str) -> Result<T, String> {
    T::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(value))
        .map_err(|e| e.to_string())
}

fn number(value: &str) -> Result<u64, String> {
    value.parse().map_err(|_| "not a number of seconds".to_owned())
}

fn checked_path(path: &str) -> Result<String, String> {
    let clean = path.starts_with('/')
        && path.split('/').all(|part| !matches!(part, "." | ".."))
        && !path.contains('\0');
    clean.then(|| path.to_owned()).ok_or_else(|| format!("{path:?} is not an absolute path without . and .."))
}

impl FsType {
    /// The name for mount(2).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
        }
    }
}

impl fmt::Display for FinalAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reboot => "reboot",
            Self::Poweroff => "poweroff",
            Self::Halt => "halt",
        })
    }
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
        [dump]
        level = 0
        compress = "zlib"
        [[target]]
        type = "filesystem"
        device = "UUID=00112233-4455-6677-8899-AABBCCDDEEFF"
        path = "/crash"
        fstype = "xfs"
        wait = 5
        [capture]
        cpus = 2
        cmdline_append = "irqpoll"
        [finish]
        action = "poweroff"
        [image]
        compress = "xz"
        modules = ["nvme"]
        strip = "never"
    "#;

    #[test]
    fn a_full_file_round_trips() {
        let config = Config::parse(FULL).unwrap();
        assert_eq!(config.finish.action, FinalAction::Poweroff);
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        assert!(Config::default().dump.level.leaves_out_zero_pages());
    }

    #[test]
    fn errors_name_line_and_reason() {
        let error = |text: &str| Config::parse(text).unwrap_err().to_string();
        let unknown = error("[dump]\nlevl = 1\n");
        assert!(unknown.contains("line 2") && unknown.contains("levl"), "{unknown}");
        let level = error("[dump]\n\nlevel = 31\n");
        assert!(level.contains("line 3") && level.contains("cannot do yet"), "{level}");
        let device = error("[[target]]\ntype = \"filesystem\"\ndevice = \"sda1\"\n");
        assert!(device.contains("names no device"), "{device}");
        let path = error("[[target]]\ntype = \"filesystem\"\ndevice = \"LABEL=x\"\npath = \"/a/../b\"\n");
        assert!(path.starts_with("target.path"), "{path}");
        assert!(error("[capture]\ncpus = 0").contains("capture.cpus"));
        assert!(error("[finish]\naction = \"explode\"").contains("explode"));
    }

    #[test]
    fn the_command_line_overrides_and_refuses() {
        let mut config = Config::parse(FULL).unwrap();
        let refused = config.apply_cmdline(
            "quiet afterimage.level=1 afterimage.action=halt afterimage.device=LABEL=x afterimage.nope=1 \
             afterimage.level=31 afterimage.log=debug afterimage.path=relative",
        );
        assert!(config.dump.level.leaves_out_zero_pages());
        assert_eq!(config.finish.action, FinalAction::Halt);
        assert_eq!(config.capture.log, LogLevel::Debug);
        let Target::Filesystem(fs) = &config.target[0];
        assert_eq!((&fs.device, fs.path.as_str()), (&DeviceId::Label("x".into()), "/crash"));
        assert_eq!(refused.len(), 3, "{refused:?}");
    }
}
