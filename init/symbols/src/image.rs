//! The kernel's image: where its parts lie, and what is in them.

use base::addr::VirtAddr;
use vmcore::kernel::Kernel;

use crate::btf::Types;
use crate::kallsyms::{Symbol, SymbolTable};
use crate::knowledge::{self, Read};
use crate::memory;

/// `__START_KERNEL_map`: the image lies above it; what is below is not moved by KASLR (per-CPU
/// variables of x86 before 6.15 are at 0).
pub(crate) const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// A function is believed to be no longer.
const MAX_FUNCTION: u64 = 1 << 20;
/// A part of the image is believed to have no more bytes.
pub(crate) const MAX_PART: u64 = 256 << 20;

/// The image of a kernel.
pub(crate) struct Image<'a> {
    pub(crate) kernel: &'a Kernel<'a>,
    pub(crate) symbols: &'a SymbolTable,
    /// `KERNELOFFSET`: how far KASLR has moved it.
    offset: u64,
    /// Where code is: of the kernel, and what it throws away after the start.
    text: [Option<(u64, u64)>; 2],
}

impl<'a> Image<'a> {
    pub(crate) fn new(kernel: &'a Kernel<'a>, symbols: &'a SymbolTable) -> Self {
        let offset = kernel.info().get("KERNELOFFSET").and_then(|text| u64::from_str_radix(text, 16).ok());
        let mut image = Self { kernel, symbols, offset: offset.unwrap_or(0), text: [None; 2] };
        image.text = [
            image.between(&["_text", "_stext"], &["_etext"]),
            image.between(&["_sinittext"], &["_einittext"]),
        ];
        image
    }

    /// The link-time address.
    pub(crate) fn link(&self, address: VirtAddr) -> u64 {
        if address.0 >= IMAGE { address.0.wrapping_sub(self.offset) } else { address.0 }
    }

    /// The first of these symbols that is there.
    pub(crate) fn find(&self, names: &[&str]) -> Option<u64> {
        names.iter().find_map(|name| self.symbols.find(name)).map(|address| address.0)
    }

    /// From the first of some symbols that is there to the first of others, if that is a part of an
    /// image.
    pub(crate) fn between(&self, from: &[&str], to: &[&str]) -> Option<(u64, u64)> {
        let (start, end) = (self.find(from)?, self.find(to)?);
        let len = end.checked_sub(start)?;
        (1..=MAX_PART).contains(&len).then_some((start, end))
    }

    /// The symbol of a name that is no other symbol's.
    pub(crate) fn only(&self, name: &str) -> Option<&Symbol> {
        let mut all = self.symbols.all_named(name);
        all.next().filter(|_| all.next().is_none())
    }

    /// The kernel's code, with KASLR.
    pub(crate) fn text(&self) -> Option<(u64, u64)> {
        self.text.first().copied().flatten()
    }

    /// Whether code lies there.
    pub(crate) fn is_text(&self, address: VirtAddr) -> bool {
        self.text.iter().flatten().any(|&(start, end)| (start..end).contains(&address.0))
    }

    /// Bytes of the function at an address: up to the next symbol.
    pub(crate) fn function_len(&self, address: VirtAddr) -> u64 {
        self.symbols.gap(address).unwrap_or(MAX_FUNCTION).min(MAX_FUNCTION)
    }

    /// Memory from `start` to `end`; zeros where nothing can be read.
    pub(crate) fn bytes(&self, start: u64, end: u64) -> Vec<u8> {
        let len = end.saturating_sub(start).min(MAX_PART);
        memory::or_zeros(self.kernel, start, len)
    }

    /// `HZ`: ticks a second.
    pub(crate) fn hertz(&self, types: &Types) -> Option<u32> {
        knowledge::hertz(self.kernel, &Read { symbols: self.symbols, types })
    }
}
