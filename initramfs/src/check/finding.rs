//! What `check` says about one thing.

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// A crash is saved, or some crashes are; but see to it.
    Warning,
    /// A crash is not saved.
    Failure,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name for scripts; those of a target end in its number, from 1.
    pub id: String,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; of a warning or failure.
    pub remedy: Option<String>,
}

impl Finding {
    pub(super) fn ok(id: &str, found: impl Into<String>) -> Self {
        Self { id: id.to_owned(), level: Level::Ok, found: found.into(), remedy: None }
    }

    pub(super) fn warning(id: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(id, Level::Warning, found, remedy)
    }

    pub(super) fn failure(id: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(id, Level::Failure, found, remedy)
    }

    pub(super) fn bad(id: &str, level: Level, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { id: id.to_owned(), level, found: found.into(), remedy: Some(remedy.into()) }
    }
}

impl Level {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
        }
    }
}
