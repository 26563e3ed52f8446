//! volatility3 with the symbols that `afterimage symbols` makes, compared with drgn on the same memory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::binaries::Binaries;
use crate::command::{Run, command};
use crate::readers;

/// What a reader lists: the rows of each kind.
type Lists = BTreeMap<String, Vec<String>>;

/// What drgn lists that is compared in its own way: the newest record of the log, which volatility3 2.28
/// leaves out (framework/plugins/linux/kmsg.py: `while cur_id != end_id`).
const NEWEST: &str = "kmsg_newest";

/// Rows that there must be of each kind at least, in a core of [`crate::raw_core::with_four_levels`].
const LEAST: [(&str, usize); 8] = [
    ("pslist", 30),
    ("psaux", 30),
    ("lsof", 8),
    ("sockstat", 4),
    ("mountinfo", 5),
    ("envars", 5),
    ("kmsg", 200),
    ("lsmod", 2),
];

/// Symbols and debug file of one core, in a folder.
#[derive(Debug)]
pub struct Made {
    symbols: PathBuf,
    vmlinux: PathBuf,
    work: PathBuf,
}

impl Made {
    /// Makes both of a core; they go to the folder `work`.
    pub fn of(core: &Path, work: &Path) -> Result<Self> {
        let symbols = work.join("symbols");
        std::fs::create_dir(&symbols).with_context(|| format!("making {}", symbols.display()))?;
        let vmlinux = work.join("vmlinux");
        let said = run(&[&"symbols", &core, &"-o", &symbols.join("kernel.json.xz")])?;
        ensure!(!said.contains("note:"), "volatility3 can read this core, and we say:\n{said}");
        run(&[&"debuginfo", &core, &"-o", &vmlinux])?;
        Ok(Self { symbols, vmlinux, work: work.to_owned() })
    }

    /// The memory of a core in a format that volatility3 reads; what it takes is what `afterimage symbols`
    /// says of a dump in our own format.
    pub fn lime(&self, core: &Path) -> Result<PathBuf> {
        let kdump = self.work.join("vmcore");
        run(&[&"dump", &core, &kdump])?;
        let said = run(&[&"symbols", &kdump, &"-o", &self.work.join("again.json")])?;
        let lime = self.work.join("vmcore.lime");
        let command = format!("afterimage dump --format lime {} {}", kdump.display(), lime.display());
        ensure!(said.contains(&command), "{command:?} is not in\n{said}");
        run(&[&"dump", &"--format", &"lime", &kdump, &lime])?;
        Ok(lime)
    }

    /// Fails unless volatility3 lists in `dump` what drgn lists in `core`.
    pub fn ensure_agreement(&self, core: &Path, dump: &Path) -> Result<()> {
        let cache = tempfile::tempdir()?; // what it finds out about one dump is not true of the other
        let arguments = [self.symbols.clone().into(), dump.into(), cache.path().into()];
        let ours: Lists =
            readers::python(&readers::volatility_python()?, include_str!("volatility.py"), &arguments)?;
        let arguments = [self.vmlinux.clone().into(), core.into()];
        let theirs: Lists =
            readers::python(&readers::drgn_python()?, include_str!("drgn_lists.py"), &arguments)?;
        let newest = theirs.get(NEWEST).context("drgn finds no newest record")?;
        for (kind, least) in LEAST {
            let (ours, theirs) = (ours.get(kind).context(kind)?, theirs.get(kind).context(kind)?);
            let without = |rows: &Vec<String>| -> Vec<String> {
                rows.iter().filter(|row| kind != "kmsg" || !newest.contains(row)).cloned().collect()
            };
            let (ours, theirs) = (without(ours), without(theirs));
            ensure!(theirs.len() >= least, "drgn lists only {} rows of {kind}", theirs.len());
            let only = |one: &[String], other: &[String]| -> Vec<String> {
                one.iter().filter(|row| !other.contains(row)).take(5).cloned().collect()
            };
            ensure!(
                ours == theirs,
                "{kind}: {} rows of volatility3, {} of drgn; only volatility3: {:#?}, only drgn: {:#?}",
                ours.len(),
                theirs.len(),
                only(&ours, &theirs),
                only(&theirs, &ours)
            );
            eprintln!("{kind}: {} rows", ours.len());
        }
        Ok(())
    }
}

/// What a command of `afterimage` says.
fn run(arguments: &[&dyn AsRef<OsStr>]) -> Result<String> {
    let afterimage = &Binaries::get()?.afterimage;
    let done = command(&afterimage.to_string_lossy()).args(arguments.iter().map(AsRef::as_ref)).run()?;
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
