//! The summary: made once, by a process of its own that has two seconds, and saved on each target
//! behind the log.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::run::{Job, VMCORE};
use crate::walker::{ARGUMENT, Order};
use base::beat::{self, Step};
use triage::cause::Kind;
use triage::findings::{Findings, Piece};
use vmcore::report::{Degradation, Summary};
use vmcore::target::{Artifact, Target, TargetError};

/// How long the walk may take.
const TIME: Duration = Duration::from_secs(2);
/// Seconds that this step may take beyond what every step may: a pipe and a process.
const GRACE: u64 = 10;
/// Bytes that the walk may send.
const SENT: usize = 4 << 20;
/// Bytes of the files: together no more than 256 KiB.
const JSON: usize = 160 << 10;
const TEXT: usize = 96 << 10;
/// The same on a target that has little room.
const SMALL: usize = 16 << 10;
/// How often it is looked whether the process has ended.
const TICK: Duration = Duration::from_millis(10);

/// Walks through the memory, if an earlier attempt did not come to its end there.
pub(super) fn make(job: &Job<'_>) -> Findings {
    let mut findings = Findings::default();
    if job.core.is_none() {
        findings.miss("all that is in memory", "the vmcore cannot be opened");
        return findings;
    }
    if job.walk_ended_badly {
        findings.miss("all that is in memory", "an earlier attempt came to its end while it was looked for");
        return findings;
    }
    job.step(Step::Summary, GRACE);
    let start = Instant::now();
    match start_walker(job).and_then(|(mut child, out)| {
        let why = receive(out, start, &mut findings);
        end(&mut child, why)
    }) {
        Ok(None) => {}
        Ok(Some(why)) => findings.miss("what would follow", &why),
        Err(error) => findings.miss("all that is in memory", &format!("the walker did not start: {error}")),
    }
    log::info!("summary made in {:.3} s", start.elapsed().as_secs_f64());
    findings
}

fn start_walker(job: &Job<'_>) -> io::Result<(Child, ChildStdout)> {
    let last = job.facts.memory_map.iter().map(|range| range.last).max();
    let order = Order {
        vmcore: VMCORE.to_owned(),
        memory_end: last.and_then(|last| last.checked_add(1)),
        info: job.info.to_text(),
        knowledge: job.knowledge().to_owned(),
        planned: job.planned.is_some(),
    };
    let mut command = Command::new("/proc/self/exe");
    command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let (Some(mut input), Some(output)) = (input, output) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    // It reads all of it before it does anything else.
    input.write_all(&serde_json::to_vec(&order)?)?;
    Ok((child, output))
}

/// Takes the pieces, until there are no more, or the time is over; says why then.
fn receive(mut out: ChildStdout, start: Instant, findings: &mut Findings) -> Option<String> {
    let (mut line, mut sent) = (Vec::new(), 0_usize);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let left = TIME.checked_sub(start.elapsed());
        let Some(left) = left else { return Some(format!("the walk took longer than {} s", TIME.as_secs())) };
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Some(errno.desc().to_owned()),
        }
        let len = match out.read(&mut buffer) {
            Ok(0) => return None,
            Ok(len) => len,
            Err(error) => return Some(error.to_string()),
        };
        beat::alive();
        sent = sent.saturating_add(len);
        if sent > SENT {
            return Some(format!("the walk sent more than {} MiB", SENT >> 20));
        }
        for piece in buffer.get(..len).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece);
            if line.ends_with(b"\n") {
                match serde_json::from_slice::<Piece>(&line) {
                    Ok(piece) => findings.add(piece),
                    Err(error) => log::debug!("summary: {error}"),
                }
                line.clear();
            }
        }
    }
}

/// Ends the process, and says what is wrong with its end. One that hangs in the kernel is left alone.
fn end(child: &mut Child, why: Option<String>) -> io::Result<Option<String>> {
    let start = Instant::now();
    if why.is_some() {
        let _ = child.kill();
    }
    while start.elapsed() < TIME {
        if let Some(status) = child.try_wait()? {
            return Ok(why.or_else(|| (!status.success()).then(|| format!("the walk ended with {status}"))));
        }
        sleep(TICK);
    }
    let _ = child.kill();
    Ok(why.or_else(|| Some("the walker did not end".to_owned())))
}

/// Saves it.
pub(super) fn save(findings: &Findings, target: &mut dyn Target, summary: &mut Summary) {
    summary.cause = findings.cause.as_ref().filter(|cause| cause.kind != Kind::Unknown).map(|cause| {
        serde_json::to_value(cause.kind)
            .ok()
            .and_then(|kind| kind.as_str().map(str::to_owned))
            .unwrap_or_default()
    });
    summary.signature = findings.signature.as_ref().map(|signature| signature.hash.clone());
    let is_small =
        target.room().is_some_and(|room| room / 2 < u64::try_from(JSON + TEXT).unwrap_or(u64::MAX));
    let (text, json) = if is_small { (SMALL, SMALL) } else { (TEXT, JSON) };
    // The text first: it is what people read.
    let saved = write(target, Artifact::SummaryText, &findings.to_text(text))
        .and_then(|()| write(target, Artifact::Summary, &findings.to_json(json)));
    if let Err(error) = saved {
        summary.degrade(Degradation::Summary { cause: base::log::chain(&error) });
    }
    if !findings.complete {
        let whys = findings.missing.iter().map(|missing| format!("{}: {}", missing.what, missing.why));
        summary.degrade(Degradation::Summary { cause: whys.collect::<Vec<_>>().join("; ") });
    }
}

fn write(target: &mut dyn Target, artifact: Artifact, text: &str) -> Result<(), TargetError> {
    let failed = |source| TargetError::artifact(artifact.name(), source);
    let mut sink = target.create(artifact)?;
    sink.write_at(0, text.as_bytes()).map_err(failed)?;
    sink.sync().map_err(failed)?;
    drop(sink);
    target.publish(artifact)
}
