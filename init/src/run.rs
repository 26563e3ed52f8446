//! The capture, as PID 1's child runs it. Each step that fails is recorded and the next one is
//! tried. `save` opens a target and saves to it, `fit` decides what there is room for.

mod evidence;
mod fit;
pub(crate) mod handoff;
pub(crate) mod hooks;
mod last_resort;
mod live;
mod modules;
mod save;
pub(crate) mod secrets;
mod summary;
mod triage;
mod trigger;
mod walk;

use core::cell::OnceCell;
use std::io::Read;
use std::path::Path;
use std::time::Instant;
use std::{fs, io};

use zeroize::Zeroizing;

use ::triage::findings::Findings;
use base::addr::{Pfn, PfnRange};
use base::attempt::{Attempt, Rung};
use base::beat::{self, Beat, Step};
use base::config::{self, Config, CrashLoop, When};
use base::facts::{Facts, MemoryRange, Planned};
use base::time::{Lap, seconds};
use vmcore::dump::Request;
use vmcore::filter::PageFilter;
use vmcore::format::kdump::Utsname;
use vmcore::format::vmcoreinfo::VmcoreInfo;
use vmcore::kernel::Kernel;
use vmcore::report::{Degradation, Outcome, Run, Summary};
use vmcore::session::{describe, open_core, page_filter, record_origin, request, settle};

use crate::targets::{BUILT_WITH, Ways};
use kexec::{PAGE, sys::devmem};
use vmcore::source::{Access, Core, Vmcore};
use vmcore::target::{self, name};

use save::save_to;

const VMCORE: &str = "/proc/vmcore";

/// The child's main function: capture with the configuration and the facts in the image, as PID 1
/// asks.
#[must_use]
pub(crate) fn child() -> Outcome {
    beat::listened_to();
    let mut asked = String::new();
    let _ = io::stdin().read_to_string(&mut asked); // started by hand it is a first attempt
    let attempt = Attempt::parse(&asked);
    let (config, complaints) = config::load();
    base::log::init_kmsg(config.capture.log.into());
    log::debug!("built with: {}", BUILT_WITH.join(" "));
    let mut summary = Summary::new(&config);
    for cause in complaints {
        summary.degrade(Degradation::Config { cause });
    }
    let facts = load_facts(&mut summary);
    evidence::begin(&facts, &mut summary);
    summary.user_pages_lost = facts.cma.iter().filter_map(pages).map(Run::from).collect();
    let planned = trigger::discover(&facts, devmem::read, &mut summary);
    beat::tell(&Beat::Trigger(summary.trigger.unwrap_or_default()));
    capture(&config, &facts, planned.as_ref(), &attempt, summary)
}

/// Saves log, dump and result of the kernel that ran before.
fn capture(
    config: &Config,
    facts: &Facts,
    planned: Option<&Planned>,
    attempt: &Attempt,
    mut summary: Summary,
) -> Outcome {
    let (start, mut lap) = (Instant::now(), Lap::start());
    summary.rung = attempt.rung;
    attempt.earlier.iter().cloned().for_each(|earlier| summary.degrade(Degradation::Attempt(earlier)));
    load_modules(config, attempt, &mut summary);
    summary.seconds.modules = lap.lap();

    step(config, Step::Vmcore, 0);
    let core = open_vmcore(attempt.rung, facts, &mut summary);
    let core = core.as_ref();
    let (info, origin) = core.map(|core| settle(core, facts)).unwrap_or_default();
    record_origin(origin.as_ref(), facts, &mut summary);
    let kernel = core.map(|core| Kernel::new(core, &info, core.mappings()));
    let utsname = describe(core.map(|core| -> &dyn Core { core }), kernel.as_ref(), facts, &mut summary);
    summary.registers = trigger::registers(summary.cpus, planned);
    let time = crash_time(&info, planned);
    let name = attempt.name.clone().unwrap_or_else(|| capture_name(time, &summary));
    beat::tell(&Beat::Name(name.clone()));
    summary.seconds.vmcore = lap.lap();

    let (rung, skip, filter) = (attempt.rung, skipped_pages(attempt), OnceCell::new());
    let job = Job {
        config,
        facts,
        core,
        info: &info,
        planned,
        kernel,
        utsname,
        name,
        time,
        rung,
        skip,
        filter,
        findings: OnceCell::new(),
        walk_ended_badly: attempt
            .earlier
            .iter()
            .any(|earlier| matches!(earlier.step.as_deref(), Some("summary" | "triage"))),
        start,
    };
    if attempt.earlier.is_empty() {
        // They may be why there is another attempt.
        hooks::run(&config.hook, When::Before, None, &mut summary);
    }
    let best = save_to_targets(&job, attempt, &mut summary);
    if best == Outcome::Failed {
        log::error!("no target takes anything now; the end of the old kernel's log follows");
        last_resort::say(job.findings());
        job.kernel.iter().for_each(|kernel| last_resort::save(kernel, time));
    }
    say(best, &summary);
    beat::tell(&Beat::Saved(best.to_string()));
    best
}

/// Saves to one target after the other until one holds all that is wanted. Returns the best of what
/// came of it.
fn save_to_targets(job: &Job<'_>, attempt: &Attempt, summary: &mut Summary) -> Outcome {
    let ways = Ways::new(&job.config.network, job.facts);
    let host = name::sanitize(summary.host.as_deref().unwrap_or_default());
    let crash_loop = match job.planned {
        Some(_) => CrashLoop { crashes: 0, within: 0 }, // nobody crashed
        None => job.config.capture.crash_loop,
    };
    let mut best = Outcome::Failed;
    for (index, target) in job.config.target.iter().enumerate() {
        if attempt.skip_targets.contains(&index) {
            log::warn!("target {target} is left out: an earlier attempt came to its end there");
            continue;
        }
        let capture = target::Capture {
            index,
            name: &job.name,
            host: &host,
            time: job.time,
            crash_loop,
            recorded: job.facts.recorded(),
            views: &job.facts.views,
            remotes: &job.facts.remotes,
        };
        let Some(saved) = save_to(job, target, &ways, capture, summary) else { continue };
        best = best.max(saved.outcome);
        if saved.settled {
            break;
        }
    }
    best
}

fn load_modules(config: &Config, attempt: &Attempt, summary: &mut Summary) {
    let loading = |path: &str| {
        step(config, Step::Modules, 0);
        beat::tell(&Beat::Module(path.to_owned()));
    };
    modules::load_all(&attempt.skip_modules, &loading, &mut |what| summary.degrade(what));
}

fn open_vmcore(rung: Rung, facts: &Facts, summary: &mut Summary) -> Option<Vmcore> {
    let access = if rung == Rung::Full { Access::Mmap } else { Access::Pread };
    let core = open_core(Path::new(VMCORE), access, facts, summary);
    core.map_err(|error| summary.degrade(Degradation::Dump { cause: base::log::chain(&error) })).ok()
}

/// What is saved, and how; the same for every target.
struct Job<'a> {
    config: &'a Config,
    facts: &'a Facts,
    core: Option<&'a Vmcore>,
    info: &'a VmcoreInfo,
    planned: Option<&'a Planned>,
    kernel: Option<Kernel<'a>>,
    utsname: Utsname,
    /// Of the capture, the same on every target and in every attempt.
    name: String,
    /// Seconds since 1970 of the crash or the switch.
    time: u64,
    rung: Rung,
    skip: Vec<PfnRange>,
    /// Found when the log is safe: looking at damaged struct pages may end the attempt.
    filter: OnceCell<Option<PageFilter<'a>>>,
    /// What was running; found when the log is safe.
    findings: OnceCell<Findings>,
    /// Whether an earlier attempt came to its end while that was looked for.
    walk_ended_badly: bool,
    start: Instant,
}

impl<'a> Job<'a> {
    /// What tells page classes, if they can be told and this attempt dares to look.
    fn filter(&self, summary: &mut Summary) -> Option<&PageFilter<'a>> {
        let mut discover = || self.core.and_then(|core| page_filter(core, self.info, summary));
        let dares = self.rung < Rung::Unfiltered;
        self.filter.get_or_init(|| if dares { discover() } else { None }).as_ref()
    }

    /// What was running when the old kernel came to its end.
    fn findings(&self) -> &Findings {
        self.findings.get_or_init(|| summary::make(self))
    }

    /// What was written down of the kernel, if this is it: symbols and structures differ between
    /// builds, and addresses between boots.
    fn knowledge(&self) -> &str {
        let recorded = VmcoreInfo::parse(self.facts.vmcoreinfo.as_bytes());
        let is_same = ["BUILD-ID", "OSRELEASE", "KERNELOFFSET"]
            .iter()
            .all(|key| recorded.get(key) == self.info.get(key));
        if is_same { &self.facts.knowledge } else { "" }
    }

    /// The dump that is wanted.
    fn request(&self) -> Request {
        let request = request(self.utsname.clone(), self.info.clone(), self.config);
        let budget = if self.rung == Rung::Full { request.budget } else { request.budget.smallest() };
        Request { budget, skip: self.skip.clone(), careful: self.rung > Rung::Full, ..request }
    }

    /// Tells PID 1 what comes now, and that it may take `more` seconds beyond what a step may.
    fn step(&self, next: Step, more: u64) {
        step(self.config, next, more);
    }
}

fn step(config: &Config, step: Step, more: u64) {
    // The dump, and a search of all memory for VMCOREINFO, take as long as they take: there it
    // counts whether they come further.
    let has_limit = !matches!(step, Step::Dump | Step::Vmcore);
    let limit = if has_limit { config.capture.step_timeout.saturating_add(more) } else { 0 };
    beat::tell(&Beat::Step { step, limit });
}

/// The pages of a range of memory.
fn pages(range: &MemoryRange) -> Option<PfnRange> {
    let end = range.last.checked_add(1)?;
    PfnRange::new(Pfn(range.start / PAGE), Pfn(end / PAGE))
}

/// Pages at which earlier attempts came to their end, in order.
fn skipped_pages(attempt: &Attempt) -> Vec<PfnRange> {
    let ranges = attempt.skip_pages.iter().filter_map(|&(start, end)| PfnRange::new(Pfn(start), Pfn(end)));
    let mut ranges = ranges.collect();
    PfnRange::sort_and_join(&mut ranges);
    ranges
}

/// When the kernel came to its end: by VMCOREINFO, which a planned switch does not write to, by the
/// operator's intent, or by the capture kernel's clock.
fn crash_time(info: &VmcoreInfo, planned: Option<&Planned>) -> u64 {
    let now = || std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let intended = || planned.map(|planned| planned.intent.at).filter(|&at| at > 0);
    info.crash_time().or_else(intended).unwrap_or_else(now)
}

fn capture_name(time: u64, summary: &Summary) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    name::directory(time, &text(&summary.host), &text(&summary.boot_id))
}

fn seconds_since(start: Instant) -> f64 {
    seconds(start.elapsed())
}

fn say(outcome: Outcome, summary: &Summary) {
    log::info!(
        "{outcome}: {} pages written, {} zero, {} unreadable; {} bytes in {:.3} s, peak memory {} KiB",
        summary.pages.written,
        summary.pages.zero,
        summary.pages.unreadable,
        summary.dump_bytes,
        summary.seconds.total,
        summary.peak_memory_bytes.unwrap_or(0) >> 10,
    );
}

fn load_facts(summary: &mut Summary) -> Facts {
    read_facts().unwrap_or_else(|cause| {
        summary.degrade(Degradation::Config { cause: format!("{}: {cause}", config::FACTS_PATH) });
        Facts::default()
    })
}

/// The facts in the image; none if it has none.
fn read_facts() -> Result<Facts, String> {
    let text = fs::read_to_string(config::FACTS_PATH).map(Zeroizing::new);
    text.map_or_else(|_| Ok(Facts::default()), |text| Facts::parse(&text))
}
