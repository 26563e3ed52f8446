//! `afterimage switch`: a switch of kernels that keeps all memory, on purpose.
//!
//! Refusals come first and leave the host as it was. From then on each step is told in a line; what
//! a step has changed is undone if a later one fails, up to the jump. What the capture kernel then
//! does is none of this module's business.

mod archive;
mod collect;
pub mod files;
mod intent;
mod locked;
mod machine;
mod options;
mod process;
mod quiet;
mod steps;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base::config::{Config, Via};
use base::facts::handover::TooLarge;
use nix::fcntl::{Flock, FlockArg};

use crate::host;
use crate::image::{self, ImageError};
use crate::loader::{self, LoadError, Loaded, Proof, Road};
use crate::trusted;

pub use locked::LockedError;
pub use options::Options;
pub use quiet::QuietError;

use machine::ThisMachine;
use quiet::Places;
use steps::Job;

/// Held while a switch is under way. Its directory is root's alone: who can open the file can hold
/// it, and so keep everybody from switching.
const LOCK: &str = "/run/afterimage/private/switch.lock";

/// Why there is no switch.
#[derive(Debug, thiserror::Error)]
pub enum PlannedError {
    /// Nothing to switch to.
    #[error("no panic kernel is loaded, so there is nothing to switch to: run `afterimage load` first")]
    NotArmed,
    /// Another program's panic kernel.
    #[error("the panic kernel was not loaded by afterimage in this boot: run `afterimage load` first")]
    NotOurs,
    /// Another loader's, or a record that was changed.
    #[error("what is loaded is not what afterimage loaded: {0}; run `afterimage load` again")]
    Replaced(String),
    /// Not root.
    #[error("switching kernels needs root")]
    NotRoot,
    /// The kernel placed the image itself, and tells nobody where.
    #[error(
        "the panic kernel was loaded with kexec_file_load, which tells nobody its entry: \
         only --via panic can switch to it (the kernel is in lockdown mode {0})"
    )]
    FileLoad(String),
    /// No sysrq.
    #[error(
        "this kernel has no /proc/sysrq-trigger (CONFIG_MAGIC_SYSRQ), so --via panic has nothing to panic \
         with"
    )]
    NoSysrq,
    /// Evidence mode.
    #[error("planned.evidence is set: give a reason with --why")]
    NoReason,
    /// A staged page is for kexec.
    #[error("--stage prepares for kexec, and planned.via is \"panic\": give --via kexec")]
    StagePanic,
    /// Another one.
    #[error("another planned switch is under way")]
    UnderWay,
    /// The lock file.
    #[error("taking the lock {LOCK}")]
    Lock(#[source] io::Error),
    /// The image.
    #[error("reading {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// What is in it.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It was built anew since.
    #[error("{0} is not the image that is loaded any more: run `afterimage load` again")]
    ImageChanged(PathBuf),
    /// The record.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// Evidence mode wants the intent on a disk.
    #[error("planned.evidence is set, and the intent cannot be written to {path}")]
    Intents {
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The archive of what was found.
    #[error("putting live.tar together")]
    Archive(#[source] io::Error),
    /// Its place in memory.
    #[error(transparent)]
    Locked(#[from] LockedError),
    /// It does not keep its place.
    #[error(
        "the pages of live.tar were moved {0} times: memory is being compacted or taken away; try again later"
    )]
    Moves(u32),
    /// Something does not stand still.
    #[error(transparent)]
    Quiet(#[from] QuietError),
    /// The load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The jump.
    #[error("the switch by {via} failed, and this kernel runs on")]
    Jump {
        /// How it was tried.
        via: Via,
        /// Cause.
        source: io::Error,
    },
    /// Where this program is.
    #[error("finding this program")]
    Program(#[source] io::Error),
}

/// What the host says of itself where a switch may be refused.
#[derive(Clone, Debug)]
struct Seen {
    armed: bool,
    recorded: Option<Loaded>,
    /// Whether what is loaded is what was recorded.
    proof: Option<Proof>,
    root: bool,
    sysrq: bool,
}

impl Seen {
    fn look() -> Self {
        let (armed, recorded) = (host::is_loaded(), loader::recorded());
        Self {
            armed,
            proof: recorded.as_ref().filter(|_| armed).map(Proof::of),
            recorded,
            root: nix::unistd::geteuid().is_root(),
            sysrq: Path::new("/proc/sysrq-trigger").exists(),
        }
    }

    /// Whether there is anything to switch to; what was loaded if so.
    fn loaded(&self) -> Result<&Loaded, PlannedError> {
        if !self.armed {
            return Err(PlannedError::NotArmed);
        }
        let recorded = self.recorded.as_ref().ok_or(PlannedError::NotOurs)?;
        if let Some(Proof::Other(why)) = &self.proof {
            return Err(PlannedError::Replaced(why.clone()));
        }
        if self.root { Ok(recorded) } else { Err(PlannedError::NotRoot) }
    }

    /// Whether the switch that is asked for may be.
    fn permits(&self, options: &Options, config: &Config) -> Result<(), PlannedError> {
        if config.planned.evidence && options.why().is_empty() {
            return Err(PlannedError::NoReason);
        }
        match options.via(config) {
            Via::Panic if options.stage => Err(PlannedError::StagePanic),
            Via::Panic if !self.sysrq => Err(PlannedError::NoSysrq),
            Via::Kexec if self.recorded.as_ref().is_some_and(|loaded| loaded.road == Road::FileLoad) => {
                Err(PlannedError::FileLoad(host::lockdown()))
            }
            _ => Ok(()),
        }
    }
}

/// Does what is asked for. A switch comes back only with an error.
pub fn run(options: &Options) -> Result<(), PlannedError> {
    let seen = Seen::look();
    if options.unstage {
        if !seen.root {
            return Err(PlannedError::NotRoot);
        }
        let _lock = lock(Path::new(LOCK))?;
        let config = seen.loaded().and_then(loaded_config).unwrap_or_default();
        return job(options, &config, &mut ThisMachine)?.unstage();
    }
    let loaded = seen.loaded()?;
    let config = loaded_config(loaded)?;
    seen.permits(options, &config)?;
    let _lock = lock(Path::new(LOCK))?;
    let mut machine = ThisMachine;
    let mut job = job(options, &config, &mut machine)?;
    job.say("check", &format!("kernel {} is loaded with {}", loaded.kernel, loaded.image_file.display()));
    if loaded.staged && !options.stage {
        let text =
            "already: any kexec is a capture, with the reason of whoever staged it; this one has its own";
        job.say("staged", text);
    }
    if options.stage { job.stage() } else { job.switch() }
}

fn job<'a>(
    options: &'a Options,
    config: &'a Config,
    machine: &'a mut ThisMachine,
) -> Result<Job<'a>, PlannedError> {
    let program = std::env::current_exe().map_err(PlannedError::Program)?;
    Ok(Job { options, config, machine, places: Places::default(), program, out: Box::new(io::stdout()) })
}

/// The configuration in the image that is loaded.
fn loaded_config(loaded: &Loaded) -> Result<Config, PlannedError> {
    let path = &loaded.image_file;
    let image = trusted::read(path).map_err(|source| PlannedError::Read { path: path.clone(), source })?;
    if format!("{:08x}", crc32fast::hash(&image)) != loaded.image_crc32 {
        return Err(PlannedError::ImageChanged(path.clone()));
    }
    Ok(image::read_contents(&image, path)?.config)
}

/// Held until dropped; the kernel lets go of it however we end.
fn lock(path: &Path) -> Result<Flock<File>, PlannedError> {
    let file = private_directory(path.parent().unwrap_or(Path::new("/"))).and_then(|()| {
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)
    });
    let file = file.map_err(PlannedError::Lock)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => PlannedError::UnderWay,
        errno => PlannedError::Lock(errno.into()),
    })
}

/// Makes a directory that only this user enters; one that is there already becomes such.
fn private_directory(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir.parent().unwrap_or(dir))?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
        made => return made,
    }
    let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    let opened = File::options().read(true).custom_flags(flags).open(dir)?;
    if opened.metadata()?.uid() != nix::unistd::geteuid().as_raw() {
        let text = format!("{} belongs to another user: remove it", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    opened.set_permissions(fs::Permissions::from_mode(0o700))
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen { armed: true, recorded: Some(by(Road::Own)), proof: Some(Proof::Same), root: true, sysrq: true }
    }

    fn by(road: Road) -> Loaded {
        Loaded { road, ..Loaded::default() }
    }

    fn config(text: &str) -> Config {
        Config::parse(&format!("[planned]\n{text}")).unwrap()
    }

    fn refusal(seen: &Seen, options: &Options, text: &str) -> String {
        let refused = seen.loaded().map(|_| ()).and_then(|()| seen.permits(options, &config(text)));
        refused.map_or_else(|error| error.to_string(), |()| "none".to_owned())
    }

    #[test]
    fn each_refusal_has_its_own_message() {
        let plain = Options::default();
        let by_panic = Options { via: Some(Via::Panic), ..Options::default() };
        let staging = Options { stage: true, ..Options::default() };
        let with_reason = Options { why: Some(" disk ".into()), ..Options::default() };
        let blank = Options { why: Some("  ".into()), ..Options::default() };
        assert_eq!(refusal(&seen(), &plain, ""), "none");
        let cases = [
            (Seen { armed: false, ..seen() }, &plain, "", "no panic kernel is loaded"),
            (Seen { recorded: None, ..seen() }, &plain, "", "not loaded by afterimage"),
            (Seen { root: false, ..seen() }, &plain, "", "needs root"),
            (
                Seen { proof: Some(Proof::Other("another image".into())), ..seen() },
                &plain,
                "",
                "another image",
            ),
            (
                Seen { proof: Some(Proof::Other("another image".into())), ..seen() },
                &by_panic,
                "",
                "load` again",
            ),
            (Seen { proof: Some(Proof::Unproved("no kcore".into())), ..seen() }, &plain, "", "none"),
            (Seen { recorded: Some(by(Road::FileLoad)), ..seen() }, &plain, "", "only --via panic"),
            (Seen { sysrq: false, ..seen() }, &by_panic, "", "/proc/sysrq-trigger"),
            (Seen { sysrq: false, ..seen() }, &plain, "via = \"panic\"", "/proc/sysrq-trigger"),
            (seen(), &staging, "via = \"panic\"", "--via kexec"),
            (seen(), &plain, "evidence = true", "--why"),
            (seen(), &blank, "evidence = true", "--why"),
            (seen(), &staging, "evidence = true", "--why"),
            (Seen { recorded: Some(by(Road::FileLoad)), ..seen() }, &by_panic, "", "none"),
            (Seen { sysrq: false, ..seen() }, &plain, "", "none"),
            (seen(), &with_reason, "evidence = true", "none"),
        ];
        for (seen, options, text, expected) in cases {
            let message = refusal(&seen, options, text);
            assert!(message.contains(expected), "{message} is not about {expected}");
        }
    }

    #[test]
    fn a_second_switch_is_refused_while_one_is_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("afterimage/private/switch.lock");
        let first = lock(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let private = path.parent().unwrap();
        assert_eq!((mode(private), mode(&path)), (0o700, 0o600), "nobody else can hold it");
        fs::set_permissions(private, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(lock(&path), Err(PlannedError::UnderWay)));
        drop(first);
        lock(&path).unwrap();
        assert_eq!(mode(private), 0o700);
        // What others can have left there is neither waited for nor followed.
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(lock(&path), Err(PlannedError::Lock(_))));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(matches!(lock(&path), Err(PlannedError::Lock(_))));
        assert!(!dir.path().join("elsewhere").exists());
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(matches!(lock(&dir.path().join("file/lock")), Err(PlannedError::Lock(_))));
    }

    #[test]
    fn an_image_that_was_built_anew_is_not_the_one_that_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let image_file = dir.path().join("image");
        let loaded =
            Loaded { image_file: image_file.clone(), image_crc32: "00000000".into(), ..Loaded::default() };
        assert!(matches!(loaded_config(&loaded), Err(PlannedError::Read { .. })));
        fs::write(&image_file, "x").unwrap();
        assert!(matches!(loaded_config(&loaded), Err(PlannedError::ImageChanged(_))));
        let loaded = Loaded { image_crc32: format!("{:08x}", crc32fast::hash(b"x")), ..loaded };
        assert!(matches!(loaded_config(&loaded), Err(PlannedError::Image(_))));
    }
}
