//! The machine: what /proc and /sys showed of processors, interrupts, memory, work and disks, and what the
//! rows say.

use super::Triage;
use super::kernel_state::{ensure_same, said, text, words};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;

/// The list of modules that the guest loads first.
pub const MODULES: &str = "/modules/stacked";
/// A disk of device-mapper, its UUID, and the disk that it stands on.
pub const MAPPED: &str = "a-mapped-disk";
#[expect(missing_docs, reason = "told above")]
pub const UUID: &str = "TEST-0123456789";
#[expect(missing_docs, reason = "told above")]
pub const BELOW: &str = "vdd";
/// An array that does not run.
pub const ARRAY: &str = "md_test";
/// How far two counters of free memory may be apart, in KiB: what CPUs have counted and not told yet.
const FREE: u64 = 2048;

fn number(row: &Value, path: &str) -> Result<u64> {
    row.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path} in {row}"))
}

/// Texts in an array.
fn list<'a>(row: &'a Value, path: &str) -> impl Iterator<Item = &'a str> {
    row.pointer(path).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// The same in order, with commas.
fn joined(row: &Value, path: &str) -> String {
    let names: BTreeSet<&str> = list(row, path).collect();
    names.into_iter().collect::<Vec<_>>().join(",")
}

impl Triage<'_> {
    /// Compares all of it.
    pub fn ensure_machine(&self, snapshot: &str) -> Result<()> {
        self.ensure_processors(snapshot)?;
        self.ensure_interrupts(snapshot)?;
        self.ensure_zones(snapshot)?;
        self.ensure_work()?;
        self.ensure_blocks(snapshot)?;
        for artefact in ["cpus", "interrupts", "zones", "work", "blocks"] {
            for row in self.rows(artefact)? {
                ensure!(row.pointer("/errors").is_none(), "{artefact}: {row}");
            }
        }
        Ok(())
    }

    fn ensure_processors(&self, snapshot: &str) -> Result<()> {
        let rows = self.rows("cpus")?;
        let processors = || rows.iter().filter(|row| text(row, "/linux/cpu/what") == "processor");
        let online = processors().filter(|row| row.pointer("/linux/cpu/online") == Some(&true.into()));
        let ours: BTreeSet<String> = online
            .map(|row| {
                let of = |name: &str| text(row, &format!("/linux/cpu/{name}"));
                let plain = ["number", "vendor", "family", "model_number", "model", "stepping", "microcode"];
                let flags = ["flags", "bugs"].map(|name| joined(row, &format!("/linux/cpu/{name}")));
                format!("{}; {}", plain.map(of).join("; "), flags.join("; "))
            })
            .collect();
        let mut theirs = BTreeSet::new();
        let mut processor: Vec<String> = Vec::new();
        for line in said(snapshot, "cpuinfo") {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.trim();
            match key.trim() {
                "processor" | "vendor_id" | "cpu family" | "model" | "model name" | "stepping"
                | "microcode" => {
                    processor.push(value.to_owned());
                }
                "flags" | "bugs" => {
                    let words: BTreeSet<&str> = value.split(' ').filter(|word| !word.is_empty()).collect();
                    processor.push(words.into_iter().collect::<Vec<_>>().join(","));
                }
                "" => {
                    theirs.insert(std::mem::take(&mut processor).join("; "));
                }
                _ => {}
            }
        }
        ensure_same("processors", &theirs, &ours)?;
        // One of them was at the end of the first process, with the queue that it is in.
        let at_end = processors().filter(|row| row.pointer("/process/pid") == Some(&1.into()));
        let at_end = at_end.count();
        ensure!(at_end == 1, "the first process runs on {at_end} CPUs");
        for row in processors().filter(|row| row.pointer("/linux/cpu/online") == Some(&true.into())) {
            let cpu = number(row, "/linux/cpu/number")?;
            let is_awake = |row: &&Value| {
                let is_there = row.pointer("/linux/cpu/number").and_then(Value::as_u64) == Some(cpu);
                is_there
                    && text(row, "/linux/cpu/what") == "queued"
                    && row.pointer("/linux/cpu/sleeps") != Some(&true.into())
            };
            let queued = rows.iter().filter(is_awake).count();
            let running = number(row, "/linux/cpu/running")?;
            ensure!(u64::try_from(queued)? == running, "{queued} of {running} tasks of CPU {cpu}: {rows:?}");
        }
        Ok(())
    }

    fn ensure_interrupts(&self, snapshot: &str) -> Result<()> {
        let rows = self.rows("interrupts")?;
        let processors = said(snapshot, "cpuinfo").filter(|line| line.starts_with("processor")).count();
        let of =
            |what: &'static str| rows.iter().filter(move |row| text(row, "/linux/interrupt/what") == what);
        let handled = of("interrupt").filter(|row| list(row, "/linux/interrupt/names").next().is_some());
        let ours: BTreeSet<String> = handled
            .map(|row| {
                let names = list(row, "/linux/interrupt/names").collect::<Vec<_>>().join(", ");
                let of = |name: &str| text(row, &format!("/linux/interrupt/{name}"));
                format!("{} {} {names}", of("number"), of("chip"))
            })
            .collect();
        let mut theirs = BTreeSet::new();
        for line in said(snapshot, "interrupt") {
            let all: Vec<&str> = line.split(' ').collect();
            let Some(interrupt) = all.first().and_then(|word| word.strip_suffix(':')) else { continue };
            let counts = all.iter().skip(1).take(processors).filter_map(|word| word.parse::<u64>().ok());
            let (count, mut rest) = (counts.sum::<u64>(), all.iter().skip(processors.saturating_add(1)));
            let row = if interrupt.parse::<u32>().is_ok() {
                let chip = rest.next().copied().unwrap_or_default();
                let names = rest.skip(1).copied().collect::<Vec<_>>().join(" ");
                if !names.is_empty() {
                    theirs.insert(format!("{interrupt} {chip} {names}"));
                }
                of("interrupt").find(|row| text(row, "/linux/interrupt/number") == interrupt)
            } else {
                of("machine").find(|row| text(row, "/linux/interrupt/name") == interrupt)
            };
            // Of those of the machine some are told.
            let Some(row) = row else { continue };
            let now = number(row, "/linux/interrupt/count")?;
            ensure!(now >= count, "{interrupt} came {count} times, the row says {now}");
        }
        ensure_same("interrupts", &theirs, &ours)?;
        let machine = of("machine").count();
        ensure!(machine >= 5, "only {machine} interrupts of the machine");
        let is_named = of("interrupt")
            .all(|row| list(row, "/linux/interrupt/handlers").all(|name| !name.starts_with("0x")));
        ensure!(is_named, "a handler has no name: {rows:?}");
        ensure!(
            of("interrupt").any(|row| list(row, "/linux/interrupt/vectors").next().is_some()),
            "{rows:?}"
        );
        let ours = of("soft").map(|row| text(row, "/linux/interrupt/name")).collect();
        let theirs = said(snapshot, "softirq").map(|line| words(line, &[0]).trim_end_matches(':').to_owned());
        ensure_same("soft interrupts", &theirs.collect(), &ours)
    }

    fn ensure_zones(&self, snapshot: &str) -> Result<()> {
        let rows = self.rows("zones")?;
        let zones = || rows.iter().filter(|row| row.pointer("/linux/zone/name").is_some());
        let mut ours = BTreeSet::new();
        for row in zones() {
            let of = |name: &str| number(row, &format!("/linux/zone/{name}"));
            let pages = |name: &str| of(name).map(|kib| kib / 4);
            ours.insert(format!(
                "{} {} {} {} {} {} {}",
                of("node")?,
                text(row, "/linux/zone/name"),
                pages("spanned_kib")?,
                pages("present_kib")?,
                pages("managed_kib")?,
                pages("min_kib")?,
                of("first_page")?,
            ));
            let blocks =
                row.pointer("/linux/zone/free_blocks").and_then(Value::as_array).context("no blocks")?;
            let free = blocks.iter().filter_map(Value::as_u64).enumerate();
            let free: u64 = free.map(|(order, count)| count.saturating_mul(4 << order)).sum();
            let counted = of("free_kib")?;
            ensure!(free.abs_diff(counted) <= FREE, "blocks of {free} KiB, {counted} are free: {row}");
        }
        let mut theirs = BTreeSet::new();
        let mut zone = (String::new(), Vec::<String>::new());
        for line in said(snapshot, "zone").chain(["Node"]) {
            let of: Vec<&str> = line.split(' ').collect();
            match *of.as_slice() {
                ["Node", ..] => {
                    let (name, numbers) = std::mem::take(&mut zone);
                    // spanned, present, managed, min, start: one without memory has no first page.
                    if let [min, spanned, present, managed, start, ..] = numbers.as_slice()
                        && present != "0"
                    {
                        theirs.insert(format!("{name} {spanned} {present} {managed} {min} {start}"));
                    }
                    if let [_, node, _, name] = *of.as_slice() {
                        zone.0 = format!("{} {name}", node.trim_end_matches(','));
                    }
                }
                ["min" | "spanned" | "present" | "managed" | "start_pfn:", value] => {
                    zone.1.push(value.to_owned());
                }
                _ => {}
            }
        }
        ensure_same("zones", &theirs, &ours)?;
        let orders = zones().map(|row| {
            let blocks = row.pointer("/linux/zone/free_blocks").and_then(Value::as_array);
            let zone = [text(row, "/linux/zone/node"), text(row, "/linux/zone/name")];
            format!("{} {}", zone.join(" "), blocks.map_or(0, Vec::len))
        });
        // Node 0, zone DMA 1 1 ..
        let theirs = said(snapshot, "buddy").map(|line| {
            let zone = words(line, &[1, 3]).replace(',', "");
            format!("{zone} {}", line.split(' ').count().saturating_sub(4))
        });
        ensure_same("orders of zones", &theirs.collect(), &orders.collect())
    }

    /// Nothing in /proc shows work; its threads are there, and are found in another way.
    fn ensure_work(&self) -> Result<()> {
        let rows = self.rows("work")?;
        let of = |what: &'static str| rows.iter().filter(move |row| text(row, "/linux/work/what") == what);
        // Soft interrupts have a worker and no thread.
        let pools = of("pool").filter(|row| row.pointer("/linux/work/bottom_half") != Some(&true.into()));
        let workers: u64 = pools.filter_map(|row| row.pointer("/linux/work/workers")?.as_u64()).sum();
        let processes = self.rows("processes")?;
        let names = processes.iter().map(|row| text(row, "/process/name"));
        // kworker/0:1, kworker/u8:2; those that only rescue others are kworker/R-NAME since 6.10.
        let is_worker = |name: &String| name.starts_with("kworker/") && !name.starts_with("kworker/R-");
        let threads = names.filter(is_worker).count();
        ensure!(u64::try_from(threads)? == workers, "{workers} workers, and {threads} threads");
        let queues: BTreeSet<String> = of("queue").map(|row| text(row, "/linux/work/queue")).collect();
        for name in ["events", "events_unbound", "events_highpri", "mm_percpu_wq"] {
            ensure!(queues.contains(name), "no queue {name} in {queues:?}");
        }
        for row in of("worker").chain(of("work")) {
            ensure!(!text(row, "/linux/work/function").starts_with("0x"), "no name: {row}");
        }
        let timers = self.rows("timers")?;
        let delayed = timers.iter().filter(|row| row.pointer("/linux/timer/work").is_some()).count();
        ensure!(delayed > 0, "no work waits for a timer");
        eprintln!("work: {} queues, {workers} workers, {delayed} delayed", queues.len());
        Ok(())
    }

    /// Whether the kernel is one before 5.11.
    fn is_old(&self) -> Result<bool> {
        let rows = self.rows("kernel")?;
        let releases = rows.iter().map(|row| text(row, "/host/os/kernel"));
        Ok(releases.into_iter().any(|release| release.starts_with("5.10.")))
    }

    fn ensure_blocks(&self, snapshot: &str) -> Result<()> {
        let rows = self.rows("blocks")?;
        let line = |row: &Value| {
            let of = |name: &str| text(row, &format!("/linux/block/{name}"));
            let sectors = number(row, "/linux/block/bytes")? / 512;
            let read_only = of("read_only") == "true";
            let words = [
                of("name"),
                of("device"),
                sectors.to_string(),
                u8::from(read_only).to_string(),
                of("partition"),
                of("scheduler"),
                joined(row, "/linux/block/made_of"),
                joined(row, "/linux/block/used_by"),
            ];
            Ok(words.join("\t"))
        };
        let ours = rows.iter().map(line).collect::<Result<_>>()?;
        let theirs = said(snapshot, "block").map(|line| {
            let words: Vec<&str> = line.split('\t').take(8).collect();
            words.join("\t")
        });
        ensure_same("block devices", &theirs.collect(), &ours)?;
        let with = |name: &str| rows.iter().find(|row| text(row, "/linux/block/name").starts_with(name));
        let mapped = with("dm-").context("no disk of device-mapper")?;
        ensure!(joined(mapped, "/linux/block/made_of") == BELOW, "{mapped}");
        let array = with(ARRAY).context("no array")?;
        ensure!(text(mapped, "/linux/block/driver") == "dm_mod", "{mapped}");
        ensure!(text(array, "/linux/block/driver") == "md_mod", "{array}");
        // Kernels before 5.11 do not tell types of modules.
        if self.is_old()? {
            for (row, path) in [(mapped, "/linux/dm/not_known"), (array, "/linux/md/not_known")] {
                ensure!(text(row, path).contains("the kernel's types have no"), "{row}");
            }
            return Ok(());
        }
        let table = joined(mapped, "/linux/dm/table");
        ensure!(table == "0 2048 linear,2048 4096 error", "{mapped}");
        ensure!(
            text(mapped, "/linux/dm/name") == MAPPED && text(mapped, "/linux/dm/uuid") == UUID,
            "{mapped}"
        );
        ensure!(number(array, "/linux/md/disks")? == 0, "{array}");
        Ok(())
    }
}
