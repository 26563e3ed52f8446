//! The capture, as PID 1's child runs it. Each step that fails is recorded and the next one is tried.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use crate::budget::{self, Budget};
use crate::config::{self, Config};
use crate::dump::{self, Heartbeat, Request, Written};
use crate::facts::Facts;
use crate::filter::PageFilter;
use crate::format::kdump::Utsname;
use crate::format::vmcoreinfo::VmcoreInfo;
use crate::kernel::{Kernel, dmesg, info, uts};
use crate::report::{Degradation, Lap, Outcome, Summary, seconds, utc};
use crate::setup::modules;
use crate::sink::{Append, Sink};
use crate::source::{Access, Core, Vmcore, VmcoreError};
use crate::target::{self, Artifact, Target, TargetError, name};

const VMCORE: &str = "/proc/vmcore";
/// Bytes that are kept free for `result.json`: some hundred degradations.
const RESULT_ROOM: u64 = 64 << 10;
/// Lines of the old kernel's log that go to the console when no target takes them.
const TAIL_LINES: usize = 60;

/// The child's main function: capture with the configuration and the facts in the image.
#[must_use]
pub fn child() -> Outcome {
    let (config, complaints) = config::load();
    crate::log::init_kmsg(config.capture.log.into());
    let mut summary = Summary::new(&config);
    for cause in complaints {
        summary.degrade(Degradation::Config { cause });
    }
    let facts = load_facts(&mut summary);
    capture(&config, &facts, &beat, summary)
}

/// Tells PID 1, at the other end of stdout, that the capture has come further. Unbuffered: a heartbeat that waits
/// in a buffer is none. Nobody may be listening, and that is no reason to stop.
fn beat() {
    let _ = nix::unistd::write(std::io::stdout(), b".");
}

/// Saves log, dump and result of the kernel that ran before.
pub fn capture(config: &Config, facts: &Facts, heartbeat: &Heartbeat<'_>, mut summary: Summary) -> Outcome {
    let (start, mut lap) = (Instant::now(), Lap::start());
    modules::load_all(&mut |what| summary.degrade(what));
    summary.seconds.modules = lap.lap();
    heartbeat();

    let core = open_core(Path::new(VMCORE), &mut summary);
    let core =
        core.inspect_err(|error| summary.degrade(Degradation::Dump { cause: crate::log::chain(error) })).ok();
    let info = core.as_ref().map(|core| settle(core, facts, heartbeat, &mut summary)).unwrap_or_default();
    let kernel = core.as_ref().map(|core| Kernel::new(core, &info, core.mappings()));
    let utsname =
        describe(core.as_ref().map(|core| -> &dyn Core { core }), kernel.as_ref(), facts, &mut summary);
    let name = capture_name(&info, &summary);
    let target = open_first(
        config,
        target::Capture {
            name: &name,
            time: crash_time(&info),
            crash_loop: config.capture.crash_loop,
            heartbeat,
        },
        &mut summary,
    );
    summary.seconds.open = lap.lap();
    let Some(mut target) = target else {
        log::error!("no target can be used: nothing is saved; the end of the old kernel's log follows");
        kernel.iter().for_each(print_tail);
        return Outcome::Failed;
    };
    log::info!("saving to {}", target.location());
    summary.target = Some(target.location());

    let result = reserve_result(target.as_mut());
    if let Some(kernel) = &kernel {
        save_dmesg(kernel, target.as_mut(), &mut summary);
        summary.seconds.dmesg = lap.lap();
        heartbeat();
    }
    if let Some(core) = &core {
        let request = request(utsname, info.clone(), config);
        save_dump(core, &request, target.as_mut(), heartbeat, &mut summary);
        summary.seconds.dump = lap.lap();
    }
    summary.seconds.total = seconds(start.elapsed());
    save_result(target, result, &mut summary);
    summary.outcome
}

/// Opens a vmcore and records what is wrong with it.
pub fn open_core(path: &Path, summary: &mut Summary) -> Result<Vmcore, VmcoreError> {
    let core = Vmcore::open(path, Access::Mmap)?;
    record_anomalies(&core, summary);
    Ok(core)
}

/// Records what the headers of a vmcore or dump claim and the file does not bear out.
pub fn record_anomalies(core: &dyn Core, summary: &mut Summary) {
    for anomaly in core.anomalies() {
        summary.degrade(Degradation::Vmcore(anomaly.clone()));
    }
}

/// The VMCOREINFO to believe, of those that there are.
pub fn settle(
    core: &dyn Core,
    facts: &Facts,
    heartbeat: &Heartbeat<'_>,
    summary: &mut Summary,
) -> VmcoreInfo {
    let copy = VmcoreInfo::parse(facts.vmcoreinfo.as_bytes());
    summary.vmcoreinfo_copy = !copy.is_empty();
    let (info, origin) = info::settle(core.info(), &copy, core, heartbeat);
    if let Some(origin) = origin {
        summary.degrade(Degradation::Vmcoreinfo(origin));
    }
    info
}

/// What tells page classes, if they can be told.
pub fn page_filter<'a>(
    core: &'a dyn Core,
    info: &'a VmcoreInfo,
    summary: &mut Summary,
) -> Option<PageFilter<'a>> {
    let mut told = |what| summary.degrade(Degradation::ClassNotUsed(what));
    let filter = PageFilter::discover(core, info, core.mappings(), &mut told);
    filter
        .map_err(|error| summary.degrade(Degradation::NoPageTypes { cause: crate::log::chain(&error) }))
        .ok()
}

/// Fills in who crashed and when, and gives the kernel's name for the dump's header. Memory first, facts where it is silent: the host's name may have changed since
/// the image was loaded.
pub fn describe(
    core: Option<&dyn Core>,
    kernel: Option<&Kernel<'_>>,
    facts: &Facts,
    summary: &mut Summary,
) -> Utsname {
    let known = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let info = |key| kernel.and_then(|kernel| kernel.info().get(key)).and_then(known);
    let utsname = kernel.and_then(|kernel| {
        let found = uts::discover(kernel);
        found.map_err(|error| summary.degrade(Degradation::Utsname { cause: crate::log::chain(&error) })).ok()
    });
    let machine = core.and_then(|core| core.machine());
    let unknown = || kernel.map_or_else(Utsname::default, |kernel| uts::fallback(kernel.info(), machine));
    let utsname = utsname.unwrap_or_else(unknown);
    summary.host = known(&utsname.nodename).or_else(|| known(&facts.host));
    summary.kernel = info("OSRELEASE").or_else(|| known(&facts.release));
    summary.build_id = info("BUILD-ID");
    summary.boot_id = known(&facts.boot_id);
    summary.crash_time = kernel.and_then(|kernel| kernel.info().crash_time()).and_then(utc);
    summary.cpus = core.map_or(0, |core| core.notes().cpus());
    summary.memory_bytes = core.map_or(0, |core| dump::memory_bytes(core));
    utsname
}

/// When the kernel crashed; the capture kernel's clock if it does not tell.
fn crash_time(info: &VmcoreInfo) -> u64 {
    let now = || std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    info.crash_time().unwrap_or_else(now)
}

fn capture_name(info: &VmcoreInfo, summary: &Summary) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    name::directory(crash_time(info), &text(&summary.host), &text(&summary.boot_id))
}

/// Opens the first target that can be used, and records why the others cannot.
fn open_first(
    config: &Config,
    capture: target::Capture<'_>,
    summary: &mut Summary,
) -> Option<Box<dyn Target>> {
    config.target.iter().find_map(|target| {
        target::open(target, capture)
            .map_err(|error| {
                let cause = crate::log::chain(&error);
                summary.degrade(Degradation::Target { target: target.to_string(), cause });
            })
            .ok()
    })
}

fn save_dmesg(kernel: &Kernel<'_>, target: &mut dyn Target, summary: &mut Summary) {
    let artifact = Artifact::Dmesg;
    let mut save = || -> Result<_, Box<dyn core::error::Error>> {
        let ring = dmesg::Ring::discover(kernel)?;
        let mut sink = target.create(artifact)?;
        let mut out = BufWriter::with_capacity(64 << 10, Append::new(sink.as_mut()));
        let stats = ring.write(&mut out)?;
        out.flush()?;
        drop(out);
        sink.sync()?;
        drop(sink);
        target.publish(artifact)?;
        Ok(stats)
    };
    match save() {
        Ok(stats) => {
            log::info!("kernel log saved: {} records, {} damaged", stats.records, stats.damaged);
            summary.dmesg = Some(stats);
        }
        Err(error) => summary.degrade(Degradation::Dmesg { cause: crate::log::chain(error.as_ref()) }),
    }
}

fn save_dump(
    core: &dyn Core,
    request: &Request,
    target: &mut dyn Target,
    heartbeat: &Heartbeat<'_>,
    summary: &mut Summary,
) {
    summary.workers = request.budget.workers;
    let filter = page_filter(core, &request.info, summary);
    heartbeat();
    let mut written = Written::default();
    let mut save = || -> Result<_, Box<dyn core::error::Error>> {
        let mut sink = target.create(Artifact::Vmcore)?;
        dump::write(core, filter.as_ref(), request, sink.as_mut(), heartbeat, &mut written)?;
        drop(sink);
        target.publish(Artifact::Vmcore)?;
        Ok(())
    };
    let result = save();
    summary.outcome = match result {
        Ok(()) => Outcome::Complete,
        Err(error) => {
            summary.degrade(Degradation::Dump { cause: crate::log::chain(error.as_ref()) });
            if written.pages.in_dump() > 0 { Outcome::Incomplete } else { Outcome::Failed }
        }
    };
    record(&written, summary);
}

/// Records what became of a dump.
pub fn record(written: &Written, summary: &mut Summary) {
    summary.format = written.format.name();
    summary.record_classes(&written.found.classes, &written.found.withheld, &written.found.damage);
    summary.record(&written.pages, written.bytes);
    summary.vital_bytes = written.vital_bytes;
    summary.memory_use = written.memory;
}

/// What the dump is to be; the same for a capture and for `afterimage dump`.
#[must_use]
pub fn request(utsname: Utsname, info: VmcoreInfo, config: &Config) -> Request {
    let config::Dump { exclude, compress, format } = config.dump;
    Request { exclude, format, compress, utsname, info, budget: Budget::measure() }
}

/// Takes room for `result.json` before the dump takes all there is: what went wrong must be told on a full disk too.
fn reserve_result(target: &mut dyn Target) -> Result<Box<dyn Sink>, TargetError> {
    let mut sink = target.create(Artifact::Result)?;
    if let Err(error) = sink.reserve(RESULT_ROOM) {
        log::warn!("no room for result.json: {}", crate::log::chain(&error));
    }
    Ok(sink)
}

/// Writes `result.json` and lets go of the target. The outcome stands, whatever happens here.
fn save_result(mut target: Box<dyn Target>, sink: Result<Box<dyn Sink>, TargetError>, summary: &mut Summary) {
    summary.peak_memory_bytes = budget::peak_memory();
    let written = sink.and_then(|mut sink| {
        let result = sink.write_at(0, summary.to_json().as_bytes()).and_then(|()| sink.sync());
        result.map_err(|source| TargetError::Sink { name: Artifact::Result.name(), source })
    });
    if let Err(error) = written.and_then(|()| target.publish(Artifact::Result)) {
        log::error!("result.json not saved: {}", crate::log::chain(&error));
    }
    if let Err(error) = target.close() {
        log::warn!("{}", crate::log::chain(&error));
    }
    log::info!(
        "{}: {} pages written, {} zero, {} unreadable; {} bytes in {:.3} s, peak memory {} KiB",
        summary.outcome,
        summary.pages.written,
        summary.pages.zero,
        summary.pages.unreadable,
        summary.dump_bytes,
        summary.seconds.total,
        summary.peak_memory_bytes.unwrap_or(0) >> 10,
    );
}

fn print_tail(kernel: &Kernel<'_>) {
    let mut text = Vec::new();
    if let Err(error) = dmesg::write(kernel, &mut text) {
        log::warn!("{}", crate::log::chain(&error));
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)) {
        log::info!("old: {line}");
    }
}

fn load_facts(summary: &mut Summary) -> Facts {
    let Ok(text) = fs::read_to_string(config::FACTS_PATH) else { return Facts::default() };
    Facts::parse(&text).unwrap_or_else(|cause| {
        summary.degrade(Degradation::Config { cause: format!("{}: {cause}", config::FACTS_PATH) });
        Facts::default()
    })
}
