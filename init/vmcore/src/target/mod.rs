//! Where a dump goes. A target makes artifacts under a temporary name and publishes them by rename,
//! so that a name without `-incomplete` always means a whole file.

mod error;
pub mod ledger;
pub mod name;

use core::fmt;
use std::io;
use std::path::PathBuf;

use base::config;
use base::facts::{Recorded, Remote, View};
use serde::Serialize;

pub use crate::report::Sent;
use crate::sink::Sink;

pub use error::TargetError;
pub use ledger::Ledger;

/// What the host puts beside a dump: the debug file of its kernel.
pub const DEBUG_FILE: &str = "vmlinux.xz";

/// What a capture saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Artifact {
    /// The kernel log, saved first.
    Dmesg,
    /// What was running when the kernel came to its end, for people.
    SummaryText,
    /// The same for programs.
    Summary,
    /// What live collectors found before a planned switch: a tar.
    Live,
    /// Registers and VMCOREINFO, where there is no dump: an ELF core without memory.
    Notes,
    /// The dump.
    Vmcore,
    /// What was running, as rows, and files that were in memory only: a tar, compressed by zstd.
    Triage,
    /// What became of it all.
    Result,
    /// What was done, step by step, each line bound to the one before it.
    Events,
    /// What the loader recorded of this image and its key, before anything happened.
    Arm,
    /// The signature of [`Artifact::Arm`] by the host's key.
    ArmSignature,
    /// What all the others are, and of what: their sums, their source, their tools.
    Manifest,
    /// The signature of [`Artifact::Manifest`] by the key of this load.
    Signature,
    /// Sums of the files in the form of coreutils.
    Sums,
}

impl Artifact {
    /// All of them, the order in which they are removed: the largest first, what tells of the others last.
    pub const ALL: [Self; 14] = [
        Self::Vmcore,
        Self::Triage,
        Self::Notes,
        Self::Live,
        Self::Summary,
        Self::SummaryText,
        Self::Dmesg,
        Self::Events,
        Self::Arm,
        Self::ArmSignature,
        Self::Sums,
        Self::Signature,
        Self::Manifest,
        Self::Result,
    ];

    /// File name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dmesg => "dmesg.txt",
            Self::SummaryText => "summary.txt",
            Self::Summary => "summary.json",
            Self::Live => "live.tar",
            Self::Notes => "notes.elf",
            Self::Vmcore => "vmcore",
            Self::Triage => "triage.tar.zst",
            Self::Result => "result.json",
            Self::Events => "events.jsonl",
            Self::Arm => "arm.json",
            Self::ArmSignature => "arm.json.minisig",
            Self::Manifest => "manifest.json",
            Self::Signature => "manifest.json.minisig",
            Self::Sums => "SHA256SUMS",
        }
    }

    /// What it is, for programs.
    #[must_use]
    pub fn role(self) -> &'static str {
        match self {
            Self::Dmesg => "log",
            Self::SummaryText => "summary-text",
            Self::Summary => "summary",
            Self::Live => "live",
            Self::Notes => "notes",
            Self::Vmcore => "memory",
            Self::Triage => "triage",
            Self::Result => "result",
            Self::Events => "events",
            Self::Arm => "arm-record",
            Self::ArmSignature => "arm-signature",
            Self::Manifest => "manifest",
            Self::Signature => "signature",
            Self::Sums => "sums",
        }
    }

    /// File name until it is whole.
    #[must_use]
    pub fn temporary(self) -> String {
        format!("{}-incomplete", self.name())
    }
}

/// The capture that wants a target.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "it holds a closure")]
pub struct Capture<'a> {
    /// Index of the target in the configuration.
    pub index: usize,
    /// Its name: time, host and boot, see [`name::directory`]. The same for every attempt at it.
    pub name: &'a str,
    /// The host's name, as far as it is safe as that of a directory: collectors keep the captures
    /// of each host apart.
    pub host: &'a str,
    /// When the production kernel crashed, seconds since 1970.
    pub time: u64,
    /// When crashes are a loop.
    pub crash_loop: config::CrashLoop,
    /// What the loader recorded of devices.
    pub recorded: Recorded<'a>,
    /// Where the host sees the directories of targets.
    pub views: &'a [View],
    /// What the loader found out about targets on the network.
    pub remotes: &'a [Remote],
}

/// A target that takes the dump, but not at the place that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Detour {
    /// Which.
    pub target: String,
    /// Where instead, and why.
    pub cause: String,
}

impl fmt::Display for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target {} is not quite the place that was asked for: {}", self.target, self.cause)
    }
}

/// A place that holds the artifacts of one capture.
pub trait Target {
    /// Where that is, for people: device and directory.
    fn location(&self) -> String;

    /// Where its artifacts are files while the target is open, for hooks; `None` where they are
    /// not.
    fn directory(&self) -> Option<PathBuf> {
        None
    }

    /// What the place remembers of captures, this one included; durable since the target was
    /// opened.
    fn ledger(&self) -> &Ledger;

    /// What ends a crash loop that its [`Target::ledger`] tells of, after "until": who is told has to
    /// be able to do it there.
    fn end_of_loop(&self) -> String {
        "an operator runs `afterimage reset` on it".to_owned()
    }

    /// Bytes that artifacts may still take; `None` if that is not known.
    fn room(&self) -> Option<u64>;

    /// Whether its artifacts are streams: then a dump is made in the flattened format, and is
    /// expected beforehand.
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

    /// In what it is another place than the one that was asked for: another directory, a device that is
    /// not the recorded one.
    fn detours(&self) -> Vec<String> {
        Vec::new()
    }

    /// Starts an artifact under its temporary name.
    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError>;

    /// Gives a finished artifact, whose sink has been synced and dropped, its final name, durably.
    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError>;

    /// The name under which an artifact that is whole stands there.
    fn name_of(&self, artifact: Artifact) -> &'static str {
        artifact.name()
    }

    /// Keeps what there is of an artifact that will not be whole, under a name that says so. Returns that
    /// name, or `None` if there is nothing of it: a file keeps its temporary name, and of a stream only a
    /// target knows.
    fn leave(&mut self, artifact: Artifact) -> Option<String> {
        (!self.is_stream()).then(|| artifact.temporary())
    }

    /// Fills `buffer` with what stands from `offset` on in an artifact that was published or left, so that
    /// what was not written from front to back has a sum. Fails where that cannot be read.
    fn read_back(&mut self, artifact: Artifact, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let _ = (artifact, offset, buffer);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes room for captures to come: this one is safe. Only what is beyond what was asked to be
    /// kept, and only what is ours.
    fn retire(&mut self) -> Result<(), TargetError> {
        Ok(())
    }

    /// Lets go of the device, so that nothing is left to write when the machine goes down.
    fn close(self: Box<Self>) -> Result<(), TargetError>;
}

impl<'a> Capture<'a> {
    /// A capture on a target that needs nothing else.
    #[must_use]
    pub fn new(name: &'a str, time: u64, crash_loop: config::CrashLoop) -> Self {
        Self {
            index: 0,
            name,
            host: "unknown",
            time,
            crash_loop,
            recorded: Recorded::default(),
            views: &[],
            remotes: &[],
        }
    }

    /// Where the host sees this target's directory.
    #[must_use]
    pub fn view(&self, config: &config::Target) -> Option<&'a View> {
        let name = config.to_string();
        self.views.iter().find(|view| view.target == name)
    }

    /// What the loader found out about this target.
    #[must_use]
    pub fn remote(&self, config: &config::Target) -> Option<&'a Remote> {
        let url = config.url()?.to_string();
        self.remotes.iter().find(|remote| remote.url == url)
    }
}
