//! Lines for the harness to read on the console.

use std::fmt::Display;
use std::fs::File;
use std::io::{Result, Write};

/// Shows a line through the kernel log: unlike bytes written to the terminal, it cannot be torn
/// apart by a message of the kernel, nor be lost in a panic right behind it.
pub(crate) fn say(line: impl Display) {
    if log(&line).is_err() {
        println!("{line}");
    }
}

/// Writes a record of the highest priority but one, which shows on the console even under `quiet`.
/// Each record through an open of its own: the kernel limits the rate per open file.
pub(crate) fn log(line: impl Display) -> Result<()> {
    let record = format!("<1>{line}\n");
    File::options().write(true).open("/dev/kmsg")?.write_all(record.as_bytes())
}
