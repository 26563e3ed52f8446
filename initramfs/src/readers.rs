//! `afterimage crash` and `afterimage drgn`: the debugger, with the dump and the debug file made of
//! it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use nix::sys::signal::{SigSet, Signal};
use symbols::debuginfo::Report;
use vmcore::source::{Form, Kdump};

use crate::debuginfo::{self, MakeError};
use crate::input::{Input, InputError};

/// Why a debugger was not started.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    /// The dump.
    #[error(transparent)]
    Input(#[from] InputError),
    /// No debug file.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// The folder for the debug file.
    #[error("making a folder for the debug file in {path}")]
    Folder {
        /// Where.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// It does not take such a file.
    #[error("{name} does not read {what}: {remedy}")]
    Form {
        /// Which debugger.
        name: &'static str,
        /// What the file is.
        what: &'static str,
        /// What can be done.
        remedy: &'static str,
    },
    /// It is not installed.
    #[error("{name} is not installed: {remedy}")]
    Missing {
        /// Which.
        name: &'static str,
        /// How it is installed.
        remedy: &'static str,
    },
    /// It could not be started.
    #[error("starting {name}")]
    Start {
        /// Which.
        name: &'static str,
        /// Cause.
        source: io::Error,
    },
}

/// A debugger of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// crash, by Red Hat.
    Crash,
    /// drgn, by Meta.
    Drgn,
}

impl Reader {
    /// The name of its program.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Drgn => "drgn",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Crash => {
                "install it with `apt install crash` (Debian, Ubuntu) or `dnf install crash` (Fedora)"
            }
            Self::Drgn => "install it with `pip install drgn`, or `dnf install drgn` (Fedora)",
        }
    }

    /// Refuses a form of dump that it cannot read.
    fn check(self, input: &Input) -> Result<(), ReaderError> {
        let refused = |what, remedy| Err(ReaderError::Form { name: self.name(), what, remedy });
        let dump = input.kdump();
        match self {
            Self::Drgn if dump.is_some_and(Kdump::is_split) => {
                refused("split dumps", "`afterimage dump PART... OUT` makes one file of it")
            }
            _ if matches!(input.form(), Some(Form::Raw | Form::Lime)) => {
                refused("raw memory or LiME", "`afterimage dump FILE OUT` makes a dump of it")
            }
            _ => Ok(()),
        }
    }

    fn command(self, vmlinux: &Path, files: &[PathBuf], arguments: &[OsString]) -> Command {
        let mut command = Command::new(self.name());
        match self {
            Self::Crash => command.arg(vmlinux).args(files),
            Self::Drgn => {
                for file in files {
                    command.arg("-c").arg(file);
                }
                command.arg("-s").arg(vmlinux)
            }
        };
        command.args(arguments);
        command
    }
}

/// Makes the debug file, tells `warn` what is not in it, and runs the debugger until it ends.
pub fn run(
    reader: Reader,
    files: &[PathBuf],
    arguments: &[OsString],
    warn: &dyn Fn(&Report),
) -> Result<ExitStatus, ReaderError> {
    let input = Input::open(files)?;
    reader.check(&input)?;
    let folder = tempfile::Builder::new().prefix("afterimage-").tempdir();
    let folder = folder.map_err(|source| ReaderError::Folder { path: std::env::temp_dir(), source })?;
    let vmlinux = folder.path().join("vmlinux");
    warn(&debuginfo::of_input(&input, files, &vmlinux)?);
    drop(input);
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ReaderError::Missing { name: reader.name(), remedy: reader.remedy() },
        _ => ReaderError::Start { name: reader.name(), source },
    };
    let mut child = reader.command(&vmlinux, files, arguments).spawn().map_err(failed)?;
    // From here on Ctrl-C is for the debugger alone: the folder goes when it has ended.
    let mut keys = SigSet::empty();
    keys.add(Signal::SIGINT);
    keys.add(Signal::SIGQUIT);
    keys.thread_block().map_err(|error| failed(error.into()))?;
    child.wait().map_err(failed)
}
