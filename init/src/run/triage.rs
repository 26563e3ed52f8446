//! Triage: what was running, as rows, and files that were in memory only. Made when the dump is safe, by a
//! process of its own, and written to the target as it comes.

use std::time::{Duration, Instant};

use crate::run::Job;
use crate::run::walk::Walk;
use crate::walker::{Task, Wanted};
use base::addr::{to_u64, to_usize};
use base::attempt::Rung;
use base::beat::Step;
use triage::archive::{self, HEAD, Head};
use vmcore::report::{Degradation, Summary};
use vmcore::sink::{Sink, SinkError};
use vmcore::target::{Artifact, Target, TargetError};

/// Seconds that this step may take beyond what it is given for the walk.
const GRACE: u64 = 10;
/// Bytes of one part, compressed.
const PART: usize = 1 << 20;
/// Bytes of the archive, compressed, on any target.
const MOST: u64 = 1 << 30;
/// Bytes that a target has to have room for.
const LEAST: u64 = 1 << 20;
/// Of which so many are for its end, and for what is written behind it.
const END: u64 = 256 << 10;

/// Why there is no more of it.
#[derive(Debug)]
enum Cause {
    /// The walk.
    Walk(String),
    /// The target, which takes nothing more.
    Target(TargetError),
}

/// Makes and saves it, if it is wanted and can be had.
pub(super) fn save(job: &Job<'_>, slow: u64, target: &mut dyn Target, summary: &mut Summary) {
    summary.triage_bytes = None;
    let config = &job.config.triage;
    let Some(contents) = config.contents(job.config.dump.exclude) else { return };
    if job.core.is_none() || job.rung >= Rung::LogOnly || target.ledger().looping {
        return; // the memory cannot be read, or only little is to be saved
    }
    let room = target.room().unwrap_or(MOST).min(MOST);
    let degrade = |summary: &mut Summary, cause| summary.degrade(Degradation::Triage { cause });
    if job.walk_ended_badly {
        return degrade(
            summary,
            "an earlier attempt came to its end while memory was looked through".to_owned(),
        );
    }
    if room < LEAST {
        return degrade(summary, format!("the target has room for {room} bytes, and it takes {LEAST}"));
    }
    job.step(Step::Triage, config.time.saturating_add(GRACE).saturating_add(slow));
    let start = Instant::now();
    let wanted = Wanted {
        file_limit: config.file_limit.0,
        limit: config.limit.0,
        seconds: config.time,
        contents,
        only: config.only.clone(),
        except: config.except.clone(),
        time: job.time,
    };
    let mut bytes = 0;
    let save = || -> Result<Option<String>, TargetError> {
        let artifact = Artifact::Triage;
        let failed = |error| TargetError::artifact(artifact.name(), error);
        let mut sink = target.create(artifact)?;
        let why = write(job, wanted, room.saturating_sub(END), sink.as_mut(), &mut bytes)?;
        sink.sync().map_err(failed)?;
        drop(sink);
        target.publish(artifact)?;
        Ok(why)
    };
    match save() {
        Ok(why) => {
            summary.triage_bytes = Some(bytes);
            summary.journal.note(format!("triage saved: {bytes} bytes"));
            if let Some(why) = why {
                degrade(summary, why);
            }
        }
        Err(error) => {
            if error.is_full() {
                drop(target.create(Artifact::Triage)); // what is there of it gives its room back
            }
            degrade(summary, base::log::chain(&error));
        }
    }
    log::info!("triage made in {:.3} s, {bytes} bytes", start.elapsed().as_secs_f64());
}

/// Writes the archive, which ends properly even where the walk does not; says why there is no more of it.
fn write(
    job: &Job<'_>,
    wanted: Wanted,
    limit: u64,
    sink: &mut dyn Sink,
    bytes: &mut u64,
) -> Result<Option<String>, TargetError> {
    let failed = |source| TargetError::artifact(Artifact::Triage.name(), source);
    let time = Duration::from_secs(wanted.seconds);
    let mut owed = 0;
    let walked = Walk::start(job, Task::Triage(wanted), time).and_then(|mut walk| {
        let copied = copy(&mut walk, limit, sink, bytes, &mut owed);
        let (why, target) = match copied {
            Ok(()) => (None, None),
            Err(Cause::Walk(why)) => (Some(why), None),
            Err(Cause::Target(error)) => (Some(String::new()), Some(error)),
        };
        Ok((walk.end(why)?, target))
    });
    let why = match walked {
        Ok((_, Some(error))) => return Err(error),
        Ok((None, None)) => return Ok(None),
        Ok((Some(why), None)) => why,
        Err(error) => format!("the walker did not start: {error}"),
    };
    for frame in archive::ending(owed, &why, job.time).map_err(TargetError::because)? {
        append(sink, bytes, &frame).map_err(failed)?;
    }
    Ok(Some(why))
}

fn append(sink: &mut dyn Sink, bytes: &mut u64, part: &[u8]) -> Result<(), SinkError> {
    sink.write_at(*bytes, part)?;
    *bytes = bytes.saturating_add(to_u64(part.len()));
    Ok(())
}

/// Copies part by part, each only when all of it is there; `owed` is what has to follow the last one.
fn copy(
    walk: &mut Walk,
    limit: u64,
    sink: &mut dyn Sink,
    bytes: &mut u64,
    owed: &mut u64,
) -> Result<(), Cause> {
    let mut part = Vec::new();
    loop {
        let mut head = [0; HEAD];
        if !fill(walk, &mut head).map_err(Cause::Walk)? {
            return Err(Cause::Walk("the walk ended before its end".to_owned()));
        }
        let head = Head::parse(&head);
        let len = to_usize(head.bytes.into());
        if len == 0 {
            return Ok(());
        }
        if len > PART || head.owed > archive::MOST_OWED {
            return Err(Cause::Walk(format!("the walk sent a part of {len} bytes that is none")));
        }
        part.resize(len, 0);
        if !fill(walk, &mut part).map_err(Cause::Walk)? {
            return Err(Cause::Walk("the walk ended within a part".to_owned()));
        }
        if bytes.saturating_add(to_u64(len)) > limit {
            return Err(Cause::Walk(format!("there is no room for more than {limit} bytes")));
        }
        append(sink, bytes, &part)
            .map_err(|error| Cause::Target(TargetError::artifact(Artifact::Triage.name(), error)))?;
        *owed = head.owed;
    }
}

/// Reads as many bytes as there is room for; says no if there are none.
fn fill(walk: &mut Walk, mut buffer: &mut [u8]) -> Result<bool, String> {
    while !buffer.is_empty() {
        let len = walk.read(buffer)?;
        if len == 0 {
            return Ok(false);
        }
        buffer = buffer.get_mut(len..).unwrap_or_default();
    }
    Ok(true)
}
