//! What a production system says about itself while it stands: the first one, and the one that the
//! capture hands over to.

use crate::console::Line;
use anyhow::{Context, Result, ensure};
use std::time::Instant;

/// A boot of the production system.
#[derive(Clone, Debug)]
pub struct Boot {
    /// When it said so.
    pub at: Instant,
    /// `MemTotal` in KiB.
    pub memory_kib: u64,
    /// CPUs that are online.
    pub cpus: u32,
    /// What is wrong with its disk; `ok` if nothing.
    pub disk: String,
    /// What is wrong with its network; `ok` if nothing.
    pub network: String,
}

impl Boot {
    /// The line of the boot that is called `first` or `third`.
    pub fn find(console: &[Line], name: &str) -> Result<Self> {
        let start = format!("production: {name} MemTotal=");
        let line = console.iter().find(|line| line.text.contains(&start));
        let line = line.with_context(|| format!("no line {start:?}"))?;
        let value = |key: &str| -> Result<&str> {
            let (_, rest) = line
                .text
                .split_once(&format!(" {key}="))
                .with_context(|| format!("no {key}= in {line:?}"))?;
            rest.split_whitespace().next().with_context(|| format!("{key}= is empty in {line:?}"))
        };
        Ok(Self {
            at: line.at,
            memory_kib: value("MemTotal")?.trim_end_matches("kB").parse().context("MemTotal")?,
            cpus: value("CPUs")?.parse().context("CPUs")?,
            disk: value("disk")?.to_owned(),
            network: value("net")?.to_owned(),
        })
    }

    /// Fails unless this boot has what `first` had, with up to `reserved_mib` more or less of
    /// memory.
    pub fn ensure_like(&self, first: &Self, reserved_mib: u64) -> Result<()> {
        ensure!(self.disk == "ok" && self.network == "ok", "{self:?}");
        ensure!(first.disk == "ok" && first.network == "ok", "{first:?}");
        ensure!(self.cpus == first.cpus, "{} CPUs, and {} at first", self.cpus, first.cpus);
        let slack = reserved_mib.saturating_mul(1024);
        ensure!(
            self.memory_kib.abs_diff(first.memory_kib) <= slack,
            "MemTotal is {} KiB, and {} KiB at first, {slack} KiB were reserved",
            self.memory_kib,
            first.memory_kib
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_compared() {
        let line = |text: &str| Line { at: Instant::now(), text: text.into() };
        let console = [
            line("[    1.0] production: first MemTotal=600000kB CPUs=2 disk=ok net=ok"),
            line("[    9.0] production: third MemTotal=760000kB CPUs=1 disk=ok net=unreachable"),
        ];
        let first = Boot::find(&console, "first").unwrap();
        let mut third = Boot::find(&console, "third").unwrap();
        assert_eq!((third.memory_kib, third.cpus, &*third.network), (760_000, 1, "unreachable"));
        assert!(third.ensure_like(&first, 160).is_err());
        third.network = "ok".into();
        third.cpus = 2;
        third.ensure_like(&first, 160).unwrap();
        assert!(third.ensure_like(&first, 150).is_err());
        assert!(Boot::find(&console, "fourth").is_err());
    }
}
