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
}

/// Walks through the memory of the dump in `files`.
pub fn of(files: &[PathBuf]) -> Result<Findings, SummaryError> {
    let input = Input::open_x86_64(files)?;
    let kernel = input.kernel();
    Ok(summary::of(Subject { core: input.core(), kernel: &kernel, answers: None, planned: false }))
}
