//! The sections of a loaded module, as `/sys/module/NAME/sections` has them (kernel/module/sysfs.c).

use base::addr::VirtAddr;
use vmcore::kernel::Kernel;

use super::{MAX_TEXT, Module, text};
use crate::btf::{Space, Types};

/// Sections of a module that are believed; those with a section for each function have hundreds.
const MAX_PARTS: u64 = 4096;
/// Pieces of memory that a module has: one, or one of each kind (`MOD_MEM_NUM_TYPES` is 7).
const MAX_PIECES: u32 = 16;

/// A section of a module that is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub address: u64,
    /// Bytes up to the next one, or to the end of the module's memory.
    pub len: u64,
}

/// The sections of a module, by address. What the kernel has thrown away after the start is not among
/// them, nor are per-CPU variables, which lie elsewhere. Empty if they are not known.
#[must_use]
pub fn parts(kernel: &Kernel<'_>, types: &Types, module: &Module) -> Vec<Part> {
    let reader = Reader { kernel, types, at: module.address };
    let memory = reader.memory().unwrap_or_default();
    let mut named = reader.named().unwrap_or_default();
    named.sort_by_key(|(_, address)| *address);
    let mut all = Vec::new();
    for (number, (name, address)) in (1_usize..).zip(&named) {
        let Some((_, end)) = memory.iter().find(|(start, end)| (start..end).contains(&address)) else {
            continue;
        };
        let next = named.iter().skip(number).map(|(_, next)| *next).find(|next| next > address);
        let end = next.map_or(*end, |next| next.min(*end));
        all.push(Part { name: name.clone(), address: *address, len: end.saturating_sub(*address) });
    }
    // An empty section shares its address with the one behind it.
    for index in 1..all.len() {
        if let Some([one, next]) = all.get_mut(index.saturating_sub(1)..=index)
            && one.address == next.address
        {
            one.len = 0;
        }
    }
    all
}

#[cfg(test)]
mod tests;

struct Reader<'a> {
    kernel: &'a Kernel<'a>,
    types: &'a Types,
    /// The `struct module`.
    at: VirtAddr,
}

impl Reader<'_> {
    fn word(&self, base: VirtAddr, offset: u64) -> Option<u64> {
        self.kernel.read_u64(base.checked_add(offset)?, "a module's sections").ok()
    }

    /// Where the module lies, without what was thrown away.
    fn memory(&self) -> Option<Vec<(u64, u64)>> {
        let piece = |base: u64, size: u64| {
            let start = self.word(self.at, base)?;
            let len = self.kernel.read_u32(self.at.checked_add(size)?, "a module's memory").ok()?;
            let end = start.checked_add(len.into())?;
            (len > 0 && u64::from(len) <= MAX_TEXT).then_some((start, end))
        };
        let module = |path| self.types.offset("module", path);
        if let (Some(base), Some(size)) = (module("core_layout.base"), module("core_layout.size")) {
            return Some(piece(base, size).into_iter().collect());
        }
        // An array by kind since 6.4 (ac3b43283923).
        let structure = self.types.named(Space::Struct, "module")?;
        let (first, of) = self.types.member(structure, "mem")?;
        let (element, count) = self.types.get(self.types.strip(of))?.elements()?;
        let stride = self.types.size(element)?;
        let of = |path| self.types.offset("module_memory", path)?.checked_add(first);
        let (base, size) = (of("base")?, of("size")?);
        let at = |number: u32, offset: u64| stride.checked_mul(number.into())?.checked_add(offset);
        let pieces = (0..count.min(MAX_PIECES)).filter_map(|kind| piece(at(kind, base)?, at(kind, size)?));
        Some(pieces.collect())
    }

    /// Names and addresses of all sections.
    fn named(&self) -> Option<Vec<(String, u64)>> {
        let attributes = VirtAddr(self.word(self.at, self.types.offset("module", "sect_attrs")?)?);
        let of = |structure, path| self.types.offset(structure, path);
        let mut all = Vec::new();
        if let Some(count) = of("module_sect_attrs", "nsections") {
            let count = self.kernel.read_u32(attributes.checked_add(count)?, "a module's sections").ok()?;
            let first = attributes.checked_add(of("module_sect_attrs", "attrs")?)?;
            let name = of("module_sect_attr", "battr.attr.name")?;
            let (address, stride) =
                (of("module_sect_attr", "address")?, self.types.size_of("module_sect_attr")?);
            for number in 0..u64::from(count).min(MAX_PARTS) {
                let entry = first.checked_add(number.checked_mul(stride)?)?;
                all.extend(self.section(entry, name, address));
            }
        } else {
            // A list of pointers with a null behind the last one since 6.14 (d8959b947a8d).
            let list = VirtAddr(self.word(attributes, of("module_sect_attrs", "grp.bin_attrs")?)?);
            let (name, address) = (of("bin_attribute", "attr.name")?, of("bin_attribute", "private")?);
            for number in 0..MAX_PARTS {
                match self.word(list, number.checked_mul(8)?)? {
                    0 => break,
                    entry => all.extend(self.section(VirtAddr(entry), name, address)),
                }
            }
        }
        Some(all)
    }

    fn section(&self, entry: VirtAddr, name: u64, address: u64) -> Option<(String, u64)> {
        let name = text(self.kernel, VirtAddr(self.word(entry, name)?));
        let is_plain = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
        let name = String::from_utf8(name).ok().filter(|_| is_plain)?;
        Some((name, self.word(entry, address)?))
    }
}
