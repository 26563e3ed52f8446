//! The hand-off to what comes after the capture, in a child of PID 1: the next kernel is loaded, or
//! the root file system is mounted, or a shell runs. PID 1 does the last step; it restarts the
//! machine where this fails.

mod cpus;
mod root;

use std::env;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use base::beat::{self, Beat, Step};
use base::config::{self, Config, FinalAction, Place};
use base::facts::{Boot, Facts};
use kexec::Machine;
use kexec::next::{self, NextError, Source};
use storage::mount::{MountError, Mounted, Wanted};
use storage::targets::Way;
use storage::targets::tried::{self, MarkError};

pub(crate) use root::RootError;

/// First argument of the child; behind it come the action, and the index of the target in use or
/// nothing.
pub(crate) const ARGUMENT: &str = "handoff";
/// Where the root file system is mounted for what comes after us.
pub(crate) const NEW_ROOT: &str = "/new-root";
/// Where the other file systems are mounted while they are needed.
const MOUNT_POINT: &str = "/handoff";
/// How long a device may take to appear: it was there a moment ago, or its driver has had all the
/// time of the capture.
const WAIT: Duration = Duration::from_secs(30);
/// An initrd that is an uncompressed archive must begin at a multiple of this behind another one
/// (init/initramfs.c).
const ALIGNMENT: u64 = 4;

/// Why there is no hand-off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoffError {
    /// PID 1 asks for something else.
    #[error("{0:?} is no action with a hand-off")]
    Order(String),
    /// The facts.
    #[error("the facts in the image: {0}")]
    Facts(String),
    /// No next kernel in them.
    #[error("the image was loaded without a next kernel: none was found then, or it is older than this init")]
    NoBoot,
    /// No root file system in them.
    #[error("the image was loaded without a root file system: none was found then")]
    NoRoot,
    /// Too few CPUs.
    #[error("the next kernel could start {expected} CPUs, finish.min_cpus is {wanted}")]
    Cpus {
        /// That there would be.
        expected: u32,
        /// That there must be.
        wanted: u32,
    },
    /// The mark on the target.
    #[error(transparent)]
    Mark(#[from] MarkError),
    /// A file system.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A file of the boot entry.
    #[error("opening {0} of the boot file system")]
    File(PathBuf, #[source] io::Error),
    /// Without it the next kernel might be written over this one.
    #[error("/proc/iomem does not say which memory this kernel has")]
    OwnMemory,
    /// The next kernel.
    #[error(transparent)]
    Next(#[from] NextError),
    /// The root file system.
    #[error(transparent)]
    Root(#[from] RootError),
}

/// What PID 1 asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    action: String,
    target: Option<usize>,
}

/// Whether this process was started for a hand-off, and for which.
#[must_use]
pub(crate) fn order() -> Option<Order> {
    let mut arguments = env::args().skip(1);
    arguments.next().filter(|word| word == ARGUMENT)?;
    let action = arguments.next().unwrap_or_default();
    Some(Order { action, target: arguments.next().and_then(|index| index.parse().ok()) })
}

/// The child's main function: whether PID 1 can do the last step. Of a shell that runs, this does
/// not come back.
#[must_use]
pub(crate) fn child(order: &Order) -> bool {
    beat::listened_to();
    let (config, _) = config::load(); // what is wrong with it the capture has said
    base::log::init_kmsg(config.capture.log.into());
    beat::tell(&Beat::Step { step: Step::Handoff, limit: 0 });
    let done =
        super::read_facts().map_err(HandoffError::Facts).and_then(|facts| match order.action.as_str() {
            action if action == FinalAction::Kexec.to_string() => kexec(&config, &facts, order.target),
            action if action == FinalAction::SwitchRoot.to_string() => {
                root::prepare(&facts, config.boot.init())
            }
            action if action == FinalAction::Shell.to_string() => Err(root::shell(&facts)),
            other => Err(HandoffError::Order(other.to_owned())),
        });
    if let Err(error) = &done {
        log::error!("{}: {}", order.action, base::log::chain(error));
    }
    done.is_ok()
}

/// Loads the next kernel. What can refuse comes before the first byte is written over the
/// production kernel's memory.
fn kexec(config: &Config, facts: &Facts, target: Option<usize>) -> Result<(), HandoffError> {
    let boot = facts.boot.as_ref().ok_or(HandoffError::NoBoot)?;
    check_cpus(config.finish.min_cpus, facts)?;
    mark(config, facts, target)?;
    let wanted = Wanted {
        what: "boot file system",
        device: &boot.device,
        fstype: Some(boot.fstype),
        subvolume: Some("/"),
        read_only: true,
        is_root: false,
    };
    let mounted = Mounted::open(wanted, facts.recorded(), Path::new(MOUNT_POINT), WAIT)?;
    load(boot, facts, mounted.at())
}

fn check_cpus(wanted: u32, facts: &Facts) -> Result<(), HandoffError> {
    let expected = cpus::expected(facts, &fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    if expected < facts.cpus {
        log::warn!(
            "this is not the CPU that the firmware started: the next kernel may not use that one any more"
        );
    }
    if expected < wanted { Err(HandoffError::Cpus { expected, wanted }) } else { Ok(()) }
}

/// Marks the target in use, if it is a file system.
fn mark(config: &Config, facts: &Facts, target: Option<usize>) -> Result<(), HandoffError> {
    let Some(target) = target.and_then(|index| config.target.get(index)) else { return Ok(()) };
    let Place::Filesystem(wanted) = &target.place else {
        log::info!("target {target} has no place for a mark that kexec was tried");
        return Ok(());
    };
    let name = target.to_string();
    let way = Way::to(wanted, facts.views.iter().find(|view| view.target == name));
    let mounted = Mounted::open(way.wanted, facts.recorded(), Path::new(MOUNT_POINT), WAIT)?;
    let mut marked = Ok(());
    for path in &way.paths {
        marked = tried::set(mounted.at(), path, &facts.boot_id);
        // Where the directory cannot be made, the capture has found another one.
        if !matches!(marked, Err(MarkError::Directory(_))) {
            break;
        }
    }
    Ok(marked?)
}

fn load(boot: &Boot, facts: &Facts, at: &Path) -> Result<(), HandoffError> {
    let (mut kernel, len) = open(at, &boot.kernel)?;
    let mut kernel = Source { reader: &mut kernel, len };
    let mut readers: Vec<Box<dyn Read>> = Vec::new();
    let mut total: u64 = 0;
    for path in &boot.initrd {
        let padding = total.next_multiple_of(ALIGNMENT).saturating_sub(total);
        let (file, len) = open(at, path)?;
        readers.push(Box::new(io::repeat(0).take(padding)));
        readers.push(Box::new(file.take(len)));
        total = total.saturating_add(padding).saturating_add(len);
    }
    let mut initrd = Chain(readers);
    let mut initrd = Source { reader: &mut initrd, len: total };
    let initrd = (total > 0).then_some(&mut initrd);
    let own = next::own_memory(&fs::read_to_string("/proc/iomem").unwrap_or_default());
    if own.is_empty() {
        return Err(HandoffError::OwnMemory);
    }
    log::info!("loading {} over the production kernel's memory", boot.kernel);
    let machine = Machine::read();
    let cmdline = format!("{} {}{}", boot.cmdline, tried::WORD, facts.boot_id);
    Ok(next::load(&machine, &facts.firmware_map, &own, &mut kernel, initrd, &cmdline)?)
}

/// A file below `at`, which links do not lead out of, and its length.
fn open(at: &Path, path: &str) -> Result<(File, u64), HandoffError> {
    let opened = inside(at, path).and_then(|file| {
        let meta = file.metadata()?;
        if meta.is_file() { Ok((meta.len(), file)) } else { Err(io::ErrorKind::InvalidInput.into()) }
    });
    opened.map(|(len, file)| (file, len)).map_err(|error| HandoffError::File(path.into(), error))
}

/// Opens `path` as if `root` were the root.
fn inside(root: &Path, path: &str) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(File::from(openat2(File::open(root)?, path, how)?))
}

/// Files one behind the other.
struct Chain(Vec<Box<dyn Read>>);

impl Read for Chain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(first) = self.0.first_mut() {
            match first.read(buffer)? {
                0 if !buffer.is_empty() => drop(self.0.remove(0)),
                len => return Ok(len),
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initrds_are_read_one_behind_the_other() {
        let piece = |bytes: &'static [u8]| -> Box<dyn Read> { Box::new(bytes) };
        let mut all = Vec::new();
        let mut chain = Chain(vec![piece(b"abc"), piece(b""), Box::new(io::repeat(0).take(1)), piece(b"d")]);
        chain.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"abc\0d");
    }

    #[test]
    fn without_an_entry_nothing_is_touched() {
        let (config, facts) = (Config::default(), Facts::default());
        assert!(matches!(kexec(&config, &facts, None), Err(HandoffError::NoBoot)));
        assert!(matches!(check_cpus(2, &Facts { cpus: 1, ..facts.clone() }), Err(HandoffError::Cpus { .. })));
        assert!(check_cpus(0, &facts).is_ok());
    }
}
