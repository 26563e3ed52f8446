//! `live.tar`: what was found before a planned switch, as a tar that any tool reads.

use std::io::{self, Read, Write};
use std::path::Path;

use base::addr::to_u64;
use serde::Serialize;
use tar::{Builder, Header};

/// Bytes of a tar's header, to which contents are padded, too.
pub(super) const BLOCK: u64 = 512;

/// Bytes that a file of this length takes in a tar.
pub(super) fn size(len: u64) -> u64 {
    len.checked_next_multiple_of(BLOCK).and_then(|len| len.checked_add(BLOCK)).unwrap_or(u64::MAX)
}

/// A file in a tar: for root only, of now.
pub(super) fn append<W: Write>(tar: &mut Builder<W>, name: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(to_u64(bytes.len()));
    header.set_mode(0o600);
    header.set_mtime(super::now());
    tar.append_data(&mut header, name, bytes)
}

/// The archive while it grows.
pub(super) struct Archive {
    tar: Builder<Vec<u8>>,
}

impl Archive {
    /// An archive with nothing in it.
    pub(super) fn new() -> Self {
        Self { tar: Builder::new(Vec::new()) }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        to_u64(self.tar.get_ref().len())
    }

    /// Adds a file.
    pub(super) fn add(&mut self, name: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        append(&mut self.tar, name, bytes)
    }

    /// Adds a value as JSON.
    pub(super) fn add_json(&mut self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let text = base::text::json(&serde_json::to_string_pretty(value)?);
        self.add(name, format!("{text}\n").as_bytes())
    }

    /// Adds the files of another tar below `directory`, as far as it goes. Says whether it is
    /// whole.
    pub(super) fn add_tar(&mut self, directory: &str, bytes: &[u8]) -> io::Result<bool> {
        let mut other = tar::Archive::new(bytes);
        for entry in other.entries()? {
            let Ok(mut entry) = entry else { return Ok(false) };
            let name = Path::new(directory).join(entry.path()?);
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            if to_u64(bytes.len()) < entry.size() {
                return Ok(false);
            }
            self.add(name, &bytes)?;
        }
        Ok(bytes.len() >= 1024 && bytes.iter().rev().take(1024).all(|&byte| byte == 0))
    }

    /// The archive's bytes.
    pub(super) fn finish(self) -> io::Result<Vec<u8>> {
        self.tar.into_inner()
    }
}

#[cfg(test)]
pub(super) mod testing {
    use std::collections::BTreeMap;

    use super::*;

    /// The files of a tar by their names.
    pub(crate) fn unpack(bytes: &[u8]) -> BTreeMap<String, String> {
        let mut archive = tar::Archive::new(bytes);
        let files = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut text = Vec::new();
            entry.read_to_end(&mut text).unwrap();
            (name, String::from_utf8_lossy(&text).into_owned())
        });
        files.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(files: &[(&str, usize)]) -> Vec<u8> {
        let mut archive = Archive::new();
        for &(name, len) in files {
            archive.add(name, &vec![b'x'; len]).unwrap();
        }
        archive.finish().unwrap()
    }

    #[test]
    fn another_archive_is_taken_as_far_as_it_goes() {
        let long = format!("{}/f", "d".repeat(150));
        let bytes = tar_of(&[("a", 10), (&long, 2000), ("c", 600)]);
        let taken = |bytes: &[u8]| {
            let mut archive = Archive::new();
            let whole = archive.add_tar("1-x", bytes).unwrap();
            (whole, testing::unpack(&archive.finish().unwrap()).into_keys().collect::<Vec<_>>())
        };
        let all = ["1-x/a".to_owned(), "1-x/c".into(), format!("1-x/{long}")];
        assert_eq!(taken(&bytes), (true, all.to_vec()));
        for len in [0, 100, 513, 1500, bytes.len() - 1024 - 512, bytes.len() - 1024] {
            let (whole, names) = taken(&bytes[..len]);
            assert!(!whole && names.iter().all(|name| all.contains(name)), "{len}: {names:?}");
        }
        assert_eq!(taken(&bytes[..1024]).1, ["1-x/a"]);
        assert!(!taken(&[0xff; 4096]).0, "no tar at all");
    }

    #[test]
    fn sizes_are_known_beforehand() {
        for len in [0, 1, 512, 513] {
            let of = u64::try_from(len).unwrap();
            assert_eq!(to_u64(tar_of(&[("a", len)]).len()), size(of) + 1024);
        }
    }
}
