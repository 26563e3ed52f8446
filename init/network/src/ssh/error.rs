//! What may go wrong on the way to a server, and whether it is worth another attempt.

use std::io;

use russh::keys::ssh_key;
use russh_sftp::protocol::{Status, StatusCode};

use crate::dial::DialError;
use crate::pace::TooSlow;

/// Characters of a server's message that are shown.
const MESSAGE: usize = 120;

/// Why there is no session, or none any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum SshError {
    #[error("the loader recorded no private key for it")]
    NoIdentity,
    #[error("the private key is not usable")]
    Identity(#[source] ssh_key::Error),
    #[error("host_key {line:?} is no public key")]
    Pin { line: String, source: ssh_key::Error },
    #[error("its key {offered} is refused: host_key has {pinned}")]
    HostKey { offered: String, pinned: String },
    #[error("user {user} is not let in with the key {fingerprint}")]
    LogIn { user: String, fingerprint: String },
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("speaking SSH")]
    Ssh(#[from] russh::Error),
    #[error("no answer for {seconds} s: {what}")]
    Silent { what: &'static str, seconds: u64 },
    #[error("the connection is lost")]
    Lost(#[source] io::Error),
    #[error("it does not speak SFTP: {0}")]
    Protocol(String),
    #[error("{what} {path}: {}", text(.status))]
    Refused { what: &'static str, path: String, status: Status },
    #[error("it is too slow")]
    Slow(#[source] TooSlow),
    #[error("no progress for {seconds} s, however often it was tried")]
    GaveUp { seconds: u64, source: Box<SshError> },
    #[error("the target is closed")]
    Closed,
}

impl SshError {
    /// Whether the answer would be the same the next time.
    pub(super) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::NoIdentity
                | Self::Identity(_)
                | Self::Pin { .. }
                | Self::HostKey { .. }
                | Self::LogIn { .. }
                | Self::Refused { .. }
                | Self::GaveUp { .. }
                | Self::Slow(_)
                | Self::Closed
        )
    }

    /// The kind of I/O error that it is.
    pub(super) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Silent { .. } | Self::GaveUp { .. } | Self::Slow(_) => io::ErrorKind::TimedOut,
            Self::HostKey { .. } | Self::LogIn { .. } => io::ErrorKind::PermissionDenied,
            Self::Lost(source) => source.kind(),
            _ => io::ErrorKind::Other,
        }
    }
}

/// What a server answers, as an error of I/O.
pub(super) fn io_error(status: &Status) -> io::Error {
    io::Error::new(kind(status), text(status))
}

/// SFTP 3 has no code for a disk that is full; some servers say it in words.
pub(super) fn kind(status: &Status) -> io::ErrorKind {
    let message = status.error_message.to_ascii_lowercase();
    if message.contains("no space left") {
        return io::ErrorKind::StorageFull;
    }
    if message.contains("quota") {
        return io::ErrorKind::QuotaExceeded;
    }
    match status.status_code {
        StatusCode::NoSuchFile => io::ErrorKind::NotFound,
        StatusCode::PermissionDenied => io::ErrorKind::PermissionDenied,
        StatusCode::OpUnsupported => io::ErrorKind::Unsupported,
        _ => io::ErrorKind::Other,
    }
}

/// The server's words, as far as they are fit to be shown.
pub(super) fn text(status: &Status) -> String {
    let message: String = status.error_message.chars().filter(|c| !c.is_control()).take(MESSAGE).collect();
    format!("the server says {:?} ({})", message, status.status_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_by_the_words_and_hostile_words_are_cut() {
        let status = |message: &str| Status {
            id: 1,
            status_code: StatusCode::Failure,
            error_message: message.to_owned(),
            language_tag: String::new(),
        };
        assert_eq!(kind(&status("write: No space left on device")), io::ErrorKind::StorageFull);
        assert_eq!(kind(&status("Disk quota exceeded")), io::ErrorKind::QuotaExceeded);
        assert_eq!(kind(&status("Failure")), io::ErrorKind::Other);
        let shown = io_error(&status(&format!("a\u{1b}[2J{}", "x".repeat(5000)))).to_string();
        assert!(shown.len() < 200 && !shown.contains('\u{1b}'), "{shown}");
    }
}
