//! A vmcore or a dump, whichever the files are.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vmcore::kernel::Kernel;
use vmcore::source::{Access, Core, Kdump, KdumpOpenError, Vmcore, VmcoreError};

/// Why files cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// One cannot be read at all.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// One has a dump's signature and is none, or they are no parts of one split dump.
    #[error(transparent)]
    Kdump(#[from] KdumpOpenError),
    /// It is no vmcore.
    #[error("{path}")]
    Vmcore {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: VmcoreError,
    },
    /// Several files, and not all are dumps.
    #[error("{0} is no part of a split dump: name one file, or all parts of a split dump")]
    Several(PathBuf),
}

/// An open vmcore or dump.
#[derive(Debug)]
pub enum Input {
    /// An ELF vmcore.
    Vmcore(Vmcore),
    /// A kdump-compressed dump.
    Kdump(Box<Kdump>),
}

impl Input {
    /// Opens a file as what its first bytes say it is: an ELF vmcore, or a dump, flattened or not.
    /// Several files are the parts of a split dump.
    pub fn open(paths: &[PathBuf]) -> Result<Self, InputError> {
        let mut dumps = 0_usize;
        for path in paths {
            if is_dump(path)? {
                dumps = dumps.saturating_add(1);
            } else if paths.len() > 1 {
                return Err(InputError::Several(path.clone()));
            }
        }
        match paths {
            [path] if dumps == 0 => {
                let core = Vmcore::open(path, Access::Mmap);
                core.map(Self::Vmcore).map_err(|source| InputError::Vmcore { path: path.clone(), source })
            }
            _ => Ok(Self::Kdump(Box::new(Kdump::open_set(paths)?))),
        }
    }

    /// Its memory, and what else a dump is made of.
    #[must_use]
    pub fn core(&self) -> &dyn Core {
        match self {
            Self::Vmcore(core) => core,
            Self::Kdump(dump) => dump.as_ref(),
        }
    }

    /// The kernel in it.
    #[must_use]
    pub fn kernel(&self) -> Kernel<'_> {
        let core = self.core();
        Kernel::new(core, core.info(), core.mappings())
    }

    /// Machine name.
    #[must_use]
    pub fn machine(&self) -> &str {
        self.core().machine().unwrap_or("unknown")
    }
}

/// Whether `path` leads to one of the files in `input`, by whatever name.
pub(crate) fn is_input(path: &Path, input: &[PathBuf]) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    id(path).is_some_and(|found| input.iter().any(|input| id(input) == Some(found)))
}

fn is_dump(path: &Path) -> Result<bool, InputError> {
    let failed = |source| InputError::Read { path: path.to_owned(), source };
    if path.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    // Before it is opened, for that would wait.
    storage::targets::raw::check_kind(path).map_err(failed)?;
    Kdump::is_dump(path).map_err(failed)
}
