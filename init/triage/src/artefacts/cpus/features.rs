//! What a processor is and what it can do, as /proc/cpuinfo shows it.

use base::addr::VirtAddr;
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;

use super::super::{Ground, Row};
use crate::mounts;
use crate::wanted::Cpus;

/// Words of features that are believed, and bits of one.
const MAX_WORDS: u64 = 64;
const BITS: u64 = 32;
/// Bytes of `x86_model_id` and of `x86_vendor_id`.
const MODEL: usize = 64;
const VENDOR: usize = 16;

layouts! {
    ProcessorLayout of "cpuinfo_x86" {
        family: "x86",
        model: "x86_model",
        stepping: "x86_stepping",
        vendor: "x86_vendor_id",
        name: "x86_model_id",
        features: "x86_capability",
        microcode: "microcode",
    } [
        package: "topo.pkg_id" | "phys_proc_id",
        core: "topo.core_id" | "cpu_core_id",
        apic: "topo.apicid" | "apicid",
    ]
}

pub(super) struct Features {
    layout: ProcessorLayout,
    /// `cpu_info`: each processor has its own.
    at: Option<VirtAddr>,
    /// Names of features, and of bugs, by the numbers of their bits.
    names: Option<VirtAddr>,
    bugs: Option<VirtAddr>,
    /// Words of features; those of bugs are behind them.
    words: u64,
    all: u64,
}

impl Features {
    pub(super) fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let all = known.elements("cpuinfo_x86", "x86_capability").unwrap_or(0).min(MAX_WORDS);
        Ok(Self {
            layout: ProcessorLayout::ask(known)?,
            at: known.symbol("cpu_info"),
            names: known.symbol("x86_cap_flags"),
            bugs: known.symbol("x86_bug_flags"),
            words: known.value("cpuid_leafs", "NR_CPUID_WORDS").unwrap_or(0).min(all),
            all,
        })
    }

    pub(super) fn of(&self, ground: &Ground<'_>, cpus: &Cpus, cpu: u32, row: &mut Row) {
        let (system, layout) = (ground.system, &self.layout);
        let Some(at) = cpus.of(system.kernel, self.at, cpu) else {
            return row.error("linux.cpu.model", &"the kernel has no symbol cpu_info");
        };
        let text = |offset, len, what| {
            let bytes = system.bytes(at, offset, len, what);
            bytes.map(|bytes| Fields(&bytes).text(0, len).unwrap_or_default().trim().to_owned())
        };
        row.read("linux.cpu.vendor", text(layout.vendor, VENDOR, "cpuinfo_x86.x86_vendor_id"));
        row.read("linux.cpu.model", text(layout.name, MODEL, "cpuinfo_x86.x86_model_id"));
        let microcode = system.half(at, layout.microcode, "cpuinfo_x86.microcode");
        row.read("linux.cpu.microcode", microcode.map(|revision| format!("{revision:#x}")));
        for (key, offset) in [
            ("linux.cpu.family", layout.family),
            ("linux.cpu.model_number", layout.model),
            ("linux.cpu.stepping", layout.stepping),
        ] {
            row.read(key, system.byte(at, offset, "a member of cpuinfo_x86"));
        }
        // Numbers of 16 bits until 6.7, of 32 since.
        for (key, offset) in [
            ("linux.cpu.package", layout.package),
            ("linux.cpu.core", layout.core),
            ("linux.cpu.apic", layout.apic),
        ] {
            let Some(offset) = offset else { continue };
            row.read(key, system.short(at, offset, "a member of cpuinfo_x86"));
        }
        self.flags(ground, at, row);
    }

    fn flags(&self, ground: &Ground<'_>, at: VirtAddr, row: &mut Row) {
        let system = ground.system;
        let (mut features, mut bugs, mut unnamed) = (Vec::new(), Vec::new(), 0_u64);
        for word in 0..self.all {
            let offset = self.layout.features.saturating_add(word.saturating_mul(4));
            let bits = match system.half(at, offset, "cpuinfo_x86.x86_capability") {
                Ok(bits) => bits,
                Err(error) => {
                    row.error("linux.cpu.flags", &base::log::chain(&error));
                    continue;
                }
            };
            let (table, first, list) = match word.checked_sub(self.words) {
                None => (self.names, word, &mut features),
                Some(word) => (self.bugs, word, &mut bugs),
            };
            for bit in (0..BITS).filter(|bit| bits >> bit & 1 == 1) {
                let number = first.saturating_mul(BITS).saturating_add(bit);
                let place = table.and_then(|table| table.checked_add(number.saturating_mul(8)));
                match place.map(|place| mounts::text(system, place, 0)) {
                    Some(Ok(name)) => list.push(name),
                    // Most bits that have no name are of the kernel itself.
                    _ => unnamed = unnamed.saturating_add(1),
                }
            }
        }
        row.set("linux.cpu.flags", features);
        row.set("linux.cpu.bugs", bugs);
        row.set("linux.cpu.flags_without_name", unnamed);
    }
}
