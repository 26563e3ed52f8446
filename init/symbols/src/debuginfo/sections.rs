//! The sections of the kernel's image, as readers want them.
//!
//! Each rule was found by a reader that failed without it:
//! - `.text` and `.data` are there and have room in the file, which may be a hole; so has
//!   `.init.text`, by which drgn knows a `vmlinux`.
//! - Per-CPU variables of x86 before 6.15 are at address 0, in a section with room in the file, whose
//!   segment is neither the first nor the last: else drgn moves them by KASLR.
//! - Each symbol lies in a section, up to the last one: crash moves no other symbols.
//! - `.rodata` has its bytes up to `linux_banner`, which crash reads.
//! - The build id is in `.notes`.

use std::borrow::Cow;

use base::addr::{VirtAddr, to_u64};

use super::checks::Orc;
use crate::image::{IMAGE, Image};

/// The banner and some bytes behind it.
const BANNER: u64 = 4096;
/// Bytes of a section that are copied at most: kernels have 10 MiB of read-only data.
const MAX_COPY: u64 = 64 << 20;

/// What a section has in the file.
#[derive(Debug)]
pub(super) enum Content {
    /// These bytes; behind them, up to the section's length, room that nothing is written to.
    Bytes(Vec<u8>),
    /// Room that nothing is written to.
    Hole,
    /// No room.
    Nothing,
}

/// A section.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) name: Cow<'static, str>,
    /// `SHT_*`
    pub(super) kind: u32,
    /// `SHF_*`
    pub(super) flags: u64,
    /// Link-time address.
    pub(super) address: u64,
    pub(super) len: u64,
    pub(super) content: Content,
    pub(super) align: u64,
    /// What `sh_link`, `sh_info` and `sh_entsize` hold.
    pub(super) more: (u32, u32, u64),
}

/// `SHT_*`
pub(super) const BITS: u32 = 1;
pub(super) const SYMBOLS: u32 = 2;
pub(super) const STRINGS: u32 = 3;
pub(super) const RELOCATIONS: u32 = 4;
pub(super) const NOTE: u32 = 7;
pub(super) const NO_BITS: u32 = 8;
/// `SHF_WRITE`, `SHF_ALLOC`, `SHF_EXECINSTR`
pub(super) const WRITE: u64 = 1;
pub(super) const ALLOC: u64 = 2;
pub(super) const CODE: u64 = 4;

impl Section {
    /// A section that is not in memory.
    pub(super) fn of_file(name: impl Into<Cow<'static, str>>, kind: u32, bytes: Vec<u8>, align: u64) -> Self {
        let len = to_u64(bytes.len());
        Self {
            name: name.into(),
            kind,
            flags: 0,
            address: 0,
            len,
            content: Content::Bytes(bytes),
            align,
            more: (0, 0, 0),
        }
    }

    pub(super) fn is_in_memory(&self) -> bool {
        self.flags & ALLOC != 0
    }

    /// Whether an address lies in it.
    fn holds(&self, address: u64) -> bool {
        self.is_in_memory() && address >= self.address && address.wrapping_sub(self.address) < self.len
    }
}

/// The number of the section that a symbol at a link-time address belongs to: 1 is the first. What
/// marks an end belongs to the section below it.
pub(super) fn number(sections: &[Section], address: u64) -> Option<(usize, &Section)> {
    let numbered = || (1..).zip(sections);
    numbered().find(|(_, section)| section.holds(address)).or_else(|| {
        let below = |section: &Section| {
            section.is_in_memory()
                && section.address <= address
                && (section.address >= IMAGE) == (address >= IMAGE)
        };
        numbered().filter(|(_, section)| below(section)).max_by_key(|(_, section)| section.address)
    })
}

/// Collects sections.
struct Sections<'a> {
    image: &'a Image<'a>,
    all: Vec<Section>,
}

impl Sections<'_> {
    /// Adds the memory from `start` to `end`, addresses with KASLR, unless it is empty.
    fn add(
        &mut self,
        name: &'static str,
        kind: u32,
        flags: u64,
        range: Option<(u64, u64)>,
        content: Content,
    ) {
        let Some((start, end)) = range.filter(|(start, end)| start < end) else { return };
        let address = self.image.link(VirtAddr(start));
        let align = match kind {
            NOTE => 4,
            BITS if name.starts_with(".orc") => 1,
            _ if flags & CODE != 0 || name.starts_with('.') && start % 4096 == 0 => 4096,
            _ => 16,
        };
        let len = end.saturating_sub(start);
        self.all.push(Section {
            name: name.into(),
            kind,
            flags,
            address,
            len,
            content,
            align,
            more: (0, 0, 0),
        });
    }

    /// Adds a copy of memory.
    fn copy(&mut self, name: &'static str, kind: u32, flags: u64, range: Option<(u64, u64)>) {
        let range = range.filter(|(start, end)| end.saturating_sub(*start) <= MAX_COPY);
        let content =
            range.map_or(Content::Nothing, |(start, end)| Content::Bytes(self.image.bytes(start, end)));
        self.add(name, kind, flags, range, content);
    }
}

/// The sections of the image, in the order of their addresses.
pub(super) fn of_image(image: &Image<'_>, orc: Option<Orc>) -> Vec<Section> {
    let mut sections = Sections { image, all: Vec::new() };
    sections.add(".text", BITS, ALLOC | CODE, image.text(), Content::Hole);
    let (rodata, content) = rodata(image);
    sections.add(".rodata", BITS, WRITE | ALLOC, rodata, content);
    sections.copy(".notes", NOTE, ALLOC, image.between(&["__start_notes"], &["__stop_notes"]));
    let mut data = image.between(&["_sdata"], &["_edata"]);
    for (name, (start, end), bytes) in orc.into_iter().flat_map(|orc| of_orc(image, orc)) {
        // A section ends where the next begins.
        if let Some((first, last)) = data.filter(|(first, last)| (*first..*last).contains(&start.0)) {
            data = Some((first, last.min(start.0)));
        }
        sections.add(name, BITS, ALLOC, Some((start.0, end.0)), Content::Bytes(bytes));
    }
    sections.add(".data", BITS, WRITE | ALLOC, data, Content::Hole);
    let per_cpu = image.between(&["__per_cpu_start"], &["__per_cpu_end"]);
    sections.add(".data..percpu", BITS, WRITE | ALLOC, per_cpu, Content::Hole);
    let init_text = image.between(&["_sinittext"], &["_einittext"]);
    sections.add(".init.text", BITS, ALLOC | CODE, init_text, Content::Hole);
    let behind = init_text.map(|(_, end)| end);
    let init = image.between(&["__init_begin"], &["__init_end"]);
    let init_data = init.map(|(start, end)| {
        let start = behind.map_or(start, |behind| start.max(behind));
        // Since 6.15 the first copy of per-CPU variables is among it. crash knows per-CPU variables only in a
        // section that has room in the file.
        let inside = per_cpu.filter(|(of_cpus, _)| (start..end).contains(of_cpus));
        (start, inside.map_or(end, |(of_cpus, _)| of_cpus))
    });
    let rest = [
        (".init.data", init_data),
        (".bss", image.between(&["__bss_start"], &["__bss_stop"])),
        (".brk", image.between(&["__brk_base"], &["__brk_limit"])),
        (".init.scratch", image.between(&["__init_scratch_begin"], &["__init_scratch_end"])),
    ];
    for (name, range) in rest {
        sections.add(name, NO_BITS, WRITE | ALLOC, range, Content::Nothing);
    }
    let mut all = sections.all;
    tail(image, &mut all);
    // What lies below the image comes behind the data.
    let behind_data = data.map_or(u64::MAX, |(start, _)| image.link(VirtAddr(start)).saturating_add(1));
    all.sort_by_key(|section| if section.address >= IMAGE { section.address } else { behind_data });
    all
}

/// The tables of ORC: names, addresses, bytes.
fn of_orc(image: &Image<'_>, orc: Orc) -> Vec<(&'static str, (VirtAddr, VirtAddr), Vec<u8>)> {
    let Orc { tables, ip, entries } = orc;
    let header = tables.header.map(|(start, end)| (".orc_header", (start, end), image.bytes(start.0, end.0)));
    let rest = [(".orc_unwind_ip", tables.ip, ip), (".orc_unwind", tables.entries, entries)];
    header.into_iter().chain(rest).collect()
}

/// Read-only data up to what has a section of its own, and its bytes up to the banner.
fn rodata(image: &Image<'_>) -> (Option<(u64, u64)>, Content) {
    let range = image.between(&["__start_rodata"], &["__end_rodata", "__end_rodata_aligned"]);
    let Some((start, end)) = range else { return (None, Content::Nothing) };
    let others = ["__start_pci_fixups_early", "__start___ksymtab", "__start_notes", "__start_BTF"];
    let inside = others
        .iter()
        .filter_map(|name| image.find(&[name]))
        .filter(|at| (start..end).contains(at) && *at > start);
    let end = inside.min().unwrap_or(end);
    let banner = image.find(&["linux_banner"]).filter(|banner| (start..end).contains(banner));
    let wanted = banner.map_or(0, |banner| banner.saturating_add(BANNER).min(end).saturating_sub(start));
    let wanted = if wanted > MAX_COPY { 0 } else { wanted };
    let bytes = image.bytes(start, start.saturating_add(wanted));
    (Some((start, end)), Content::Bytes(bytes))
}

/// A section up to the last symbol of the image, if the last section ends below it.
fn tail(image: &Image<'_>, sections: &mut Vec<Section>) {
    let last = image.symbols.all().last().map_or(0, |symbol| image.link(symbol.address));
    let end = sections.iter().map(|section| section.address.saturating_add(section.len)).max().unwrap_or(0);
    if last >= end && last >= IMAGE {
        sections.push(Section {
            name: ".tail".into(),
            kind: NO_BITS,
            flags: WRITE | ALLOC,
            address: end,
            len: last.saturating_sub(end).saturating_add(1),
            content: Content::Nothing,
            align: 1,
            more: (0, 0, 0),
        });
    }
}
