//! The configuration: one TOML file, checked on the host when the image is built, read again by PID
//! 1.
//!
//! Every key has a default except what names the target. Unknown keys and bad values are errors with line
//! and reason, on the host; the capture side falls back to [`Config::default`] and says so, because a
//! machine that does not come back is worse than a missing dump. Here is what values mean, not what is done.

mod boot;
mod checked;
mod compress;
mod device;
mod dump;
mod duration;
mod evidence;
mod finish;
mod hook;
mod level;
mod network;
mod overrides;
mod planned;
mod size;
mod target;
mod triage;
mod url;

use serde::{Deserialize, Serialize};

pub use boot::{Boot, NextKernel, NextKernelError};
pub use compress::{Compress, CompressError};
pub use device::{DeviceId, DeviceIdError};
pub use dump::{Dump, Format, FormatError};
pub use evidence::Evidence;
pub use finish::{AfterTrigger, FinalAction, Finish, Trigger};
pub use hook::{Hook, When};
pub use level::{DumpLevel, Exclude, LevelError};
pub use network::{Address, Bond, BondMode, Card, Link, LinkError, Network, Prefix, Route, Vlan, parse_mac};
pub use overrides::load;
pub use planned::{Collector, MAX_LIVE, Planned, Via, Volatility};
pub use size::{Size, SizeError};
pub use target::{
    Client, Filesystem, Https, KnownBy, Nfs, NfsVersion, Parts, Place, Raw, S3, Security, Share, Ssh, Target,
    TargetKind, Upload, WhenFull,
};
pub use triage::{Save, Triage};
pub use url::{Scheme, Url, UrlError};

/// Where the configuration lies in the image.
pub const PATH: &str = "/etc/afterimage/config.toml";
/// Where the facts about the production kernel lie; appended to the image when it is loaded.
pub const FACTS_PATH: &str = "/etc/afterimage/facts.toml";
/// Where random bytes of the host lie, for the capture's random numbers; appended likewise.
pub const SEED_PATH: &str = "/etc/afterimage/seed";
/// How many there are: twice what the kernel's generator holds.
pub const SEED_LEN: usize = 64;
/// Where the ordered module list lies in the image: a path per line.
pub const MODULES_PATH: &str = "/etc/afterimage/modules";
/// Directory of the hooks in the image, each under its index in the configuration.
pub const HOOKS_PATH: &str = "/hooks";
/// What it was built for.
pub const MANIFEST_PATH: &str = "/etc/afterimage/manifest.toml";

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is saved.
    pub dump: Dump,
    /// What is read from memory beside it.
    pub triage: Triage,
    /// What proves that it is what was captured.
    pub evidence: Evidence,
    /// Where it is saved, in the order of preference.
    pub target: Vec<Target>,
    /// How targets on the network are reached.
    #[serde(skip_serializing_if = "Network::is_clone")]
    pub network: Network,
    /// Programs of the user's that run before and after.
    pub hook: Vec<Hook>,
    /// How the capture kernel runs.
    pub capture: Capture,
    /// What happens afterwards.
    pub finish: Finish,
    /// What it goes on to.
    pub boot: Boot,
    /// What goes into the image.
    pub image: Image,
    /// How a planned switch is done.
    pub planned: Planned,
    /// What is found out before a planned switch; none: what /proc and /run tell.
    pub collector: Vec<Collector>,
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
    #[serde(deserialize_with = "checked::cpus")]
    pub cpus: u32,
    /// Seconds without any progress after which an attempt at the capture is given up.
    #[serde(deserialize_with = "checked::stall_timeout")]
    pub stall_timeout: u64,
    /// Seconds that each step but the dump itself may take: loading modules, opening a target
    /// (beside its `wait`), saving the log, closing.
    #[serde(deserialize_with = "checked::stall_timeout")]
    pub step_timeout: u64,
    /// Seconds after which the capture is given up in any case; 0 is no limit. Not given: by the
    /// size of memory, see [`Config::deadline`].
    #[serde(deserialize_with = "checked::given_duration", skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    /// Seconds after which the hardware watchdog resets a machine in which not even PID 1 runs; 0:
    /// it is left alone.
    #[serde(deserialize_with = "checked::short_duration")]
    pub watchdog: u32,
    /// After how many crashes only the log and the notes are saved.
    pub crash_loop: CrashLoop,
    /// How the image is loaded.
    pub loader: Loader,
    /// Least severe messages that are printed.
    pub log: LogLevel,
    /// Added to the capture kernel's command line.
    #[serde(deserialize_with = "checked::one_line")]
    pub cmdline_append: String,
    /// Parameters taken out of it, by name.
    pub cmdline_remove: Vec<String>,
}

/// `crash_loop`: a machine that crashes again and again must not fill its disk with dumps of the
/// same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrashLoop {
    /// Crashes that are dumped; one more within the time is a loop. 0: all are.
    pub crashes: u32,
    /// Seconds in which they happen.
    #[serde(deserialize_with = "checked::duration")]
    pub within: u64,
}

/// How the image is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loader {
    /// kexec_load(2) where it is allowed, or else kexec_file_load(2).
    #[default]
    Auto,
    /// Our own loader only: a planned switch must be possible.
    KexecLoad,
    /// The kernel's only: it checks the signature of the capture kernel.
    KexecFileLoad,
}

/// Severity of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Errors only.
    Error,
    /// Errors and warnings: something failed, and the capture went on without it.
    Warn,
    /// Also each step of the capture.
    #[default]
    Info,
    /// Also the reasons for decisions.
    Debug,
}

/// `[image]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Image {
    /// Compression of the image.
    pub compress: ImageCompress,
    /// Modules to load besides those of the file system, by name; not given: those of the target
    /// device and of the hardware watchdogs on this host.
    pub modules: Option<Vec<String>>,
    /// Whether modules lose their signature and debug sections.
    pub strip: Strip,
}

/// Compression of the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageCompress {
    /// gzip: the smallest boot peak together with xz (docs/measured/memory.md).
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
    /// TOML syntax, an unknown key, a value that cannot be; names line and reason.
    #[error("{}", .0.to_string().trim_end())]
    Toml(Box<toml::de::Error>),
    /// Keys that do not go together.
    #[error("[[target]] number {number}: {reason}")]
    Target {
        /// Which, from 1.
        number: usize,
        /// Why.
        reason: String,
    },
    /// Links that cannot be.
    #[error("[[network]] {0}")]
    Network(String),
    /// A collector that cannot run.
    #[error("[[collector]] number {number}: {reason}")]
    Collector {
        /// Which, from 1.
        number: usize,
        /// Why.
        reason: String,
    },
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            cpus: 1,
            stall_timeout: 300,
            step_timeout: 120,
            deadline: None,
            watchdog: 60,
            crash_loop: CrashLoop { crashes: 10, within: 3600 },
            loader: Loader::default(),
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
        for (number, target) in (1..).zip(&config.target) {
            let checked = target.check_patience(config.capture.stall_timeout);
            checked.map_err(|reason| ConfigError::Target { number, reason })?;
        }
        config.network.check().map_err(ConfigError::Network)?;
        for (number, collector) in (1..).zip(&config.collector) {
            collector.check().map_err(|reason| ConfigError::Collector { number, reason })?;
        }
        Ok(config)
    }

    /// Seconds that a capture may take of a machine with `memory` bytes; `None` without a limit.
    ///
    /// Not configured, it is two hours and what is read at 16 MiB/s, of all memory; with a target on
    /// the network at 1 MiB/s, but not beyond a day for that. Whoever answers slowly enough would
    /// otherwise keep the machine down for days.
    #[must_use]
    pub fn deadline(&self, memory: u64) -> Option<u64> {
        const LEAST: u64 = 2 * 3600;
        const DAY: u64 = 24 * 3600;
        let derived = || {
            let mib = memory >> 20;
            let slow = if self.needs_network() { mib.min(DAY - LEAST) } else { 0 };
            LEAST.saturating_add(slow.max(mib / 16))
        };
        match self.capture.deadline {
            Some(0) => None,
            Some(seconds) => Some(seconds),
            None => Some(derived()),
        }
    }

    /// Whether a target is reached over the network.
    #[must_use]
    pub fn needs_network(&self) -> bool {
        self.target.iter().any(|target| target.kind().is_remote())
    }

    /// The configuration as TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        // Tables, strings, numbers and lists of those, which TOML can always hold.
        toml::to_string(self).unwrap_or_default()
    }
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
        assert!(Config::default().dump.exclude.zero());
    }

    #[test]
    fn targets_on_the_network_round_trip() {
        let text = r#"
            [[target]]
            type = "ssh"
            url = "ssh://dump@collector/in"
            host_key = ["ssh-ed25519 AAAA"]
            [[target]]
            type = "nfs"
            url = "nfs://filer/export"
            version = "4.1"
            security = "sys"
            [[target]]
            type = "https"
            url = "https://web/dumps"
            pin = ["sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="]
            part_size = "8M"
            [[target]]
            type = "s3"
            url = "https://store/bucket/prefix"
            roots = "/etc/roots.pem"
            credentials = "/etc/afterimage/s3.toml"
            [[network]]
            name = "a"
            card = "52:54:00:00:00:01"
            [[network]]
            name = "b"
            card = "52:54:00:00:00:02"
            [[network]]
            name = "bond0"
            bond = { members = ["a", "b"], mode = "802.3ad" }
            [[network]]
            name = "v5"
            vlan = { id = 5, on = "bond0" }
            mtu = 1400
            address = ["dhcp", "2001:db8::2/64"]
            route = ["default via 2001:db8::1"]
            dns = ["192.0.2.53"]
        "#;
        let config = Config::parse(text).unwrap();
        assert!(config.needs_network() && config.network.links().is_some_and(|links| links.len() == 4));
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
        assert_eq!(Config::parse("network = \"clone\"").unwrap().network, Network::Clone);
        let error = |from: &str, to: &str| {
            assert!(text.contains(from));
            Config::parse(&text.replace(from, to)).unwrap_err().to_string()
        };
        for (from, to, reason) in [
            ("host_key = [\"ssh-ed25519 AAAA\"]", "", "host_key is missing"),
            ("dump@", "", "write the user"),
            ("\"sys\"", "\"krb5p\"", "Kerberos"),
            ("\"4.1\"", "\"2\"", "unknown variant"),
            ("nfs://filer/export", "ssh://u@filer/export", "begins with nfs://"),
            ("pin = [\"sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\"]", "", "roots or pin"),
            ("sha256/47DE", "sha1/47DE", "is no pin"),
            ("\"8M\"", "\"1M\"", "from 5M to 64M"),
            ("credentials = \"/etc/afterimage/s3.toml\"", "", "credentials is missing"),
            ("https://store/bucket/prefix", "http://store/bucket/prefix", "without TLS"),
            ("part_size = \"8M\"", "part_size = \"8M\"\nupload = \"stream\"", "one stream"),
            ("store/bucket/prefix", "store", "bucket"),
            ("on = \"bond0\"", "on = \"bond1\"", "stands before it"),
            ("id = 5", "id = 4095", "4094"),
            ("card = \"52:54:00:00:00:02\"", "", "one of card, vlan and bond"),
            ("name = \"b\"", "name = \"a\"", "two of this name"),
            ("mtu = 1400", "mtu = 1", "mtu"),
            ("\"dhcp\"", "\"bootp\"", "prefix length"),
        ] {
            assert!(error(from, to).contains(reason), "{to}: {}", error(from, to));
        }
    }

    #[test]
    fn keys_of_another_kind_of_target_are_refused() {
        let target = |kind: &str, key: &str| {
            format!("[[target]]\ntype = \"{kind}\"\ndevice = \"PARTUUID=x\"\n{key}\n")
        };
        for (kind, key) in [
            ("raw", "path = \"/x\""),
            ("raw", "fstype = \"xfs\""),
            ("raw", "keep = 1"),
            ("raw", "reserve = \"1M\""),
            ("filesystem", "overwrite = [\"uncollected\"]"),
        ] {
            let error = Config::parse(&target(kind, key)).unwrap_err().to_string();
            let name = key.split(' ').next().unwrap();
            assert!(error.contains("line 1,"), "{error}");
            assert!(
                error.contains(&format!("{name} means nothing for a target of the type {kind}")),
                "{error}"
            );
        }
        let raw =
            Config::parse(&target("raw", "overwrite = [\"uncollected\"]\nwhen_full = \"log\"")).unwrap();
        assert_eq!(Config::parse(&raw.to_toml()).unwrap(), raw);
    }

    #[test]
    fn errors_name_line_and_reason() {
        let target = "[[target]]\ntype = \"filesystem\"\ndevice = \"LABEL=x\"\n";
        let cases = [
            ("[dump]\nlevl = 1\n".to_owned(), 2, "levl"),
            ("[dump]\n\nlevel = 32\n".to_owned(), 3, "from 0 to 31"),
            ("[dump]\nexclude = [\"slab\"]\n".to_owned(), 2, "unused-vmemmap"),
            ("[dump]\npreset = \"tiny\"\n".to_owned(), 2, "forensic"),
            ("[dump]\nlevel = 1\npreset = \"full\"\n".to_owned(), 1, "one of them"),
            ("[dump]\nformat = \"qcow\"\n".to_owned(), 2, "unknown variant"),
            ("[dump]\ncompress = \"lzo\"\n".to_owned(), 2, "no compression"),
            (target.replace("LABEL=x", "sda1"), 3, "names no device"),
            (format!("{target}path = \"/a/../b\"\n"), 4, "absolute path"),
            (format!("{target}colour = 1\n"), 4, "colour"),
            (target.replace("filesystem", "carrier-pigeon"), 2, "carrier-pigeon"),
            ("[capture]\ncpus = 0\n".to_owned(), 2, "from 1 to 1024"),
            ("[capture]\n\n\nstall_timeout = 0\n".to_owned(), 4, "at least 1 second"),
            ("[finish]\naction = \"explode\"\n".to_owned(), 2, "explode"),
            ("[dump\n".to_owned(), 1, "TOML parse error"),
            (format!("{target}reserve = \"much\"\n"), 4, "not a size"),
            (format!("{target}keep = 0\n"), 4, "at least 1"),
        ];
        for (text, line, reason) in cases {
            let error = Config::parse(&text).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line},")) && error.contains(reason), "{text}{error}");
        }
    }
}
