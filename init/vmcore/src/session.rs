//! What is in the vmcore, and what the dump of it is to be: the same for a capture and for
//! `afterimage dump`.

use std::path::Path;

use crate::budget::Budget;
use crate::dump::{self, Request, Written};
use crate::filter::PageFilter;
use crate::format::kdump::Utsname;
use crate::format::vmcoreinfo::VmcoreInfo;
use crate::kernel::info::Origin;
use crate::kernel::{Kernel, info, uts};
use crate::report::{Degradation, Summary};
use crate::source::{Access, Core, Vmcore, VmcoreError};
use base::addr::PhysAddr;
use base::config::{self, Config};
use base::facts::Facts;
use base::time::utc;

/// Opens the memory of this machine and records what is wrong with its headers.
pub fn open_core(
    path: &Path,
    access: Access,
    facts: &Facts,
    summary: &mut Summary,
) -> Result<Vmcore, VmcoreError> {
    let ends =
        facts.memory_map.iter().filter(|range| range.kind.starts_with("System RAM")).map(|range| range.last);
    let memory_end = ends.max().map(|last| PhysAddr(last.saturating_add(1)));
    let core = Vmcore::open_memory(path, access, memory_end)?;
    record_anomalies(&core, summary);
    Ok(core)
}

/// Records what the headers of a vmcore or dump claim and the file does not bear out.
pub fn record_anomalies(core: &dyn Core, summary: &mut Summary) {
    for anomaly in core.anomalies() {
        summary.degrade(Degradation::Vmcore(anomaly.clone()));
    }
}

/// The VMCOREINFO to believe, of those that there are, and where it comes from if not from where it
/// belongs. Of another machine than x86_64 only the core's own counts: what must be in it is not
/// known.
#[must_use]
pub fn settle(core: &dyn Core, facts: &Facts) -> (VmcoreInfo, Option<Origin>) {
    if foreign_machine(core).is_some() {
        return (core.info().clone(), None);
    }
    info::settle(core.info(), &VmcoreInfo::parse(facts.vmcoreinfo.as_bytes()), core)
}

/// The machine of a core whose kernel is not understood.
#[must_use]
pub fn foreign_machine(core: &dyn Core) -> Option<&str> {
    core.machine().filter(|&machine| machine != "x86_64")
}

/// Records where VMCOREINFO comes from.
pub fn record_origin(origin: Option<&Origin>, facts: &Facts, summary: &mut Summary) {
    summary.vmcoreinfo_copy = !VmcoreInfo::parse(facts.vmcoreinfo.as_bytes()).is_empty();
    origin.cloned().into_iter().for_each(|origin| summary.degrade(Degradation::Vmcoreinfo(origin)));
}

/// What tells page classes, if they can be told.
pub fn page_filter<'a>(
    core: &'a dyn Core,
    info: &'a VmcoreInfo,
    summary: &mut Summary,
) -> Option<PageFilter<'a>> {
    if let Some(machine) = foreign_machine(core) {
        let cause =
            format!("a core of {machine}: page types of x86_64 kernels are known, of others they are not");
        summary.degrade(Degradation::NoPageTypes { cause });
        return None;
    }
    let mut contradicted = |what| summary.degrade(Degradation::ClassNotUsed(what));
    let filter = PageFilter::discover(core, info, core.mappings(), &mut contradicted);
    filter.map_err(|error| summary.degrade(Degradation::NoPageTypes { cause: base::log::chain(&error) })).ok()
}

/// Fills in who crashed and when, and gives the kernel's name for the dump's header. Memory first,
/// facts where it is silent: the host's name may have changed since the image was loaded.
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
        found.map_err(|error| summary.degrade(Degradation::Utsname { cause: base::log::chain(&error) })).ok()
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

/// Records what became of a dump.
pub fn record(written: &Written, summary: &mut Summary) {
    summary.format = written.format.name();
    summary.record_classes(&written.found.classes, &written.found.withheld, &written.found.damage);
    summary.record(&written.pages, written.bytes);
    summary.vital_bytes = written.vital_bytes;
    summary.memory_use = written.memory;
}

/// Records what a dump leaves out, by class.
pub fn record_left_out(written: &Written, exclude: config::Exclude, summary: &mut Summary) {
    let classes = written.found.classes.iter().filter(|(class, _)| class.is_dropped(exclude));
    summary.left_out = classes.map(|(class, pages)| (class.name(), pages)).collect();
}

/// What the dump is to be; the same for a capture and for `afterimage dump`.
#[must_use]
pub fn request(utsname: Utsname, info: VmcoreInfo, config: &Config) -> Request {
    let config::Dump { exclude, compress, format } = config.dump;
    Request {
        exclude,
        format,
        compress,
        utsname,
        info,
        budget: Budget::measure(),
        skip: Vec::new(),
        careful: false,
    }
}
