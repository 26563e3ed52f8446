//! The end of a log, and its line that says why the kernel died, kept while the log passes by: what is looked at may
//! print gigabytes.

use std::collections::VecDeque;
use std::io::{self, Write};

/// Bytes of a line that are kept.
const LINE: usize = 512;

/// What the kernel prints when it dies, the one that says most first (kernel/panic.c, lib/bug.c,
/// arch/x86/mm/fault.c, arch/x86/kernel/dumpstack.c).
const CAUSES: [&str; 6] = [
    "Kernel panic - not syncing",
    "sysrq: Trigger a crash",
    "BUG: ",
    "kernel BUG at ",
    "Oops: ",
    "general protection fault",
];

/// Takes the text of a log and keeps little of it.
#[derive(Debug)]
pub(super) struct Tail {
    lines: VecDeque<Vec<u8>>,
    number: usize,
    /// The line that has not ended yet.
    open: Vec<u8>,
    /// The last line with each of [`CAUSES`].
    causes: [Option<Vec<u8>>; CAUSES.len()],
}

impl Tail {
    /// Keeps the last `number` lines.
    pub(super) fn new(number: usize) -> Self {
        Self { lines: VecDeque::new(), number, open: Vec::new(), causes: [const { None }; CAUSES.len()] }
    }

    /// The last lines, the oldest first.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.lines.iter().map(|line| String::from_utf8_lossy(line).into_owned())
    }

    /// The line that says why the kernel died, if one does.
    pub(super) fn cause(&self) -> Option<String> {
        let line = self.causes.iter().flatten().next()?;
        Some(String::from_utf8_lossy(line).into_owned())
    }

    fn end_line(&mut self) {
        let line = core::mem::take(&mut self.open);
        for (cause, kept) in CAUSES.iter().zip(&mut self.causes) {
            if line.windows(cause.len()).any(|window| window == cause.as_bytes()) {
                *kept = Some(line.clone());
            }
        }
        self.lines.push_back(line);
        if self.lines.len() > self.number {
            self.lines.pop_front();
        }
    }
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = LINE.saturating_sub(self.open.len()).min(text.len());
            self.open.extend_from_slice(text.get(..room).unwrap_or_default());
            if text.len() < piece.len() {
                self.end_line();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(text: &str, number: usize) -> (Vec<String>, Option<String>) {
        let mut tail = Tail::new(number);
        // In pieces that end anywhere.
        text.as_bytes().chunks(7).for_each(|piece| tail.write_all(piece).unwrap());
        (tail.lines().collect(), tail.cause())
    }

    #[test]
    fn the_last_lines_and_the_cause_are_kept() {
        let text = "[1] BUG: unable to handle page fault\n[2] Oops: 0000\n[3] a\n\
                    [4] Kernel panic - not syncing: Fatal exception\n[5] b\n[6] c\n";
        let (lines, cause) = tail(text, 2);
        assert_eq!(lines, ["[5] b", "[6] c"]);
        assert_eq!(cause.unwrap(), "[4] Kernel panic - not syncing: Fatal exception");
        assert_eq!(tail("[1] BUG: unable\n[2] Oops: 0\n", 9).1.unwrap(), "[1] BUG: unable");
        assert_eq!(tail("all is well\n", 9), (vec!["all is well".to_owned()], None));
    }

    #[test]
    fn a_log_of_any_length_takes_little_memory() {
        let (lines, cause) = tail(&format!("{}\n", "x".repeat(1 << 20)).repeat(3), 2);
        assert_eq!((lines.len(), lines[0].len(), cause), (2, LINE, None));
        let mut tail = Tail::new(2);
        (0..100_000).for_each(|_| tail.write_all(b"\n").unwrap());
        assert_eq!(tail.lines.len(), 2);
    }
}
