//! A hook of the capture kernel. Its last argument says what it does.

use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// More than a hook may have by default.
const TOO_MUCH: usize = 64 << 20;

/// Runs as a hook: the first argument is `result.json`.
pub(crate) fn run() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [result, what] = arguments.as_slice() else { bail!("{arguments:?} are not two arguments") };
    let text = fs::read_to_string(result).with_context(|| format!("reading {result}"))?;
    println!("hook: {what} in a process of {} bytes of result", text.len());
    match what.as_str() {
        "note" => {
            let directory = env::var("AFTERIMAGE_DIRECTORY").context("no directory")?;
            let note = format!("{}\n{text}", env::var("AFTERIMAGE_WHEN").unwrap_or_default());
            fs::write(Path::new(&directory).join("note-of-a-hook.txt"), note).context("writing the note")
        }
        "fail" => bail!("it fails on purpose"),
        "hang" => loop {
            sleep(Duration::MAX);
        },
        "eat" => {
            let mut memory: Vec<u8> = Vec::new();
            memory.try_reserve_exact(TOO_MUCH).context("taking memory")?;
            println!("hook: took {} bytes", memory.capacity());
            Ok(())
        }
        _ => bail!("a hook cannot {what}"),
    }
}
