//! One dump, as the capture makes it.

use anyhow::Result;
use base::config::{Compress, Config, DumpLevel, Exclude, Format};
use base::facts::Facts;
use vmcore::budget::Budget;
use vmcore::dump::{self, DumpError, Written};
use vmcore::kernel::Kernel;
use vmcore::report::Summary;
use vmcore::session;
use vmcore::sink::Sink;
use vmcore::source::Core;

use super::args::Args;

/// Bytes for the plan: what a capture kernel with 128 MiB available gives it.
const PLAN_MIB: u64 = 16;

/// How the dump is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    workers: usize,
    exclude: Exclude,
    compress: Compress,
    plan: u64,
    format: Format,
}

/// What became of it.
#[derive(Debug)]
pub struct Dumped<S> {
    /// The sink.
    pub sink: S,
    /// What was written.
    pub written: Written,
    /// What the capture would report.
    pub degradations: Vec<String>,
    /// Whether it is whole.
    pub result: Result<(), DumpError>,
}

impl Job {
    /// `--workers`, `--level`, `--compress`, `--plan-mib`.
    pub fn from_args(args: &mut Args) -> Result<Self> {
        Ok(Self {
            workers: args.option("workers", 1)?,
            exclude: Exclude::from(args.option("level", DumpLevel::new(31)?)?),
            compress: args.option("compress", Compress::default())?,
            plan: args.option("plan-mib", PLAN_MIB)?.saturating_mul(1 << 20),
            format: Format::default(),
        })
    }

    /// The same in another format.
    #[must_use]
    pub fn format(self, format: Format) -> Self {
        Self { format, ..self }
    }

    /// Dumps `core` to the sink that `open` makes when the page filter is ready.
    pub fn dump<S: Sink>(&self, core: &dyn Core, open: impl FnOnce() -> S) -> Dumped<S> {
        let mut config = Config::default();
        config.dump.exclude = self.exclude;
        config.dump.compress = self.compress;
        config.dump.format = self.format;
        let mut summary = Summary::new(&config);
        session::record_anomalies(core, &mut summary);
        let (info, _) = session::settle(core, &Facts::default());
        let kernel = Kernel::new(core, &info, core.mappings());
        let utsname = session::describe(Some(core), Some(&kernel), &Facts::default(), &mut summary);
        let filter = session::page_filter(core, &info, &mut summary);
        let mut request = session::request(utsname, info.clone(), &config);
        self.limit(&mut request.budget);
        let (mut sink, mut written) = (open(), Written::default());
        let result = dump::write(core, filter.as_ref(), &request, &mut sink, &mut written);
        session::record(&written, &mut summary);
        let degradations = summary.degradations.iter().map(ToString::to_string).collect();
        Dumped { sink, written, degradations, result }
    }

    fn limit(&self, budget: &mut Budget) {
        budget.workers = self.workers;
        budget.plan = self.plan;
    }
}
