//! What the wrapper leaves behind in the capture kernel: processes that wait until the console says
//! something, and then do to the capture what a test wants done to it. Each comes from a word of
//! the command line; `_` stands for a blank.
//!
//! - `wrap.kill=KILL@dump:_50%`: sends the signal to the capture child; with `,3` behind it to
//!   three children.
//! - `wrap.stop=dump:_50%`: the same with SIGSTOP, which is a hang.
//! - `wrap.eat=4@dump:_10%`: takes memory until so many MiB are available, has the OOM killer kill
//!   the child, and gives some of it back.
//! - `wrap.panic=dump:_50%`: the capture kernel itself panics, and hangs if its command line says
//!   `panic=0`.

use crate::say::say;
use anyhow::{Context, Result, bail, ensure};
use memmap2::MmapMut;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Taken at a time: less than the end of the child gives back, or the one who takes would be next.
const MEAL: usize = 64 << 10;
/// Meals that are given back when the child is gone, for the next one: 24 MiB.
const GIVEN_BACK: usize = 384;
/// How long a child is looked for that has just written to the console.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, PartialEq, Eq)]
enum Job {
    Signal(Signal),
    Eat(u64),
    Panic,
}

/// A job, what it waits for, and how often.
#[derive(Debug, PartialEq, Eq)]
struct Order {
    job: Job,
    message: String,
    times: u32,
}

/// Starts a process for a word; it outlives the wrapper.
pub(crate) fn start(word: &str) -> Result<()> {
    parse(word)?;
    let mut command = Command::new("/wrapper");
    command.arg(word).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("starting {word}"))?;
    Ok(())
}

/// The process itself.
pub(crate) fn run(word: &str) {
    if let Err(error) = parse(word).and_then(|order| carry_out(&order)) {
        say(format!("wrapper: FAILED: {word}: {error:#}"));
    }
}

fn parse(word: &str) -> Result<Order> {
    let (key, value) = word.split_once('=').with_context(|| format!("{word} has no value"))?;
    let (value, times) = match value.rsplit_once(',') {
        Some((value, times)) => (value, times.parse().with_context(|| format!("{word}: how often?"))?),
        None => (value, 1),
    };
    let with_argument = || value.split_once('@').with_context(|| format!("{word} lacks an @"));
    let (job, message) = match key {
        "wrap.kill" => {
            let (name, message) = with_argument()?;
            let signal: Signal = format!("SIG{}", name.trim_start_matches("SIG")).parse()?;
            (Job::Signal(signal), message)
        }
        "wrap.stop" => (Job::Signal(Signal::SIGSTOP), value),
        "wrap.eat" => {
            let (left, message) = with_argument()?;
            (Job::Eat(left.parse().with_context(|| format!("{word}: how many MiB?"))?), message)
        }
        "wrap.panic" => (Job::Panic, value),
        _ => bail!("the wrapper knows no {key}"),
    };
    ensure!(!message.is_empty(), "{word} waits for nothing");
    Ok(Order { job, message: message.replace('_', " "), times })
}

fn carry_out(order: &Order) -> Result<()> {
    let mut log = Log::open()?;
    for _ in 0..order.times {
        log.wait(&order.message)?;
        match order.job {
            Job::Signal(signal) => {
                let child = child()?;
                kill(child, signal).with_context(|| format!("sending {signal} to {child}"))?;
                say(format!("wrapper: sent {signal} to the capture {child}"));
            }
            Job::Eat(left) => eat(left)?,
            Job::Panic => {
                say("wrapper: panicking the capture kernel");
                fs::write("/proc/sysrq-trigger", "c").context("writing to /proc/sysrq-trigger")?;
            }
        }
    }
    // What was taken stays taken.
    loop {
        sleep(Duration::MAX);
    }
}

/// Takes memory that the OOM killer cannot give back: it has to kill the capture.
fn eat(left: u64) -> Result<()> {
    let child = child()?;
    fs::write("/proc/self/oom_score_adj", "-1000").context("hiding from the OOM killer")?;
    let mut taken = Vec::new();
    while available()? > left << 10 && is_child(child) {
        let mut memory = MmapMut::map_anon(MEAL).context("mapping memory")?;
        memory.fill(0xa5);
        taken.push(memory);
    }
    // A capture that has all it needs goes on with that little; so the OOM killer is asked for
    // (sysrq f), and finds nobody else.
    fs::write("/proc/sysrq-trigger", "f").context("calling the OOM killer")?;
    while is_child(child) {
        sleep(PAUSE);
    }
    let meals = taken.len();
    taken.truncate(meals.saturating_sub(GIVEN_BACK));
    say(format!("wrapper: took {} KiB of memory", meals.saturating_mul(MEAL / 1024)));
    std::mem::forget(taken);
    Ok(())
}

/// `MemAvailable` in KiB.
fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().next()).context("no MemAvailable")?;
    number.parse().context("MemAvailable")
}

/// The capture child: the only process with `capture` as its first argument.
fn child() -> Result<Pid> {
    for _ in 0..TRIES {
        for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
            let name = entry.file_name();
            if let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw)
                && is_child(pid)
            {
                return Ok(pid);
            }
        }
        sleep(PAUSE);
    }
    bail!("there is no capture child")
}

fn is_child(pid: Pid) -> bool {
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|&byte| byte == 0).nth(1) == Some(b"capture"))
}

/// The capture kernel's log, from its start.
struct Log(File);

impl Log {
    /// `/init` mounts anew what the wrapper had mounted; a file opened before that stays usable.
    fn open() -> Result<Self> {
        for _ in 0..200 {
            if let Ok(file) = File::open("/dev/kmsg") {
                return Ok(Self(file));
            }
            sleep(PAUSE);
        }
        bail!("/dev/kmsg does not appear")
    }

    /// Reads up to a record that contains `text` and is not one of ours.
    fn wait(&mut self, text: &str) -> Result<()> {
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => bail!("the log ended"),
                Ok(size) => {
                    let message =
                        String::from_utf8_lossy(record.get(..size).unwrap_or_default()).into_owned();
                    if message.contains(text) && !message.contains("wrapper:") && !message.contains("wrap.") {
                        return Ok(());
                    }
                }
                // Records were lost, the next ones were not (Documentation/ABI/testing/dev-kmsg).
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error).context("reading /dev/kmsg"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_orders() {
        let order = |job, times| Order { job, message: "dump: 50%".into(), times };
        assert_eq!(parse("wrap.kill=KILL@dump:_50%").unwrap(), order(Job::Signal(Signal::SIGKILL), 1));
        assert_eq!(parse("wrap.kill=SIGABRT@dump:_50%,3").unwrap(), order(Job::Signal(Signal::SIGABRT), 3));
        assert_eq!(parse("wrap.stop=dump:_50%").unwrap(), order(Job::Signal(Signal::SIGSTOP), 1));
        assert_eq!(parse("wrap.eat=4@dump:_50%").unwrap(), order(Job::Eat(4), 1));
        assert_eq!(parse("wrap.panic=dump:_50%").unwrap(), order(Job::Panic, 1));
        for bad in [
            "wrap.kill=KILL",
            "wrap.kill=FOO@x",
            "wrap.eat=x@y",
            "wrap.stop=",
            "wrap.feed=1@x",
            "wrap.stop=x,y",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
