//! Host commands, with errors that show what the command said.

use anyhow::{Context, Result, ensure};
use std::process::{Command, Output, Stdio};

/// A command with no input to wait for, and with the administrator's tools (mke2fs, debugfs) in its
/// PATH.
#[must_use]
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).stdin(Stdio::null());
    command
}

/// Runs commands to their end.
pub trait Run {
    /// Waits for the end and fails, with all output in the error, unless the command succeeded.
    fn run(&mut self) -> Result<Output>;
}

impl Run for Command {
    fn run(&mut self) -> Result<Output> {
        let output = self.output().with_context(|| format!("starting {}", line(self)))?;
        ensure!(
            output.status.success(),
            "{}: {}\n{}{}",
            line(self),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }
}

/// The command as one would type it; a script given as an argument is left out.
fn line(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<_> =
        words.map(|word| word.to_string_lossy()).filter(|word| !word.contains('\n')).collect();
    words.join(" ")
}
