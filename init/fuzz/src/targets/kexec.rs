//! What a kernel is started with: whatever /proc/iomem, the firmware's map, a kernel's header and
//! boot_params say, what comes out lies where it may and does not overlap.
//!
//! Input: a byte that says which is hostile, then its bytes.

use std::ops::Range;

use crate::build::put;
use crate::take;
use base::facts::parse_iomem;
use kexec::boot_params::BootParams;
use kexec::efi::{Descriptor, Efi};
use kexec::next::Plan;
use kexec::{BzImage, Machine, PAGE, e820};
use placement::core_header;
use placement::place::{Image, Placed, place};
use placement::production::Production;

const IOMEM: &str = "00001000-0009fbff : System RAM\n000f0000-000fffff : Reserved\n00100000-3ffdffff : \
                     System RAM\n\
    \x20 30000000-3bffffff : Crash kernel\n3ffe0000-3fffffff : ACPI Tables\n100000000-13fffffff : System \
    RAM\n";

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let mut bytes = data;
    match take(&mut bytes, 1).first().copied().unwrap_or(0) % 4 {
        0 => check_iomem(&String::from_utf8_lossy(bytes)),
        1 => check_kernel(bytes),
        2 => check_map(&String::from_utf8_lossy(bytes)),
        _ => check_boot_params(bytes),
    }
}

fn kernel_file() -> Vec<u8> {
    let mut file = vec![0; 0x900];
    put(&mut file, 0x1f1, &[3]);
    put(&mut file, 0x1f4, &[0x10]);
    put(&mut file, 0x201, &[0x6a]);
    put(&mut file, 0x202, b"HdrS\x0f\x02");
    put(&mut file, 0x20e, &[0, 1]);
    put(&mut file, 0x230, &0x20_0000_u32.to_le_bytes());
    put(&mut file, 0x236, &[3, 0]);
    put(&mut file, 0x238, &[0xff, 7, 0, 0]);
    put(&mut file, 0x260, &0x0300_0000_u32.to_le_bytes());
    put(&mut file, 0x300, b"6.1.0-56 (x)");
    file
}

fn kernel() -> BzImage {
    let file = kernel_file();
    BzImage::parse(&file, 0x900).expect("our own kernel")
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Everything of an image lies in its region, in order, and its core header promises no byte of a
/// reservation.
fn check_placed(placed: &Placed<'_>, production: &Production) {
    let region = &production.regions[0];
    let mut end = region.start;
    for segment in &placed.segments {
        assert!(segment.at >= end && segment.at % PAGE == 0 && segment.size % PAGE == 0, "{segment:?}");
        assert!(u64::try_from(segment.bytes.len()).unwrap() <= segment.size);
        end = segment.at.checked_add(segment.size).expect("an end");
    }
    assert!(end <= region.end, "{end:#x} {region:x?}");
    assert!(placed.segments.iter().any(|segment| segment.at == placed.entry));
    for range in &production.core.memory {
        assert!(range.start < range.end && range.start % PAGE == 0 && range.end % PAGE == 0);
        assert!(production.regions.iter().all(|region| !overlap(range, region)), "{range:x?}");
    }
}

fn check_iomem(iomem: &str) {
    let file = kernel_file();
    let kernel = kernel();
    let production = Production::of(iomem, 0x0c00_0000, "");
    let image = Image { file: &file, kernel: &kernel, initrd: &[7; 9000], cmdline: "quiet", serial: 0 };
    let Ok(placed) = place(image, &Machine::default(), &production) else { return };
    check_placed(&placed, &production);
    let header = core_header::build(&production.core).expect("it was placed");
    let count = usize::from(u16::from_le_bytes([header[56], header[57]]));
    assert_eq!(header.len(), 64 + 56 * count);
}

fn check_kernel(bytes: &[u8]) {
    let len = u64::try_from(bytes.len()).unwrap();
    let _ = BzImage::parse_whole(bytes); // a damaged file is refused; what parses below may be damaged
    let Ok(kernel) = BzImage::parse(bytes, len) else { return };
    assert!(!kernel.release.is_empty() && kernel.alignment.is_power_of_two());
    assert!(kernel.kernel_end <= len && kernel.init_size >= len - kernel.kernel_at);
    let production = Production::of(IOMEM, 0, "");
    let image = Image { file: bytes, kernel: &kernel, initrd: &[7; 9000], cmdline: "quiet", serial: 0 };
    if let Ok(placed) = place(image, &Machine::default(), &production) {
        check_placed(&placed, &production);
        let room = placed.entry - placed.segments[0].at;
        assert!(room >= kernel.init_size, "the kernel would write over what follows: {room:#x}");
    }
}

fn check_map(text: &str) {
    let map = e820::whole(&parse_iomem(text));
    assert!(map.windows(2).all(|pair| pair[0].range.start <= pair[1].range.start));
    let own = [0x3000_0000..0x3bff_0000];
    let Ok(plan) = Plan::make(&map, &own, &kernel(), 0x3000, 0x20_0000) else { return };
    let taken = plan.kernel..plan.end;
    assert!(plan.kernel % 0x20_0000 == 0 && plan.kernel >= 16 << 20 && plan.end <= 4 << 30, "{plan:x?}");
    assert!(plan.kernel < plan.trampoline && plan.trampoline < plan.params && plan.params < plan.initrd);
    assert!(!overlap(&taken, &own[0]), "{plan:x?}");
    let ram = map.iter().filter(|line| line.kind == e820::Kind::Ram);
    assert!(ram.clone().any(|line| line.range.start <= taken.start && taken.end <= line.range.end));
}

fn check_boot_params(bytes: &[u8]) {
    let mut rest = bytes;
    let mut word = || take(&mut rest, 8).iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
    let one = Descriptor { kind: 5, physical: word(), mapped: word(), pages: word(), attributes: word() };
    let size = u32::try_from(word() & 0xffff_ffff).unwrap();
    let efi = Efi { system_table: word(), descriptor_size: size, runtime: vec![one; 3], ..Efi::default() };
    let (at, initrd) = (word(), word()..word());
    let (kernel, map) = (kernel(), e820::whole(&parse_iomem(IOMEM)));
    let cmdline = String::from_utf8_lossy(rest);
    let params = BootParams {
        inherited: bytes,
        kernel: &kernel,
        map: &map,
        efi: Some(&efi),
        rsdp: 7,
        initrd,
        cmdline: &cmdline,
    };
    let Ok(built) = params.build(at) else { return };
    assert_eq!(built.len(), params.build(0).expect("as before").len());
    assert_eq!(&built[0x202..0x206], b"HdrS");
    assert_eq!(built[0x1ef], 0, "the sentinel");
    assert_eq!(usize::from(built[0x1e8]), map.len());
    assert!(built[0x1000..].starts_with(cmdline.as_bytes()));
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let params = [&[0; 4096][..], b"quiet"].concat();
    [(0, IOMEM.into()), (1, kernel_file()), (2, IOMEM.into()), (3, params)]
        .map(|(kind, bytes): (u8, Vec<u8>)| [&[kind], &bytes[..]].concat())
        .to_vec()
}
