//! Dumps that makedumpfile makes of a raw core, read by the product and compared with the core page
//! by page.

use crate::command::{Run, command};
use crate::readers::{self, makedumpfile};
use anyhow::{Context, Result, bail, ensure};
use base::addr::Pfn;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::slice;
use vmcore::source::{Access, Core, Kdump, PageReader, PhysicalMemory, ReadError, Vmcore};

/// How a dump is made. Snappy is not among them: Debian's makedumpfile is built without it.
const FORMATS: &[(&str, &[&str])] = &[
    ("raw", &["-d", "31"]),
    ("zlib", &["-c", "-d", "31"]),
    ("lzo", &["-l", "-d", "31"]),
    ("zstd", &["-z", "-d", "31"]),
    ("flattened lzo", &["-F", "-l", "-d", "31"]),
    ("flattened zlib", &["-F", "-c", "-d", "31"]),
    ("split lzo", &["--split", "-l", "-d", "31"]),
    ("everything, lzo", &["-l", "-d", "0"]),
];
/// Files of a split dump.
const PARTS: usize = 3;

/// What was found in one dump.
#[derive(Debug)]
pub struct Checked {
    /// How it was made.
    pub format: &'static str,
    /// Pages that are in the dump and as in the core.
    pub same: u64,
    /// Pages that makedumpfile left out.
    pub absent: u64,
    /// Pages by compression flag.
    pub flags: BTreeMap<u32, u64>,
}

/// Makes a dump of each format of the ELF core `raw` in `work` and compares all pages. Fails unless
/// every page of the core is in the dump as it was or is left out, and each format has left out the
/// same.
pub fn compare_all(raw: &Path, work: &Path) -> Result<Vec<Checked>> {
    let core = Vmcore::open(raw, Access::Pread)?;
    let mut all: Vec<Checked> = Vec::new();
    for &(format, arguments) in FORMATS {
        let paths = make(raw, work, arguments)?;
        let checked = compare(&core, &paths, format, arguments).context(format)?;
        if format == "raw" {
            let path = work.join("snappy");
            let smaller = paths.first().map_or(Ok(0), |raw| readers::snappy(raw, &path))?;
            ensure!(smaller > 0, "snappy made no page smaller");
            let snappy = compare(&core, slice::from_ref(&path), "snappy", &[]).context("snappy")?;
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            all.push(snappy);
        }
        for path in paths {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        let everything = arguments.contains(&"0");
        if everything {
            ensure!(checked.absent == 0, "{format}: {} pages of level 0 are absent", checked.absent);
        } else if let Some(first) = all.first() {
            let (ours, theirs) = ((checked.same, checked.absent), (first.same, first.absent));
            ensure!(ours == theirs, "{format} has {ours:?} pages and {} has {theirs:?}", first.format);
        }
        all.push(checked);
    }
    ensure!(all.iter().any(|one| one.absent > 0), "no level leaves out a page");
    Ok(all)
}

/// Makes a dump of the ELF core `raw` in `work` as makedumpfile's `arguments` say; gives its files.
pub fn make(raw: &Path, work: &Path, arguments: &[&str]) -> Result<Vec<PathBuf>> {
    let count = if arguments.contains(&"--split") { PARTS } else { 1 };
    let paths: Vec<PathBuf> = (0..count).map(|part| work.join(format!("input-{part}"))).collect();
    let mut makedumpfile = command(&makedumpfile()?.to_string_lossy());
    makedumpfile.args(arguments).arg(raw);
    if let ([path], true) = (paths.as_slice(), arguments.contains(&"-F")) {
        let file = File::create(path)?;
        makedumpfile.stdout(file).run()?;
    } else {
        makedumpfile.args(&paths).run()?;
    }
    Ok(paths)
}

fn compare(core: &Vmcore, paths: &[PathBuf], format: &'static str, arguments: &[&str]) -> Result<Checked> {
    let dump = Kdump::open_set(paths)?;
    ensure!(dump.anomalies().is_empty(), "anomalies: {:?}", dump.anomalies());
    ensure!(dump.is_flattened() == arguments.contains(&"-F"), "flattened: {}", dump.is_flattened());
    ensure!(dump.is_split() == arguments.contains(&"--split"), "split: {}", dump.is_split());
    ensure!(dump.info() == core.info(), "another VMCOREINFO: {:?}", dump.info());
    ensure!(dump.machine() == core.machine(), "another machine: {:?}", dump.machine());
    ensure!(dump.notes().cpus() == core.notes().cpus(), "registers of {} CPUs", dump.notes().cpus());
    ensure!(dump.ranges() == core.ranges(), "other memory: {:?} and {:?}", dump.ranges(), core.ranges());

    let size = core.page_size().in_memory();
    let (mut expected, mut got) = (vec![0; size], vec![0; size]);
    let (mut raw, mut reader) = (core.page_reader(), dump.page_reader());
    let mut checked = Checked { format, same: 0, absent: 0, flags: BTreeMap::new() };
    for &range in core.ranges() {
        let mut absent = Vec::new();
        dump.absent(range, &mut |run| absent.push(run));
        let mut absent = absent.iter().peekable();
        for pfn in (range.start().0..range.end().0).map(Pfn) {
            while absent.next_if(|run| run.end() <= pfn).is_some() {}
            let is_absent = absent.peek().is_some_and(|run| run.contains(pfn));
            let same = page(reader.as_mut(), raw.as_mut(), pfn, &mut got, &mut expected)?;
            ensure!(same != is_absent, "page {pfn} is in the dump: {same}, and absent: {is_absent}");
            let counter = if same { &mut checked.same } else { &mut checked.absent };
            *counter = counter.saturating_add(1);
        }
    }
    dump.for_each_desc(|_, desc| {
        let counter = checked.flags.entry(desc.flags).or_default();
        *counter = counter.saturating_add(1);
    })?;
    ensure!(checked.same == dump.kept(), "{} pages of {} were found", checked.same, dump.kept());
    Ok(checked)
}

/// Whether the dump has a page; then it is as in the core.
fn page(
    dump: &mut dyn PageReader,
    raw: &mut dyn PageReader,
    pfn: Pfn,
    got: &mut [u8],
    expected: &mut [u8],
) -> Result<bool> {
    match dump.read_page(pfn, got) {
        Ok(()) => {
            raw.read_page(pfn, expected)?;
            ensure!(got == expected, "page {pfn} differs");
            Ok(true)
        }
        Err(ReadError::Excluded(_)) => Ok(false),
        Err(error) => bail!("page {pfn}: {}", base::log::chain(&error)),
    }
}
