//! A program that must not take longer or say more than it may, whatever it does: it runs in a
//! process group of its own, which is killed as a whole.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use base::addr::{to_u64, to_usize};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// How soon the end of a program is noticed that says nothing. What it says is read at once.
const TICK: u16 = 20;
/// How long a killed program is waited for: one that hangs in the kernel stays.
const GRACE: Duration = Duration::from_secs(2);

/// What became of a program.
#[derive(Debug)]
pub(super) struct Ended {
    /// How it ended.
    pub(super) how: How,
    /// How long it took.
    pub(super) took: Duration,
    /// Its standard output.
    pub(super) stdout: Vec<u8>,
    /// Its standard error.
    pub(super) stderr: Vec<u8>,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum How {
    /// By itself.
    #[error("exit code {0}")]
    Exit(i32),
    /// By a signal that was not ours.
    #[error("signal {0}")]
    Signal(String),
    /// It took too long and was killed.
    #[error("killed after {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It said too much and was killed; what it said is cut.
    #[error("killed after {0} bytes of output")]
    TooMuch(u64),
    /// It could not be started.
    #[error("not started: {0}")]
    NotStarted(String),
    /// It could not be waited for.
    #[error("lost: {0}")]
    Lost(String),
}

impl Ended {
    /// Whether it ended by itself and well.
    pub(super) fn is_success(&self) -> bool {
        self.how == How::Exit(0)
    }

    /// Whether it was stopped before its end.
    pub(super) fn is_cut(&self) -> bool {
        matches!(self.how, How::TimedOut(_) | How::TooMuch(_))
    }
}

/// Runs `command` for at most `timeout` and keeps at most `limit` bytes of what it prints.
pub(super) fn run(command: &mut Command, timeout: Duration, limit: u64) -> Ended {
    let start = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut ended = Ended { how: How::Exit(0), took: Duration::ZERO, stdout: Vec::new(), stderr: Vec::new() };
    match command.spawn() {
        Ok(child) => ended.how = watch(child, start, timeout, limit, &mut ended),
        Err(error) => ended.how = How::NotStarted(error.to_string()),
    }
    ended.took = start.elapsed();
    ended
}

fn watch(mut child: Child, start: Instant, timeout: Duration, limit: u64, ended: &mut Ended) -> How {
    let pipes = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
    let mut pipes = pipes.map(|pipe| pipe.map(File::from));
    let Ok(pid) = i32::try_from(child.id()).map(Pid::from_raw) else {
        return How::Lost(Errno::EINVAL.to_string());
    };
    let mut exited = false;
    let cut = loop {
        let room =
            limit.saturating_sub(to_u64(ended.stdout.len())).saturating_sub(to_u64(ended.stderr.len()));
        let into = [&mut ended.stdout, &mut ended.stderr];
        match read_some(&mut pipes, into, room, if exited { 0 } else { TICK }) {
            Ok(Got::TooMuch) => break Some(How::TooMuch(limit)),
            Ok(Got::Nothing) if exited => break None,
            Ok(_) => (),
            Err(error) => break Some(How::Lost(error.to_string())),
        }
        if start.elapsed() >= timeout {
            break Some(How::TimedOut(timeout));
        }
        // It stays a zombie, so that its group keeps its number until it is killed.
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        exited = !matches!(waitid(Id::Pid(pid), peek), Ok(WaitStatus::StillAlive));
    };
    let _ = killpg(pid, Signal::SIGKILL); // what it has started, too; there may be nothing left
    let how = reap(&mut child);
    cut.unwrap_or(how)
}

fn reap(child: &mut Child) -> How {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                use std::os::unix::process::ExitStatusExt;
                let signal = || How::Signal(status.signal().map_or("unknown".to_owned(), |n| n.to_string()));
                return status.code().map_or_else(signal, How::Exit);
            }
            Ok(None) if start.elapsed() < GRACE => sleep(Duration::from_millis(u64::from(TICK))),
            Ok(None) => return How::Lost("it hangs in the kernel".to_owned()),
            Err(error) => return How::Lost(error.to_string()),
        }
    }
}

enum Got {
    Something,
    Nothing,
    TooMuch,
}

/// Reads once from each pipe that has something, after waiting for at most `wait` ms; closes those
/// at their end.
fn read_some(
    pipes: &mut [Option<File>; 2],
    into: [&mut Vec<u8>; 2],
    mut room: u64,
    wait: u16,
) -> io::Result<Got> {
    let mut polled: Vec<_> =
        pipes.iter().flatten().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut polled, PollTimeout::from(wait)) {
        Ok(_) | Err(Errno::EINTR) => (),
        Err(errno) => return Err(errno.into()),
    }
    let mut ready = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect::<Vec<_>>().into_iter();
    let mut got = Got::Nothing;
    for (pipe, out) in pipes.iter_mut().zip(into) {
        let Some(file) = pipe else { continue };
        if !ready.next().unwrap_or(false) {
            continue;
        }
        let mut buffer = [0; 16 << 10];
        let len = file.read(&mut buffer)?;
        let bytes = buffer.get(..len).unwrap_or_default();
        if bytes.is_empty() {
            *pipe = None;
            continue;
        }
        let taken = bytes.get(..to_usize(room)).unwrap_or(bytes);
        out.extend_from_slice(taken);
        if taken.len() < bytes.len() {
            return Ok(Got::TooMuch);
        }
        room = room.saturating_sub(to_u64(taken.len()));
        got = Got::Something;
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout_ms: u64, limit: u64) -> Ended {
        run(Command::new("sh").args(["-c", script]), Duration::from_millis(timeout_ms), limit)
    }

    #[test]
    fn what_is_said_is_kept() {
        let ended = sh("echo out; echo err >&2; exit 3", 10_000, 100);
        assert_eq!(
            (ended.how.clone(), &*ended.stdout, &*ended.stderr),
            (How::Exit(3), &b"out\n"[..], &b"err\n"[..])
        );
        assert!(!ended.is_success() && !ended.is_cut());
        assert!(sh("exec cat", 10_000, 0).is_success(), "there is no standard input");
        let lot = sh("head -c 300000 /dev/zero", 10_000, 1 << 20);
        assert_eq!((lot.is_success(), lot.stdout.len()), (true, 300_000));
    }

    #[test]
    fn one_that_hangs_is_killed_with_what_it_has_started() {
        let ended = sh("echo $$; sleep 1234 & sleep 1234", 300, 100);
        assert_eq!(ended.how, How::TimedOut(Duration::from_millis(300)));
        assert!(ended.took < Duration::from_secs(2), "{:?}", ended.took);
        let group: i32 = String::from_utf8(ended.stdout).unwrap().trim().parse().unwrap();
        let gone = (0..100).any(|_| {
            sleep(Duration::from_millis(20));
            killpg(Pid::from_raw(group), None).is_err()
        });
        assert!(gone, "the group {group} still has processes");
    }

    #[test]
    fn one_that_leaves_a_child_with_its_output_is_not_waited_for() {
        let ended = sh("sleep 1234 & echo done", 10_000, 100);
        assert_eq!((ended.how.clone(), &*ended.stdout), (How::Exit(0), &b"done\n"[..]));
        assert!(ended.took < Duration::from_secs(5), "{:?}", ended.took);
    }

    #[test]
    fn one_that_says_too_much_is_cut() {
        let ended = sh("exec yes", 10_000, 50_000);
        assert_eq!((ended.how.clone(), ended.stdout.len()), (How::TooMuch(50_000), 50_000));
        assert!(ended.is_cut());
        assert_eq!(sh("printf 12345", 10_000, 5).how, How::Exit(0), "exactly the limit");
    }

    #[test]
    fn bad_ends_have_names() {
        assert_eq!(sh("kill -9 $$", 10_000, 10).how, How::Signal("9".into()));
        let ended = run(&mut Command::new("/no/such/program"), Duration::from_secs(1), 10);
        assert!(ended.how.to_string().starts_with("not started: No such file"), "{}", ended.how);
    }
}
