//! The captures in a directory of a target: which are ours, in which order they came, and which may
//! go.
//!
//! A directory is ours if it holds a marker of ours, which has a sequence number: "oldest" needs no
//! clock and no name. Files of ours go by name, and the directory only when nothing else is in it.

use base::beat;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, geteuid, unlinkat};
use serde::{Deserialize, Serialize};

use vmcore::target::{Artifact, Ledger};

/// In each directory of ours.
pub(super) const MARKER: &str = ".afterimage";
/// Beside the directories.
const LEDGER: &str = ".afterimage-ledger";
const NEW_LEDGER: &str = ".afterimage-ledger-new";
/// Longest marker or ledger that is read.
const MOST: u64 = 64 << 10;

/// What a marker says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    sequence: u64,
}

/// Marks a capture's directory as ours, durably.
pub(super) fn mark(directory: &OwnedFd, sequence: u64) -> io::Result<()> {
    write_new(directory, MARKER, &toml::to_string(&Marker { sequence }).unwrap_or_default())
}

/// Reads the ledger of the directory `parent`, at `path`. One that is missing or makes no sense
/// begins anew, but never with a number that is in use.
#[must_use]
pub fn read_ledger(parent: &OwnedFd, path: &Path) -> Ledger {
    let text = read(parent, LEDGER).unwrap_or_default();
    let mut ledger: Ledger = toml::from_str(&text).unwrap_or_default();
    let used = list(parent, path).iter().map(|(sequence, ..)| *sequence).max();
    ledger.sequence = ledger.sequence.max(used.unwrap_or(0));
    ledger
}

/// Replaces it, durably: there is always an old one or a new one.
pub fn write_ledger(parent: &OwnedFd, ledger: &Ledger) -> io::Result<()> {
    let _ = unlinkat(parent, NEW_LEDGER, UnlinkatFlags::NoRemoveDir);
    write_new(parent, NEW_LEDGER, &toml::to_string(ledger).unwrap_or_default())?;
    renameat(parent, NEW_LEDGER, parent, LEDGER)?;
    Ok(fsync(parent)?)
}

/// Forgets the crashes that the directory at `path` remembers: an operator has seen to them. Says
/// how many there were.
pub fn reset(path: &Path) -> io::Result<usize> {
    let parent = OwnedFd::from(File::open(path)?);
    // Not made by a mistyped name.
    open(&parent, LEDGER)?;
    let mut ledger = read_ledger(&parent, path);
    let crashes = ledger.crashes.len();
    ledger.reset();
    write_ledger(&parent, &ledger)?;
    Ok(crashes)
}

/// Removes captures of ours until `keep` complete ones are left, the oldest first, with what came
/// before them. `sequence` is the new one, which is safe.
pub(super) fn retire(parent: &OwnedFd, path: &Path, keep: u32, sequence: u64) -> io::Result<()> {
    let mut captures = list(parent, path);
    captures.retain(|(number, ..)| *number < sequence);
    captures.sort_by_key(|(number, ..)| core::cmp::Reverse(*number));
    let mut left = keep.saturating_sub(1); // the new one is among them
    for (number, name, complete) in captures {
        if left > 0 {
            left = left.saturating_sub(u32::from(complete));
            continue;
        }
        log::info!("removing capture {number}, {name}: {keep} are kept");
        beat::alive();
        remove(parent, &name)?;
    }
    Ok(())
}

/// Captures of ours: sequence number, name, whether there is a whole dump.
fn list(parent: &OwnedFd, path: &Path) -> Vec<(u64, String, bool)> {
    let names = fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let known = names.filter_map(|name| {
        let directory = open_directory(parent, &name)?;
        let marker: Marker = toml::from_str(&read(&directory, MARKER).ok()?).ok()?;
        let complete = open(&directory, Artifact::Vmcore.name()).is_ok();
        Some((marker.sequence, name, complete))
    });
    known.collect()
}

/// Removes the files of ours in a capture's directory, the marker last, and then the directory if
/// that is all there was.
fn remove(parent: &OwnedFd, name: &str) -> io::Result<()> {
    let Some(directory) = open_directory(parent, name) else { return Ok(()) };
    let artifacts = [Artifact::Vmcore, Artifact::Notes, Artifact::Live, Artifact::Dmesg, Artifact::Result];
    let files = artifacts.iter().flat_map(|artifact| [artifact.name().to_owned(), artifact.temporary()]);
    for file in files {
        ignore_missing(unlinkat(&directory, file.as_str(), UnlinkatFlags::NoRemoveDir))?;
    }
    let path = format!("{name}/{MARKER}");
    let others = fs::read_dir(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&directory)))?;
    if others.flatten().any(|entry| entry.file_name() != MARKER) {
        log::warn!("{name} has files that are not ours: it stays");
        return Ok(());
    }
    ignore_missing(unlinkat(parent, path.as_str(), UnlinkatFlags::NoRemoveDir))?;
    ignore_missing(unlinkat(parent, name, UnlinkatFlags::RemoveDir))?;
    Ok(fsync(parent)?)
}

fn ignore_missing(result: nix::Result<()>) -> io::Result<()> {
    match result {
        Err(nix::errno::Errno::ENOENT) => Ok(()),
        other => Ok(other?),
    }
}

fn open_directory(parent: &OwnedFd, name: &str) -> Option<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent.as_fd(), name, flags, Mode::empty()).ok()
}

/// Opens a file of ours. Somebody else's is none: where everybody may write (a `/var/crash` with
/// the sticky bit), a marker or ledger of theirs would make us remove dumps, or make none.
fn open(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = File::from(openat(directory, name, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if meta.is_file() && meta.uid() == geteuid().as_raw() {
        Ok(file)
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

pub(super) fn read(directory: &OwnedFd, name: &str) -> io::Result<String> {
    let mut text = String::new();
    open(directory, name)?.take(MOST).read_to_string(&mut text)?;
    Ok(text)
}

pub(super) fn write_new(directory: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of captures; each by its name, number, and whether it is complete.
    fn captures(of: &[(&str, u64, bool)]) -> (tempfile::TempDir, OwnedFd) {
        let root = tempfile::tempdir().unwrap();
        for (name, sequence, complete) in of {
            let at = root.path().join(name);
            fs::create_dir(&at).unwrap();
            mark(&File::open(&at).unwrap().into(), *sequence).unwrap();
            fs::write(at.join("dmesg.txt"), "log").unwrap();
            fs::write(at.join(if *complete { "vmcore" } else { "vmcore-incomplete" }), "core").unwrap();
        }
        let fd = File::open(root.path()).unwrap().into();
        (root, fd)
    }

    fn left(root: &tempfile::TempDir) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(root.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_oldest_go_by_number_whatever_they_are_called() {
        // "z" is the oldest and "a" the newest; an incomplete one does not count as one that is
        // kept.
        let (root, fd) =
            captures(&[("z", 1, true), ("y", 2, false), ("x", 3, true), ("w", 4, false), ("a", 5, true)]);
        retire(&fd, root.path(), 2, 5).unwrap();
        assert_eq!(left(&root), ["a", "w", "x"]);
        retire(&fd, root.path(), 1, 5).unwrap();
        assert_eq!(left(&root), ["a"]);
    }

    #[test]
    fn what_is_not_ours_stays() {
        let (root, fd) = captures(&[("old", 1, true), ("mixed", 2, true), ("new", 3, true)]);
        fs::write(root.path().join("mixed/notes-of-mine.txt"), "keep me").unwrap();
        fs::create_dir(root.path().join("foreign")).unwrap();
        fs::write(root.path().join("foreign/vmcore"), "core").unwrap();
        std::os::unix::fs::symlink("old", root.path().join("link")).unwrap();
        retire(&fd, root.path(), 1, 3).unwrap();
        assert_eq!(left(&root), ["foreign", "link", "mixed", "new"]);
        assert_eq!(fs::read_to_string(root.path().join("mixed/notes-of-mine.txt")).unwrap(), "keep me");
        assert!(root.path().join("foreign/vmcore").exists());
    }

    #[test]
    fn what_others_leave_there_is_not_believed() {
        let (root, fd) = captures(&[("mine", 1, true)]);
        if !geteuid().is_root() {
            return; // nobody else can give files away
        }
        let (theirs, _) = captures(&[("theirs", 99, true)]);
        fs::rename(theirs.path().join("theirs"), root.path().join("theirs")).unwrap();
        write_ledger(&fd, &Ledger { sequence: 50, looping: true, ..Ledger::default() }).unwrap();
        for path in ["theirs/.afterimage", LEDGER] {
            std::os::unix::fs::chown(root.path().join(path), Some(1000), None).unwrap();
        }
        assert_eq!(read_ledger(&fd, root.path()), Ledger { sequence: 1, ..Ledger::default() });
        retire(&fd, root.path(), 1, 2).unwrap();
        assert_eq!(left(&root), [LEDGER, "theirs"]);
    }

    #[test]
    fn a_directory_without_captures_is_not_reset() {
        let (root, _) = captures(&[]);
        assert_eq!(reset(root.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(left(&root), Vec::<String>::new());
    }

    #[test]
    fn a_lost_ledger_gives_no_number_twice() {
        let (root, fd) = captures(&[("a", 7, true)]);
        assert_eq!(read_ledger(&fd, root.path()).sequence, 7);
        let ledger = Ledger { sequence: 9, crashes: vec![5, 6], looping: true, latest: "x".into() };
        write_ledger(&fd, &ledger).unwrap();
        write_ledger(&fd, &ledger).unwrap();
        assert_eq!(read_ledger(&fd, root.path()), ledger);
        assert_eq!(reset(root.path()).unwrap(), 2);
        let after = read_ledger(&fd, root.path());
        assert_eq!((after.sequence, after.looping, after.crashes.len()), (9, false, 0));
        fs::write(root.path().join(LEDGER), b"\xff rubbish").unwrap();
        assert_eq!(read_ledger(&fd, root.path()), Ledger { sequence: 7, ..Ledger::default() });
    }
}
