//! A child of PID 1: started, listened to, waited for, given up.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::pid1::ladder::End;
use crate::pid1::watchdog::Watchdog;
use crate::pid1::witness::Witness;
use base::config::Config;
use vmcore::report::Outcome;

/// How long a killed child may take to die. One that is still there hangs in a driver.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How often deadlines are looked at and the watchdog is thought of; beats and the child's end wake
/// PID 1 earlier.
const TICK: Duration = Duration::from_millis(500);

/// Pieces of 4 KiB that a pipe holds (pipe(7)).
const PIPE_PIECES: usize = 16;

/// How often the child is looked for when its pipe is closed, because it is about to end; and how
/// long beats gather in the pipe before they are heard: an attempt that names each page would
/// otherwise spend most of its time on switches to PID 1 and back.
const REAP_TICK: Duration = Duration::from_millis(10);

/// How long things may take.
#[derive(Debug)]
pub(super) struct Limits {
    /// What is waited for.
    pub(super) name: &'static str,
    /// How long it may take without any progress.
    pub(super) stall: Duration,
    /// When it must be over.
    pub(super) end: Option<Instant>,
}

impl Limits {
    /// Of a capture of a kernel with `memory` bytes.
    pub(super) fn new(config: &Config, memory: u64) -> Self {
        let deadline = config.deadline(memory).map(Duration::from_secs);
        let end = deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        Self { name: "capture", stall: Duration::from_secs(config.capture.stall_timeout), end }
    }

    fn is_late(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }
}

/// Starts a child with these arguments, and something to write to it if `asked`.
pub(super) fn start(arguments: &[&str], asked: bool) -> std::io::Result<(Child, ChildStdout)> {
    let command = |path: &str| {
        let stdin = if asked { Stdio::piped() } else { Stdio::null() };
        Command::new(path).args(arguments).stdin(stdin).stdout(Stdio::piped()).spawn()
    };
    let mut child = command("/proc/self/exe").or_else(|_| command("/init"))?;
    let beats = child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
    Ok((child, beats))
}

/// Waits for the child and reaps everything that ends meanwhile. Each byte on the pipe is a sign of
/// progress.
pub(super) fn wait(
    child: &Child,
    mut beats: ChildStdout,
    limits: &Limits,
    watchdog: &mut Watchdog,
    seen: &mut Witness,
) -> End {
    let Ok(pid) = i32::try_from(child.id()).map(Pid::from_raw) else {
        return End::Died("has no pid".to_owned());
    };
    let mut open = true;
    loop {
        watchdog.ping();
        let ended = reap(pid);
        if open && (ended.is_some() || readable(&beats, TICK)) {
            open = hear(&mut beats, seen);
        }
        if let Some(end) = ended {
            return end;
        }
        std::thread::sleep(REAP_TICK);
        let stalled = seen.progress.elapsed() >= limits.stall;
        if stalled || limits.is_late() || seen.is_step_late() {
            return give_up(pid, limits, watchdog, seen);
        }
    }
}

/// Reads what the child has said, as far as a pipe holds that at one time; says whether there may
/// be more. Never waits: neither who else holds the other end nor who never stops talking must hold
/// PID 1.
fn hear(beats: &mut ChildStdout, seen: &mut Witness) -> bool {
    let mut bytes = [0; 4096];
    for _ in 0..PIPE_PIECES {
        if !readable(beats, Duration::ZERO) {
            break;
        }
        match beats.read(&mut bytes) {
            Ok(0) | Err(_) => return false, // it is about to exit
            Ok(len) => seen.listen(bytes.get(..len).unwrap_or_default()),
        }
    }
    true
}

/// Waits up to `timeout` for a beat or the end of the pipe.
fn readable(pipe: &ChildStdout, timeout: Duration) -> bool {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
    poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|ready| ready > 0)
}

/// Reaps what has ended; says how `child` did if it was among it.
fn reap(child: Pid) -> Option<End> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => {
                let outcome = Outcome::from_exit_code(code).map(End::Done);
                return Some(outcome.unwrap_or_else(|| End::Died(format!("exited with code {code}"))));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Some(End::Died(format!("was killed by {signal}")));
            }
            Ok(WaitStatus::StillAlive) => return None,
            Err(Errno::ECHILD) => return Some(End::Died("is gone".to_owned())),
            Err(Errno::EINTR) | Ok(_) => (),
            Err(errno) => {
                log::warn!("waitpid: {}", errno.desc());
                return None;
            }
        }
    }
}

/// Kills a child that came no further, or has used up the time.
fn give_up(pid: Pid, limits: &Limits, watchdog: &mut Watchdog, seen: &Witness) -> End {
    let late = limits.is_late();
    let why = match () {
        () if late => "reached the deadline".to_owned(),
        () if seen.is_step_late() => "took too long".to_owned(),
        () => format!("made no progress for {} s", limits.stall.as_secs()),
    };
    let why = format!("{why} {}", seen.place());
    log::error!("the {} {why}: killing it", limits.name);
    if let Err(errno) = kill(pid, Signal::SIGKILL) {
        log::warn!("killing the {}: {}", limits.name, errno.desc());
    }
    let start = Instant::now();
    let mut stuck = true;
    while stuck && start.elapsed() < KILL_PATIENCE {
        watchdog.ping();
        stuck = reap(pid).is_none();
        std::thread::sleep(REAP_TICK);
    }
    match (late, stuck) {
        (true, stuck) => End::Late { stuck },
        (false, true) => End::Stuck(format!("{why} and cannot be killed")),
        (false, false) => End::Stalled(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::beat::Step;
    use base::config::Capture;
    use std::sync::Mutex;

    /// `reap` takes any child of the process, so these tests run one at a time.
    static ONE: Mutex<()> = Mutex::new(());

    fn run(script: &str, stall_timeout: u64, deadline: u64) -> (End, Witness, Duration) {
        let _guard = base::lock::lock(&ONE);
        #[expect(clippy::zombie_processes, reason = "`wait` under test reaps it")]
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let beats = child.stdout.take().unwrap();
        let start = Instant::now();
        let capture = Capture { stall_timeout, deadline: Some(deadline), ..Capture::default() };
        let limits = Limits::new(&Config { capture, ..Config::default() }, 0);
        let mut seen = Witness::default();
        let end = wait(&child, beats, &limits, &mut Watchdog::new(0), &mut seen);
        (end, seen, start.elapsed())
    }

    #[test]
    fn the_childs_end_is_named() {
        assert_eq!(run("exit 0", 9, 0).0, End::Done(Outcome::Complete));
        assert_eq!(run("exit 3", 9, 0).0, End::Done(Outcome::Incomplete));
        assert_eq!(run("exit 77", 9, 0).0, End::Died("exited with code 77".into()));
        assert_eq!(run("kill -ABRT $$", 9, 0).0, End::Died("was killed by SIGABRT".into()));
    }

    #[test]
    fn the_last_words_of_a_child_are_heard() {
        let (end, seen, _) = run("echo target 1; echo step dump 0; echo reading 0 5 9; kill -BUS $$", 9, 0);
        assert_eq!(end, End::Died("was killed by SIGBUS".into()));
        assert_eq!((seen.step, seen.target), (Some(Step::Dump), Some(1)));
        assert_eq!(seen.reading().collect::<Vec<_>>(), [(5, 9)]);
    }

    #[test]
    fn a_silent_child_is_killed_and_a_busy_one_is_not() {
        let (end, _, took) = run("echo step dump 0; exec sleep 60", 1, 0);
        assert_eq!(end, End::Stalled("made no progress for 1 s in step dump".into()));
        assert!(took < Duration::from_secs(10), "{took:?}");
        let (end, _, took) = run("for i in 1 2 3 4 5; do sleep 0.5; echo .; done", 2, 0);
        assert_eq!(end, End::Done(Outcome::Complete));
        assert!(took >= Duration::from_secs(2), "{took:?}");
    }

    #[test]
    fn a_busy_child_is_killed_at_the_end_of_its_step_or_of_all() {
        let busy = "while :; do echo .; sleep 0.1; done";
        let (end, ..) = run(&format!("echo step open 1; {busy}"), 60, 0);
        assert_eq!(end, End::Stalled("took too long in step open".into()));
        assert_eq!(run(busy, 60, 2).0, End::Late { stuck: false });
    }
}
