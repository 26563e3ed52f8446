//! What is saved on one target, in this order: the log, the summary, then the dump or what stands for
//! it, then `result.json`, and when all that is safe triage, after which `result.json` is written again.

use std::io::{self, BufWriter, Write};

use crate::run::fit::{Fit, fit};
use crate::run::{Job, evidence, hooks, live, seconds_since, summary, triage};
use crate::targets::Ways;
use ::evidence::witness::Witness;
use base::attempt::Rung;
use base::beat::{self, Beat, Step};
use base::config::{self, Format, Place, When, WhenFull};
use base::time::Lap;
use vmcore::budget;
use vmcore::dump::estimate::estimate;
use vmcore::dump::{self, Request, Written};
use vmcore::kernel::dmesg::{self, Death, DmesgError, DmesgStats, Tail};
use vmcore::report::{Degradation, Outcome, Summary};
use vmcore::session::{record, record_left_out};
use vmcore::sink::{Append, Sink};
use vmcore::target::{self, Artifact, Detour, Target, TargetError};

/// Bytes that are kept free for `result.json`: some hundred degradations.
const RESULT_ROOM: u64 = 64 << 10;

/// Bytes of log that every target is to have room for: the text of a ring of 1 MiB, the largest
/// that distributions set. A longer one takes no more than half of what a target has.
const USUAL_LOG: u64 = 4 << 20;
/// Bytes of the log's end that are saved where all of it cannot be.
const LOG_END: u64 = 64 << 10;

/// Seconds that an attempt at a host may take.
const LAST_ATTEMPT: u64 = 60;

/// How a target did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saved {
    /// What it holds.
    pub(super) outcome: Outcome,
    /// Whether that is all that was to be saved, so that no other target is needed.
    pub(super) settled: bool,
}

/// Saves to one target. Each thing that fails is recorded; `None` if the target cannot be used at
/// all.
pub(super) fn save_to(
    job: &Job<'_>,
    config: &config::Target,
    ways: &Ways,
    capture: target::Capture<'_>,
    summary: &mut Summary,
) -> Option<Saved> {
    let mut lap = Lap::start();
    let failed = |cause| Degradation::Target { target: config.to_string(), cause };
    beat::tell(&Beat::Target(capture.index));
    // Another attempt at a raw device reads what the first has written: that may be much, and is
    // watched for progress.
    job.step(Step::Open, opening(config, ways));
    let slow = patience(config);
    let opened = ways.open(config, capture).map_err(|error| failed(base::log::chain(&error)));
    let opened = opened.map_err(|degradation| summary.degrade(degradation)).ok()?;
    // Of what a host was sent `result.json` has the sums in any case.
    let is_witnessed = job.config.evidence.save || config.kind().is_remote();
    let mut target = if is_witnessed { Witness::new(opened) } else { Witness::blind(opened) };
    let location = target.location();
    log::info!("saving to {location}");
    summary.journal.note(format!("saving to {location}"));
    beat::tell(&Beat::Location(location.clone()));
    (summary.target, summary.sequence) = (Some(location), target.ledger().sequence);
    (summary.dmesg, summary.live, summary.outcome) = (None, None, Outcome::Failed);
    summary.seconds.open = lap.lap();
    let place = |cause| Degradation::Place(Detour { target: config.to_string(), cause });
    target.detours().into_iter().map(place).for_each(|degradation| summary.degrade(degradation));

    job.step(Step::Log, slow);
    if job.kernel.is_some() {
        save_dmesg(job, &mut target, summary);
        summary.seconds.dmesg = lap.lap();
    }
    summary::save(job.findings(), &mut target, summary);
    summary.seconds.summary = lap.lap();
    save_live(job, slow, &mut target, summary);
    let result = reserve_result(&mut target);
    let settled = save_dump_or_notes(job, config, &mut target, summary);
    summary.seconds.dump = lap.lap();
    if summary.outcome == Outcome::Incomplete {
        summary.degrade(failed("the dump there is incomplete".to_owned()));
    }
    let settled = settled || summary.outcome == Outcome::Complete;
    finish(job, config, target, result, settled, summary);
    Some(Saved { outcome: summary.outcome, settled })
}

/// Seconds that opening a target may take beyond what a step may.
fn opening(config: &config::Target, ways: &Ways) -> u64 {
    match &config.place {
        // Another attempt at a raw device reads what the first has written: that may be much, and
        // is watched for progress.
        Place::Raw(_) => u64::MAX,
        // First for the device, then for its further ones.
        Place::Filesystem(_) => config.wait.saturating_mul(2),
        Place::Nfs(_) => config.wait.saturating_add(ways.network_patience()).saturating_add(patience(config)),
        Place::Ssh(_) | Place::Https(_) | Place::S3(_) => config.wait.saturating_add(ways.network_patience()),
    }
}

/// Seconds that saving something small may take beyond what a step may: on the network it is tried
/// again.
fn patience(config: &config::Target) -> u64 {
    // Patience begins with a failure, and the last attempt has its own limit of time.
    let patience = |retry: u64| retry.saturating_add(LAST_ATTEMPT);
    match &config.place {
        Place::Filesystem(_) | Place::Raw(_) => 0,
        // Each of opening, writing and closing a file is waited for.
        Place::Nfs(nfs) => patience(nfs.retry).saturating_mul(3),
        Place::Ssh(config::Ssh { retry, .. })
        | Place::Https(config::Https { retry, .. })
        | Place::S3(config::S3 { retry, .. }) => patience(*retry),
    }
}

/// Says whether no dump was wanted.
fn save_dump_or_notes(
    job: &Job<'_>,
    config: &config::Target,
    target: &mut dyn Target,
    summary: &mut Summary,
) -> bool {
    if summary.dmesg.is_some() {
        summary.outcome = Outcome::LogOnly;
    }
    let Some(core) = job.core else { return false };
    let ledger = target.ledger();
    let looping = ledger.looping;
    if looping {
        let (crashes, until) = (ledger.crashes.len(), target.end_of_loop());
        summary.degrade(Degradation::CrashLoop { target: target.location(), crashes, until });
    }
    if looping || job.rung == Rung::LogOnly {
        save_notes(job, target, summary);
        return summary.outcome == Outcome::LogOnly;
    }
    let request = Request { format: format_on(target, job.config.dump.format), ..job.request() };
    job.step(Step::Dump, 0);
    let filter = job.filter(summary);
    beat::alive();
    if target.is_stream() {
        let sizes = estimate(core, filter, &request).sizes;
        let size = sizes.iter().find(|(exclude, _)| *exclude == request.exclude);
        target.expect(size.map_or_else(|| dump::memory_bytes(core), |(_, size)| size.bytes));
    }
    match fit(core, filter, &request, target.room(), config.when_full) {
        Fit::Whole => save_dump(job, &request, target, summary),
        Fit::Stricter(exclude, why) => {
            summary.degrade(why);
            save_dump(job, &Request { exclude, ..request }, target, summary);
        }
        Fit::LogOnly(why) => {
            summary.degrade(why);
            save_notes(job, target, summary);
        }
        Fit::Nothing(why) => summary.degrade(why),
    }
    false
}

/// The format that a target takes: what goes out as one stream cannot be gone back to.
fn format_on(target: &dyn Target, wanted: Format) -> Format {
    if target.is_stream() { Format::Flattened } else { wanted }
}

/// Saves the log, or the end of it: where it has no room, and where the old kernel's page tables
/// make more text of it than there can be. A log that was cut by a full disk would take the room of
/// what comes after it, and is replaced by its end.
fn save_dmesg(job: &Job<'_>, target: &mut dyn Target, summary: &mut Summary) {
    let Some(kernel) = &job.kernel else { return };
    let discovered = dmesg::Ring::discover(kernel).map_err(TargetError::because);
    let saved = discovered.and_then(|ring| {
        // A target that is full, or that is to be left to others, still takes a usual log.
        let room = target.room().map_or(u64::MAX, |room| (room / 2).max(USUAL_LOG));
        match write_dmesg(&ring, ring.output_limit().min(room), target) {
            Err(error) if error.is_full() => {
                log::warn!("kernel log: {}; its end is tried", base::log::chain(&error));
                write_dmesg(&ring, LOG_END, target)
            }
            result => result,
        }
    });
    match saved {
        Ok((stats, death)) => {
            // After a planned switch nobody died, whatever the log says of before.
            summary.death = death.filter(|_| job.planned.is_none());
            let text = format!("kernel log saved: {} records, {} damaged", stats.records, stats.damaged);
            log::info!("{text}");
            summary.journal.note(text);
            summary.dmesg = Some(stats);
            if stats.left_out > 0 {
                summary.degrade(Degradation::LogCut { left_out: stats.left_out });
            }
        }
        Err(error) => {
            if error.is_full() {
                drop(target.create(Artifact::Dmesg)); // what is there of it gives its room back
            }
            summary.degrade(Degradation::Dmesg { cause: base::log::chain(&error) });
        }
    }
}

/// Writes the newest records, no more than `limit` bytes of text.
fn write_dmesg(
    ring: &dmesg::Ring<'_, '_>,
    limit: u64,
    target: &mut dyn Target,
) -> Result<(DmesgStats, Option<Death>), TargetError> {
    let artifact = Artifact::Dmesg;
    let mut sink = target.create(artifact)?;
    let mut out = BufWriter::with_capacity(64 << 10, Append::new(sink.as_mut()));
    let mut tail = Tail::new(0);
    let written = ring.write(&mut Both(&mut out, &mut tail), limit);
    let written = written.and_then(|stats| out.flush().map(|()| stats).map_err(DmesgError::Write));
    // A buffer that is dropped is written, once more to a full disk.
    drop(out.into_parts());
    let stats = written.map_err(TargetError::because)?;
    sink.sync().map_err(|error| TargetError::artifact(artifact.name(), error))?;
    drop(sink);
    target.publish(artifact)?;
    Ok((stats, tail.death()))
}

/// Writes to both.
struct Both<'a, A, B>(&'a mut A, &'a mut B);

impl<A: Write, B: Write> Write for Both<'_, A, B> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        self.1.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What live collectors found, if there was a planned switch. An attempt that saves the log only
/// has seen memory that does harm.
fn save_live(job: &Job<'_>, slow: u64, target: &mut dyn Target, summary: &mut Summary) {
    let recorded = job.planned.and_then(|planned| planned.live.as_ref());
    let (Some(live), Some(core), true) = (recorded, job.core, job.rung < Rung::LogOnly) else { return };
    job.step(Step::Log, slow);
    live::save(core, live, target, summary);
}

/// Registers and VMCOREINFO, where the dump that would have them is not made.
fn save_notes(job: &Job<'_>, target: &mut dyn Target, summary: &mut Summary) {
    let Some(core) = job.core else { return };
    let mut save = || -> Result<(), Box<dyn core::error::Error>> {
        let mut sink = target.create(Artifact::Notes)?;
        dump::notes::write(core, job.info, sink.as_mut())?;
        drop(sink);
        Ok(target.publish(Artifact::Notes)?)
    };
    if let Err(error) = save() {
        summary.degrade(Degradation::Notes { cause: base::log::chain(error.as_ref()) });
    }
}

fn save_dump(job: &Job<'_>, request: &Request, target: &mut dyn Target, summary: &mut Summary) {
    let Some(core) = job.core else { return };
    summary.workers = request.budget.workers;
    (summary.level, summary.exclude) = (request.exclude.level().into(), request.exclude.names());
    let mut written = Written::default();
    let mut save = || -> Result<_, Box<dyn core::error::Error>> {
        let mut sink = target.create(Artifact::Vmcore)?;
        dump::write(core, job.filter(summary), request, sink.as_mut(), &mut written)?;
        drop(sink);
        target.publish(Artifact::Vmcore)?;
        Ok(())
    };
    let result = save();
    match result {
        Ok(()) => summary.outcome = Outcome::Complete,
        Err(error) => {
            let cause = format!("{}: {}", target.location(), base::log::chain(error.as_ref()));
            summary.degrade(Degradation::Dump { cause });
            if written.pages.in_dump() > 0 && target.leave(Artifact::Vmcore).is_some() {
                summary.outcome = Outcome::Incomplete;
            }
        }
    }
    record(&written, summary);
    record_left_out(&written, request.exclude, summary);
    let pages = summary.pages;
    summary.journal.note(format!(
        "dump {}: {} pages with data, {} of zeros, {} left out, {} unreadable; {} bytes",
        if summary.outcome == Outcome::Complete { "saved" } else { "not whole" },
        pages.written,
        pages.zero,
        pages.excluded,
        pages.unreadable,
        summary.dump_bytes
    ));
}

/// Takes room for `result.json` before the dump takes all there is: what went wrong must be told on
/// a full disk too.
fn reserve_result(target: &mut dyn Target) -> Result<Box<dyn Sink>, TargetError> {
    let mut sink = target.create(Artifact::Result)?;
    if let Err(error) = sink.reserve(RESULT_ROOM) {
        log::warn!("no room for result.json: {}", base::log::chain(&error));
    }
    Ok(sink)
}

/// Writes `result.json`, makes room for captures to come, runs the hooks, and lets go of the
/// target. The outcome stands, whatever happens here.
fn finish(
    job: &Job<'_>,
    config: &config::Target,
    mut target: Witness,
    mut result: Result<Box<dyn Sink>, TargetError>,
    settled: bool,
    summary: &mut Summary,
) {
    let slow = patience(config);
    summary.sent = target.sent();
    summary.remarks = target.remarks();
    job.step(Step::Close, slow);
    summary.seconds.total = seconds_since(job.start);
    summary.peak_memory_bytes = budget::peak_memory();
    let published = write_result(&mut result, summary).and_then(|()| target.publish(Artifact::Result));
    if let Err(error) = published {
        log::error!("result.json not saved: {}", base::log::chain(&error));
    }
    if settled {
        beat::tell(&Beat::Saved(summary.outcome.to_string()));
    }
    let before = summary.degradations.len();
    let mut lap = Lap::start();
    // Where nothing is wanted of a dump that does not fit, the room is for others.
    if summary.outcome >= Outcome::Incomplete || config.when_full != WhenFull::Nothing {
        triage::save(job, slow, &mut target, summary);
    }
    summary.seconds.triage = lap.lap();
    job.step(Step::Close, slow);
    if summary.outcome == Outcome::Complete
        && let Err(error) = target.retire()
    {
        summary.degrade(Degradation::Retire { cause: base::log::chain(&error) });
    }
    hooks::run(&job.config.hook, When::After, target.directory().as_deref(), summary);
    job.step(Step::Close, slow);
    (summary.sent, summary.remarks) = (target.sent(), target.remarks());
    summary.seconds.total = seconds_since(job.start);
    if (summary.degradations.len() > before || summary.triage_bytes.is_some())
        && let Err(error) = write_result(&mut result, summary)
    {
        log::error!("result.json lacks what came in the end: {}", base::log::chain(&error));
    }
    drop(result);
    job.step(Step::Close, slow);
    evidence::save(job, &mut target, summary);
    if let Err(error) = Box::new(target).close() {
        log::warn!("{}", base::log::chain(&error));
    }
}

/// Writes `result.json` from its start; a second time it is longer than the first.
fn write_result(sink: &mut Result<Box<dyn Sink>, TargetError>, summary: &Summary) -> Result<(), TargetError> {
    let failed = |source| TargetError::artifact(Artifact::Result.name(), source);
    match sink {
        Ok(sink) => sink.write_at(0, summary.to_json().as_bytes()).and_then(|()| sink.sync()).map_err(failed),
        Err(error) => {
            log::error!("result.json: {}", base::log::chain(error));
            Ok(())
        }
    }
}
