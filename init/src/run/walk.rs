//! A process of its own that walks through the old kernel's memory: started with an order, heard with a
//! limit of time, and ended, whatever became of it.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::run::{Job, VMCORE};
use crate::walker::{ARGUMENT, Order, Task};
use base::beat;

/// How often it is looked whether the process has ended, and for how long.
const TICK: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one look at the pipe waits, so that PID 1 hears of it in between.
const LOOK: Duration = Duration::from_secs(1);

/// A walker at work.
pub(super) struct Walk {
    child: Child,
    out: ChildStdout,
    start: Instant,
    time: Duration,
}

impl Walk {
    /// Starts a walker, which has `time` from now on.
    pub(super) fn start(job: &Job<'_>, task: Task, time: Duration) -> io::Result<Self> {
        let start = Instant::now();
        let last = job.facts.memory_map.iter().map(|range| range.last).max();
        let order = Order {
            vmcore: VMCORE.to_owned(),
            memory_end: last.and_then(|last| last.checked_add(1)),
            info: job.info.to_text(),
            knowledge: job.knowledge().to_owned(),
            planned: job.planned.is_some(),
            task,
        };
        let mut command = Command::new("/proc/self/exe");
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(mut input), Some(out)) = (input, output) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let walk = Self { child, out, start, time };
        // It reads all of it before it does anything else. One that died before that is told by its end.
        let _ = input.write_all(&serde_json::to_vec(&order)?);
        Ok(walk)
    }

    /// Reads what it has sent; nothing at its end. Fails, with the reason, when its time is over.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        loop {
            let left = self.time.checked_sub(self.start.elapsed());
            let Some(left) = left else {
                return Err(format!("the walk took longer than {} s", self.time.as_secs()));
            };
            let timeout = PollTimeout::try_from(left.min(LOOK)).unwrap_or(PollTimeout::ZERO);
            match poll(&mut [PollFd::new(self.out.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) | Err(Errno::EINTR) => {
                    beat::alive();
                    continue;
                }
                Ok(_) => {}
                Err(errno) => return Err(errno.desc().to_owned()),
            }
            let len = self.out.read(buffer).map_err(|error| error.to_string())?;
            beat::alive();
            return Ok(len);
        }
    }

    /// Ends the process, at once if there is a reason, and says what is wrong with its end. One that hangs in
    /// the kernel is left alone.
    pub(super) fn end(mut self, why: Option<String>) -> io::Result<Option<String>> {
        let start = Instant::now();
        if why.is_some() {
            let _ = self.child.kill();
        }
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(
                    why.or_else(|| (!status.success()).then(|| format!("the walk ended with {status}")))
                );
            }
            sleep(TICK);
        }
        let _ = self.child.kill();
        Ok(why.or_else(|| Some("the walker did not end".to_owned())))
    }
}
