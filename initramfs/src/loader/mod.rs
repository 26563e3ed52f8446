//! Arming and disarming: the capture image as the panic kernel, and the one page that makes a
//! planned switch of it.
//!
//! Two roads lead there. Our own ([`Road::Own`], kexec_load(2)) places everything itself and knows
//! where the image is entered, so that one armed image serves a panic and a planned switch. Under
//! lockdown there is only the kernel's ([`Road::FileLoad`]).

mod error;
mod kcore;
mod proof;
mod proved;
mod record;
mod roads;
mod stacks;

use std::fs;
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use base::addr::to_u64;
use base::config::{self, Config, FinalAction, Link};
use base::facts::{Facts, MemoryRange, Planned, Remote, Stack, handover, parse_iomem};
use kexec::sys::load;
use kexec::{BzImage, PAGE, machine};
use zeroize::{Zeroize, Zeroizing};

use crate::boot_entry::foresee::{self, Circumstances};
use crate::boot_entry::{self, Next};
use crate::cmdline::table::Reason;
use crate::cmdline::{self, Changes};
use crate::cpio::{self, Entry};
use crate::crashkernel::{Need, cma_bytes, mib, need, reserve};
use crate::fingerprint::crc32;
use crate::host;
use crate::image;
use crate::knowledge;
use crate::network;
use crate::remote::{self, SecretFile};
use crate::signatures::{ModuleFacts, Policy};
use crate::trusted;
use crate::watchdog;
use crate::who;

pub use error::LoadError;
pub use proof::{Print, Proof};
pub use record::{Loaded, Road, recorded};

use roads::Arms;

/// What the kernel takes of free memory for a staged switch, beside its page: two control pages, a
/// page to swap with, the list of pages, the top of its page tables (kernel/kexec_core.c,
/// arch/x86/kernel/machine_kexec_64.c).
const STAGED_PAGES: u64 = 8;

/// What loading the page of a planned switch overwrites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    /// Physical address of the handover page; it lies in the reservation, not in memory that is
    /// saved.
    pub handover: u64,
    /// Its length, bytes.
    pub len: u64,
    /// Pages of free memory that the kernel takes, about, and where it likes: what they held before
    /// is lost.
    pub about_pages: u64,
}

/// Loads `kernel_file` with the image in `image_file` as the panic kernel. `key_file` opens the
/// LUKS devices under targets; none for what the configuration names.
pub fn load(image_file: &Path, kernel_file: &Path, key_file: Option<&Path>) -> Result<Loaded, LoadError> {
    arm(image_file, kernel_file, key_file, None)
}

/// Loads once more what is loaded: the machine has other CPUs or memory than it had. Does nothing
/// where the kernel has seen to that itself.
pub fn again() -> Result<Loaded, LoadError> {
    let loaded = armed()?;
    if loaded.updates_header { Ok(loaded) } else { rearm(None) }
}

/// Loads once more what is loaded, if a file of keys has changed since, or the way to a target was
/// not known: `None` if neither.
pub fn refresh() -> Result<Option<Loaded>, LoadError> {
    let loaded = armed()?;
    if !loaded.way_unknown && loaded.secret_files.iter().all(SecretFile::is_same) {
        return Ok(None);
    }
    rearm(None).map(Some)
}

/// Loads once more what is loaded, with this record in its facts: for a switch by a deliberate
/// panic. Without one it waits for a panic as before.
pub fn rearm(planned: Option<&Planned>) -> Result<Loaded, LoadError> {
    let loaded = armed()?;
    if loaded.keys_in_image && loaded.key_file.as_deref() == Some(Path::new("-")) {
        return Err(LoadError::KeysGone);
    }
    arm(&loaded.image_file, &loaded.kernel_file, loaded.key_file.as_deref(), planned)
}

/// Loads the handover page with a record as what reboot(2) starts by `LINUX_REBOOT_CMD_KEXEC`: the
/// armed image, at its entry.
pub fn stage(planned: &Planned) -> Result<Staged, LoadError> {
    let loaded = certain()?;
    let (Some(entry), Some(at)) = (loaded.entry, loaded.handover) else { return Err(LoadError::NoEntry) };
    let page = handover::encode(planned)?;
    let segment = load::Segment { bytes: &page, at, size: PAGE };
    load::load(entry, &[segment], load::Start::Reboot)
        .map_err(|error| LoadError::explain(Road::Own, error, Path::new(""), Need::NONE))?;
    remember(&Loaded { staged: true, ..loaded });
    // A page table of 2 MiB pages for each GiB.
    let tables = host::memory().div_ceil(1 << 30);
    Ok(Staged { handover: at, len: PAGE, about_pages: tables.saturating_add(STAGED_PAGES) })
}

/// Unloads what [`stage`] loaded; nothing happens if that is nothing.
pub fn unstage() -> Result<(), LoadError> {
    load::load(0, &[], load::Start::Reboot)
        .map_err(|error| LoadError::explain(Road::Own, error, Path::new(""), Need::NONE))?;
    // One that was changed gets no new seal.
    if let Some(loaded) = recorded().filter(|loaded| !loaded.is_changed) {
        remember(&Loaded { staged: false, ..loaded });
    }
    Ok(())
}

/// Unloads the panic kernel, and the page that would enter it.
pub fn unload() -> Result<(), LoadError> {
    if recorded().is_some_and(|loaded| loaded.staged) {
        unstage()?;
    }
    load::unload_panic_kernel()
        .map_err(|error| LoadError::explain(Road::FileLoad, error, Path::new(""), Need::NONE))?;
    record::forget();
    Ok(())
}

/// What we have loaded, if nothing speaks against its being what is loaded.
fn armed() -> Result<Loaded, LoadError> {
    if !host::is_loaded() {
        return Err(LoadError::NotArmed("no capture image is loaded"));
    }
    let loaded = recorded().ok_or(LoadError::NotArmed("what is loaded was not loaded by afterimage"))?;
    match Proof::of(&loaded) {
        Proof::Other(why) => Err(LoadError::NotOurs(why)),
        Proof::Same | Proof::Unproved(_) => Ok(loaded),
    }
}

/// What is loaded, for a jump into it. Where it cannot be proved that this is what was recorded, it is
/// loaded once more: then it is.
fn certain() -> Result<Loaded, LoadError> {
    let loaded = armed()?;
    match Proof::of(&loaded) {
        Proof::Unproved(why) => {
            log::warn!(
                "it cannot be proved that what is loaded is what was recorded ({why}): loading it again"
            );
            rearm(None)
        }
        _ => Ok(loaded),
    }
}

/// Why a planned switch by kexec is not possible here and now; `None` if it is.
#[must_use]
pub fn why_not_planned() -> Option<String> {
    let armed = armed().and_then(|loaded| loaded.entry.ok_or(LoadError::NoEntry));
    let sysctl = |name: &str| host::read(&format!("/proc/sys/kernel/{name}"));
    match (armed, host::lockdown()) {
        (Err(error), _) => Some(error.to_string()),
        (_, mode) if mode != "none" => Some(LoadError::Lockdown { mode }.to_string()),
        _ if sysctl("kexec_load_disabled") == "1" => Some(LoadError::Disabled.to_string()),
        _ if sysctl("kexec_load_limit_reboot") == "0" => {
            Some(LoadError::Limit("kernel.kexec_load_limit_reboot").to_string())
        }
        _ => None,
    }
}

fn arm(
    image_file: &Path,
    kernel_file: &Path,
    key_file: Option<&Path>,
    planned: Option<&Planned>,
) -> Result<Loaded, LoadError> {
    let image = read(image_file, LoadError::NoImage)?;
    let kernel = read(kernel_file, LoadError::NoKernel)?;
    let bz = BzImage::parse_whole(&kernel);
    let bz = bz.map_err(|source| LoadError::Kernel { path: kernel_file.to_owned(), source })?;
    let contents = image::read_contents(&image, image_file)?;
    check_image(&contents, &bz, kernel_file)?;
    let need = need(bz.init_size, to_u64(image.len()), contents.unpacked);
    check_host(need)?;

    let next = Next::find(&contents.config);
    warn_of_concerns(&contents.config, &next);
    let stacks = stacks::stacks(&contents.config, &next, key_file)?;
    let (disks, views) = (stacks::disks(&contents.config, &next), stacks::views(&contents.config));
    let gathered = remote::gather(&contents.config)?;
    let remotes = gathered.remotes.clone();
    let has_keys = stacks.iter().any(Stack::has_key) || remotes.iter().any(Remote::has_secret);
    let cmdline = capture_cmdline(&contents.config, has_keys || contents.config.evidence.save)?;
    let network = way_to(&contents.config, &remotes)?;
    let no_way = contents.config.network.is_clone() && network.is_empty() && !remotes.is_empty();
    let mut loaded = Loaded {
        boot_id: host::read("/proc/sys/kernel/random/boot_id"),
        at: now(),
        by: who::who(),
        kernel_file: absolute(kernel_file),
        kernel: bz.release.clone(),
        image_file: absolute(image_file),
        image_crc32: crc32(&image),
        config_crc32: contents.manifest.config.crc32.clone(),
        recommended: need.recommended,
        cmdline,
        keys_in_image: has_keys,
        secret_files: gathered.files,
        way_unknown: no_way || remotes.iter().any(|remote| remote.addresses.is_empty()),
        expiries: gathered.expiries,
        key_file: key_file.map(absolute),
        ..Loaded::default()
    };
    let facts = Facts {
        knowledge: known_of_kernel(&mut loaded),
        stacks,
        disks,
        views,
        remotes,
        network,
        planned: planned.cloned(),
        boot: next.boot.and_then(Result::ok),
        root: next.root.and_then(Result::ok),
        evidence: proved::armed_with(&loaded, &contents, &image, &kernel),
        ..facts_of(&loaded, &kernel)
    };
    let arms = Arms { kernel_file, kernel: &kernel, bz: &bz, image, facts, need };
    let was_armed = host::is_loaded();
    arms.load(contents.config.capture.loader, &mut loaded).inspect_err(|_| {
        // The kernel lets go of the old panic kernel before it looks at the new one.
        if was_armed && !host::is_loaded() {
            log::warn!("the panic kernel that was loaded before is gone: a panic will not be captured");
        }
    })?;
    boot_entry::clear_marks(&contents.config);
    record(&mut loaded)?;
    proved::publish(arms.facts.evidence.as_ref(), loaded.at, &contents.config);
    Ok(loaded)
}

/// Whether the image is for this kernel, and the kernel takes its modules.
fn check_image(contents: &image::Contents, bz: &BzImage, kernel_file: &Path) -> Result<(), LoadError> {
    let manifest = &contents.manifest;
    if manifest.kernel != bz.release {
        let (image, kernel) = (manifest.kernel.clone(), bz.release.clone());
        return Err(LoadError::OtherKernel { image, kernel, path: kernel_file.to_owned() });
    }
    let policy = Policy::read(&manifest.kernel, &manifest.modules_dir);
    accepts(&contents.modules, &bz.release, &policy.reasons())
}

/// Whether a kernel of this release takes these modules, on a host that wants signatures for
/// `reasons`. Whether the kernel trusts the key of a signature shows only there.
fn accepts(modules: &[ModuleFacts], release: &str, reasons: &[String]) -> Result<(), LoadError> {
    if let Some(module) = modules.iter().find(|module| !module.is_for(release)) {
        let (module, vermagic) = (module.name.clone(), module.vermagic.trim().to_owned());
        return Err(LoadError::OtherModule { module, vermagic, kernel: release.to_owned() });
    }
    let unsigned: Vec<&str> =
        modules.iter().filter(|module| !module.signed).map(|module| module.name.as_str()).collect();
    match (unsigned.is_empty(), reasons) {
        (true, _) | (_, []) => Ok(()),
        (false, reasons) => Err(LoadError::Unsigned { modules: unsigned.join(" "), why: reasons.join("; ") }),
    }
}

/// Says what will go wrong on this host after a panic, as far as that can be foreseen.
fn warn_of_concerns(config: &Config, next: &Next) {
    let circumstances = Circumstances {
        lockdown: &host::lockdown(),
        has_watchdog: watchdog::list().iter().any(|watchdog| watchdog.is_hardware),
        reservation: host::reservation(),
        cpus: host::cpus(),
    };
    for concern in foresee::concerns(config, next, circumstances) {
        log::warn!("{}: {}", concern.found, concern.remedy);
    }
}

/// The command line of the capture kernel.
fn capture_cmdline(config: &Config, has_keys: bool) -> Result<String, LoadError> {
    let capture = &config.capture;
    let append = [boot_entry::capture_parameters(config), clearing(config, has_keys)];
    let append = [capture.cmdline_append.as_str()].into_iter().chain(append).collect::<Vec<_>>().join(" ");
    let changes = Changes {
        cpus: capture.cpus,
        boot_apic_id: cmdline::boot_apic_id(&host::read("/proc/cpuinfo")),
        low_memory: host::has_low_reservation(&host::read("/proc/iomem")),
        remove: &capture.cmdline_remove,
        append: &append,
    };
    let host = host::read("/proc/cmdline");
    let unknown: Vec<String> = cmdline::left_out(&host)
        .into_iter()
        .filter(|(word, reason)| *reason == Reason::Unknown && !append.contains(word.as_str()))
        .map(|(word, _)| word)
        .collect();
    if !unknown.is_empty() {
        log::info!(
            "not known to be wanted by the capture kernel, and left out: {}; capture.cmdline_append puts back \
             what must be there",
            unknown.join(" ")
        );
    }
    Ok(cmdline::build(&host, changes)?)
}

/// What has the capture kernel clear the memory of processes that had keys, where anybody comes after
/// them: a restart by the firmware needs it less, and it costs time (`init_on_free`, v5.3).
fn clearing(config: &Config, has_keys: bool) -> &'static str {
    let goes_on = [FinalAction::Kexec, FinalAction::SwitchRoot, FinalAction::Shell];
    if has_keys && goes_on.iter().any(|&action| config.finish.may(action)) { "init_on_free=1" } else { "" }
}

/// Writes down what is loaded now. A switch that was staged before goes if it would enter what is
/// not there any more.
fn record(loaded: &mut Loaded) -> Result<(), LoadError> {
    let before = recorded().filter(|before| before.staged);
    loaded.staged =
        before.as_ref().is_some_and(|before| before.entry.is_some() && before.entry == loaded.entry);
    remember(loaded);
    if before.is_some() && !loaded.staged {
        log::warn!("the switch that was staged is not any more: run `afterimage switch --stage` again");
        unstage()?;
    }
    Ok(())
}

/// The links of this host, where the capture is to have the same. With another target, a network
/// that is not up is no reason to leave the machine without a panic kernel.
fn way_to(config: &Config, remotes: &[Remote]) -> Result<Vec<Link>, LoadError> {
    if !config.network.is_clone() {
        return Ok(Vec::new());
    }
    match network::links(config, remotes) {
        Err(error) if config.target.iter().any(|target| !target.kind().is_remote()) => {
            log::warn!("no target on the network can be used: {}", base::log::chain(&error));
            Ok(Vec::new())
        }
        links => Ok(links?),
    }
}

fn remember(loaded: &Loaded) {
    if let Err(error) = loaded.save() {
        log::warn!("{}: {error}; `afterimage status` will not know what is loaded", record::PATH);
    }
}

/// What can be known before the system call, which tells less.
fn check_host(need: Need) -> Result<(), LoadError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(LoadError::NotRoot);
    }
    if host::read("/proc/sys/kernel/kexec_load_disabled") == "1" {
        return Err(LoadError::Disabled);
    }
    let have = host::reservation();
    if have == 0 {
        return Err(LoadError::NoReservation { recommended: mib(need.recommended) });
    }
    if have < need.minimum {
        return Err(LoadError::too_small(have, need));
    }
    if have.saturating_add(cma_bytes(&host::kexec("crash_cma_ranges"))) < need.recommended {
        log::warn!("the crash kernel reservation is {} MiB: {}", mib(have), reserve(mib(need.recommended)));
    }
    Ok(())
}

/// What a summary will need, as text; notes in the record what came of trying it.
fn known_of_kernel(loaded: &mut Loaded) -> String {
    let (text, tried) = match knowledge::gather() {
        Ok(gathered) => (gathered.answers.to_text(), gathered.tried),
        Err(error) => (String::new(), Err(error)),
    };
    match tried {
        Ok(processes) => loaded.walked = Some(processes),
        Err(error) => {
            loaded.walk_fault = base::log::chain(&error);
            log::warn!("the summary of a crash may lack tasks and stacks: {}", loaded.walk_fault);
        }
    }
    text
}

fn facts_of(loaded: &Loaded, kernel: &[u8]) -> Facts {
    let range = |range: &Range<u64>| MemoryRange {
        start: range.start,
        last: range.end.saturating_sub(1),
        kind: "Crash kernel (CMA)".to_owned(),
    };
    let cpuinfo = host::read("/proc/cpuinfo");
    Facts {
        host: host::read("/proc/sys/kernel/hostname"),
        boot_id: loaded.boot_id.clone(),
        release: host::read("/proc/sys/kernel/osrelease"),
        loaded_at: loaded.at,
        kernel_crc32: crc32(kernel),
        image_crc32: loaded.image_crc32.clone(),
        reservation: host::reservation(),
        vmcoreinfo: host::vmcoreinfo(),
        cpus: host::cpus(),
        boot_apic_id: cmdline::boot_apic_id(&cpuinfo),
        memory_map: parse_iomem(&host::read("/proc/iomem")),
        cma: placement::production::cma(&host::kexec("crash_cma_ranges")).iter().map(range).collect(),
        firmware_map: machine::firmware_map(),
        ..Facts::default()
    }
}

/// The facts as an archive that the kernel unpacks behind the image, and what its random numbers
/// begin with.
fn archive(facts: &Facts) -> Zeroizing<Vec<u8>> {
    let mut entries = vec![Entry::file(config::FACTS_PATH, 0o600, facts.to_toml().into_bytes())];
    match seed() {
        Ok(seed) => entries.push(Entry::file(config::SEED_PATH, 0o600, seed)),
        Err(error) => log::warn!("/dev/urandom: {error}; the capture waits for random numbers of its own"),
    }
    let archive = Zeroizing::new(cpio::write(&entries));
    for entry in &mut entries {
        if let cpio::Kind::File(bytes) = &mut entry.kind {
            bytes.zeroize();
        }
    }
    archive
}

/// Random bytes of this host, new for each load.
fn seed() -> io::Result<Vec<u8>> {
    let mut seed = vec![0; config::SEED_LEN];
    fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(seed)
}

/// Reads a file; `gone` is the error if there is none.
fn read(path: &Path, gone: fn(PathBuf) -> LoadError) -> Result<Vec<u8>, LoadError> {
    trusted::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => gone(path.to_owned()),
        _ => LoadError::Read { path: path.to_owned(), source },
    })
}

/// For a record that outlives the working directory; `-` is no path.
fn absolute(path: &Path) -> PathBuf {
    if path == Path::new("-") {
        path.to_owned()
    } else {
        std::path::absolute(path).unwrap_or(path.to_owned())
    }
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
