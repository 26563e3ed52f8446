//! The capture image in its reservation. Both triggers enter it at the same place: a panic, and a
//! planned switch, which loads nothing but the handover page.
//!
//! ```text
//! region ─ kernel (init_size) │ trampoline │ boot_params, command line, EFI │ … │ initrd │ core header │ handover page
//! ```
//!
//! The capture kernel is told of the region up to the core header as memory, and of the rest as
//! reserved. Other reservations are memory to it as well, and so is what users have till the panic
//! (`crashkernel=N,cma`).

use std::ops::Range;

use crate::core_header::{self, TooMany};
use crate::production::Production;
use base::addr::to_u64;
use kexec::boot_params::{BootParams, CmdlineTooLong};
use kexec::bzimage::{BzImage, ENTRY_64};
use kexec::trampoline::{self, Checked, Jump};
use kexec::{Machine, PAGE, Segment, e820, page_down, page_up};

/// Where a kernel lies at least (CONFIG_PHYSICAL_START): one that is loaded lower moves itself up
/// when it starts.
const LOWEST: u64 = 16 << 20;
const FOUR_GIB: u64 = 4 << 30;

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The kernel's file.
    pub file: &'a [u8],
    /// What its header says.
    pub kernel: &'a BzImage,
    /// The initrd.
    pub initrd: &'a [u8],
    /// The command line, without `elfcorehdr=`.
    pub cmdline: &'a str,
    /// I/O port of the serial console, 0 without: for the trampoline's complaint.
    pub serial: u16,
}

/// An image as it is to lie in memory.
#[derive(Clone, Debug)]
pub struct Placed<'a> {
    /// Where the processor enters.
    pub entry: u64,
    /// What goes where.
    pub segments: Vec<Segment<'a>>,
    /// The handover page; its segment has no bytes.
    pub handover: u64,
    /// Whether the kernel keeps the core header up to date itself.
    pub updates_header: bool,
}

/// Why an image cannot be placed.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Nothing is reserved.
    #[error("no memory is reserved for a crash kernel")]
    NoRegion,
    /// It is larger than the reservation.
    #[error("kernel and image take {need:#x} bytes, the reservation has {have:#x}")]
    TooSmall {
        /// Bytes of the reservation.
        have: u64,
        /// Bytes of it that are needed.
        need: u64,
    },
    /// The kernel cannot be started up there.
    #[error("the reservation at {0:#x} is above 4 GiB, where this kernel cannot be started")]
    Above4G(u64),
    /// The core header.
    #[error(transparent)]
    CoreHeader(#[from] TooMany),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineTooLong),
    /// Too many segments.
    #[error(transparent)]
    Checked(#[from] trampoline::TooMany),
}

/// The handover page of a reservation.
#[must_use]
pub fn handover(production: &Production) -> Option<u64> {
    let region = production.regions.first()?;
    page_down(region.end).checked_sub(PAGE)
}

/// Places an image. `machine` is the running kernel's, and so is `production`.
pub fn place<'a>(
    image: Image<'a>,
    machine: &Machine,
    production: &Production,
) -> Result<Placed<'a>, PlaceError> {
    let [region, others @ ..] = production.regions.as_slice() else { return Err(PlaceError::NoRegion) };
    let handover = handover(production).ok_or(PlaceError::NoRegion)?;
    let header = core_header::build(&production.core)?;
    let updates_header = production.header_size >= to_u64(header.len());
    let header_size = page_up(to_u64(header.len()).max(production.header_size));
    let params = |map: &[e820::E820], initrd: Range<u64>, cmdline: &str, at: u64| {
        let efi = machine.efi.as_ref();
        let (inherited, kernel, rsdp) = (machine.boot_params.as_slice(), image.kernel, machine.rsdp);
        BootParams { inherited, kernel, map, efi, rsdp, initrd, cmdline }.build(at)
    };

    // From the top down; then from the bottom up, and there must be room between.
    let have = region.end.saturating_sub(region.start);
    let below = |end: u64, size: u64| end.checked_sub(size).map(page_down).unwrap_or_default();
    let header_at = below(handover, header_size);
    let initrd_at = below(header_at, to_u64(image.initrd.len()));
    let initrd = initrd_at..initrd_at.saturating_add(to_u64(image.initrd.len()));
    let cmdline = format!("{} elfcorehdr={header_at:#x}", image.cmdline);
    let mut ram = vec![region.start..header_at];
    ram.extend(others.iter().chain(&production.cma).cloned());
    let map = e820::restricted(&production.iomem, &ram, &[header_at..page_up(region.end)]);
    let kernel_at =
        region.start.max(LOWEST).checked_next_multiple_of(image.kernel.alignment).unwrap_or(u64::MAX);
    let trampoline_at = page_up(kernel_at.saturating_add(image.kernel.init_size));
    let params_at = trampoline_at.saturating_add(trampoline::LEN);
    let params = params(&map, initrd, &cmdline, params_at)?;
    let params_end = page_up(params_at.saturating_add(to_u64(params.len())));
    if params_end > initrd_at || initrd_at < region.start {
        let top = region.end.saturating_sub(initrd_at.min(region.end));
        let need = params_end.saturating_sub(region.start).saturating_add(top);
        return Err(PlaceError::TooSmall { have, need });
    }
    if region.end > FOUR_GIB && !image.kernel.above_4g {
        return Err(PlaceError::Above4G(region.start));
    }

    let kernel = Segment::new("kernel", kernel_at, image.kernel.kernel(image.file));
    let params = Segment::new("boot parameters", params_at, params);
    let initrd = Segment::new("image", initrd_at, image.initrd);
    let header = Segment { size: header_size, ..Segment::new("core header", header_at, header) };
    let mut checked = Checked::default();
    for segment in [&kernel, &params, &initrd] {
        checked.add(segment);
    }
    if !updates_header {
        checked.add(&header);
    }
    let jump = Jump {
        entry: kernel_at.saturating_add(ENTRY_64),
        boot_params: params_at,
        tables: false, // kexec maps all memory of the production kernel, this region included
        serial: image.serial,
    };
    let trampoline =
        Segment::new("trampoline", trampoline_at, trampoline::build(trampoline_at, jump, checked)?);
    let handover_page = Segment { size: PAGE, ..Segment::new("handover page", handover, Vec::new()) };
    Ok(Placed {
        entry: trampoline_at,
        segments: vec![kernel, trampoline, params, initrd, header, handover_page],
        handover,
        updates_header,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::facts::parse_iomem;
    use base::fields::Fields;
    use kexec::bzimage::testing::bzimage;

    fn production(region: Range<u64>) -> Production {
        Production {
            iomem: parse_iomem("00001000-0009fbff : System RAM\n00100000-3ffdffff : System RAM\n"),
            regions: vec![region],
            cma: Vec::new(),
            core: core_header::Layout { vmcoreinfo: 0x1000..0x2000, ..Default::default() },
            header_size: 0,
        }
    }

    fn placed(production: &Production, check: impl FnOnce(&Placed<'_>)) {
        let file = bzimage(&[7; 5000]);
        let kernel = BzImage::parse_whole(&file).unwrap();
        let image = Image { file: &file, kernel: &kernel, initrd: &[1; 10_000], cmdline: "a", serial: 0 };
        check(&place(image, &Machine::default(), production).unwrap());
    }

    #[test]
    fn segments_lie_in_the_region_in_order_and_do_not_touch() {
        let region = 0x3000_0000..0x3a00_0000;
        placed(&production(region.clone()), |placed| {
            let mut end = region.start;
            for segment in &placed.segments {
                assert!(
                    segment.at >= end && segment.at % PAGE == 0 && segment.size % PAGE == 0,
                    "{segment:?}"
                );
                assert!(to_u64(segment.bytes.len()) <= segment.size, "{segment:?}");
                end = segment.end();
            }
            assert_eq!(end, region.end);
            assert_eq!((placed.handover, placed.updates_header), (0x39ff_f000, false));
            let by_name = |name| placed.segments.iter().find(|segment| segment.name == name).unwrap();
            let (kernel, tramp) = (by_name("kernel"), by_name("trampoline"));
            assert_eq!((kernel.at % 0x20_0000, placed.entry), (0, tramp.at));
            assert!(tramp.at >= kernel.at + 0x0400_0000, "the kernel has init_size to itself");
            let f = Fields(&tramp.bytes);
            assert_eq!(f.u64(0x1000), Some(kernel.at + 0x200));
            assert_eq!(f.u64(0x1088), Some(4), "the core header is checked, too");
            let params = by_name("boot parameters");
            let text = String::from_utf8_lossy(&params.bytes[0x1000..]).into_owned();
            let header = by_name("core header").at;
            assert!(text.starts_with(&format!("a elfcorehdr={header:#x}\0")), "{text:?}");
            let map = Fields(&params.bytes);
            assert_eq!(
                (map.u64(0x2d0 + 20), map.u64(0x2d0 + 28)),
                (Some(region.start), Some(header - region.start))
            );
        });
    }

    #[test]
    fn memory_of_users_is_memory_of_the_capture_kernel() {
        let cma = 0x1_0000_0000..0x1_0800_0000;
        let production = Production { cma: vec![cma.clone()], ..production(0x3000_0000..0x3a00_0000) };
        placed(&production, |placed| {
            let params = placed.segments.iter().find(|segment| segment.name == "boot parameters").unwrap();
            let map = Fields(&params.bytes);
            let entries = (0..usize::from(map.u8(0x1e8).unwrap())).map(|entry| {
                let at = 0x2d0 + 20 * entry;
                (map.u64(at).unwrap(), map.u64(at + 8).unwrap(), map.u32(at + 16).unwrap())
            });
            assert!(entries.collect::<Vec<_>>().contains(&(cma.start, cma.end - cma.start, 1)));
        });
    }

    #[test]
    fn a_kernel_that_updates_the_header_gets_room_and_no_digest() {
        let production = Production { header_size: 0x5001, ..production(0x3000_0000..0x3a00_0000) };
        placed(&production, |placed| {
            assert!(placed.updates_header);
            assert_eq!(placed.segments[4].size, 0x6000);
            assert_eq!(Fields(&placed.segments[1].bytes).u64(0x1088), Some(3));
        });
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let file = bzimage(&[7; 5000]);
        let kernel = BzImage::parse_whole(&file).unwrap();
        let image = |initrd| Image { file: &file, kernel: &kernel, initrd, cmdline: "a", serial: 0 };
        let place =
            |region, initrd| place(image(initrd), &Machine::default(), &production(region)).unwrap_err();
        let error = place(0x3000_0000..0x3400_0000, &[1; 4096]).to_string();
        assert!(
            error.starts_with("kernel and image take 0x4") && error.ends_with("has 0x4000000"),
            "{error}"
        );
        assert!(matches!(place(0x3000_0000..0x3000_1000, &[0; 9999]), PlaceError::TooSmall { .. }));
        assert!(matches!(place(0..0x10, &[]), PlaceError::NoRegion | PlaceError::TooSmall { .. }));
    }
}
