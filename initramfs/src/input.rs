//! A vmcore or a dump, whichever a file is.

use std::io;
use std::path::{Path, PathBuf};

use capture::format::note::{self, NoteKind};
use capture::format::vmcoreinfo::VmcoreInfo;
use capture::kernel::Kernel;
use capture::source::{Access, Core, Kdump, KdumpOpenError, PhysicalMemory, Vmcore, VmcoreError};

/// Why a file cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It cannot be read at all.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// It has a dump's signature and is none.
    #[error("{path}")]
    Kdump {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: KdumpOpenError,
    },
    /// It is no vmcore.
    #[error("{path}")]
    Vmcore {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: VmcoreError,
    },
}

/// An open vmcore or dump.
#[derive(Debug)]
pub enum Input {
    /// An ELF vmcore.
    Vmcore(Vmcore),
    /// A kdump-compressed dump.
    Kdump(Kdump),
}

impl Input {
    /// Opens a file as what its first bytes say it is.
    pub fn open(path: &Path) -> Result<Self, InputError> {
        let owned = || path.to_owned();
        if path.is_dir() {
            let source = io::ErrorKind::IsADirectory.into();
            return Err(InputError::Read { path: owned(), source });
        }
        let is_dump = Kdump::is_dump(path).map_err(|source| InputError::Read { path: owned(), source })?;
        if is_dump {
            Kdump::open(path).map(Self::Kdump).map_err(|source| InputError::Kdump { path: owned(), source })
        } else {
            let core = Vmcore::open(path, Access::Pread);
            core.map(Self::Vmcore).map_err(|source| InputError::Vmcore { path: owned(), source })
        }
    }

    /// Its memory.
    #[must_use]
    pub fn memory(&self) -> &dyn PhysicalMemory {
        match self {
            Self::Vmcore(core) => core,
            Self::Kdump(dump) => dump,
        }
    }

    /// Its VMCOREINFO.
    #[must_use]
    pub fn info(&self) -> &VmcoreInfo {
        match self {
            Self::Vmcore(core) => core.info(),
            Self::Kdump(dump) => dump.info(),
        }
    }

    /// The kernel in it.
    #[must_use]
    pub fn kernel(&self) -> Kernel<'_> {
        match self {
            Self::Vmcore(core) => Kernel::new(core, core.info(), core.mappings()),
            Self::Kdump(dump) => Kernel::new(dump, dump.info(), &[]),
        }
    }

    /// Number of CPUs whose registers it holds.
    #[must_use]
    pub fn cpus(&self) -> usize {
        match self {
            Self::Vmcore(core) => usize::try_from(core.notes().cpus()).unwrap_or(usize::MAX),
            Self::Kdump(dump) => {
                let notes = note::parse_all(&dump.notes().unwrap_or_default());
                notes.iter().filter(|note| note.kind == NoteKind::CpuRegisters).count()
            }
        }
    }

    /// Machine name.
    #[must_use]
    pub fn machine(&self) -> String {
        match self {
            Self::Vmcore(core) => core.machine().unwrap_or("unknown").to_owned(),
            Self::Kdump(dump) => dump.header().utsname.machine.clone(),
        }
    }
}
