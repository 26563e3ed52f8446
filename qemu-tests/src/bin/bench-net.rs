//! Sends the dump of a core to the first target of a configuration, as a capture does, and prints a
//! line of JSON.
//!
//! `bench-net CORE CONFIG [--level 31] [--workers 1] [--compress zstd:1]`: the network is the one
//! that this machine has; keys are read as `afterimage load` reads them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use base::config::{Config, CrashLoop, Format};
use network::Network;
use qemu_tests::bench::args::Args;
use qemu_tests::bench::job::{Dumped, Job};
use qemu_tests::bench::meter::{Measured, Meter};
use serde::Serialize;
use vmcore::sink::{Sink, SinkError};
use vmcore::source::{Access, Vmcore};
use vmcore::target::{Artifact, Capture};

/// The line that is printed.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    measured: Measured,
    bytes: u64,
    location: String,
}

/// A sink behind a pointer.
struct Boxed(Box<dyn Sink>);

impl Sink for Boxed {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.0.write_at(offset, bytes)
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.0.sync()
    }

    fn is_rewritable(&self) -> bool {
        self.0.is_rewritable()
    }
}

fn main() -> Result<()> {
    let mut args = Args::parse(std::env::args().skip(1))?;
    let (core, config) = (args.word("CORE")?, args.word("CONFIG")?);
    let job = Job::from_args(&mut args)?;
    args.done()?;
    let text = std::fs::read_to_string(&config).with_context(|| format!("reading {config}"))?;
    let config = Config::parse(&text)?;
    let target = config.target.first().context("no [[target]]")?;
    let remotes = afterimage::remote::gather(&config)?.remotes;
    let core = Vmcore::open(Path::new(&core), Access::Mmap).with_context(|| format!("opening {core}"))?;

    let mut meter = Meter::start()?;
    let network = Network::host();
    let none = CrashLoop { crashes: 0, within: 0 };
    let name = format!("bench-{}", std::process::id());
    let capture = Capture { remotes: &remotes, host: "bench", ..Capture::new(&name, 0, none) };
    let mut target = network::open(target, capture, &network)?;
    target.expect(vmcore::dump::memory_bytes(&core));
    let job = if target.is_stream() { job.format(Format::Flattened) } else { job };
    let sink = target.create(Artifact::Vmcore)?;
    meter.lap("open");
    let Dumped { sink, written, result, .. } = job.dump(&core, || Boxed(sink));
    result.context("dumping")?;
    drop(sink);
    target.publish(Artifact::Vmcore)?;
    meter.lap("send");
    let location = target.location();
    target.close()?;
    meter.lap("close");
    ensure!(written.pages.unreadable == 0, "{written:?}");
    println!(
        "{}",
        serde_json::to_string(&Line { measured: meter.finish(), bytes: written.bytes, location })?
    );
    Ok(())
}
