//! The user's own programs, before and after the dump: a process each, under a deadline and a limit
//! of memory. What one does, or fails to do, stops nothing.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, io};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use base::beat::{self, Beat, Step};
use base::config::{HOOKS_PATH, Hook, When};
use vmcore::report::{Degradation, Summary};

/// Where a hook finds what is known so far: its first argument, its standard input, and
/// `AFTERIMAGE_RESULT`.
const RESULT: &str = "/result.json";
const TICK: Duration = Duration::from_millis(20);
/// What starting and killing a hook may take beside its own time.
const GRACE: u64 = 10;

/// Runs the hooks of one moment, in order. `directory` is where the artifacts are, if they are
/// files.
pub(super) fn run(hooks: &[Hook], when: When, directory: Option<&Path>, summary: &mut Summary) {
    let wanted = hooks.iter().enumerate().filter(|(_, hook)| hook.when == when);
    for (index, hook) in wanted {
        beat::tell(&Beat::Step { step: Step::Hook, limit: hook.timeout.saturating_add(GRACE) });
        log::info!("hook {} ({when})", hook.path);
        let ended = save_result(summary)
            .and_then(|()| start(index, hook, directory))
            .and_then(|child| wait(child, Duration::from_secs(hook.timeout)));
        let cause = match ended {
            Ok(Some(status)) if status.success() => continue,
            Ok(Some(status)) => format!("ended with {status}"),
            Ok(None) => format!("took longer than {} s and was killed", hook.timeout),
            Err(error) => format!("did not run: {error}"),
        };
        summary.degrade(Degradation::Hook { path: hook.path.clone(), cause });
    }
}

/// The process between: takes on the limit of memory and becomes the hook. `arguments` are the
/// limit, the program and its own arguments. Comes back only with an error.
#[must_use]
pub(crate) fn become_hook(arguments: &[OsString]) -> io::Error {
    let [limit, program, arguments @ ..] = arguments else { return io::ErrorKind::InvalidInput.into() };
    let Some(bytes) = limit.to_str().and_then(|limit| limit.parse().ok()) else {
        return io::ErrorKind::InvalidInput.into();
    };
    // It ends with the attempt that started it, and before that attempt when memory runs out.
    let _ = set_pdeathsig(Signal::SIGKILL);
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    match setrlimit(Resource::RLIMIT_AS, bytes, bytes) {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(errno) => errno.into(),
    }
}

fn save_result(summary: &Summary) -> io::Result<()> {
    let _ = fs::remove_file(RESULT);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(RESULT)?;
    io::Write::write_all(&mut file, summary.to_json().as_bytes())
}

fn start(index: usize, hook: &Hook, directory: Option<&Path>) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["hook", &hook.memory.0.to_string(), &format!("{HOOKS_PATH}/{index}")]);
    command.arg(RESULT).args(&hook.args);
    command.env("AFTERIMAGE_WHEN", hook.when.to_string()).env("AFTERIMAGE_RESULT", RESULT);
    if let Some(directory) = directory {
        command.env("AFTERIMAGE_DIRECTORY", directory);
    }
    // What it says goes where we speak.
    let log_file =
        || OpenOptions::new().write(true).open("/dev/kmsg").map_or_else(|_| Stdio::null(), Stdio::from);
    command.stdin(File::open(RESULT)?).stdout(log_file()).stderr(log_file()).process_group(0).spawn()
}

/// Waits for a hook, or kills it with all that it has started; `None` if it had to be killed.
fn wait(mut child: Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    while start.elapsed() < timeout {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        beat::alive();
        sleep(TICK);
    }
    let group = i32::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidInput)?;
    kill(Pid::from_raw(group.saturating_neg()), Signal::SIGKILL)?;
    // One that hangs in the kernel stays behind: nobody waits for it.
    sleep(TICK);
    child.try_wait().map(|_| None)
}

/// Whether this process was started to become a hook, and with what.
#[must_use]
pub(crate) fn arguments() -> Option<Vec<OsString>> {
    let mut arguments = env::args_os().skip(1);
    arguments.next().filter(|word| word == "hook").map(|_| arguments.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_that_hangs_is_killed_with_its_children() {
        let spawn = |script: &str| Command::new("sh").args(["-c", script]).process_group(0).spawn().unwrap();
        let start = Instant::now();
        let ended = wait(spawn("sleep 60 & wait"), Duration::from_millis(300)).unwrap();
        assert!(ended.is_none() && start.elapsed() < Duration::from_secs(10));
        let ended = wait(spawn("exit 7"), Duration::from_secs(10)).unwrap();
        assert_eq!(ended.and_then(|status| status.code()), Some(7));
    }

    #[test]
    fn arguments_that_make_no_sense_are_an_error() {
        let error =
            |words: &[&str]| become_hook(&words.iter().map(OsString::from).collect::<Vec<_>>()).kind();
        assert_eq!(error(&[]), io::ErrorKind::InvalidInput);
        assert_eq!(error(&["much", "/hooks/0"]), io::ErrorKind::InvalidInput);
    }
}
