//! The captures in a directory of a target: which are ours, in which order they came, and which may
//! go.
//!
//! A directory is ours if it holds a marker of ours, which has a sequence number: "oldest" needs no
//! clock and no name. Files of ours go by name, and the directory only when nothing else is in it.

use base::beat;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::{UnlinkatFlags, fsync, unlinkat};
use serde::{Deserialize, Serialize};

use crate::targets::ours::OpenDirectory;
use vmcore::target::{Artifact, DEBUG_FILE, Ledger};

/// In each directory of ours.
pub(super) const MARKER: &str = ".afterimage";
/// Beside the directories.
const LEDGER: &str = ".afterimage-ledger";
/// Entries of a directory that are looked at: more than any number of captures. Who may write there
/// may have left more.
const MOST_ENTRIES: usize = 200_000;
/// Time for that: a file server answers for each entry.
const LISTING: Duration = Duration::from_secs(10);
/// Entries after which it is looked at the clock.
const STRIDE: usize = 256;

/// What a marker says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    sequence: u64,
}

/// Marks a capture's directory as ours, durably.
pub(super) fn mark(directory: &OpenDirectory, sequence: u64) -> io::Result<()> {
    directory.write_new(MARKER, &toml::to_string(&Marker { sequence }).unwrap_or_default())
}

/// Reads the ledger of a directory of captures. One that is missing or makes no sense begins anew,
/// but never with a number that is in use.
#[must_use]
pub fn read_ledger(parent: &OpenDirectory) -> Ledger {
    let text = parent.read(LEDGER).unwrap_or_default();
    let mut ledger: Ledger = toml::from_str(&text).unwrap_or_default();
    let used = list(parent, MOST_ENTRIES, LISTING).iter().map(|(sequence, ..)| *sequence).max();
    ledger.sequence = ledger.sequence.max(used.unwrap_or(0));
    ledger
}

/// Replaces it, durably: there is always an old one or a new one.
pub fn write_ledger(parent: &OpenDirectory, ledger: &Ledger) -> io::Result<()> {
    parent.replace(LEDGER, &toml::to_string(ledger).unwrap_or_default())
}

/// Forgets the crashes that the directory at `path` remembers: an operator has seen to them. Says
/// how many there were.
pub fn reset(path: &Path) -> io::Result<usize> {
    let parent = OpenDirectory::open_at(path)?;
    // Not made by a mistyped name.
    parent.open(LEDGER)?;
    let mut ledger = read_ledger(&parent);
    let crashes = ledger.crashes.len();
    ledger.reset();
    write_ledger(&parent, &ledger)?;
    Ok(crashes)
}

/// Removes captures of ours until `keep` complete ones are left, the oldest first, with what came
/// before them. `sequence` is the new one, which is safe.
pub(super) fn retire(parent: &OpenDirectory, keep: u32, sequence: u64) -> io::Result<()> {
    let mut captures = list(parent, MOST_ENTRIES, LISTING);
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

/// Captures of ours: sequence number, name, whether there is a whole dump. Among others' entries,
/// none of which is opened, they are found as far as `most` entries and `limit` go.
fn list(parent: &OpenDirectory, most: usize, limit: Duration) -> Vec<(u64, String, bool)> {
    let (start, mut known) = (Instant::now(), Vec::new());
    let entries = fs::read_dir(parent.proc_path()).into_iter().flatten().flatten();
    for (number, entry) in entries.enumerate() {
        if number.is_multiple_of(STRIDE) {
            beat::alive();
        }
        if number >= most || (number.is_multiple_of(STRIDE) && start.elapsed() >= limit) {
            log::warn!(
                "the directory of the captures has more than {number} entries: captures behind them are \
                 neither counted nor retired; remove what is not of afterimage, and let nobody but root \
                 write there (chmod 0755)"
            );
            break;
        }
        // Of the file systems that we know only some old ones do not tell what an entry is.
        if entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
            continue;
        }
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(directory) = parent.open_directory(&name) else { continue };
        let marker = directory.read(MARKER).ok().and_then(|text| toml::from_str::<Marker>(&text).ok());
        let complete = directory.open(Artifact::Vmcore.name()).is_ok();
        known.extend(marker.map(|marker| (marker.sequence, name, complete)));
    }
    known
}

/// Removes the files of ours in a capture's directory, the marker last, and then the directory if
/// that is all there was.
fn remove(parent: &OpenDirectory, name: &str) -> io::Result<()> {
    let Some(directory) = parent.open_directory(name) else { return Ok(()) };
    let artifacts = Artifact::ALL.iter();
    let files = artifacts.flat_map(|artifact| [artifact.name().to_owned(), artifact.temporary()]);
    for file in files.chain([DEBUG_FILE.to_owned()]) {
        ignore_missing(unlinkat(&directory.fd, file.as_str(), UnlinkatFlags::NoRemoveDir))?;
    }
    let path = format!("{name}/{MARKER}");
    let others = fs::read_dir(directory.proc_path())?;
    if others.flatten().any(|entry| entry.file_name() != MARKER) {
        log::warn!("{name} has files that are not ours: it stays");
        return Ok(());
    }
    ignore_missing(unlinkat(parent.fd.as_fd(), path.as_str(), UnlinkatFlags::NoRemoveDir))?;
    ignore_missing(unlinkat(parent.fd.as_fd(), name, UnlinkatFlags::RemoveDir))?;
    Ok(fsync(&parent.fd)?)
}

fn ignore_missing(result: nix::Result<()>) -> io::Result<()> {
    match result {
        Err(nix::errno::Errno::ENOENT) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::geteuid;

    fn place(path: &Path) -> OpenDirectory {
        OpenDirectory::open_at(path).unwrap()
    }

    /// A directory of captures; each by its name, number, and whether it is complete.
    fn captures(of: &[(&str, u64, bool)]) -> (tempfile::TempDir, OpenDirectory) {
        let root = tempfile::tempdir().unwrap();
        for (name, sequence, complete) in of {
            let at = root.path().join(name);
            fs::create_dir(&at).unwrap();
            mark(&place(&at), *sequence).unwrap();
            // All that a capture, and the host afterwards, may leave there.
            let names = Artifact::ALL.iter().map(|artifact| artifact.name()).chain([DEBUG_FILE]);
            names.filter(|name| *name != "vmcore").for_each(|name| fs::write(at.join(name), "x").unwrap());
            fs::write(at.join(if *complete { "vmcore" } else { "vmcore-incomplete" }), "core").unwrap();
        }
        let fd = place(root.path());
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
        retire(&fd, 2, 5).unwrap();
        assert_eq!(left(&root), ["a", "w", "x"]);
        retire(&fd, 1, 5).unwrap();
        assert_eq!(left(&root), ["a"]);
    }

    #[test]
    fn what_is_not_ours_stays() {
        let (root, fd) = captures(&[("old", 1, true), ("mixed", 2, true), ("new", 3, true)]);
        fs::write(root.path().join("mixed/notes-of-mine.txt"), "keep me").unwrap();
        fs::create_dir(root.path().join("foreign")).unwrap();
        fs::write(root.path().join("foreign/vmcore"), "core").unwrap();
        std::os::unix::fs::symlink("old", root.path().join("link")).unwrap();
        retire(&fd, 1, 3).unwrap();
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
        assert_eq!(read_ledger(&fd), Ledger { sequence: 1, ..Ledger::default() });
        retire(&fd, 1, 2).unwrap();
        assert_eq!(left(&root), [LEDGER, "theirs"]);
    }

    #[test]
    fn a_listing_ends_after_so_many_entries_and_so_much_time() {
        let (_root, fd) = captures(&[("a", 1, true), ("b", 2, true), ("c", 3, true)]);
        assert_eq!(list(&fd, MOST_ENTRIES, LISTING).len(), 3);
        assert_eq!(list(&fd, 2, LISTING).len(), 2);
        assert_eq!(list(&fd, MOST_ENTRIES, Duration::ZERO).len(), 0);
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
        assert_eq!(read_ledger(&fd).sequence, 7);
        let ledger = Ledger { sequence: 9, crashes: vec![5, 6], looping: true, latest: "x".into() };
        write_ledger(&fd, &ledger).unwrap();
        write_ledger(&fd, &ledger).unwrap();
        assert_eq!(read_ledger(&fd), ledger);
        assert_eq!(reset(root.path()).unwrap(), 2);
        let after = read_ledger(&fd);
        assert_eq!((after.sequence, after.looping, after.crashes.len()), (9, false, 0));
        fs::write(root.path().join(LEDGER), b"\xff rubbish").unwrap();
        assert_eq!(read_ledger(&fd), Ledger { sequence: 7, ..Ledger::default() });
    }
}
