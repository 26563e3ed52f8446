//! The summary: made once, by a process of its own that has two seconds, and saved on each target
//! behind the log.

use std::time::{Duration, Instant};

use crate::run::Job;
use crate::run::walk::Walk;
use crate::walker::Task;
use base::beat::Step;
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
    let walked = Walk::start(job, Task::Summary, TIME).and_then(|mut walk| {
        let why = receive(&mut walk, &mut findings).err();
        walk.end(why)
    });
    match walked {
        Ok(None) => {}
        Ok(Some(why)) => findings.miss("what would follow", &why),
        Err(error) => findings.miss("all that is in memory", &format!("the walker did not start: {error}")),
    }
    log::info!("summary made in {:.3} s", start.elapsed().as_secs_f64());
    findings
}

/// Takes the pieces until there are no more; says why there are none.
fn receive(walk: &mut Walk, findings: &mut Findings) -> Result<(), String> {
    let (mut line, mut sent) = (Vec::new(), 0_usize);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = walk.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        sent = sent.saturating_add(len);
        if sent > SENT {
            return Err(format!("the walk sent more than {} MiB", SENT >> 20));
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
    match saved {
        Ok(()) => summary.journal.note("summary saved"),
        Err(error) => summary.degrade(Degradation::Summary { cause: base::log::chain(&error) }),
    }
    if !findings.complete {
        let whys = findings.missing.iter().map(|missing| format!("{}: {}", missing.what, missing.why));
        summary.degrade(Degradation::Summary { cause: whys.collect::<Vec<_>>().join("; ") });
    }
}

/// Writes a small file and gives it its name.
pub(super) fn write(target: &mut dyn Target, artifact: Artifact, text: &str) -> Result<(), TargetError> {
    let failed = |source| TargetError::artifact(artifact.name(), source);
    let mut sink = target.create(artifact)?;
    sink.write_at(0, text.as_bytes()).map_err(failed)?;
    sink.sync().map_err(failed)?;
    drop(sink);
    target.publish(artifact)
}
