//! Commands for a running peer, over a serial port: see `src/peer/init` for the other end.

use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a script may take.
const USUAL: Duration = Duration::from_mins(1);
/// A peer that has ended the script of its own accord needs so long to say it, emulated.
const ANSWER: Duration = Duration::from_secs(30);
/// Bytes of a script: the terminal layer of the peer's kernel holds back as much.
const SCRIPT: usize = 32 << 10;
/// Bytes of an answer; more is not what a serial port is for.
const OUTPUT: usize = 4 << 20;

/// Where a peer takes its commands. A copy is as good; one request at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    socket: PathBuf,
}

impl Control {
    /// The peer whose serial port is this socket.
    pub(crate) fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Runs a shell script within a minute; gives what it says on standard output and error.
    pub fn run(&self, script: &str) -> Result<String> {
        self.run_within(script, USUAL)
    }

    /// The same with another limit, to the second.
    pub fn run_within(&self, script: &str, limit: Duration) -> Result<String> {
        let (status, output) = self.ask(script, limit).with_context(|| format!("the peer's {script:?}"))?;
        ensure!(status == 0, "the peer's {script:?} ended with {status}:\n{output}");
        Ok(output)
    }

    fn ask(&self, script: &str, limit: Duration) -> Result<(u32, String)> {
        ensure!(script.len() <= SCRIPT, "it has {} bytes, more than {SCRIPT}", script.len());
        let deadline =
            Instant::now().checked_add(limit.saturating_add(ANSWER)).context("the limit is too long")?;
        let mut port = UnixStream::connect(&self.socket)
            .with_context(|| format!("connecting to {}", self.socket.display()))?;
        let request = format!("{} {}\n{script}", limit.as_secs().max(1), script.len());
        port.write_all(request.as_bytes()).context("sending it")?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            ensure!(line.len() < 32, "the answer begins with {:?}", String::from_utf8_lossy(&line));
            line.extend(read(&mut port, 1, deadline)?);
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        let numbers = || {
            let (status, length) = line.trim().split_once(' ')?;
            Some((status.parse().ok()?, length.parse().ok()?))
        };
        let (status, length): (u32, usize) =
            numbers().with_context(|| format!("the answer begins with {line:?}"))?;
        ensure!(length <= OUTPUT, "the output has {length} bytes, more than {OUTPUT}");
        let output = read(&mut port, length, deadline)?;
        Ok((status, String::from_utf8_lossy(&output).into_owned()))
    }
}

/// Reads so many bytes.
fn read(port: &mut UnixStream, length: usize, deadline: Instant) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut rest = bytes.as_mut_slice();
    while !rest.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no answer in time");
        port.set_read_timeout(Some(left)).context("limiting a read")?;
        let size = port.read(rest).context("waiting for the answer")?;
        ensure!(size > 0, "the peer hung up");
        rest = rest.get_mut(size..).unwrap_or_default();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// A peer that reads one request and gives this answer.
    fn answering(answer: &'static [u8]) -> (tempfile::TempDir, Control, thread::JoinHandle<String>) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("port");
        let listener = UnixListener::bind(&socket).unwrap();
        let peer = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            let length = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
            let mut script = vec![0; length];
            lines.read_exact(&mut script).unwrap();
            stream.write_all(answer).unwrap();
            line + &String::from_utf8(script).unwrap()
        });
        (directory, Control::at(&socket), peer)
    }

    #[test]
    fn what_a_script_says_comes_back_whatever_it_looks_like() {
        let (_directory, control, peer) = answering(b"0 11\n7 3\nab\n0 11");
        assert_eq!(control.run("two\nlines").unwrap(), "7 3\nab\n0 11");
        assert_eq!(peer.join().unwrap(), "60 9\ntwo\nlines");
    }

    #[test]
    fn a_failure_shows_what_was_said() {
        let (_directory, control, _) = answering(b"3 5\noh no");
        let error = control.run("false").unwrap_err().to_string();
        assert!(error.contains("ended with 3") && error.contains("oh no"), "{error}");
        let (_directory, control, _) = answering(b"0 99999999999\n");
        assert!(control.run("cat /dev/zero").is_err());
        let (_directory, control, _) = answering(b"0 5\nab");
        assert!(format!("{:#}", control.run("true").unwrap_err()).contains("hung up"));
    }
}
