//! The end of a log, and its line that says why the kernel died, kept while the log passes by: what
//! is looked at may print gigabytes.

use std::collections::VecDeque;
use std::io::{self, Write};

use serde::Serialize;

/// What stands before the name of a task.
const COMM: &str = " Comm: ";
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

/// How a kernel died, by its own words. The text is escaped, as all of the log is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Death {
    /// The line of the log that says most, without its time stamp.
    pub message: String,
    /// The task that ran, by what the kernel prints behind that line (`dump_stack_print_info()`,
    /// lib/dump_stack.c).
    pub pid: Option<u32>,
    /// The name of that task.
    pub command: Option<String>,
}

/// Takes the text of a log and keeps little of it.
#[derive(Debug)]
pub struct Tail {
    lines: VecDeque<Vec<u8>>,
    number: usize,
    /// The line that has not ended yet.
    open: Vec<u8>,
    /// The last line with each of [`CAUSES`].
    causes: [Option<Vec<u8>>; CAUSES.len()],
    /// The last line that names a task.
    task: Option<Vec<u8>>,
}

impl Tail {
    /// Keeps the last `number` lines.
    #[must_use]
    pub fn new(number: usize) -> Self {
        let causes = [const { None }; CAUSES.len()];
        Self { lines: VecDeque::new(), number, open: Vec::new(), causes, task: None }
    }

    /// The last lines, the oldest first.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.lines.iter().map(|line| String::from_utf8_lossy(line).into_owned())
    }

    /// How the kernel died, if a line says it.
    #[must_use]
    pub fn death(&self) -> Option<Death> {
        let text = |line: &Vec<u8>| String::from_utf8_lossy(line).into_owned();
        let message = text(self.causes.iter().flatten().next()?);
        let task = self.task.as_ref().map(text).unwrap_or_default();
        let after = |key: &str| task.split_once(key).map(|(_, rest)| rest);
        let pid = after("PID: ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        let command = after(COMM).map(|rest| {
            let ends = [" Not tainted", " Tainted: ", " Kdump: "];
            let end = ends.iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
            rest.get(..end).unwrap_or(rest).to_owned()
        });
        Some(Death { message: without_prefix(&message).to_owned(), pid, command })
    }

    fn end_line(&mut self) {
        let line = core::mem::take(&mut self.open);
        for (cause, kept) in CAUSES.iter().zip(&mut self.causes) {
            if contains(&line, cause) {
                *kept = Some(line.clone());
            }
        }
        if contains(&line, COMM) {
            self.task = Some(line.clone());
        }
        self.lines.push_back(line);
        if self.lines.len() > self.number {
            self.lines.pop_front();
        }
    }
}

fn contains(line: &[u8], text: &str) -> bool {
    line.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A line without time stamp and caller.
fn without_prefix(line: &str) -> &str {
    let mut rest = line;
    while let Some((_, behind)) = rest.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        rest = behind;
    }
    rest
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
        (tail.lines().collect(), tail.death().map(|death| death.message))
    }

    #[test]
    fn the_last_lines_and_the_cause_are_kept() {
        let text = "[1] BUG: unable to handle page fault\n[2] Oops: 0000\n[3] a\n\
                    [4] Kernel panic - not syncing: Fatal exception\n[5] b\n[6] c\n";
        let (lines, cause) = tail(text, 2);
        assert_eq!(lines, ["[5] b", "[6] c"]);
        assert_eq!(cause.unwrap(), "Kernel panic - not syncing: Fatal exception");
        assert_eq!(tail("[1] BUG: unable\n[2] Oops: 0\n", 9).1.unwrap(), "BUG: unable");
        assert_eq!(tail("all is well\n", 9), (vec!["all is well".to_owned()], None));
    }

    #[test]
    fn the_task_that_ran_is_named() {
        let death = |line: &str| {
            let mut tail = Tail::new(1);
            writeln!(tail, "[    9.1] [    T41] Kernel panic - not syncing: sysrq\n{line}").unwrap();
            tail.death().unwrap()
        };
        let found = death("[    9.2] [    T41] CPU: 1 UID: 0 PID: 41 Comm: sh -c x Not tainted 6.12 #1");
        assert_eq!(found.message, "Kernel panic - not syncing: sysrq");
        assert_eq!((found.pid, found.command.as_deref()), (Some(41), Some("sh -c x")));
        let found = death("[    9.2] CPU: 0 PID: 7 Comm: kworker/0:1 Tainted: G        W 6.1 #1");
        assert_eq!((found.pid, found.command.as_deref()), (Some(7), Some("kworker/0:1")));
        assert_eq!((death("x").pid, death("x").command), (None, None));
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
