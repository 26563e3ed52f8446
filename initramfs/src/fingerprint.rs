//! What a file was when an image was built from it, so that `afterimage check` can tell that it has
//! changed since.
//!
//! Size and CRC32, as `load` records them of image and kernel: this finds updates and edits. It is
//! no proof against forgery; who can forge a module of this host can write the image as well.

use std::path::{Path, PathBuf};

use base::addr::to_u64;
use serde::{Deserialize, Serialize};

use crate::trusted;

/// A file and its content at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Where it lay.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// CRC32 of its content, as 8 hex digits.
    pub crc32: String,
}

/// What has become of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// As it was.
    Same,
    /// It has another content.
    Changed,
    /// It is gone, or cannot be read.
    Missing,
}

impl Fingerprint {
    /// Of the file `path` with this content.
    #[must_use]
    pub fn of(path: &Path, content: &[u8]) -> Self {
        Self { path: path.to_owned(), bytes: to_u64(content.len()), crc32: crc32(content) }
    }

    /// Compares it with the file `path` as it is now.
    #[must_use]
    pub fn compare(&self, path: &Path) -> Condition {
        match trusted::read_regular(path) {
            Ok(content) if to_u64(content.len()) == self.bytes && crc32(&content) == self.crc32 => {
                Condition::Same
            }
            Ok(_) => Condition::Changed,
            Err(_) => Condition::Missing,
        }
    }
}

/// CRC32 of some bytes, as 8 hex digits.
#[must_use]
pub fn crc32(bytes: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_change_of_content_is_seen_and_a_touch_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "level = 1").unwrap();
        let print = Fingerprint::of(&path, b"level = 1");
        assert_eq!((print.bytes, print.crc32.len()), (9, 8));
        fs::write(&path, "level = 1").unwrap();
        assert_eq!(print.compare(&path), Condition::Same);
        for other in ["level = 2", "level = 1\n", ""] {
            fs::write(&path, other).unwrap();
            assert_eq!(print.compare(&path), Condition::Changed, "{other:?}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(print.compare(&path), Condition::Missing);
    }
}
