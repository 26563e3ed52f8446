//! What the commands print and write: nobody's full disk or closed pipe ends them in the middle, and
//! no device is replaced by a file.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use base::text;

use crate::trusted;

/// Standard output takes no more.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// What was asked for could not be told.
    #[error("writing to standard output")]
    Write(#[source] io::Error),
    /// What was asked for is done, and that could not be told.
    #[error("{done} (this could not be written to standard output)")]
    Done {
        /// What was to be told.
        done: String,
        /// Cause.
        source: io::Error,
    },
}

/// Prints text as it is, all of it.
pub fn print_raw(text: &[u8]) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    out.write_all(text).and_then(|()| out.flush()).map_err(OutputError::Write)
}

/// Prints lines; what a terminal would act upon is escaped.
pub fn print(lines: &str) -> Result<(), OutputError> {
    print_raw(text::lines(lines).as_bytes())
}

/// Says in a line what was done. If that cannot be said the error says it.
pub fn done(line: &str) -> Result<(), OutputError> {
    let line = text::line(line);
    print_raw(format!("{line}\n").as_bytes()).map_err(|error| match error {
        OutputError::Write(source) => OutputError::Done { done: line, source },
        other @ OutputError::Done { .. } => other,
    })
}

/// Says in a line on standard error what went wrong, as far as that takes it.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "afterimage: {}", text::line(line));
}

/// Whether whoever reads standard output has read enough and left. That something was done must be
/// told all the same.
#[must_use]
pub fn was_left(error: &(dyn core::error::Error + 'static)) -> bool {
    if matches!(error.downcast_ref(), Some(OutputError::Done { .. })) {
        return false;
    }
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether a new file may take the name `path`: nothing is there, or a regular file, or a link to
/// one. A device node, a pipe or a directory is never replaced.
pub fn check_replaceable(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => Ok(()),
        Ok(meta) => {
            let text = format!("it is {}, which no file replaces: name a regular file", trusted::kind(&meta));
            Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/null", at("link")).unwrap();
        fs::write(at("file"), "x").unwrap();
        let refusal =
            |path: &Path| check_replaceable(path).map_or_else(|error| error.to_string(), |()| String::new());
        assert!(refusal(Path::new("/dev/null")).contains("a character device"));
        assert!(refusal(&at("link")).contains("a character device"), "where the link leads");
        assert!(refusal(&at("fifo")).contains("a pipe (FIFO)"));
        assert!(refusal(dir.path()).contains("a directory"));
        assert_eq!((refusal(&at("file")), refusal(&at("new"))), (String::new(), String::new()));
    }
}
