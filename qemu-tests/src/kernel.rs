//! Kernels in the cache, fetched by scripts/fetch-kernels when they are missing.

use crate::cache::{cache, workspace};
use crate::command::{Run, command};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// One installed kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    root: PathBuf,
    version: String,
}

impl Kernel {
    /// The kernel of a series such as `6.1`.
    pub fn of_series(series: &str) -> Result<Self> {
        Self::fetch(series, &[])
    }

    /// The same, with `vmlinux` and its debugging information.
    pub fn with_symbols(series: &str) -> Result<Self> {
        let kernel = Self::fetch(series, &["--dbg"])?;
        let vmlinux = kernel.vmlinux();
        ensure!(vmlinux.is_file(), "fetch-kernels left no {}", vmlinux.display());
        Ok(kernel)
    }

    /// The script is asked every time: it alone knows when a kernel is complete, and says so in
    /// milliseconds.
    fn fetch(series: &str, options: &[&str]) -> Result<Self> {
        let script = workspace().join("scripts/fetch-kernels");
        command(&script.to_string_lossy()).args(options).arg(series).run()?;
        let root = cache()?.join("kernels").join(series);
        let version = only_entry(&root.join("lib/modules"))?;
        Ok(Self { root, version })
    }

    /// The release as `uname -r` prints it.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The bootable image.
    #[must_use]
    pub fn vmlinuz(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.version))
    }

    /// The directory `lib/modules/VERSION`.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.version)
    }

    /// The kernel with symbols; there only for [`Kernel::with_symbols`].
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.root.join("usr/lib/debug/boot").join(format!("vmlinux-{}", self.version))
    }
}

fn only_entry(directory: &Path) -> Result<String> {
    let context = || format!("reading {}", directory.display());
    let entries = fs::read_dir(directory).with_context(context)?;
    let names: Vec<_> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()
        .with_context(context)?;
    match names.as_slice() {
        [name] => Ok(name.clone()),
        _ => anyhow::bail!("{} holds {names:?} instead of one kernel", directory.display()),
    }
}
