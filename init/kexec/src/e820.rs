//! The memory map that a kernel is started with (arch/x86/include/uapi/asm/e820.h).

use std::ops::Range;

use crate::{page_down, page_up};
use base::facts::MemoryRange;

/// Where memory begins that no firmware, option ROM or real-mode code uses.
pub const ONE_MIB: u64 = 1 << 20;
/// The page at 0 is left alone: the BIOS data area.
const FIRST_PAGE: u64 = 0x1000;

/// What a range of physical addresses is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Memory that the kernel may use.
    Ram,
    /// Not to be touched.
    Reserved,
    /// Tables of ACPI, free once they are read.
    Acpi,
    /// Memory of ACPI over sleep.
    Nvs,
    /// Broken memory.
    Unusable,
    /// Persistent memory.
    Pmem,
}

/// A line of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct E820 {
    /// Physical addresses, bytes.
    pub range: Range<u64>,
    /// What they are.
    pub kind: Kind,
}

impl Kind {
    /// Its number (`enum e820_type`).
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
            Self::Acpi => 3,
            Self::Nvs => 4,
            Self::Unusable => 5,
            Self::Pmem => 7,
        }
    }

    /// By the name that /proc/iomem and /sys/firmware/memmap give it (arch/x86/kernel/e820.c,
    /// `e820_type_to_string`). Soft-reserved memory and what a newer kernel invents are not for us
    /// to use.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "System RAM" => Some(Self::Ram),
            "ACPI Tables" => Some(Self::Acpi),
            "ACPI Non-volatile Storage" => Some(Self::Nvs),
            "Unusable memory" => Some(Self::Unusable),
            "Persistent Memory" | "Persistent Memory (legacy)" => Some(Self::Pmem),
            "Reserved" | "reserved" | "Unknown E820 type" | "Soft Reserved" => Some(Self::Reserved),
            _ => None,
        }
    }
}

/// The whole map, as /sys/firmware/memmap has it.
#[must_use]
pub fn whole(map: &[MemoryRange]) -> Vec<E820> {
    let lines = map.iter().filter_map(|line| {
        let kind = Kind::from_name(&line.kind).unwrap_or(Kind::Reserved);
        Some(E820 { range: line.start..line.last.checked_add(1)?, kind })
    });
    joined(lines.filter(|line| !line.range.is_empty()).collect())
}

/// What the capture kernel may know of: low memory for its real-mode code (which a kernel with a
/// reservation does not use itself: "x86/kdump: Always reserve the low 1M when the crashkernel
/// option is specified", v5.5), what the firmware keeps, and `ram`. `iomem` is the top level of
/// /proc/iomem.
#[must_use]
pub fn restricted(iomem: &[MemoryRange], ram: &[Range<u64>], reserved: &[Range<u64>]) -> Vec<E820> {
    let mut map = Vec::new();
    for line in iomem {
        let Some(kind) = Kind::from_name(&line.kind) else { continue };
        let range = line.start..line.last.saturating_add(1);
        let range = match kind {
            Kind::Ram => page_up(range.start).max(FIRST_PAGE)..page_down(range.end).min(ONE_MIB),
            _ => range,
        };
        map.push(E820 { range, kind });
    }
    map.extend(ram.iter().map(|range| E820 { range: range.clone(), kind: Kind::Ram }));
    map.extend(reserved.iter().map(|range| E820 { range: range.clone(), kind: Kind::Reserved }));
    map.retain(|line| !line.range.is_empty());
    joined(map)
}

/// In order, and neighbours of a kind as one.
fn joined(mut map: Vec<E820>) -> Vec<E820> {
    map.sort_by_key(|line| (line.range.start, line.range.end));
    let mut out: Vec<E820> = Vec::new();
    for line in map {
        match out.last_mut() {
            Some(last) if last.kind == line.kind && last.range.end >= line.range.start => {
                last.range.end = last.range.end.max(line.range.end);
            }
            _ => out.push(line),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::facts::parse_iomem;

    const IOMEM: &str = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n0009fc00-000fffff : \
                         Reserved\n\
        00100000-3ffdffff : System RAM\n  34000000-3dffffff : Crash kernel\n3ffe0000-3fffffff : Reserved\n\
        b0000000-bfffffff : PCI MMCONFIG 0000 [bus 00-ff]\nfeb00000-feb00fff : ACPI \
        Tables\n100000000-13fffffff : System RAM\n";

    fn shown(map: &[E820]) -> Vec<String> {
        map.iter().map(|e| format!("{:x}-{:x} {}", e.range.start, e.range.end, e.kind.number())).collect()
    }

    #[test]
    fn the_capture_kernel_sees_its_region_and_the_firmware() {
        let region = [0x3400_0000..0x3dff_e000];
        let map = restricted(&parse_iomem(IOMEM), &region, &[0x3dff_e000..0x3e00_0000]);
        let expected = [
            "0-1000 2",
            "1000-9f000 1",
            "9fc00-100000 2",
            "34000000-3dffe000 1",
            "3dffe000-3e000000 2",
            "3ffe0000-40000000 2",
            "feb00000-feb01000 3",
        ];
        assert_eq!(shown(&map), expected);
    }

    #[test]
    fn the_whole_map_is_joined_and_keeps_what_it_does_not_know_reserved() {
        let line = |start, last, kind: &str| MemoryRange { start, last, kind: kind.into() };
        let map = [
            line(0x1000, 0x1fff, "System RAM"),
            line(0, 0xfff, "System RAM"),
            line(0x2000, 0x2fff, "Something new"),
            line(0x5000, 0x4fff, "System RAM"),
            line(0, u64::MAX, "Reserved"),
        ];
        assert_eq!(shown(&whole(&map)), ["0-2000 1", "2000-3000 2"]);
    }
}
