//! ORC: for each address of code, where its caller's stack begins
//! (Documentation/arch/x86/orc-unwinder.rst, arch/x86/include/asm/orc_types.h).
//!
//! The layout of an entry has changed three times. Since 6.4 the kernel carries a hash of it
//! (`.orc_header`), and that decides; a hash that is not known means that nothing is unwound by ORC.

use base::addr::{VirtAddr, to_u64};
use base::fields::Fields;
use vmcore::kernel::Kernel;

use crate::knowledge::Knowledge;

#[cfg(test)]
mod tests;

/// Bytes of an entry, and of the word that says of which address it is.
pub const ENTRY: usize = 6;
pub(crate) const IP: usize = 4;
/// Entries that are believed; a kernel with all options has half a million.
const MAX_ENTRIES: u64 = 1 << 22;

/// Where a value is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "registers of x86_64")]
pub enum Base {
    /// Nothing is known.
    Undefined,
    /// The caller's stack pointer.
    PreviousSp,
    Ax,
    Dx,
    Di,
    Bp,
    Sp,
    R10,
    R13,
    /// The word that BP, with the offset, points to.
    BpIndirect,
    /// The word that SP points to; the offset is added to it.
    SpIndirect,
}

/// What lies at the start of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Nothing is known.
    Undefined,
    /// The stack ends here.
    End,
    /// A return address, below the caller's stack.
    Call,
    /// All registers (`struct pt_regs`).
    Registers,
    /// What the CPU pushes for an interrupt: the end of `struct pt_regs`.
    Interrupt,
}

/// How to get from a function to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The caller's stack pointer: from where, and how many bytes further.
    pub sp: (Base, i16),
    /// Where the caller's BP is saved: undefined if it is unchanged.
    pub bp: (Base, i16),
    /// What is there.
    pub frame: Frame,
}

/// A layout of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Two bits of type; a frame of nothing is one whose SP is undefined. Up to 6.3, without a hash.
    TwoBits,
    /// Three bits of type (6.4).
    ThreeBits,
    /// Other numbers of registers (7.1).
    Renumbered,
}

/// Hashes of the header that describes the layout.
const HASHES: &[([u8; 20], Layout)] = &[
    // 6.4 to 7.0, of Debian's 6.12
    (*b"\xfe\x5d\x32\xbf\x58\x1b\xd6\x3b\x2c\xa9\xa5\xc6\x5b\xa5\xa6\x25\xea\xb3\xfe\x24", Layout::ThreeBits),
    // of Debian's 7.2
    (
        *b"\x13\x7c\x36\xad\x76\x27\xc4\xdd\x55\x93\x21\x76\xbb\x0e\xcd\xbd\x50\x41\xfc\x82",
        Layout::Renumbered,
    ),
];

impl Layout {
    /// The layout that a hash is of.
    #[must_use]
    pub fn of_hash(hash: &[u8]) -> Option<Self> {
        HASHES.iter().find(|(known, _)| known == hash).map(|(_, layout)| *layout)
    }

    fn base(self, number: u16) -> Base {
        use Base::{Ax, Bp, BpIndirect, Di, Dx, PreviousSp, R10, R13, Sp, SpIndirect};
        let bases: &[Base] = match self {
            Self::TwoBits | Self::ThreeBits => {
                &[PreviousSp, Dx, Di, Bp, Sp, R10, R13, BpIndirect, SpIndirect]
            }
            Self::Renumbered => &[Ax, Dx, Sp, Bp, Di, R10, R13, PreviousSp, SpIndirect, BpIndirect],
        };
        let index = usize::from(number).checked_sub(1);
        index.and_then(|index| bases.get(index)).copied().unwrap_or(Base::Undefined)
    }

    fn frame(self, flags: u16, sp: Base) -> Frame {
        let kind = match self {
            Self::TwoBits if sp == Base::Undefined => return Frame::Undefined,
            Self::TwoBits => (flags >> 8 & 3).saturating_add(2),
            Self::ThreeBits | Self::Renumbered => flags >> 8 & 7,
        };
        match kind {
            1 => Frame::End,
            2 => Frame::Call,
            3 => Frame::Registers,
            4 => Frame::Interrupt,
            _ => Frame::Undefined,
        }
    }

    /// An entry, of 6 bytes.
    #[must_use]
    pub fn decode(self, bytes: &[u8]) -> Option<Entry> {
        let word = |at| Fields(bytes).u16(at);
        let flags = word(4)?;
        let sp = (self.base(flags & 15), word(0)?.cast_signed());
        let bp = (self.base(flags >> 4 & 15), word(2)?.cast_signed());
        Some(Entry { sp, bp, frame: self.frame(flags, sp.0) })
    }
}

/// Where the entries of the kernel lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Distances from where they lie to the code: 4 bytes each, ascending addresses.
    pub ip: (VirtAddr, VirtAddr),
    /// The entries, 6 bytes each.
    pub entries: (VirtAddr, VirtAddr),
    /// The hash of their layout, if the kernel carries it: its first and its last byte plus one.
    pub header: Option<(VirtAddr, VirtAddr)>,
    /// Their layout; none if the hash is not known.
    pub layout: Option<Layout>,
}

impl Tables {
    /// Finds the tables of the kernel itself; none if it has no ORC (`CONFIG_UNWINDER_ORC` off).
    #[must_use]
    pub fn find(kernel: &Kernel<'_>, known: &dyn Knowledge) -> Option<Self> {
        let part = |start: &str, stop: &str| {
            let (start, stop) = (known.symbol(start)?, known.symbol(stop)?);
            stop.0.checked_sub(start.0).filter(|len| *len > 0)?;
            Some((start, stop))
        };
        let ip = part("__start_orc_unwind_ip", "__stop_orc_unwind_ip")?;
        let entries = part("__start_orc_unwind", "__stop_orc_unwind")?;
        let count = ip.1.0.checked_sub(ip.0.0)? / 4;
        let bytes = count.checked_mul(to_u64(ENTRY))?;
        // The end of a section may be aligned.
        if count > MAX_ENTRIES || entries.1.0.checked_sub(entries.0.0)?.abs_diff(bytes) >= 64 {
            return None;
        }
        let header = known.symbol("orc_header").or_else(|| known.symbol("__start_orc_header"));
        let header = header.and_then(|start| Some((start, start.checked_add(20)?)));
        let layout = match header {
            Some((start, _)) => {
                let mut hash = [0; 20];
                kernel.read(start, &mut hash, "the layout of ORC").ok()?;
                Layout::of_hash(&hash)
            }
            None => Some(Layout::TwoBits),
        };
        Some(Self { ip, entries, header, layout })
    }

    /// The code that each entry is of; `ip` are the bytes at [`Tables::ip`].
    pub(crate) fn code<'a>(&self, ip: &'a [u8]) -> impl Iterator<Item = u64> + use<'a> {
        let start = self.ip.0.0;
        let places = (0_u64..).map(move |index| start.wrapping_add(index.wrapping_mul(to_u64(IP))));
        let words = ip.chunks_exact(IP).map(|word| Fields(word).i32(0).unwrap_or(0));
        places.zip(words).map(|(place, word)| place.wrapping_add_signed(word.into()))
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.ip.1.0.saturating_sub(self.ip.0.0) / 4
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
