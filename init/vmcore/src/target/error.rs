//! Why a target did not do something.

use core::error::Error;
use core::fmt;
use std::io;

use base::config::TargetKind;

use crate::sink::SinkError;

/// Why a target did not do something: what was being done and where, and the cause. It is the error
/// of every kind of target, and knows none of them.
#[derive(Debug)]
pub struct TargetError {
    /// What was being done, and to what; `None` where the cause says all of that itself.
    doing: Option<String>,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl TargetError {
    /// An error that has no cause but itself.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self { doing: Some(text.into()), cause: None }
    }

    /// An error while something was being done.
    #[must_use]
    pub fn doing(what: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { doing: Some(what.into()), cause: Some(cause.into()) }
    }

    /// An error whose cause says where it happened and what was being done.
    #[must_use]
    pub fn because(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { doing: None, cause: Some(cause.into()) }
    }

    /// A directory cannot be made or opened.
    #[must_use]
    pub fn directory(path: impl fmt::Display, cause: io::Error) -> Self {
        Self::doing(format!("directory {path}"), cause)
    }

    /// Something could not be done with a file: "creating", "publishing".
    #[must_use]
    pub fn file(what: &str, name: impl fmt::Display, cause: io::Error) -> Self {
        Self::doing(format!("{what} {name}"), cause)
    }

    /// Bytes of an artifact cannot be written.
    #[must_use]
    pub fn artifact(name: &str, cause: SinkError) -> Self {
        Self::doing(format!("artifact {name}"), cause)
    }

    /// This program cannot reach such a target.
    #[must_use]
    pub fn not_built(kind: TargetKind) -> Self {
        Self::new(format!("this init was built without {kind} targets"))
    }

    /// The cause of this type, wherever it is in the chain of causes.
    #[must_use]
    pub fn find<E: Error + 'static>(&self) -> Option<&E> {
        let mut next: Option<&(dyn Error + 'static)> = match &self.cause {
            Some(cause) => Some(cause.as_ref()),
            None => None,
        };
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }

    /// Whether the target has no room left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.find::<SinkError>().is_some_and(SinkError::is_full)
            || self.find::<io::Error>().is_some_and(|error| crate::sink::is_full(error.kind()))
    }
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.doing, &self.cause) {
            (Some(doing), _) => f.write_str(doing),
            (None, Some(cause)) => cause.fmt(f),
            (None, None) => f.write_str("failed"),
        }
    }
}

impl Error for TargetError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match (&self.doing, &self.cause) {
            (Some(_), Some(cause)) => Some(cause.as_ref()),
            (None, Some(cause)) => cause.source(),
            (_, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_was_done_and_names_each_cause_once() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let sink = SinkError::Write { offset: 7, len: 1, source: full() };
        let error = TargetError::artifact("vmcore", sink);
        let text = base::log::chain(&error);
        assert_eq!(text, format!("artifact vmcore: writing 1 bytes at offset 7: {}", full()));
        assert!(error.is_full() && error.find::<SinkError>().is_some());
        let error = TargetError::because(SinkError::Sync(io::ErrorKind::Other.into()));
        assert_eq!(base::log::chain(&error), format!("syncing: {}", io::Error::from(io::ErrorKind::Other)));
        assert!(!error.is_full() && TargetError::file("creating", "x", full()).is_full());
    }
}
