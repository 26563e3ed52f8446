//! `timers.jsonl`: what the kernel will call later: timers of the wheel and timers of high resolution, of
//! each CPU. A timer of a CPU that is not online never expires, nor is the work done that waits for it.

use std::collections::BTreeSet;

use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;
use symbols::knowledge::layout::{Missing, optional, required};
use symbols::knowledge::{Knowledge, Ticks};
use symbols::{layouts, list, tree};

use super::tracing::function;
use super::{Artefact, Ground, Row, Rows, Stop};
use crate::numbers;
use crate::wanted::{Cpus, Wanted};

/// Timers of one list or tree that are believed.
const MAX: usize = 100_000;
/// Lists of a wheel (`WHEEL_SIZE`; 576 and 512), and clocks of a CPU (`HRTIMER_MAX_CLOCK_BASES`).
const MAX_LISTS: u64 = 1024;
const MAX_CLOCKS: u64 = 16;
/// Names of clocks, in their order (`enum hrtimer_base_type`); the second half is of soft interrupts.
const CLOCKS: [&str; 4] = ["monotonic", "realtime", "boottime", "tai"];

layouts! {
    WheelLayout of "timer_base" {
        lists: "vectors",
        cpu: "cpu",
    }
    TimerLayout of "timer_list" {
        node: "entry",
        expires: "expires",
        function: "function",
    }
    CpuLayout of "hrtimer_cpu_base" {
        clocks: "clock_base",
    }
    ClockLayout of "hrtimer_clock_base" {
        active: "active",
        offset: "offset",
    }
    DelayedLayout of "delayed_work" {
        timer: "timer",
        function: "work.func",
    }
    HighLayout of "hrtimer" {
        node: "node",
        function: "function",
    }
}

/// The wheels of a CPU: where, how many, bytes of one, and the lists that it has.
struct Wheels {
    at: Option<VirtAddr>,
    count: u64,
    size: u64,
    lists: u64,
    wheel: WheelLayout,
    timer: TimerLayout,
    /// `delayed_work_timer_fn`, which puts a work into its queue.
    delayed: Option<(VirtAddr, DelayedLayout)>,
}

/// The clocks of a CPU: where, how many, bytes of one; and where a timer has its time.
struct Clocks {
    at: Option<VirtAddr>,
    count: u64,
    size: u64,
    cpu: CpuLayout,
    clock: ClockLayout,
    timer: HighLayout,
    expires: u64,
}

pub(super) struct Layout {
    wheels: Result<Wheels, Missing>,
    clocks: Result<Clocks, Missing>,
    cpus: Cpus,
    jiffies: Option<VirtAddr>,
    ticks: Option<Ticks>,
    /// `tick_next_period`: when the clock ticks next, in nanoseconds of the monotonic clock.
    tick: Option<VirtAddr>,
}

impl Artefact for Layout {
    const NAME: &'static str = "timers";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let wheels = || {
            let size = known.size_of("timer_base");
            // One of timers that stay on their CPU came with the migration of all others (6.9, 83a665dc99a7).
            let count = if known.size_of("tmigr_cpu").is_some() { 3 } else { 2 };
            Ok(Wheels {
                at: known.symbol("timer_bases"),
                count,
                size: size.ok_or(Missing { structure: "timer_base", member: "size" })?,
                lists: known.elements("timer_base", "vectors").unwrap_or(0).min(MAX_LISTS),
                wheel: WheelLayout::ask(known)?,
                timer: TimerLayout::ask(known)?,
                delayed: known.symbol("delayed_work_timer_fn").zip(DelayedLayout::ask(known).ok()),
            })
        };
        let clocks = || {
            let size = known.size_of("hrtimer_clock_base");
            // A node of a tree by time, which 7.x has linked as well.
            let linked = optional(known, "timerqueue_linked_node", &["expires"]);
            let expires = linked.filter(|_| known.offset("hrtimer", "node.expires").is_none());
            Ok(Clocks {
                at: known.symbol("hrtimer_bases"),
                count: known.elements("hrtimer_cpu_base", "clock_base").unwrap_or(0).min(MAX_CLOCKS),
                size: size.ok_or(Missing { structure: "hrtimer_clock_base", member: "size" })?,
                cpu: CpuLayout::ask(known)?,
                clock: ClockLayout::ask(known)?,
                timer: HighLayout::ask(known)?,
                expires: match expires {
                    Some(inner) => required(known, "hrtimer", &["node"])?.saturating_add(inner),
                    None => required(known, "hrtimer", &["node.expires"])?,
                },
            })
        };
        let wanted = Wanted::ask(known);
        Ok(Self {
            wheels: wheels(),
            clocks: clocks(),
            cpus: wanted.cpus,
            jiffies: wanted.machine.jiffies,
            ticks: Ticks::ask(known),
            tick: known.symbol("tick_next_period"),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let kernel = ground.system.kernel;
        let word = |at: Option<VirtAddr>| kernel.read_u64(at?, "a clock").ok();
        let ticks = word(self.jiffies).zip(self.ticks.and_then(|ticks| ticks.hertz(kernel)));
        let now = word(self.tick);
        let online = numbers::online(kernel, &self.cpus);
        let possible = numbers::in_mask(kernel, &self.cpus, self.cpus.possible);
        let all: BTreeSet<u32> = online.into_iter().chain(possible).collect();
        for cpu in all {
            rows.in_time()?;
            match &self.wheels {
                Ok(wheels) => {
                    wheels.walk(ground, rows, (cpu, self.cpus.of(kernel, wheels.at, cpu)), ticks)?;
                }
                Err(missing) => rows.miss("timers of the wheel", missing)?,
            }
            match &self.clocks {
                Ok(clocks) => clocks.walk(ground, rows, (cpu, self.cpus.of(kernel, clocks.at, cpu)), now)?,
                Err(missing) => rows.miss("timers of high resolution", missing)?,
            }
        }
        Ok(())
    }
}

/// Seconds between two times in `per_second`ths, to the millisecond; negative where the first is later.
fn seconds(now: u64, then: u64, per_second: u64) -> Option<f64> {
    let distance = i128::from(then).checked_sub(i128::from(now))?;
    let millis = distance.checked_mul(1000)?.checked_div(i128::from(per_second))?;
    // Beyond what a double holds exactly is damage.
    let millis = i32::try_from(millis).ok()?;
    Some(f64::from(millis) / 1000.0)
}

impl Wheels {
    fn walk(
        &self,
        ground: &Ground<'_>,
        rows: &mut Rows<'_>,
        (cpu, at): (u32, Option<VirtAddr>),
        ticks: Option<(u64, u32)>,
    ) -> Result<(), Stop> {
        let system = ground.system;
        let Some(at) = at else { return rows.miss("timers of the wheel", &"there is no symbol timer_bases") };
        for number in 0..self.count {
            let Some(base) = at.checked_add(number.saturating_mul(self.size)) else { continue };
            // A kernel that does not sleep between ticks has one wheel only.
            let of = system.half(base, self.wheel.cpu, "timer_base.cpu");
            if number > 0 && of.is_ok_and(|of| of != cpu) {
                break;
            }
            let len = to_usize(self.lists.saturating_mul(8));
            let heads = match system.bytes(base, self.wheel.lists, len, "timer_base.vectors") {
                Ok(heads) => heads,
                Err(error) => {
                    rows.miss("timers of the wheel", &base::log::chain(&error))?;
                    break;
                }
            };
            let firsts = heads.chunks_exact(8).map(|head| VirtAddr(Fields(head).u64(0).unwrap_or(0)));
            for first in firsts.filter(|first| first.0 != 0) {
                rows.in_time()?;
                let (nodes, whole) = list::chain(system.kernel, first, 0, MAX);
                for node in nodes {
                    rows.add(&self.row(
                        ground,
                        (cpu, VirtAddr(node.0.wrapping_sub(self.timer.node))),
                        ticks,
                    ))?;
                }
                if !whole {
                    rows.miss(
                        "timers of the wheel",
                        &format!("a list of CPU {cpu} cannot be read to its end"),
                    )?;
                }
            }
        }
        Ok(())
    }

    fn row(&self, ground: &Ground<'_>, (cpu, at): (u32, VirtAddr), ticks: Option<(u64, u32)>) -> Row {
        let system = ground.system;
        let mut row = Row::at(at);
        row.set("linux.timer.kind", "wheel");
        row.set("linux.timer.cpu", cpu);
        match system.word(at, self.timer.function, "timer_list.function") {
            Ok(target) => {
                function(ground, "linux.timer.function", target, &mut row);
                self.work(ground, at, target, &mut row);
            }
            Err(error) => row.error("linux.timer.function", &base::log::chain(&error)),
        }
        let expires = system.word(at, self.timer.expires, "timer_list.expires");
        if let (Ok(expires), Some((now, hertz))) = (&expires, ticks) {
            let left = seconds(now, *expires, hertz.into());
            row.put("linux.timer.expires_in", left.ok_or("no timer is set so far ahead"));
        }
        row.read("linux.timer.expires", expires);
        row
    }

    /// The work that waits for a timer.
    fn work(&self, ground: &Ground<'_>, timer: VirtAddr, target: u64, row: &mut Row) {
        let Some((_, layout)) = self.delayed.as_ref().filter(|(at, _)| at.0 == target) else { return };
        let work = VirtAddr(timer.0.wrapping_sub(layout.timer));
        match ground.system.word(work, layout.function, "delayed_work.work.func") {
            Ok(target) => function(ground, "linux.timer.work", target, row),
            Err(error) => row.error("linux.timer.work", &base::log::chain(&error)),
        }
    }
}

impl Clocks {
    fn walk(
        &self,
        ground: &Ground<'_>,
        rows: &mut Rows<'_>,
        (cpu, at): (u32, Option<VirtAddr>),
        now: Option<u64>,
    ) -> Result<(), Stop> {
        let system = ground.system;
        let Some(at) = at else {
            return rows.miss("timers of high resolution", &"there is no symbol hrtimer_bases");
        };
        for number in 0..self.count {
            let offset = self.cpu.clocks.saturating_add(number.saturating_mul(self.size));
            let Some(clock) = at.checked_add(offset) else { continue };
            let Some(root) = clock.checked_add(self.clock.active) else { continue };
            // How far this clock is from the monotonic one.
            let ahead = system.word(clock, self.clock.offset, "hrtimer_clock_base.offset");
            let now =
                now.zip(ahead.ok()).and_then(|(now, ahead)| now.checked_add_signed(ahead.cast_signed()));
            let (nodes, whole) = tree::all(system.kernel, root, MAX);
            for node in nodes {
                let at = VirtAddr(node.0.wrapping_sub(self.timer.node));
                let mut row = Row::at(at);
                row.set("linux.timer.kind", "high resolution");
                row.set("linux.timer.cpu", cpu);
                let names = CLOCKS.iter().cycle();
                let name = names.zip(0..self.count).find(|(_, at)| *at == number).map(|(name, _)| *name);
                row.set("linux.timer.clock", name.unwrap_or_default());
                match system.word(at, self.timer.function, "hrtimer.function") {
                    Ok(target) => function(ground, "linux.timer.function", target, &mut row),
                    Err(error) => row.error("linux.timer.function", &base::log::chain(&error)),
                }
                let bytes = system.bytes(at, self.expires, 8, "hrtimer.node.expires");
                let expires = bytes.map(|bytes| Fields(&bytes).u64(0).unwrap_or(0));
                if let (Ok(expires), Some(now)) = (&expires, now)
                    && let Some(left) = seconds(now, *expires, 1_000_000_000)
                {
                    row.set("linux.timer.expires_in", left);
                }
                row.read("linux.timer.expires", expires);
                rows.add(&row)?;
            }
            if !whole {
                let why = format!("a tree of CPU {cpu} cannot be read wholly");
                rows.miss("timers of high resolution", &why)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_from_now_on() {
        assert_eq!(seconds(1000, 1250, 250), Some(1.0));
        assert_eq!(seconds(1250, 1000, 250), Some(-1.0));
        assert_eq!(seconds(0, u64::MAX, 1_000_000_000), None);
        assert_eq!(seconds(0, 1, 0), None);
    }
}
