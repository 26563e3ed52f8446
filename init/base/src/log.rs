//! Messages: to the kernel log and through it to the consoles in a capture kernel, to stderr on a
//! host.
//!
//! Logging never fails and never blocks the capture on a target.

use std::fs::{File, OpenOptions};
use std::io::{Write, stderr};
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The kernel cuts a record at 1024 bytes less its own prefix (LOG_LINE_MAX,
/// kernel/printk/internal.h).
const KMSG_LINE: usize = 900;

/// Where messages go.
#[derive(Debug)]
enum Output {
    /// `/dev/kmsg`: the kernel prints them on every console, with its own time stamps.
    Kmsg(File),
    /// stderr: on a host, or while there is no `/dev/kmsg`.
    Stderr,
}

#[derive(Debug)]
struct Logger(Output);

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Sends messages to the kernel log; to stderr if that cannot be opened. The first call wins.
pub fn init_kmsg(level: LevelFilter) {
    // Without this the kernel drops all but ten lines in five seconds
    // (Documentation/admin-guide/sysctl/kernel.rst). It takes no word without the end of its line
    // (devkmsg_sysctl_set_loglvl()).
    let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    if level >= LevelFilter::Debug {
        let _ = std::fs::write("/proc/sys/kernel/printk", "8"); // consoles drop debug messages otherwise
    }
    let kmsg = OpenOptions::new().write(true).open("/dev/kmsg");
    install(kmsg.map_or(Output::Stderr, Output::Kmsg), level);
}

/// Sends messages to stderr. The first call wins.
pub fn init_stderr(level: LevelFilter) {
    install(Output::Stderr, level);
}

fn install(output: Output, level: LevelFilter) {
    let logger = LOGGER.get_or_init(|| Logger(output));
    if log::set_logger(logger).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = printable(&record.args().to_string());
        match &self.0 {
            Output::Kmsg(file) => {
                // Facility 1 (user), so that the lines can be told from the kernel's own.
                let priority = match record.level() {
                    Level::Error => 8 | 3,
                    Level::Warn => 8 | 4,
                    Level::Info => 8 | 6,
                    Level::Debug | Level::Trace => 8 | 7,
                };
                let mut rest = text.as_str();
                while !rest.is_empty() {
                    let (line, more) = rest.split_at(KMSG_LINE.min(rest.len()));
                    let _ = (&mut &*file).write_all(format!("<{priority}>afterimage: {line}\n").as_bytes());
                    rest = more;
                }
            }
            Output::Stderr => {
                let prefix = match record.level() {
                    Level::Error => "error: ",
                    Level::Warn => "warning: ",
                    _ => "",
                };
                let _ = writeln!(stderr(), "{prefix}{text}");
            }
        }
    }

    fn flush(&self) {}
}

/// Text of the old kernel may reach a message (names, log lines): only printable ASCII goes to a
/// console.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| if matches!(c, ' '..='~') { vec![c] } else { c.escape_default().collect() })
        .collect()
}

/// An error and its causes on one line, joined by ": ".
#[must_use]
pub fn chain(error: &dyn core::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\x1b[2Jb\u{e4}\n"), "a\\u{1b}[2Jb\\u{e4}\\n");
    }

    #[test]
    fn a_chain_names_every_cause() {
        #[derive(Debug, thiserror::Error)]
        #[error("syncing")]
        struct Syncing(#[source] std::io::Error);

        let error = Syncing(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "syncing: disk on fire");
    }
}
