//! The directory of a capture, as it was fetched from wherever it was saved.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use serde::Deserialize;

/// Bytes of a file that is read as a whole; a manifest of a dump of 10 TiB is smaller.
const LARGEST_TEXT: u64 = 64 << 20;
/// Neither is a link followed nor a pipe waited for.
const CAREFULLY: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// A directory.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

/// What a web server or object store has of a file that was sent in parts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Index {
    objects: Vec<Entry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    name: String,
    files: Vec<Part>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Part {
    name: String,
}

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The names in it.
    pub(super) fn names(&self) -> io::Result<BTreeSet<String>> {
        let name = |entry: io::Result<std::fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
        };
        std::fs::read_dir(&self.0)?.map(name).collect()
    }

    fn open_plain(&self, name: &str) -> io::Result<File> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no name of a file in a directory",
            ));
        }
        let file = OpenOptions::new().read(true).custom_flags(CAREFULLY).open(self.0.join(name))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        Ok(file)
    }

    /// The text of a small file.
    pub(super) fn text(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        self.open_plain(name)?.take(LARGEST_TEXT).read_to_string(&mut text)?;
        Ok(text)
    }

    /// The names of the parts of a file, in order, and that of their index; no parts where it is one file.
    pub(super) fn parts(&self, name: &str) -> Option<(String, Vec<String>)> {
        let index = [format!("{name}.json"), format!("{name}-incomplete.json")];
        index.into_iter().find_map(|index| {
            let read: Index = serde_json::from_str(&self.text(&index).ok()?).ok()?;
            let names = |entry: Entry| {
                let parts: Vec<_> = entry.files.into_iter().map(|part| part.name).collect();
                if parts.is_empty() { vec![entry.name] } else { parts }
            };
            Some((index, read.objects.into_iter().flat_map(names).collect()))
        })
    }

    /// A file, or its parts one behind the other, to be read from its beginning; and its length.
    pub(super) fn open(&self, name: &str) -> io::Result<(Box<dyn Read>, u64)> {
        let names = self.parts(name).map_or_else(|| vec![name.to_owned()], |(_, parts)| parts);
        let (mut all, mut bytes): (Box<dyn Read>, u64) = (Box::new(io::empty()), 0);
        for name in names {
            let file = self.open_plain(&name)?;
            bytes = bytes.saturating_add(file.metadata()?.len());
            all = Box::new(all.chain(file));
        }
        Ok((all, bytes))
    }
}
