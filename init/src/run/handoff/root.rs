//! The root file system as the next root: mounted, with proc, sys and dev in it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, setsid};

use super::{HandoffError, NEW_ROOT, WAIT, inside};
use crate::run::secrets;
use base::facts::Facts;
use storage::mount::{Mounted, Wanted};

/// What the root's file systems are mounted over. A root without one of these directories is none.
const MOVED: [&str; 3] = ["proc", "sys", "dev"];
/// An empty file, to lie over the old kernel's memory.
const NOTHING: &str = "/nothing";
const SHELL: &str = "/bin/sh";

/// Why the root cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    /// A mount below it.
    #[error("mounting {0} in the root file system")]
    Bind(PathBuf, #[source] Errno),
    /// The empty file.
    #[error("making {NOTHING}")]
    Nothing(#[source] io::Error),
    /// A program in it.
    #[error("{0} of the root file system cannot be run")]
    Program(String, #[source] io::Error),
    /// No console.
    #[error("there is no console that a shell could be on")]
    NoConsole,
    /// The console.
    #[error("opening the console {0}")]
    Console(PathBuf, #[source] io::Error),
    /// The keys would be there for whoever sits at the console.
    #[error("wiping the keys in memory")]
    Secrets(#[source] io::Error),
    /// Making it the root of this process.
    #[error("changing to the root file system")]
    Change(#[source] Errno),
}

/// Mounts the root for its own init, without the old kernel's memory: what looks for a crash to
/// save would find it saved already.
pub(super) fn prepare(facts: &Facts, init: &str) -> Result<(), HandoffError> {
    let mounted = mounted(facts, false)?;
    check_program(mounted.at(), init)?;
    let vmcore = mounted.at().join("proc/vmcore");
    fs::write(NOTHING, "")
        .and_then(|()| fs::set_permissions(NOTHING, fs::Permissions::from_mode(0o400)))
        .map_err(RootError::Nothing)?;
    let flags = MsFlags::MS_BIND;
    mount(Some(NOTHING), &vmcore, None::<&str>, flags, None::<&str>)
        .and_then(|()| {
            let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, &vmcore, None::<&str>, flags, None::<&str>)
        })
        .map_err(|errno| RootError::Bind(vmcore, errno))?;
    mounted.keep();
    Ok(())
}

/// Becomes the shell of the root, which is mounted read-only. Comes back only with an error.
pub(super) fn shell(facts: &Facts) -> HandoffError {
    match become_shell(facts) {
        Ok(error) => RootError::Program(SHELL.to_owned(), error).into(),
        Err(error) => error,
    }
}

fn become_shell(facts: &Facts) -> Result<io::Error, HandoffError> {
    let console = console(&fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default())
        .ok_or(RootError::NoConsole)?;
    let mounted = mounted(facts, true)?;
    check_program(mounted.at(), SHELL)?;
    // A session of its own: the terminal that its leader opens is the one whose keys interrupt it.
    // /dev/console never is (tty_open_proc_set_tty(), drivers/tty/tty_jobctrl.c).
    let _ = setsid();
    let tty = File::options().read(true).write(true).open(&console);
    let tty = tty.map_err(|error| RootError::Console(console.clone(), error))?;
    let copy = || tty.try_clone().map_or_else(|_| Stdio::null(), Stdio::from);
    let (stdin, stdout, stderr) = (copy(), copy(), copy());
    secrets::wipe().map_err(RootError::Secrets)?; // before its name leads elsewhere
    chdir(mounted.at()).and_then(|()| chroot(".")).map_err(RootError::Change)?;
    mounted.keep();
    log::info!("final action: shell, on {}; the machine restarts when it ends", console.display());
    Ok(Command::new(SHELL).stdin(stdin).stdout(stdout).stderr(stderr).exec())
}

fn mounted(facts: &Facts, read_only: bool) -> Result<Mounted, HandoffError> {
    let root = facts.root.as_ref().ok_or(HandoffError::NoRoot)?;
    let wanted = Wanted {
        what: "root file system",
        device: &root.device,
        fstype: Some(root.fstype),
        subvolume: root.subvolume.as_deref(),
        read_only,
        is_root: true,
    };
    let mounted = Mounted::open(wanted, facts.recorded(), Path::new(NEW_ROOT), WAIT)?;
    for name in MOVED {
        // Bound, not moved: until the last step has worked PID 1 needs its own.
        let (from, to) = (Path::new("/").join(name), mounted.at().join(name));
        mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .map_err(|errno| RootError::Bind(to, errno))?;
    }
    Ok(mounted)
}

/// Whether a program is there, and can be read: PID 1 must not wait for a disk.
fn check_program(root: &Path, path: &str) -> Result<(), RootError> {
    let read = || {
        let mut file = inside(root, path)?;
        let meta = file.metadata()?;
        if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        file.read_exact(&mut [0; 4])
    };
    read().map_err(|error| RootError::Program(path.to_owned(), error))
}

/// The terminal of the last console in `/sys/class/tty/console/active`, which is the one behind
/// /dev/console (Documentation/ABI/testing/sysfs-tty). A kernel without any console has a null
/// terminal, or nothing, there.
fn console(active: &str) -> Option<PathBuf> {
    let name = active.split_ascii_whitespace().next_back()?;
    (!name.starts_with("ttynull")).then(|| Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_shell_wants_a_terminal() {
        assert_eq!(console("tty0 ttyS0\n"), Some("/dev/ttyS0".into()));
        assert_eq!(console("ttynull0\n"), None);
        assert_eq!(console(""), None);
    }

    #[test]
    fn a_program_is_looked_for_inside_its_root() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("usr/lib/systemd")).unwrap();
        fs::write(at("usr/lib/systemd/systemd"), "\x7fELF and more").unwrap();
        symlink("/usr/lib/systemd/systemd", at("init")).unwrap();
        let error = check_program(root.path(), "/init").unwrap_err();
        assert!(base::log::chain(&error).contains("ermission"), "not executable: {error}");
        fs::set_permissions(at("usr/lib/systemd/systemd"), fs::Permissions::from_mode(0o755)).unwrap();
        check_program(root.path(), "/init").unwrap();
        assert!(check_program(root.path(), "/bin/sh").is_err(), "the host's own does not count");
        symlink("/bin/sh", at("sh")).unwrap();
        assert!(check_program(root.path(), "/sh").is_err());
        assert!(check_program(root.path(), "/usr").is_err());
    }
}
