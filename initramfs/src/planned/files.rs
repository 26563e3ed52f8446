//! Copies files into a tar, as a process of its own: a file of /proc can keep its reader waiting,
//! and only a process can be given up.
//!
//! Links below /proc are not followed: their targets, which are what is open, are listed as text.
//! An archive with such links could not be unpacked safely.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base::addr::to_u64;
use nix::libc;
use tar::Builder;

use super::archive;

/// Lines of links that are gathered for one file of the archive: what is lost at most when the
/// process is given up.
const LINKS: usize = 64 << 10;

/// Writes a tar of the files that match `patterns` to `out`, at most about `limit` bytes of it.
pub fn write(patterns: &[String], limit: u64, out: impl Write) -> io::Result<()> {
    let mut copy =
        Copy { tar: Builder::new(out), room: limit, links: String::new(), lists: 0, notes: String::new() };
    for pattern in patterns {
        match glob::glob(pattern) {
            Ok(paths) => {
                for path in paths.filter_map(Result::ok) {
                    copy.add(&path)?;
                }
                copy.flush_links()?;
            }
            Err(error) => copy.note(pattern, &error),
        }
    }
    if !copy.notes.is_empty() {
        archive::append(&mut copy.tar, "notes.txt", copy.notes.as_bytes())?;
    }
    copy.tar.into_inner()?.flush()
}

struct Copy<W: Write> {
    tar: Builder<W>,
    room: u64,
    links: String,
    lists: u32,
    notes: String,
}

impl<W: Write> Copy<W> {
    fn add(&mut self, path: &Path) -> io::Result<()> {
        let in_proc = path.starts_with("/proc");
        let kind = fs::symlink_metadata(path).map(|found| found.file_type());
        match kind {
            Ok(kind) if kind.is_symlink() && in_proc => match fs::read_link(path) {
                Ok(target) => self.link(path, &target),
                Err(error) => {
                    self.unread(path, &error);
                    Ok(())
                }
            },
            Ok(kind) if kind.is_dir() => Ok(()),
            Ok(_) => self.file(path),
            Err(error) => {
                self.unread(path, &error);
                Ok(())
            }
        }
    }

    fn file(&mut self, path: &Path) -> io::Result<()> {
        let room = self.room.saturating_sub(archive::BLOCK);
        let bytes = match read(path, room) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.unread(path, &error);
                return Ok(());
            }
        };
        if to_u64(bytes.len()) > room {
            self.note(&path.display(), &"left out: the limit is reached");
            return Ok(());
        }
        let name = path.strip_prefix("/").unwrap_or(path);
        self.room = self.room.saturating_sub(archive::size(to_u64(bytes.len())));
        archive::append(&mut self.tar, name, &bytes)
    }

    fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        let line = format!("{} -> {}\n", one_line(path), one_line(target));
        if to_u64(self.links.len()).saturating_add(to_u64(line.len())).saturating_add(archive::BLOCK)
            > self.room
        {
            self.note(&path.display(), &"left out: the limit is reached");
            return Ok(());
        }
        self.links.push_str(&line);
        if self.links.len() >= LINKS { self.flush_links() } else { Ok(()) }
    }

    fn flush_links(&mut self) -> io::Result<()> {
        if self.links.is_empty() {
            return Ok(());
        }
        self.lists = self.lists.saturating_add(1);
        let links = std::mem::take(&mut self.links);
        self.room = self.room.saturating_sub(archive::size(to_u64(links.len())));
        archive::append(&mut self.tar, format!("links-{}.txt", self.lists), links.as_bytes())
    }

    /// Processes come and go while they are looked at: that is nothing to tell.
    fn unread(&mut self, path: &Path, error: &io::Error) {
        let gone = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH));
        if !gone {
            self.note(&path.display(), error);
        }
    }

    fn note(&mut self, what: &dyn std::fmt::Display, why: &dyn std::fmt::Display) {
        if self.notes.len() < LINKS {
            self.notes.push_str(&format!("{what}: {why}").replace('\n', " "));
            self.notes.push('\n');
        }
    }
}

/// A file's bytes, and one more than `room` if it is longer. Whatever else the name stands for now
/// is not waited for.
fn read(path: &Path, room: u64) -> io::Result<Vec<u8>> {
    let file: File =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(room.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn one_line(path: &Path) -> String {
    let text = path.to_string_lossy();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn copied(patterns: &[&str], limit: u64) -> BTreeMap<String, String> {
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        let mut out = Vec::new();
        write(&patterns, limit, &mut out).unwrap();
        assert!(to_u64(out.len()) < limit + 200_000, "{} bytes", out.len());
        archive::testing::unpack(&out)
    }

    #[test]
    fn files_are_copied_and_links_of_proc_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        fs::write(dir.path().join("a.state"), b"one").unwrap();
        std::os::unix::fs::symlink("a.state", dir.path().join("b.state")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("c.state"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(dir.path().join("d.state")).unwrap();
        let found = copied(
            &[&format!("{root}/*.state"), "/proc/self/status", "/proc/self/exe", "/no/such/file", "/bad/***"],
            1 << 20,
        );
        let name = |file: &str| format!("{}/{file}", root.trim_start_matches('/'));
        assert_eq!((&*found[&name("a.state")], &*found[&name("b.state")]), ("one", "one"));
        assert!(!found.contains_key(&name("c.state")) && !found.contains_key(&name("d.state")));
        assert!(found["proc/self/status"].contains("Name:"));
        let exe = std::env::current_exe().unwrap();
        assert_eq!(found["links-1.txt"], format!("/proc/self/exe -> {}\n", exe.display()));
        let notes = &found["notes.txt"];
        assert!(notes.contains("c.state: not a regular file") && notes.contains("/bad/***: "), "{notes}");
        assert!(!notes.contains("/no/such/file"));
    }

    #[test]
    fn what_is_beyond_the_limit_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for (name, len) in [("1", 10_000), ("2", 60_000), ("3", 10_000)] {
            fs::write(dir.path().join(name), vec![b'x'; len]).unwrap();
        }
        let found = copied(&[&format!("{}/*", dir.path().display())], 40_000);
        let names: Vec<_> = found.keys().map(|name| name.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["notes.txt", "1", "3"]);
        assert!(found["notes.txt"].contains("/2: left out: the limit is reached"));
        assert!(copied(&["/dev/zero"], 10_000)["notes.txt"].contains("not a regular file"));
    }

    #[test]
    fn a_name_stays_on_its_line() {
        assert_eq!(one_line(Path::new("/a\nb\x1b[0m -> \u{e4}")), "/a\\nb\\u{1b}[0m -> \u{e4}");
    }
}
