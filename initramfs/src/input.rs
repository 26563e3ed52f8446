//! Memory in files, whatever form they have: a vmcore, a dump, LiME, raw memory.

mod signature;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use base::facts::Facts;
use base::read_at::read_up_to;
use vmcore::format::vmcoreinfo::VmcoreInfo;
use vmcore::kernel::Kernel;
use vmcore::kernel::info::Origin;
use vmcore::session;
use vmcore::source::{Access, Core, Form, Kdump, KdumpOpenError, Vmcore, VmcoreError, faults};

use crate::trusted;

use signature::{Foreign, HEAD};

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
    /// A pipe, a terminal, a socket.
    #[error("{path} is {kind}: its contents are read from many places, so save it into a regular file first")]
    NotSeekable {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
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
    /// A file of another program.
    #[error("{path} is {what}: {remedy}")]
    Foreign {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What can be done.
        remedy: &'static str,
    },
    /// No signature that is known, and no kernel in it.
    #[error(
        "{path} begins with {head}, which is no ELF core, kdump-compressed or flattened dump and no LiME, and if it \
         is raw memory, there is no Linux kernel in it"
    )]
    Unknown {
        /// Which.
        path: PathBuf,
        /// The first bytes, hex.
        head: String,
    },
    /// Nothing is in it.
    #[error("{0} is empty")]
    Empty(PathBuf),
    /// A kernel of another machine.
    #[error("it is a dump of {0}: symbols, types and processes are read from dumps of x86_64 only")]
    Machine(String),
    /// Several files, and not all are dumps.
    #[error(
        "{0} is no part of a split dump: name one file, all parts of a split dump, or the parts of a flattened dump \
         in their order"
    )]
    Several(PathBuf),
}

/// Open memory, and what was found out about the kernel in it.
#[derive(Debug)]
pub struct Input {
    files: Files,
    info: VmcoreInfo,
    /// Where VMCOREINFO came from, if not from where it belongs.
    origin: Option<Origin>,
}

#[derive(Debug)]
enum Files {
    Vmcore(Vmcore),
    Kdump(Box<Kdump>),
}

impl Input {
    /// Opens a file as what its first bytes say it is. Several files are the parts of a split dump,
    /// or those of one that was flattened and sent in parts.
    pub fn open(paths: &[PathBuf]) -> Result<Self, InputError> {
        let heads: Result<Vec<Vec<u8>>, InputError> = paths.iter().map(|path| head(path)).collect();
        let heads = heads?;
        let of_parts = heads.len() > 1
            && heads.iter().skip(1).all(|head| !Kdump::has_signature(head) && Form::of(head).is_none())
            && heads.first().is_some_and(|head| Kdump::is_flattened_head(head));
        if of_parts {
            return Ok(Self::settled(Files::Kdump(Box::new(Kdump::open_parts(paths)?))));
        }
        let mut dumps = 0_usize;
        for (path, head) in paths.iter().zip(&heads) {
            if Kdump::has_signature(head) {
                dumps = dumps.saturating_add(1);
            } else if paths.len() > 1 {
                return Err(InputError::Several(path.clone()));
            }
        }
        match (paths, heads.as_slice()) {
            ([path], [head]) if dumps == 0 => Self::open_memory(path, head),
            _ => Ok(Self::settled(Files::Kdump(Box::new(Kdump::open_set(paths)?)))),
        }
    }

    /// Opens the dump of a machine whose symbols, types and processes can be read.
    pub fn open_x86_64(paths: &[PathBuf]) -> Result<Self, InputError> {
        let input = Self::open(paths)?;
        input.ensure_x86_64()?;
        Ok(input)
    }

    /// Fails if its symbols, types and processes cannot be read because of the machine.
    pub fn ensure_x86_64(&self) -> Result<(), InputError> {
        let machine = self.machine();
        if machine == "x86_64" { Ok(()) } else { Err(InputError::Machine(machine.to_owned())) }
    }

    /// Opens a file that is no dump.
    fn open_memory(path: &Path, head: &[u8]) -> Result<Self, InputError> {
        if let Some(Foreign { what, remedy }) = signature::foreign(head) {
            return Err(InputError::Foreign { path: path.to_owned(), what, remedy });
        }
        let form = Form::of(head);
        let core = Vmcore::open_form(path, Access::Mmap, form.unwrap_or(Form::Raw));
        let core = core.map_err(|source| InputError::Vmcore { path: path.to_owned(), source })?;
        let input = Self::settled(Files::Vmcore(core));
        if form.is_none() && input.info.is_empty() {
            let bytes: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            let head = bytes.concat();
            return Err(InputError::Unknown { path: path.to_owned(), head });
        }
        Ok(input)
    }

    /// Finds the VMCOREINFO to believe, as a capture does, and says where it comes from.
    fn settled(files: Files) -> Self {
        let core: &dyn Core = match &files {
            Files::Vmcore(core) => core,
            Files::Kdump(dump) => dump.as_ref(),
        };
        let (info, origin) = session::settle(core, &Facts::default());
        Self { files, info, origin }
    }

    /// Its memory, and what else a dump is made of.
    #[must_use]
    pub fn core(&self) -> &dyn Core {
        match &self.files {
            Files::Vmcore(core) => core,
            Files::Kdump(dump) => dump.as_ref(),
        }
    }

    /// The dump, if it is one.
    #[must_use]
    pub fn kdump(&self) -> Option<&Kdump> {
        match &self.files {
            Files::Vmcore(_) => None,
            Files::Kdump(dump) => Some(dump),
        }
    }

    /// The form of its file, if it is no dump.
    #[must_use]
    pub fn form(&self) -> Option<Form> {
        match &self.files {
            Files::Vmcore(core) => Some(core.form()),
            Files::Kdump(_) => None,
        }
    }

    /// VMCOREINFO, wherever it was found.
    #[must_use]
    pub fn info(&self) -> &VmcoreInfo {
        &self.info
    }

    /// Where VMCOREINFO came from, if not from where it belongs.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// The kernel in it.
    #[must_use]
    pub fn kernel(&self) -> Kernel<'_> {
        let core = self.core();
        Kernel::new(core, &self.info, core.mappings())
    }

    /// Machine name.
    #[must_use]
    pub fn machine(&self) -> &str {
        self.core().machine().unwrap_or("unknown")
    }

    /// Why it is not whole, a sentence for each reason; none if all that it promises is there.
    /// Reads the descriptors of all pages of a dump.
    pub fn faults(&self) -> io::Result<Vec<String>> {
        faults(self.core())
    }
}

/// The first bytes of a file, which must be one that can be read at any place.
fn head(path: &Path) -> Result<Vec<u8>, InputError> {
    let failed = |source| InputError::Read { path: path.to_owned(), source };
    // Opening a pipe would wait for somebody to write to it.
    let file: File =
        OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if meta.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    if !meta.is_file() && !meta.file_type().is_block_device() {
        return Err(InputError::NotSeekable { path: path.to_owned(), kind: trusted::kind(&meta) });
    }
    let head = read_up_to(&file, 0, HEAD).map_err(failed)?;
    if head.is_empty() { Err(InputError::Empty(path.to_owned())) } else { Ok(head) }
}

/// Whether a file is a dump, or a flattened one.
pub fn is_dump(path: &Path) -> Result<bool, InputError> {
    Ok(Kdump::has_signature(&head(path)?))
}

/// Whether `path` leads to one of the files in `input`, by whatever name.
pub(crate) fn is_input(path: &Path, input: &[PathBuf]) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    id(path).is_some_and(|found| input.iter().any(|input| id(input) == Some(found)))
}
