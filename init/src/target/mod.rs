//! Where a dump goes. A target makes artifacts under a temporary name and publishes them by rename, so that a
//! name without `-incomplete` always means a whole file.

pub mod captures;
#[cfg(any(feature = "ssh", feature = "nfs"))]
mod digest;
pub mod directory;
pub mod file;
mod filesystem;
#[cfg(feature = "https")]
mod http;
pub mod ledger;
mod mounted;
pub mod name;
#[cfg(feature = "nfs")]
mod nfs;
pub mod raw;
#[cfg(feature = "ssh")]
mod ssh;
mod stacked;
pub mod tried;

use std::io;
use std::path::PathBuf;

use crate::config::{self, TargetKind};
use crate::facts::{Remote, Stack};
pub use crate::report::Sent;
use crate::setup::block::NotFound;
#[cfg(feature = "net")]
use crate::setup::net::{NetError, Network, Up};
use crate::setup::stack::StackError;
use crate::sink::{Sink, SinkError};

pub use ledger::Ledger;

/// Kinds of targets that this program was built with. `afterimage build` looks for it in an init.
pub const BUILT_WITH: &[&str] = &[
    "afterimage-target:filesystem;",
    "afterimage-target:raw;",
    #[cfg(feature = "ssh")]
    "afterimage-target:ssh;",
    #[cfg(feature = "nfs")]
    "afterimage-target:nfs;",
    #[cfg(feature = "https")]
    "afterimage-target:https;",
    #[cfg(feature = "s3")]
    "afterimage-target:s3;",
];

/// What a capture saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Artifact {
    /// The kernel log, saved first.
    Dmesg,
    /// What live collectors found before a planned switch: a tar.
    Live,
    /// Registers and VMCOREINFO, where there is no dump: an ELF core without memory.
    Notes,
    /// The dump.
    Vmcore,
    /// What became of it all.
    Result,
}

impl Artifact {
    /// File name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dmesg => "dmesg.txt",
            Self::Live => "live.tar",
            Self::Notes => "notes.elf",
            Self::Vmcore => "vmcore",
            Self::Result => "result.json",
        }
    }

    /// File name until it is whole.
    #[must_use]
    pub fn temporary(self) -> String {
        format!("{}-incomplete", self.name())
    }
}

/// Why a target did not do something.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] NotFound),
    /// What the device stands on cannot be set up.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The configuration names no device.
    #[error("no device is given")]
    NoDevice,
    /// This program cannot reach such a target.
    #[error("this init was built without {0} targets")]
    NotBuilt(TargetKind),
    /// There is no network.
    #[cfg(feature = "net")]
    #[error("bringing up the network")]
    Network(#[from] NetError),
    /// The host, what it says, or the way to it.
    #[error("{url}: {what}")]
    Remote {
        /// Which target.
        url: String,
        /// What was being done.
        what: String,
        /// Cause.
        #[source]
        source: Box<dyn core::error::Error + Send + Sync>,
    },
    /// A stack is set up, and something else is on it: the key is not the right one any more, or the volume was given away.
    #[error("{0} was set up for {1}, which is not on it")]
    OtherContent(PathBuf, config::DeviceId),
    /// No file system that we know on the device.
    #[error("{0} holds no ext4, xfs, btrfs or vfat file system")]
    NoFilesystem(String),
    /// The device takes no writes.
    #[error("{0} is read-only")]
    ReadOnly(String),
    /// The device is no raw target, or stopped to be one.
    #[error(transparent)]
    Raw(#[from] raw::RawError),
    /// The file system does not mount.
    #[error("mounting {device} as {fstype}")]
    Mount {
        /// Which device.
        device: String,
        /// As what.
        fstype: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// A directory cannot be made or opened.
    #[error("directory {path}")]
    Directory {
        /// Which.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// A file cannot be made, renamed or made durable.
    #[error("{what} {name}")]
    File {
        /// What was being done.
        what: &'static str,
        /// Which file.
        name: String,
        /// Cause.
        source: io::Error,
    },
    /// Bytes cannot be written.
    #[error("artifact {name}")]
    Sink {
        /// Which file.
        name: &'static str,
        /// Cause.
        source: SinkError,
    },
}

/// The capture that wants a target.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "it holds a closure")]
pub struct Capture<'a> {
    /// Index of the target in the configuration.
    pub index: usize,
    /// Its name: time, host and boot, see [`name::directory`]. The same for every attempt at it.
    pub name: &'a str,
    /// The host's name, as far as it is safe as that of a directory: collectors keep the captures of each host apart.
    pub host: &'a str,
    /// When the production kernel crashed, seconds since 1970.
    pub time: u64,
    /// When crashes are a loop.
    pub crash_loop: config::CrashLoop,
    /// What the loader found between targets and disks.
    pub stacks: &'a [Stack],
    /// What the loader found out about targets on the network.
    pub remotes: &'a [Remote],
    /// The way there.
    #[cfg(feature = "net")]
    pub network: Option<&'a Network>,
    /// Called while a device is waited for.
    pub heartbeat: &'a dyn Fn(),
}

/// A place that holds the artifacts of one capture.
pub trait Target {
    /// Where that is, for people: device and directory.
    fn location(&self) -> String;

    /// Where its artifacts are files while the target is open, for hooks; `None` where they are not.
    fn directory(&self) -> Option<PathBuf> {
        None
    }

    /// What the place remembers of captures, this one included; durable since the target was opened.
    fn ledger(&self) -> &Ledger;

    /// Bytes that artifacts may still take; `None` if that is not known.
    fn room(&self) -> Option<u64>;

    /// Whether its artifacts are streams: then a dump is made in the flattened format, and is expected beforehand.
    fn is_stream(&self) -> bool {
        false
    }

    /// Says about how many bytes the dump will have, before it is created.
    fn expect(&mut self, bytes: u64) {
        let _ = bytes;
    }

    /// What was sent over the network and acknowledged, by artifact.
    fn sent(&self) -> Vec<Sent> {
        Vec::new()
    }

    /// What was wrong on the way there and did not matter, such as the clock.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Starts an artifact under its temporary name.
    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError>;

    /// Gives a finished artifact, whose sink has been synced and dropped, its final name, durably.
    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError>;

    /// Makes room for captures to come: this one is safe. Only what is beyond what was asked to be kept, and only what is ours.
    fn retire(&mut self, heartbeat: &dyn Fn()) -> Result<(), TargetError> {
        let _ = heartbeat;
        Ok(())
    }

    /// Lets go of the device, so that nothing is left to write when the machine goes down.
    fn close(self: Box<Self>) -> Result<(), TargetError>;
}

impl<'a> Capture<'a> {
    /// A capture on a target that needs nothing else.
    #[must_use]
    pub fn new(name: &'a str, time: u64, crash_loop: config::CrashLoop, heartbeat: &'a dyn Fn()) -> Self {
        Self {
            index: 0,
            name,
            host: "unknown",
            time,
            crash_loop,
            stacks: &[],
            remotes: &[],
            #[cfg(feature = "net")]
            network: None,
            heartbeat,
        }
    }

    /// The network, brought up.
    #[cfg(feature = "net")]
    pub fn up(&self) -> Result<&'a Up, TargetError> {
        Ok(self.network.ok_or(NetError::NoLinks)?.up(self.heartbeat)?)
    }

    /// Seconds that it may take to bring the network up.
    #[must_use]
    pub fn network_patience(&self) -> u64 {
        #[cfg(feature = "net")]
        let seconds = self.network.map_or(0, Network::patience);
        #[cfg(not(feature = "net"))]
        let seconds = 0;
        seconds
    }

    /// What the loader found out about this target.
    #[must_use]
    pub fn remote(&self, config: &config::Target) -> Option<&Remote> {
        let url = config.url.as_ref()?.to_string();
        self.remotes.iter().find(|remote| remote.url == url)
    }
}

/// Whether the certificates, keys and tokens that the loader recorded for a target can be used: to be known when the image is loaded, not
/// after the crash.
pub fn verify(config: &config::Target, remote: &Remote) -> Result<(), TargetError> {
    #[cfg(feature = "https")]
    if matches!(config.kind, TargetKind::Https | TargetKind::S3) {
        return http::verify(config, remote);
    }
    let _ = (config, remote);
    Ok(())
}

/// Opens a target. The error says why it cannot be used.
pub fn open(config: &config::Target, capture: Capture<'_>) -> Result<Box<dyn Target>, TargetError> {
    let device = config.device.as_ref().map(config::DeviceId::to_string);
    match capture.stacks.iter().find(|stack| Some(&stack.target) == device.as_ref()) {
        Some(stack) => Ok(Box::new(stacked::Stacked::open(config, capture, stack)?)),
        None => open_plain(config, capture),
    }
}

fn open_plain(config: &config::Target, capture: Capture<'_>) -> Result<Box<dyn Target>, TargetError> {
    match config.kind {
        TargetKind::Filesystem => Ok(Box::new(filesystem::open(config, capture)?)),
        TargetKind::Raw => Ok(Box::new(raw::Raw::open(config, capture)?)),
        #[cfg(feature = "nfs")]
        TargetKind::Nfs => Ok(Box::new(nfs::Nfs::open(config, capture)?)),
        #[cfg(feature = "ssh")]
        TargetKind::Ssh => Ok(Box::new(ssh::Ssh::open(config, capture)?)),
        #[cfg(feature = "https")]
        TargetKind::Https => Ok(Box::new(http::Http::open(config, capture)?)),
        #[cfg(feature = "s3")]
        TargetKind::S3 => Ok(Box::new(http::Http::open(config, capture)?)),
        #[cfg(not(all(feature = "ssh", feature = "nfs", feature = "https", feature = "s3")))]
        kind => Err(TargetError::NotBuilt(kind)),
    }
}
