//! What a capture will have to know of the running kernel to make a summary, written down while the
//! kernel is well, and tried: its tasks are read through /proc/kcore and compared with /proc.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base::addr::VirtAddr;
use processes::system::{System, SystemError};
use processes::tasks;
use symbols::btf::{BtfError, Types};
use symbols::kallsyms::{Symbols, index};
use symbols::knowledge::{Answers, Read, Recorder};
use triage::wanted;
use vmcore::format::vmcoreinfo::VmcoreInfo;
use vmcore::kernel::Kernel;
use vmcore::source::{Access, Core, Vmcore, VmcoreError};

const BTF: &str = "/sys/kernel/btf/vmlinux";
/// Types of the kernel and of its modules.
const TYPES: &str = "/sys/kernel/btf";
const KALLSYMS: &str = "/proc/kallsyms";
const KCORE: &str = "/proc/kcore";
/// The kernel's image lies above (`__START_KERNEL_map`): what is below is not moved by KASLR.
const IMAGE: u64 = 0xffff_ffff_8000_0000;

/// Why nothing, or not enough, is known of the running kernel.
#[derive(Debug, thiserror::Error)]
pub enum KnowledgeError {
    /// A file of the kernel.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Its types.
    #[error("the types in {BTF}")]
    Types(#[from] BtfError),
    /// Addresses are hidden.
    #[error(
        "{KALLSYMS} shows no addresses: set kernel.kptr_restrict to 1 or 0 while the capture kernel is loaded"
    )]
    Hidden,
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] VmcoreError),
    /// Its structures.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The walk does not see what /proc shows.
    #[error("a walk through the kernel's memory finds other processes than /proc: {0}")]
    Differs(String),
}

/// What is known, and what came of trying it.
#[derive(Debug)]
pub struct Gathered {
    /// The answers.
    pub answers: Answers,
    /// Why they could not be tried, or proved wrong.
    pub tried: Result<usize, KnowledgeError>,
}

/// Asks the running kernel.
pub fn gather() -> Result<Gathered, KnowledgeError> {
    let read =
        |path: &str| fs::read(path).map_err(|source| KnowledgeError::Read { path: path.into(), source });
    let core = Vmcore::open(Path::new(KCORE), Access::Pread);
    let info = core.as_ref().map_or_else(|_| VmcoreInfo::default(), |core| core.info().clone());
    let map =
        fs::read_to_string(format!("/boot/System.map-{}", crate::host::read("/proc/sys/kernel/osrelease")));
    let symbols = HostSymbols::parse(
        &String::from_utf8_lossy(&read(KALLSYMS)?),
        &map.unwrap_or_default(),
        info.get("KERNELOFFSET").and_then(|text| u64::from_str_radix(text, 16).ok()),
    );
    if symbols.hidden {
        return Err(KnowledgeError::Hidden);
    }
    let mut types = Types::parse(&read(BTF)?)?;
    for module in wanted::MODULES {
        // It is not loaded, or a part of the kernel, or the kernel has no types of modules.
        let Ok(blob) = fs::read(Path::new(TYPES).join(module)) else { continue };
        if let Err(error) = types.add_module(&blob) {
            log::warn!("the types of module {module}: {}", base::log::chain(&error));
        }
    }
    let known = Read { symbols: &symbols, types: &types };
    let recorder = Recorder::new(&known);
    let core = match core {
        Ok(core) => core,
        Err(error) => {
            wanted::ask_all(None, &recorder);
            return Ok(Gathered { answers: recorder.answers(), tried: Err(error.into()) });
        }
    };
    let kernel = Kernel::new(&core, &info, core.mappings());
    wanted::ask_all(Some(&kernel), &recorder);
    let mut answers = recorder.answers();
    // Without it names on stacks are searched for after a crash.
    match index::locate(&kernel) {
        Ok(noted) => answers.0.extend(noted.0),
        Err(error) => log::warn!("the table of symbols: {}", base::log::chain(&error)),
    }
    let tried = try_out(&kernel, &answers);
    Ok(Gathered { answers, tried })
}

/// Processes that /proc shows.
fn shown() -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| u32::from_str(entry.file_name().to_str()?).ok()).collect()
}

/// Reads the tasks of the running kernel by nothing but the answers; says how many processes there are.
fn try_out(kernel: &Kernel<'_>, answers: &Answers) -> Result<usize, KnowledgeError> {
    let system = System::new(kernel, answers)?;
    let before = shown();
    let found = tasks::all(&system)?;
    let after = shown();
    compare(&found.all.iter().map(|process| process.leader.pid).collect(), &before, &after)
}

/// All that was there before and after must have been found, and nothing else but what came or went
/// meanwhile.
fn compare(
    found: &BTreeSet<u32>,
    before: &BTreeSet<u32>,
    after: &BTreeSet<u32>,
) -> Result<usize, KnowledgeError> {
    let lasting: BTreeSet<u32> = before.intersection(after).copied().collect();
    let missed: Vec<String> = lasting.difference(found).map(u32::to_string).collect();
    // A process may be born and die between two looks.
    let invented = found.difference(before).filter(|pid| !after.contains(pid)).count();
    if missed.is_empty() && invented <= found.len() / 10 {
        return Ok(found.len());
    }
    let missed = if missed.is_empty() { "none".to_owned() } else { missed.join(", ") };
    Err(KnowledgeError::Differs(format!(
        "of {} that /proc shows it misses {missed}, and {invented} of its {} are not there",
        lasting.len(),
        found.len()
    )))
}

/// Symbols of the running kernel, as /proc/kallsyms shows them, and where it shows no data
/// (`CONFIG_KALLSYMS_ALL` off) as System.map has them.
#[derive(Debug)]
struct HostSymbols {
    by_name: BTreeMap<String, u64>,
    hidden: bool,
}

impl HostSymbols {
    /// `offset` is how far KASLR has moved the kernel; where that is not known, System.map says nothing.
    fn parse(kallsyms: &str, map: &str, offset: Option<u64>) -> Self {
        let mut by_name = BTreeMap::new();
        let mut hidden = true;
        // Lines of modules have a fourth word.
        for (address, kind, name) in kallsyms.lines().filter_map(symbol) {
            hidden &= address < IMAGE;
            let is_global = kind.is_ascii_uppercase();
            let entry = by_name.entry(name.to_owned()).or_insert((address, is_global));
            if is_global && !entry.1 {
                *entry = (address, is_global);
            }
        }
        let mut by_name: BTreeMap<String, u64> =
            by_name.into_iter().map(|(name, (address, _))| (name, address)).collect();
        // Distributions that leave it empty have one line in it.
        for (address, _, name) in map.lines().filter_map(symbol) {
            let Some(offset) = offset else { break };
            let address = if address >= IMAGE { address.wrapping_add(offset) } else { address };
            if address != u64::MAX {
                by_name.entry(name.to_owned()).or_insert(address);
            }
        }
        Self { by_name, hidden }
    }
}

fn symbol(line: &str) -> Option<(u64, char, &str)> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let (kind, name) = (words.next()?.chars().next()?, words.next()?);
    words.next().is_none().then_some((address, kind, name))
}

impl Symbols for HostSymbols {
    fn find(&self, name: &str) -> Option<VirtAddr> {
        self.by_name.get(name).copied().map(VirtAddr)
    }

    fn is_only(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    fn kind(&self, _: &str) -> Option<u8> {
        None
    }

    fn at(&self, _: VirtAddr) -> Option<(std::borrow::Cow<'_, str>, u64)> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: &str = "0000000000001000 A current_task\nffffffff9a000000 T _text\nffffffff9a000100 t same\n\
                        ffffffff9a000200 T same\nffffffffc0001000 t of_a_module\t[ext4]\n";

    #[test]
    fn symbols_are_those_of_the_kernel_itself() {
        let symbols = HostSymbols::parse(LIVE, "", None);
        let find = |name| symbols.find(name).map(|at| at.0);
        assert!(!symbols.hidden);
        assert_eq!(find("current_task"), Some(0x1000));
        assert_eq!(find("same"), Some(0xffff_ffff_9a00_0200), "a global one is meant");
        assert_eq!(find("of_a_module"), None);
    }

    #[test]
    fn data_that_is_not_shown_is_in_the_map() {
        let map = "ffffffff81000000 T _text\nffffffff82800000 D init_task\n";
        let find = |offset| HostSymbols::parse(LIVE, map, offset).find("init_task").map(|at| at.0);
        assert_eq!(find(Some(0x1900_0000)), Some(0xffff_ffff_9b80_0000));
        assert_eq!(find(None), None);
        let empty = "ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n";
        assert_eq!(HostSymbols::parse(LIVE, empty, Some(0)).by_name.len(), 3);
    }

    #[test]
    fn hidden_addresses_are_noticed() {
        assert!(HostSymbols::parse("0000000000000000 T _text\n", "", None).hidden);
    }

    #[test]
    fn a_walk_that_misses_a_process_is_no_good() {
        let set = |pids: &[u32]| pids.iter().copied().collect::<BTreeSet<u32>>();
        assert_eq!(compare(&set(&[1, 2, 3]), &set(&[1, 2, 3]), &set(&[1, 2])).unwrap(), 3);
        assert_eq!(compare(&set(&[1, 2]), &set(&[1, 2, 3]), &set(&[1, 2, 4])).unwrap(), 2);
        let error = compare(&set(&[1]), &set(&[1, 2]), &set(&[1, 2])).unwrap_err().to_string();
        assert!(error.contains("misses 2,"), "{error}");
        assert!(compare(&set(&[1, 7, 8]), &set(&[1]), &set(&[1])).is_err());
    }
}
