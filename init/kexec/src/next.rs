//! The kernel that comes after the capture, written straight into memory that held the production
//! kernel: it takes nothing of the little memory that the capture kernel has, and gets all the
//! machine's.
//!
//! ```text
//! hole ─ kernel (init_size) │ trampoline with page tables │ boot_params, command line, EFI │ initrd
//! ```
//!
//! From the first write on the production kernel's memory is lost: nothing here is called before
//! all that was to be saved is durable.

use std::io::{self, Read};
use std::ops::Range;

use crate::boot_params::{BootParams, CmdlineTooLong};
use crate::bzimage::{BzImage, BzImageError, ENTRY_64, HEAD_LEN};
use crate::e820::{E820, Kind};
use crate::sys::devmem::DevMem;
use crate::sys::load;
use crate::trampoline::{self, Checked, Jump};
use crate::{Machine, e820, page_up, serial_port};
use base::addr::{to_u64, to_usize};
use base::beat;
use base::facts::MemoryRange;

/// Where the hole begins at least; see `capture`.
const LOWEST: u64 = 16 << 20;
/// The trampoline maps no more.
const FOUR_GIB: u64 = 4 << 30;
/// Bytes that are read, hashed and written at a time, a multiple of a page.
const PIECE: usize = 1 << 20;

/// A file to be started or handed on.
pub struct Source<'a> {
    /// Its bytes.
    pub reader: &'a mut dyn Read,
    /// How many there are.
    pub len: u64,
}

impl core::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Source({} bytes)", self.len)
    }
}

/// Why the next kernel is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum NextError {
    /// It is no kernel.
    #[error("the file of the next kernel cannot be started")]
    Kernel(#[from] BzImageError),
    /// No room.
    #[error("no piece of {0:#x} bytes below 4 GiB that held the production kernel's memory")]
    NoHole(u64),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineTooLong),
    /// A file cannot be read.
    #[error("reading the {what}")]
    Read {
        /// Which.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// Memory cannot be written.
    #[error("writing the {what} to physical memory at {at:#x}")]
    Memory {
        /// What.
        what: &'static str,
        /// Where.
        at: u64,
        /// Cause.
        source: io::Error,
    },
    /// /dev/mem.
    #[error("opening /dev/mem")]
    Open(#[source] io::Error),
    /// Too many ranges.
    #[error(transparent)]
    Checked(#[from] trampoline::TooMany),
    /// The system call.
    #[error("kexec_load")]
    Kexec(#[source] io::Error),
}

/// Where everything goes, physical addresses in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The kernel.
    pub kernel: u64,
    /// The trampoline with its page tables.
    pub trampoline: u64,
    /// boot_params and what they point to.
    pub params: u64,
    /// The initrd.
    pub initrd: u64,
    /// The first address behind it all.
    pub end: u64,
}

/// Loads a kernel into the memory of `map` that is none of `own` (this kernel's), for reboot(2) to
/// start.
pub fn load(
    machine: &Machine,
    map: &[MemoryRange],
    own: &[Range<u64>],
    kernel: &mut Source<'_>,
    initrd: Option<&mut Source<'_>>,
    cmdline: &str,
) -> Result<(), NextError> {
    let mut head = vec![0; HEAD_LEN.min(to_usize(kernel.len))];
    kernel.reader.read_exact(&mut head).map_err(|source| NextError::Read { what: "kernel", source })?;
    let image = BzImage::parse(&head, kernel.len)?;
    let map = e820::whole(map);
    let initrd_len = initrd.as_ref().map_or(0, |initrd| initrd.len);
    let params = |initrd_at: u64| {
        let range = if initrd_len == 0 { 0..0 } else { initrd_at..initrd_at.saturating_add(initrd_len) };
        let (inherited, efi) = (machine.boot_params.as_slice(), machine.efi.as_ref());
        BootParams { inherited, kernel: &image, map: &map, efi, rsdp: machine.rsdp, initrd: range, cmdline }
    };
    let plan = Plan::make(&map, own, &image, params(0).size()?, initrd_len)?;

    let memory = DevMem::open().map_err(NextError::Open)?;
    let mut checked = Checked::default();
    let mut writer = Writer { memory: &memory, checked: &mut checked };
    let skipped = to_usize(image.kernel_at);
    let rest = head.get(skipped..).unwrap_or_default();
    let behind = Read::take(&mut kernel.reader, kernel.len.saturating_sub(to_u64(head.len())));
    writer.copy(
        "kernel",
        plan.kernel,
        &mut rest.chain(behind),
        kernel.len.saturating_sub(image.kernel_at),
    )?;
    if let Some(initrd) = initrd {
        writer.copy("initrd", plan.initrd, initrd.reader, initrd.len)?;
    }
    let params = params(plan.initrd).build(plan.params)?;
    writer.copy("boot parameters", plan.params, &mut params.as_slice(), to_u64(params.len()))?;

    let jump = Jump {
        entry: plan.kernel.saturating_add(ENTRY_64),
        boot_params: plan.params,
        tables: true, // kexec maps this kernel's memory only
        serial: serial_port(cmdline),
    };
    let code = trampoline::build(plan.trampoline, jump, checked)?;
    let segment = load::Segment { bytes: &code, at: plan.trampoline, size: trampoline::LEN_WITH_TABLES };
    load::load(plan.trampoline, &[segment], load::Start::Reboot).map_err(NextError::Kexec)
}

impl Plan {
    /// Finds a hole: memory by the firmware's map, none of this kernel's, in one piece. `params`
    /// and `initrd` are lengths, bytes.
    pub fn make(
        map: &[E820],
        own: &[Range<u64>],
        image: &BzImage,
        params: u64,
        initrd: u64,
    ) -> Result<Self, NextError> {
        let behind_kernel = page_up(image.init_size);
        let need = [behind_kernel, trampoline::LEN_WITH_TABLES, params, page_up(initrd)];
        let need = need.into_iter().fold(0, u64::saturating_add);
        let ram = map.iter().filter(|line| line.kind == Kind::Ram);
        let mut holes: Vec<_> =
            ram.map(|line| line.range.start.max(LOWEST)..line.range.end.min(FOUR_GIB)).collect();
        for taken in own {
            let cut = |hole: Range<u64>| {
                [hole.start..hole.end.min(taken.start), hole.start.max(page_up(taken.end))..hole.end]
            };
            holes = holes.into_iter().flat_map(cut).filter(|hole| !hole.is_empty()).collect();
        }
        let at = holes.iter().find_map(|hole| {
            let start = hole.start.checked_next_multiple_of(image.alignment)?;
            (hole.end.checked_sub(start)? >= need).then_some(start)
        });
        let kernel = at.ok_or(NextError::NoHole(need))?;
        let trampoline = kernel.saturating_add(behind_kernel);
        let params_at = trampoline.saturating_add(trampoline::LEN_WITH_TABLES);
        let end = kernel.saturating_add(need);
        Ok(Self { kernel, trampoline, params: params_at, initrd: params_at.saturating_add(params), end })
    }
}

struct Writer<'a> {
    memory: &'a DevMem,
    checked: &'a mut Checked,
}

impl Writer<'_> {
    /// Copies `len` bytes to `at`, filled up to whole pages.
    fn copy(
        &mut self,
        what: &'static str,
        at: u64,
        reader: &mut dyn Read,
        len: u64,
    ) -> Result<(), NextError> {
        let size = page_up(len);
        self.checked.begin(at, size);
        let mut buffer = vec![0; PIECE];
        let (mut done, mut left) = (0_u64, len);
        while done < size {
            let piece = buffer.len().min(to_usize(size.saturating_sub(done)));
            let buffer = buffer.get_mut(..piece).unwrap_or_default();
            let (data, padding) = buffer.split_at_mut(piece.min(to_usize(left)));
            reader.read_exact(data).map_err(|source| NextError::Read { what, source })?;
            padding.fill(0);
            left = left.saturating_sub(to_u64(data.len()));
            let target = at.saturating_add(done);
            self.checked.update(buffer);
            let written = self.memory.write(target, buffer);
            written.map_err(|source| NextError::Memory { what, at: target, source })?;
            done = done.saturating_add(to_u64(piece));
            beat::alive();
        }
        Ok(())
    }
}

/// This kernel's own memory, from the text of its /proc/iomem; what lies below 1 MiB is nobody's.
#[must_use]
pub fn own_memory(iomem: &str) -> Vec<Range<u64>> {
    let ram = base::facts::parse_iomem(iomem).into_iter().filter(|line| line.kind == "System RAM");
    ram.map(|line| line.start..line.last.saturating_add(1))
        .filter(|range| range.end > e820::ONE_MIB)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bzimage::testing::bzimage;

    fn ram(range: Range<u64>) -> E820 {
        E820 { range, kind: Kind::Ram }
    }

    fn image() -> BzImage {
        BzImage::parse_whole(&bzimage(b"kernel")).unwrap()
    }

    #[test]
    fn the_hole_is_memory_of_the_old_kernel() {
        let map = [ram(0x1000..0x9f000), ram(0x10_0000..0x4000_0000), ram(0x1_0000_0000..0x2_0000_0000)];
        let own = [0x3000_0000..0x3a00_0000];
        let plan = Plan::make(&map, &own, &image(), 0x3000, 0x10_0001).unwrap();
        assert_eq!(
            plan,
            Plan {
                kernel: 0x100_0000,
                trampoline: 0x500_0000,
                params: 0x500_a000,
                initrd: 0x500_d000,
                end: 0x510_e000
            }
        );
        // Too large for what lies below the capture kernel; then above it.
        let map = [ram(0x10_0000..0x8000_0000)];
        let plan = Plan::make(&map, &own, &image(), 0x3000, 0x3000_0000).unwrap();
        assert_eq!(plan.kernel, 0x3a00_0000);
        let error = Plan::make(&map, &own, &image(), 0x3000, 1 << 40).unwrap_err();
        assert!(error.to_string().starts_with("no piece of 0x1000400d000 bytes"), "{error}");
    }

    #[test]
    fn own_memory_is_what_this_kernel_has() {
        let iomem =
            "00001000-0009ffff : System RAM\n30000000-39ffbfff : System RAM\n39ffc000-39ffffff : Reserved\n";
        assert_eq!(own_memory(iomem), [0x3000_0000..0x39ff_c000]);
    }
}
