//! Numbers of the whole machine.

use base::addr::VirtAddr;
use vmcore::kernel::Kernel;

use crate::findings::{Clock, Numbers};
use crate::wanted::{Cpus, Machine};

/// KiB of a page.
const PAGE_KIB: u64 = 4;
/// `FIXED_1`, include/linux/sched/loadavg.h.
const FIXED_1: f64 = 2048.0;
/// Bytes of a command line (`COMMAND_LINE_SIZE` of x86).
const CMDLINE: usize = 2048;
/// CPUs that are believed (`NR_CPUS` with MAXSMP).
pub(crate) const MAX_CPUS: u32 = 8192;

/// What taints the kernel, by the number of its bit (Documentation/admin-guide/tainted-kernels.rst).
const TAINTS: [(char, &str); 20] = [
    ('P', "proprietary module"),
    ('F', "module loaded by force"),
    ('S', "kernel on a machine out of specification"),
    ('R', "module unloaded by force"),
    ('M', "machine check exception"),
    ('B', "bad page, or unexpected page flags"),
    ('U', "asked for by user space"),
    ('D', "kernel died before: an oops or BUG"),
    ('A', "ACPI table overridden"),
    ('W', "warning"),
    ('C', "staging driver"),
    ('I', "workaround for a bug in the firmware"),
    ('O', "module from out of the tree"),
    ('E', "unsigned module"),
    ('L', "soft lockup"),
    ('K', "live patch"),
    ('X', "auxiliary, by the distribution"),
    ('T', "structure layout randomized"),
    ('N', "in-kernel test"),
    ('J', "mutating debug operation of a firmware"),
];

/// The letters of a mask.
pub(crate) fn letters(mask: u64) -> impl Iterator<Item = (char, &'static str)> {
    TAINTS.into_iter().enumerate().filter(move |(bit, _)| mask >> bit & 1 == 1).map(|(_, taint)| taint)
}

/// Reads a word of 64 bits.
fn word(kernel: &Kernel<'_>, at: Option<VirtAddr>) -> Option<u64> {
    kernel.read_u64(at?, "a number of the machine").ok()
}

/// Reads the numbers.
pub(crate) fn read(kernel: &Kernel<'_>, machine: &Machine, hertz: Option<u32>) -> Numbers {
    let word = |at| word(kernel, at);
    let kib = |pages: u64| pages.saturating_mul(PAGE_KIB);
    // A counter of pages may be some below zero for a moment.
    let counter = |at| word(at).map(|value| kib(value.cast_signed().max(0).cast_unsigned()));
    let memory = [
        ("MemTotal", counter(machine.total_pages)),
        ("MemFree", counter(machine.free_pages)),
        ("SwapTotal", counter(machine.swap_total)),
        ("SwapFree", counter(machine.swap_free)),
    ];
    let counters = machine.counters.iter().map(|(name, at)| (*name, counter(Some(*at))));
    let memory = memory.into_iter().chain(counters).filter_map(|(name, kib)| Some((name.to_owned(), kib?)));
    let hardware = machine.hardware.iter().filter_map(|&(kind, count, time)| {
        let count = kernel.read_u32(count, "hwerr_data").ok().filter(|count| *count > 0)?;
        Some((kind.to_owned(), u64::from(count), word(Some(time))?))
    });
    let mask = word(machine.tainted_mask).unwrap_or(0);
    Numbers {
        uptime: word(machine.jiffies).zip(hertz).and_then(|(jiffies, hertz)| uptime(jiffies, hertz)),
        load: machine.avenrun.and_then(|at| load(kernel, at)),
        cpus: None,
        tasks: None,
        taints: letters(mask).map(|(letter, what)| format!("{letter} ({what})")).collect(),
        memory: memory.collect(),
        hardware_errors: hardware.collect(),
        clock: clock(kernel, machine),
    }
}

/// What NTP says of the clock.
fn clock(kernel: &Kernel<'_>, machine: &Machine) -> Option<Clock> {
    /// include/uapi/linux/timex.h
    const STA_UNSYNC: u32 = 0x40;
    let [status, estimated, largest] = machine.clock;
    let status = kernel.read_u32(status?, "time_status").ok()?;
    Some(Clock {
        synchronised: status & STA_UNSYNC == 0,
        estimated_error_us: word(kernel, estimated)?,
        largest_error_us: word(kernel, largest)?,
    })
}

/// The clock starts five minutes before it overflows 32 bits (`INITIAL_JIFFIES`,
/// include/linux/jiffies.h).
fn uptime(jiffies: u64, hertz: u32) -> Option<u64> {
    let hertz = u64::from(hertz);
    let first = (1_u64 << 32).checked_sub(hertz.checked_mul(300)?)?;
    // Ten years: what lies beyond is damage.
    jiffies.checked_sub(first)?.checked_div(hertz).filter(|seconds| *seconds < 315_360_000)
}

fn load(kernel: &Kernel<'_>, at: VirtAddr) -> Option<[f64; 3]> {
    let mut load = [0.0; 3];
    for (index, value) in (0_u64..).zip(&mut load) {
        let raw = word(kernel, at.checked_add(index.checked_mul(8)?))?;
        let raw = u32::try_from(raw).ok()?;
        *value = (f64::from(raw) / FIXED_1 * 100.0).round() / 100.0;
    }
    Some(load)
}

/// The kernel's command line.
pub(crate) fn cmdline(kernel: &Kernel<'_>, machine: &Machine) -> Option<String> {
    let mut at = VirtAddr(word(kernel, machine.command_line)?);
    let mut text = Vec::new();
    // By small pieces: what lies behind its end may not be there.
    while text.len() < CMDLINE {
        let mut piece = [0; 16];
        kernel.read(at, &mut piece, "saved_command_line").ok()?;
        let end = piece.iter().position(|byte| *byte == 0);
        text.extend_from_slice(piece.get(..end.unwrap_or(piece.len())).unwrap_or_default());
        if end.is_some() {
            break;
        }
        at = at.checked_add(16)?;
    }
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// No CPU has this number or a higher one.
pub(crate) fn cpu_ids(kernel: &Kernel<'_>, cpus: &Cpus) -> u32 {
    let number = cpus.number.and_then(|at| kernel.read_u32(at, "nr_cpu_ids").ok());
    number.unwrap_or(1).clamp(1, MAX_CPUS)
}

/// The numbers of the CPUs that were online.
pub(crate) fn online(kernel: &Kernel<'_>, cpus: &Cpus) -> Vec<u32> {
    in_mask(kernel, cpus, cpus.online)
}

/// The numbers of the CPUs in the mask at `mask`.
pub(crate) fn in_mask(kernel: &Kernel<'_>, cpus: &Cpus, mask: Option<VirtAddr>) -> Vec<u32> {
    let number = cpu_ids(kernel, cpus);
    let mut all = Vec::new();
    for first in (0..number).step_by(64) {
        let at = mask.and_then(|at| at.checked_add(u64::from(first) / 8));
        let Some(bits) = word(kernel, at) else { break };
        let set = (0..64).filter(|bit| bits >> bit & 1 == 1);
        all.extend(set.map(|bit| first.saturating_add(bit)).filter(|cpu| *cpu < number));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_counts_from_five_minutes_before_the_overflow() {
        let start = (1_u64 << 32) - 300 * 250;
        assert_eq!(uptime(start, 250), Some(0));
        assert_eq!(uptime(start + 250 * 3600, 250), Some(3600));
        assert_eq!(uptime(start - 1, 250), None);
        assert_eq!(uptime(u64::MAX, 250), None);
        assert_eq!(uptime(start, 0), None);
    }

    #[test]
    fn taints_have_letters() {
        let text: String = letters(1 << 12 | 1 << 13 | 1 << 7 | 1 << 60).map(|(letter, _)| letter).collect();
        assert_eq!(text, "DOE");
    }
}
