//! `afterimage summary`: what was running when the kernel in a dump came to its end.

use std::path::PathBuf;

use triage::findings::Findings;
use triage::summary::{self, Subject};

use crate::input::{Input, InputError};

/// Why there is no summary.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// The dump.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A kernel of another machine.
    #[error("it is a dump of {0}: summaries are made of dumps of x86_64 only")]
    Machine(String),
}

/// Walks through the memory of the dump in `files`.
pub fn of(files: &[PathBuf]) -> Result<Findings, SummaryError> {
    let input = Input::open(files)?;
    if input.machine() != "x86_64" {
        return Err(SummaryError::Machine(input.machine().to_owned()));
    }
    let kernel = input.kernel();
    Ok(summary::of(Subject { core: input.core(), kernel: &kernel, answers: None, planned: false }))
}
