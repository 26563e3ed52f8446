//! Measures the dump engine in this process. Each command prints a line of JSON.
//!
//! ```text
//! synthetic GIB [--text 1] [--same 3] [--until headers|end]
//!                                                  a made-up machine to a sink that takes everything at once
//! sink CORE [--rate MBps|null] [--buffer-mib 8]    a core to a simulated device
//! bare CORE [--workers N] [--level L] [--zstd 1]   nothing but the compression of the kept pages, in memory
//! ```
//!
//! `synthetic` and `sink` also take `--workers 1`, `--level 31`, `--compress zstd:1` and
//! `--plan-mib 16`, the bytes for the bits that say which pages are kept. `--text` and `--same` are
//! pages of 16 with text and with one byte all over.

use std::num::NonZeroU64;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use qemu_tests::bench::args::Args;
use qemu_tests::bench::bare;
use qemu_tests::bench::content::Content;
use qemu_tests::bench::device::{Device, Kind};
use qemu_tests::bench::job::{Dumped, Job};
use qemu_tests::bench::machine::Machine;
use qemu_tests::bench::meter::{Measured, Meter};
use serde::Serialize;
use vmcore::report::PageCounts;
use vmcore::source::{Access, Core, Vmcore};

/// The line that is printed.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    measured: Measured,
    /// Length of the dump, or of all compressed pages.
    bytes: u64,
    /// Bytes that the sink was given.
    sink_bytes: u64,
    pages: PageCounts,
}

fn main() -> Result<()> {
    let mut args = Args::parse(std::env::args().skip(1))?;
    match args.word("synthetic, sink or bare")?.as_str() {
        "synthetic" => synthetic(args),
        "sink" => sink(args),
        "bare" => bare(args),
        other => bail!("{other}: there are synthetic, sink and bare"),
    }
}

fn synthetic(mut args: Args) -> Result<()> {
    let gib = args.word("GIB")?.parse().context("GIB")?;
    let content = Content::new(args.option("text", 1)?, args.option("same", 3)?);
    let job = Job::from_args(&mut args)?;
    let ends_with_headers = match args.option("until", "end".to_owned())?.as_str() {
        "end" => false,
        "headers" => true,
        other => bail!("--until {other}: there are headers and end"),
    };
    args.done()?;
    let machine = Machine::new(gib, content)?;
    let degradations = dump(&machine, &job, Kind { ends_with_headers, ..Kind::default() })?;
    ensure!(degradations.is_empty(), "the capture is not content: {}", degradations.join("; "));
    Ok(())
}

fn sink(mut args: Args) -> Result<()> {
    let core = open(&mut args)?;
    let rate = match args.option("rate", "null".to_owned())?.as_str() {
        "null" => None,
        rate => Some(rate.parse::<NonZeroU64>().context("--rate: MB/s or null")?),
    };
    let buffer = args.option("buffer-mib", 8_u64)?.saturating_mul(1 << 20);
    let job = Job::from_args(&mut args)?;
    args.done()?;
    for degradation in dump(&core, &job, Kind { rate, buffer, ends_with_headers: false })? {
        eprintln!("{degradation}");
    }
    Ok(())
}

/// Dumps to a device and prints the line; returns what the capture would report.
fn dump(core: &dyn Core, job: &Job, kind: Kind) -> Result<Vec<String>> {
    let mut meter = Meter::start()?;
    let Dumped { sink, written, degradations, result } = job.dump(core, || {
        meter.lap("filter");
        Device::new(kind, &mut meter)
    });
    let sink_bytes = sink.written;
    if !kind.ends_with_headers {
        result.context("dumping")?;
        meter.lap("data"); // the last sync has waited for the device
    }
    print(&Line { measured: meter.finish(), bytes: written.bytes, sink_bytes, pages: written.pages })?;
    Ok(degradations)
}

fn bare(mut args: Args) -> Result<()> {
    let core = open(&mut args)?;
    let (threads, level) = (args.option("workers", 1_usize)?, args.option("zstd", 1)?);
    let job = Job::from_args(&mut args)?;
    args.done()?;
    let pages = bare::kept_pages(&core, &job)?;
    let mut meter = Meter::start()?;
    let bytes = bare::compress(&pages, threads, level)?;
    meter.lap("compress");
    let written = u64::try_from(pages.len() / 4096)?;
    let pages = PageCounts { written, ..PageCounts::default() };
    print(&Line { measured: meter.finish(), bytes, sink_bytes: 0, pages })
}

fn open(args: &mut Args) -> Result<Vmcore> {
    let path = args.word("CORE")?;
    Vmcore::open(Path::new(&path), Access::Mmap).with_context(|| format!("opening {path}"))
}

fn print(line: &Line) -> Result<()> {
    println!("{}", serde_json::to_string(line)?);
    Ok(())
}
