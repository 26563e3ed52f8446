//! The directory a run works in: removed after success, kept and named after anything else.

use crate::cache::target;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A directory that stays unless [`WorkDir::discard`] is called.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    keep: bool,
}

impl WorkDir {
    /// Makes an empty directory below the target directory; disk images are too big for a tmpfs.
    pub fn new(name: &str) -> Result<Self> {
        let parent = target().join("qemu-tests");
        fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
        let path = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(parent)?.keep();
        Ok(Self { path, keep: true })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it: the run went well.
    pub fn discard(mut self) -> Result<()> {
        self.keep = false;
        fs::remove_dir_all(&self.path).with_context(|| format!("removing {}", self.path.display()))
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("kept for a look: {}", self.path.display());
        }
    }
}
