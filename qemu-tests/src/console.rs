//! The serial console of a guest: every line with the time it arrived, kept and written to a log as
//! it comes.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// What lines have in them that our programs have written.
const OURS: [&str; 2] = ["production: ", "afterimage: "];
/// Whether lines that ours have written are shown as they come.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// From now on what production and the capture say goes to standard error, too, as it comes.
pub fn show() {
    SHOWN.store(true, Ordering::Relaxed);
}

/// Lines quoted in an error.
const TAIL: usize = 25;

/// A line of the console, without its line end and terminal escapes.
#[derive(Clone, Debug)]
pub struct Line {
    /// When its last byte arrived.
    pub at: Instant,
    /// What it says.
    pub text: String,
}

/// The console as read so far.
#[derive(Debug)]
pub struct Console {
    incoming: Receiver<Line>,
    lines: Vec<Line>,
    /// Lines that [`Console::expect`] has gone past.
    searched: usize,
}

impl Console {
    /// Reads `serial` in a thread until it ends and writes what comes to the file `log`.
    pub fn follow(serial: impl Read + Send + 'static, log: &Path) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("making {}", log.display()))?;
        let (sender, incoming) = channel();
        thread::spawn(move || read(serial, log, &sender));
        Ok(Self { incoming, lines: Vec::new(), searched: 0 })
    }

    /// Waits for a line that contains `pattern`, after the line the last call found.
    pub fn expect(&mut self, pattern: &str, timeout: Duration) -> Result<Line> {
        let deadline = Instant::now().checked_add(timeout).context("the timeout is too long")?;
        loop {
            while let Some(line) = self.lines.get(self.searched) {
                self.searched = self.searched.saturating_add(1);
                if line.text.contains(pattern) {
                    return Ok(line.clone());
                }
            }
            match self.next(deadline) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no {pattern:?} within {timeout:?}; the console ends in\n{}", self.tail())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the guest ended without {pattern:?}; the console ends in\n{}", self.tail())
                }
            }
        }
    }

    /// Waits for the end of the console.
    pub fn wait_end(&mut self, timeout: Duration) -> Result<Instant> {
        let deadline = Instant::now().checked_add(timeout).context("the timeout is too long")?;
        loop {
            match self.next(deadline) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(Instant::now()),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the guest still runs after {timeout:?}; the console ends in\n{}", self.tail())
                }
            }
        }
    }

    /// Hands out all lines up to now.
    pub fn take_lines(&mut self) -> Vec<Line> {
        self.searched = 0;
        std::mem::take(&mut self.lines)
    }

    /// The last lines, for an error message.
    #[must_use]
    pub fn tail(&self) -> String {
        let from = self.lines.len().saturating_sub(TAIL);
        let lines: Vec<_> = self.lines.iter().skip(from).map(|line| line.text.as_str()).collect();
        lines.join("\n")
    }

    fn next(&mut self, deadline: Instant) -> std::result::Result<(), RecvTimeoutError> {
        let line = self.incoming.recv_timeout(deadline.saturating_duration_since(Instant::now()))?;
        self.lines.push(line);
        Ok(())
    }
}

/// A read error is the end: it means that QEMU is gone.
fn read(serial: impl Read, mut log: File, lines: &Sender<Line>) {
    let mut serial = BufReader::new(serial);
    let started = Instant::now();
    let mut bytes = Vec::new();
    while serial.read_until(b'\n', &mut bytes).is_ok_and(|size| size > 0) {
        let text = plain(&String::from_utf8_lossy(&bytes));
        bytes.clear();
        let at = Instant::now();
        // The log serves a person after a failure; the run does not depend on it.
        let _ = writeln!(log, "{:9.3} {text}", at.saturating_duration_since(started).as_secs_f64());
        if SHOWN.load(Ordering::Relaxed) && OURS.iter().any(|word| text.contains(word)) {
            eprintln!("  {text}");
        }
        if lines.send(Line { at, text }).is_err() {
            return;
        }
    }
}

/// Drops carriage returns, other controls and `ESC [ … letter` sequences.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            characters.by_ref().skip(1).find(|character| !"0123456789;?".contains(*character));
        } else if !character.is_control() || character == '\t' {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_found_in_order_and_the_end_is_told_from_silence() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut console = Console::follow(reader, log.path()).unwrap();
        writer.write_all(b"\x1b[2Jone\r\ntwo\r\nthr").unwrap();
        let second = Duration::from_secs(5);
        assert_eq!(console.expect("on", second).unwrap().text, "one");
        assert_eq!(console.expect("two", second).unwrap().text, "two");
        assert!(console.expect("one", Duration::ZERO).unwrap_err().to_string().contains("within"));
        drop(writer);
        assert!(console.expect("four", second).unwrap_err().to_string().contains("ended without"));
        console.wait_end(second).unwrap();
        assert_eq!(console.take_lines().last().unwrap().text, "thr");
        assert!(std::fs::read_to_string(log.path()).unwrap().contains(" two\n"));
    }
}
