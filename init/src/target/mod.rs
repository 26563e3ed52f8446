//! Where a dump goes. A target makes artifacts under a temporary name and publishes them by rename, so that a
//! name without `-incomplete` always means a whole file.

pub mod directory;
pub mod file;
mod filesystem;
pub mod name;

use std::io;

use crate::config::{self, TargetKind};
use crate::report::Degradation;
use crate::setup::block::NotFound;
use crate::sink::{Sink, SinkError};

/// What a capture saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Artifact {
    /// The kernel log, saved first.
    Dmesg,
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
            Self::Vmcore => "vmcore",
            Self::Result => "result.json",
        }
    }
}

/// Why a target did not do something.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] NotFound),
    /// No file system that we know on the device.
    #[error("{0} holds no ext4, xfs, btrfs or vfat file system")]
    NoFilesystem(String),
    /// The device takes no writes.
    #[error("{0} is read-only")]
    ReadOnly(String),
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

/// A place that holds the artifacts of one capture.
pub trait Target {
    /// Where that is, for people: device and directory.
    fn location(&self) -> String;

    /// Starts an artifact under its temporary name.
    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError>;

    /// Gives a finished artifact, whose sink has been synced and dropped, its final name, durably.
    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError>;

    /// Lets go of the device, so that nothing is left to write when the machine goes down.
    fn close(self: Box<Self>) -> Result<(), TargetError>;
}

/// Opens the first target that can be used. The others' causes are reported through `degrade`.
pub fn open_first(
    targets: &[config::Target],
    name: &str,
    heartbeat: &dyn Fn(),
    degrade: &mut dyn FnMut(Degradation),
) -> Option<Box<dyn Target>> {
    for config in targets {
        let opened = match config.kind {
            TargetKind::Filesystem => filesystem::Filesystem::open(config, name, heartbeat),
        };
        match opened {
            Ok(target) => return Some(Box::new(target)),
            Err(error) => {
                let cause = crate::log::chain(&error);
                degrade(Degradation::Target { target: format!("{}:{}", config.device, config.path), cause });
            }
        }
    }
    None
}
