//! Writes to a guest's physical memory, by the remote protocol of gdb that QEMU speaks.

use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Writes `bytes` at a physical address. The guest stands still meanwhile.
pub fn write_physical(socket: &Path, address: u64, bytes: &[u8]) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("connecting to QEMU's gdb server")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let write = format!("M{address:x},{:x}:{}", bytes.len(), hex.concat());
    for command in ["Qqemu.PhyMemMode:1", &write, "D"] {
        let answer = ask(&mut stream, command).with_context(|| format!("gdb command {command}"))?;
        ensure!(answer == "OK", "{command}: {answer}");
    }
    Ok(())
}

/// Sends a packet; gives what stands in the answer's.
fn ask(stream: &mut UnixStream, command: &str) -> Result<String> {
    let sum = command.bytes().fold(0_u8, u8::wrapping_add);
    stream.write_all(format!("${command}#{sum:02x}").as_bytes()).context("writing")?;
    let mut message = String::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).with_context(|| format!("it said {message:?}"))?;
        message.push(char::from(byte[0]));
        // "+$answer#xx"
        if let Some((_, [_, _])) = message.split_once('#').map(|(body, sum)| (body, sum.as_bytes())) {
            stream.write_all(b"+").context("acknowledging")?;
            let (body, _) = message.split_once('#').unwrap_or_default();
            let answer = body.trim_start_matches('+').trim_start_matches('$');
            // That the guest has stopped, because we came, is told whenever it is noticed.
            if !answer.starts_with('T') {
                return Ok(answer.to_owned());
            }
            message.clear();
        }
    }
}
