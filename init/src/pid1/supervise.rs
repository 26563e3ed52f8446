//! Waiting for the capture child under deadlines.

use std::io::Read;
use std::os::fd::AsFd;
use std::panic;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::config::{self, Capture, FinalAction};
use crate::pid1::{finish, mounts};
use crate::report::Outcome;

/// How long a killed child may take to die. One that is still there hangs in a driver.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How often deadlines are looked at; heartbeats and the child's end wake PID 1 earlier.
const TICK: Duration = Duration::from_millis(500);

/// How often the child is looked for when its pipe is closed: it is about to end.
const REAP_TICK: Duration = Duration::from_millis(10);

/// How the child came to its end.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It exited or was killed; the text says how.
    Gone(String),
    /// It did not die: it hangs in the kernel.
    Stuck,
}

/// PID 1's main function.
pub fn supervise() -> ! {
    // No code of PID 1 panics by design; if it does all the same, the machine must come back.
    panic::set_hook(Box::new(|info| {
        log::error!("PID 1: {info}");
        finish::finish(FinalAction::Reboot)
    }));
    let mount_errors = mounts::mount_all();
    let (config, complaints) = config::load();
    crate::log::init_kmsg(config.capture.log.into());
    log::info!("version {}, final action will be {}", env!("CARGO_PKG_VERSION"), config.finish.action);
    mount_errors.iter().chain(&complaints).for_each(|text| log::warn!("{text}"));
    match spawn() {
        Ok((child, heartbeats)) => match wait(&child, heartbeats, &config.capture) {
            End::Gone(how) => log::info!("capture {how}"),
            End::Stuck => {
                // A device hangs under it: an orderly shutdown would hang in the same place.
                log::error!("the capture hangs in the kernel and cannot be killed");
                finish::forced(config.finish.action);
            }
        },
        Err(error) => log::error!("starting the capture: {error}"),
    }
    finish::finish(config.finish.action)
}

fn spawn() -> std::io::Result<(Child, ChildStdout)> {
    let command =
        |path: &str| Command::new(path).arg("capture").stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = command("/proc/self/exe").or_else(|_| command("/init"))?;
    let heartbeats = child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
    Ok((child, heartbeats))
}

/// Waits for the child and reaps everything that ends meanwhile. Each byte on the pipe is a sign of progress.
fn wait(child: &Child, mut heartbeats: ChildStdout, limits: &Capture) -> End {
    let Ok(pid) = i32::try_from(child.id()).map(Pid::from_raw) else {
        return End::Gone("has no pid".to_owned());
    };
    let start = Instant::now();
    let mut progress = start;
    let mut open = true;
    loop {
        if let Some(how) = reap(pid) {
            return End::Gone(how);
        }
        let stalled = progress.elapsed() >= Duration::from_secs(limits.stall_timeout);
        let late = limits.deadline > 0 && start.elapsed() >= Duration::from_secs(limits.deadline);
        if stalled || late {
            let why = if late { "reached its deadline" } else { "made no progress" };
            log::error!("the capture {why} for {} s: killing it", progress.elapsed().as_secs());
            return kill_child(pid);
        }
        if !open {
            std::thread::sleep(REAP_TICK);
        } else if readable(&heartbeats) {
            let mut bytes = [0; 256];
            match heartbeats.read(&mut bytes) {
                Ok(0) | Err(_) => open = false, // it is about to exit
                Ok(_) => progress = Instant::now(),
            }
        }
    }
}

/// Waits up to a tick for a heartbeat or the end of the pipe.
fn readable(pipe: &ChildStdout) -> bool {
    let timeout = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
    poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|ready| ready > 0)
}

/// Reaps what has ended; says how `child` did if it was among it.
fn reap(child: Pid) -> Option<String> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => {
                let outcome = Outcome::from_exit_code(code).map(|outcome| outcome.to_string());
                return Some(outcome.unwrap_or_else(|| format!("exited with code {code}")));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Some(format!("was killed by {signal}"));
            }
            Ok(WaitStatus::StillAlive) => return None,
            Err(Errno::ECHILD) => return Some("is gone".to_owned()),
            Err(Errno::EINTR) | Ok(_) => (),
            Err(errno) => {
                log::warn!("waitpid: {}", errno.desc());
                return None;
            }
        }
    }
}

fn kill_child(pid: Pid) -> End {
    if let Err(errno) = kill(pid, Signal::SIGKILL) {
        log::warn!("killing the capture: {}", errno.desc());
    }
    let start = Instant::now();
    while start.elapsed() < KILL_PATIENCE {
        if let Some(how) = reap(pid) {
            return End::Gone(how);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    End::Stuck
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, PoisonError};

    /// `reap` takes any child of the process, so these tests run one at a time.
    static ONE: Mutex<()> = Mutex::new(());

    fn run(script: &str, limits: &Capture) -> (End, Duration) {
        let _guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(clippy::zombie_processes, reason = "`wait` under test reaps it")]
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let heartbeats = child.stdout.take().unwrap();
        let start = Instant::now();
        (wait(&child, heartbeats, limits), start.elapsed())
    }

    fn limits(stall_timeout: u64, deadline: u64) -> Capture {
        Capture { stall_timeout, deadline, ..Capture::default() }
    }

    #[test]
    fn the_childs_end_is_named() {
        assert_eq!(run("exit 0", &limits(9, 0)).0, End::Gone("complete".into()));
        assert_eq!(run("exit 3", &limits(9, 0)).0, End::Gone("incomplete".into()));
        assert_eq!(run("exit 77", &limits(9, 0)).0, End::Gone("exited with code 77".into()));
        assert_eq!(run("kill -ABRT $$", &limits(9, 0)).0, End::Gone("was killed by SIGABRT".into()));
    }

    #[test]
    fn a_silent_child_is_killed_and_a_busy_one_is_not() {
        let (end, took) = run("exec sleep 60", &limits(1, 0));
        assert_eq!(end, End::Gone("was killed by SIGKILL".into()));
        assert!(took < Duration::from_secs(10), "{took:?}");
        let (end, took) = run("for i in 1 2 3 4 5; do sleep 0.5; echo .; done", &limits(2, 0));
        assert_eq!(end, End::Gone("complete".into()));
        assert!(took >= Duration::from_secs(2), "{took:?}");
    }

    #[test]
    fn a_busy_child_is_killed_at_the_deadline() {
        let (end, _) = run("while :; do echo .; sleep 0.1; done", &limits(60, 2));
        assert_eq!(end, End::Gone("was killed by SIGKILL".into()));
    }
}
