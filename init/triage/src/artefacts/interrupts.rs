//! `interrupts.jsonl`: interrupts with their handlers, their vectors and how often each came, as
//! /proc/interrupts and /proc/softirqs show them.

use std::collections::{BTreeMap, BTreeSet};

use ::processes::{maple, xarray};
use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::{layouts, list};
use vmcore::kernel::KernelError;

use super::tracing;
use super::{Artefact, Ground, Row, Rows, Stop};
use crate::mounts;
use crate::numbers;
use crate::wanted::{Cpus, Wanted};

/// Interrupts, and handlers of one, that are believed.
const MAX: usize = 100_000;
const MAX_HANDLERS: usize = 256;
/// `NR_VECTORS`; vectors of all CPUs that are believed.
const VECTORS: u64 = 256;
const MAX_VECTORS: u32 = 1 << 16;
/// Names of soft interrupts, in their order (`softirq_to_name`, kernel/softirq.c).
const SOFT: [&str; 10] =
    ["HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"];
/// Interrupts of x86 itself, as /proc/interrupts calls them (arch/x86/kernel/irq.c): members of
/// `irq_cpustat_t`, and in 7.x numbers in its array `counts`.
const OF_MACHINE: [(&str, &str, &str); 7] = [
    ("NMI", "__nmi_count", "IRQ_COUNT_NMI"),
    ("LOC", "apic_timer_irqs", "IRQ_COUNT_APIC_TIMER"),
    ("SPU", "irq_spurious_count", "IRQ_COUNT_SPURIOUS"),
    ("PMI", "apic_perf_irqs", "IRQ_COUNT_APIC_PERF"),
    ("RES", "irq_resched_count", "IRQ_COUNT_RESCHEDULE"),
    ("CAL", "irq_call_count", "IRQ_COUNT_CALL_FUNCTION"),
    ("TLB", "irq_tlb_count", "IRQ_COUNT_TLB"),
];

layouts! {
    InterruptLayout of "irq_desc" {
        number: "irq_data.irq",
        hardware: "irq_data.hwirq",
        chip: "irq_data.chip",
        counts: "kstat_irqs",
        action: "action",
        depth: "depth",
        unhandled: "irqs_unhandled",
    } [
        affinity: "irq_common_data.affinity",
    ]
    ChipLayout of "irq_chip" {
        name: "name",
    }
    ActionLayout of "irqaction" {
        handler: "handler",
        next: "next",
        name: "name",
        thread_function: "thread_fn",
    }
}

pub(super) struct Layout {
    interrupt: InterruptLayout,
    chip: ChipLayout,
    action: ActionLayout,
    /// Whether the mask of CPUs lies in the interrupt itself.
    is_inline: bool,
    /// `irq_desc_tree`, a radix tree, with where its root is; since 6.5 (721255b9826b) `sparse_irqs`, a maple
    /// tree.
    radix: Option<(VirtAddr, u64)>,
    maple: Option<VirtAddr>,
    vectors: Option<VirtAddr>,
    /// `kstat.softirqs` and what else each CPU counts: names and places.
    soft: Option<VirtAddr>,
    machine: Vec<(&'static str, VirtAddr)>,
    cpus: Cpus,
}

impl Artefact for Layout {
    const NAME: &'static str = "interrupts";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let of = |symbol: &str, structure: &str, member: &str| {
            known.symbol(symbol)?.checked_add(known.offset(structure, member)?)
        };
        let radix = known.offset("xarray", "xa_head").or_else(|| known.offset("radix_tree_root", "xa_head"));
        Ok(Self {
            interrupt: InterruptLayout::ask(known)?,
            chip: ChipLayout::ask(known)?,
            action: ActionLayout::ask(known)?,
            is_inline: known.elements("irq_common_data", "affinity").is_some(),
            radix: known.symbol("irq_desc_tree").zip(radix),
            maple: known.symbol("sparse_irqs"),
            vectors: known.symbol("vector_irq"),
            soft: of("kstat", "kernel_stat", "softirqs"),
            machine: OF_MACHINE
                .iter()
                .filter_map(|&(name, member, number)| {
                    let array = || {
                        let number = known.value("irq_stat_counts", number).filter(|at| *at < VECTORS)?;
                        of("irq_stat", "irq_cpustat_t", "counts")?.checked_add(number.checked_mul(4)?)
                    };
                    Some((name, of("irq_stat", "irq_cpustat_t", member).or_else(array)?))
                })
                .collect(),
            cpus: Wanted::ask(known).cpus,
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let online = numbers::online(ground.system.kernel, &self.cpus);
        let possible = numbers::in_mask(ground.system.kernel, &self.cpus, self.cpus.possible);
        let cpus = (online.as_slice(), &possible.into_iter().collect::<BTreeSet<u32>>());
        let vectors = self.vectors(ground, &online);
        let all = match self.all(ground) {
            Ok((all, fault)) => {
                if let Some(fault) = fault {
                    rows.miss("interrupts", &fault)?;
                }
                all
            }
            Err(Stop::Start(why)) => {
                rows.miss("interrupts", &why)?;
                Vec::new()
            }
            Err(stop) => return Err(stop),
        };
        for at in all {
            rows.in_time()?;
            let mut row = self.interrupt(ground, at, cpus);
            if let Some(vectors) = vectors.get(&at) {
                row.set("linux.interrupt.vectors", vectors.clone());
            }
            rows.add(&row)?;
        }
        for (name, at) in &self.machine {
            self.counted(ground, rows, &online, ("machine", name, *at))?;
        }
        let Some(soft) = self.soft else { return rows.miss("soft interrupts", &"there is no symbol kstat") };
        for (number, name) in (0_u64..).zip(SOFT) {
            let at = VirtAddr(soft.0.wrapping_add(number.wrapping_mul(4)));
            self.counted(ground, rows, &online, ("soft", name, at))?;
        }
        Ok(())
    }
}

impl Layout {
    /// The `struct irq_desc` of all interrupts, and why they may be not all.
    fn all(&self, ground: &Ground<'_>) -> Result<(Vec<VirtAddr>, Option<String>), Stop> {
        let system = ground.system;
        let start = |error: KernelError| Stop::Start(base::log::chain(&error));
        if let (Some(tree), Some(layout)) = (self.maple, system.layout.maple) {
            let found = maple::entries(system, &layout, tree).map_err(start)?;
            let all = found.all.into_iter().map(|(_, _, at)| at).take(MAX);
            return Ok((all.collect(), found.faults.into_iter().next()));
        }
        let (tree, root) = self.radix.ok_or_else(|| Stop::no_symbol("sparse_irqs"))?;
        let (all, lost) = xarray::pointers(system, tree, root, MAX).map_err(start)?;
        let why = (lost > 0).then(|| format!("{lost} could not be read"));
        Ok((all.into_iter().map(|(_, at)| at).collect(), why))
    }

    /// Which vectors of which CPU lead to an interrupt, as CPU:vector.
    fn vectors(&self, ground: &Ground<'_>, online: &[u32]) -> BTreeMap<VirtAddr, Vec<String>> {
        let mut all = BTreeMap::<_, Vec<_>>::new();
        let mut left = MAX_VECTORS;
        for cpu in online {
            let Some(table) = self.cpus.of(ground.system.kernel, self.vectors, *cpu) else { continue };
            let len = to_usize(VECTORS.saturating_mul(8));
            let Ok(bytes) = ground.system.bytes(table, 0, len, "vector_irq") else { continue };
            for (vector, word) in (0_u64..).zip(bytes.chunks_exact(8)) {
                let at = Fields(word).u64(0).unwrap_or(0);
                // Small numbers and errors say that it is not in use.
                if at != 0 && at < !4096 && left > 0 {
                    left = left.saturating_sub(1);
                    all.entry(VirtAddr(at)).or_default().push(format!("{cpu}:{vector}"));
                }
            }
        }
        all
    }

    fn interrupt(
        &self,
        ground: &Ground<'_>,
        at: VirtAddr,
        (online, possible): (&[u32], &BTreeSet<u32>),
    ) -> Row {
        let (system, layout) = (ground.system, &self.interrupt);
        let mut row = Row::at(at);
        row.set("linux.interrupt.what", "interrupt");
        row.read("linux.interrupt.number", system.half(at, layout.number, "irq_data.irq"));
        let hardware = system.word(at, layout.hardware, "irq_data.hwirq");
        row.read("linux.interrupt.hardware_number", hardware);
        match system.pointer(at, layout.chip, "irq_data.chip") {
            Ok(Some(chip)) => row.read("linux.interrupt.chip", mounts::text(system, chip, self.chip.name)),
            Ok(None) => {}
            Err(error) => row.error("linux.interrupt.chip", &base::log::chain(&error)),
        }
        let disabled = system.half(at, layout.depth, "irq_desc.depth").map(|depth| depth > 0);
        row.read("linux.interrupt.disabled", disabled);
        let unhandled = system.half(at, layout.unhandled, "irq_desc.irqs_unhandled");
        row.read("linux.interrupt.unhandled", unhandled);
        match system.word(at, layout.counts, "irq_desc.kstat_irqs") {
            Ok(0) => {}
            Ok(counts) => self.counts(ground, online, VirtAddr(counts), &mut row),
            Err(error) => row.error("linux.interrupt.count", &base::log::chain(&error)),
        }
        if let Some(affinity) = layout.affinity {
            match self.affinity(ground, at, affinity) {
                // Bits of CPUs that cannot be may be set.
                Ok(mut cpus) => {
                    cpus.retain(|cpu| possible.contains(cpu));
                    row.set("linux.interrupt.cpus", cpus);
                }
                Err(error) => row.error("linux.interrupt.cpus", &base::log::chain(&error)),
            }
        }
        self.handlers(ground, at, &mut row);
        row
    }

    /// Functions that are called, with the names that drivers gave.
    fn handlers(&self, ground: &Ground<'_>, at: VirtAddr, row: &mut Row) {
        let (system, layout) = (ground.system, &self.action);
        let first = match system.pointer(at, self.interrupt.action, "irq_desc.action") {
            Ok(Some(first)) => first,
            Ok(None) => return,
            Err(error) => return row.error("linux.interrupt.handlers", &base::log::chain(&error)),
        };
        let (actions, whole) = list::chain(system.kernel, first, layout.next, MAX_HANDLERS);
        let (mut names, mut handlers, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for action in actions {
            let name = system.pointer(action, layout.name, "irqaction.name");
            match name.and_then(|name| name.map(|_| mounts::text(system, action, layout.name)).transpose()) {
                Ok(name) => names.push(name.unwrap_or_default()),
                Err(error) => row.error("linux.interrupt.names", &base::log::chain(&error)),
            }
            for (offset, list) in [(layout.handler, &mut handlers), (layout.thread_function, &mut threads)] {
                match system.word(action, offset, "a function of irqaction") {
                    Ok(0) => {}
                    Ok(target) => list.push(tracing::named(ground, target)),
                    Err(error) => row.error("linux.interrupt.handlers", &base::log::chain(&error)),
                }
            }
        }
        if !whole {
            row.error("linux.interrupt.handlers", &"their list cannot be read to its end");
        }
        row.set("linux.interrupt.names", names);
        row.set("linux.interrupt.handlers", handlers);
        if !threads.is_empty() {
            row.set("linux.interrupt.threads", threads);
        }
    }

    /// CPUs that it may come to, as it was set.
    fn affinity(&self, ground: &Ground<'_>, at: VirtAddr, offset: u64) -> Result<Vec<u32>, KernelError> {
        let what = "irq_common_data.affinity";
        let (base, offset) = if self.is_inline {
            (at, offset)
        } else {
            let Some(mask) = ground.system.pointer(at, offset, what)? else { return Ok(Vec::new()) };
            (mask, 0)
        };
        // In words, and no longer than there are CPUs: so long is one that was allocated.
        let words = numbers::cpu_ids(ground.system.kernel, &self.cpus).div_ceil(64);
        let len = to_usize(u64::from(words).saturating_mul(8));
        let bytes = ground.system.bytes(base, offset, len, what)?;
        let bits = (0_u32..).zip(bytes.iter()).flat_map(|(number, byte)| {
            let set = (0_u32..8).filter(move |bit| byte >> bit & 1 == 1);
            set.map(move |bit| number.saturating_mul(8).saturating_add(bit))
        });
        Ok(bits.collect())
    }

    /// How often it came to each CPU that is online, and to all of them.
    fn counts(&self, ground: &Ground<'_>, online: &[u32], at: VirtAddr, row: &mut Row) {
        let (mut all, mut sum) = (Vec::new(), 0_u64);
        for cpu in online {
            let Some(at) = self.cpus.of(ground.system.kernel, Some(at), *cpu) else { continue };
            match ground.system.half(at, 0, "a counter of interrupts") {
                Ok(count) => {
                    sum = sum.saturating_add(count.into());
                    all.push(count);
                }
                Err(error) => return row.error("linux.interrupt.count", &base::log::chain(&error)),
            }
        }
        row.set("linux.interrupt.count", sum);
        row.set("linux.interrupt.count_by_cpu", all);
    }

    fn counted(
        &self,
        ground: &Ground<'_>,
        rows: &mut Rows<'_>,
        online: &[u32],
        (what, name, at): (&str, &str, VirtAddr),
    ) -> Result<(), Stop> {
        let mut row = Row::default();
        row.set("linux.interrupt.what", what);
        row.set("linux.interrupt.name", name);
        self.counts(ground, online, at, &mut row);
        rows.add(&row)
    }
}
