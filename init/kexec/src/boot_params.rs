//! `boot_params`, the page that tells a kernel where it is and what there is
//! (arch/x86/include/uapi/asm/bootparam.h), and what it points to: the command line, the firmware's
//! memory map, and lists that the page has no room for.

use std::ops::Range;

use byteorder::{ByteOrder, LE};

use crate::bzimage::{BzImage, SETUP_HEADER};
use crate::e820::E820;
use crate::efi::Efi;
use crate::page_up;
use base::addr::to_u64;

/// Bytes of the page.
pub const LEN: usize = 4096;

/// `acpi_rsdp_addr`.
const RSDP: usize = 0x070;
const EFI_INFO: usize = 0x1c0;
const E820_COUNT: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
/// `E820_MAX_ENTRIES_ZEROPAGE`; more go into a list of their own.
const E820_ROOM: usize = 128;
/// What the running kernel was told of screen and disks holds for the next one too: screen_info,
/// cc_blob_address, edid_info, EDD.
const INHERITED: [Range<usize>; 6] =
    [0..0x40, RSDP..0x78, 0x13c..0x1c0, 0x1e9..0x1eb, 0x290..0x2d0, 0xd00..0xeec];
/// The loader's number for kexec, 0xD, and version 0.
const KEXEC: u8 = 0xd0;
const SETUP_E820_EXT: u32 = 1;
const SETUP_EFI: u32 = 4;
/// `struct setup_data` before its data.
const SETUP_DATA: u64 = 16;

/// What a kernel is told.
#[derive(Clone, Debug)]
pub struct BootParams<'a> {
    /// `/sys/kernel/boot_params/data` of the running kernel.
    pub inherited: &'a [u8],
    /// The kernel.
    pub kernel: &'a BzImage,
    /// The memory map.
    pub map: &'a [E820],
    /// EFI firmware.
    pub efi: Option<&'a Efi>,
    /// Physical address of ACPI's root pointer, where the running kernel was not told it by its own
    /// boot_params.
    pub rsdp: u64,
    /// The initrd: physical address and length.
    pub initrd: Range<u64>,
    /// The command line.
    pub cmdline: &'a str,
}

/// A command line that the kernel would cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the command line has {len} bytes, the kernel takes {limit}")]
pub struct CmdlineTooLong {
    len: u64,
    limit: u64,
}

impl BootParams<'_> {
    /// All of it as it is to lie at the physical address `at`: the page first, then what it points
    /// to. Its length does not depend on `at`.
    pub fn build(&self, at: u64) -> Result<Vec<u8>, CmdlineTooLong> {
        let (len, limit) = (to_u64(self.cmdline.len()), self.kernel.cmdline_size);
        if len > limit || self.cmdline.contains('\0') {
            return Err(CmdlineTooLong { len, limit });
        }
        let mut page = Page(vec![0; LEN]);
        for range in INHERITED {
            page.put(range.start, self.inherited.get(range).unwrap_or_default());
        }
        if page.0.get(RSDP..RSDP + 8) == Some(&[0; 8]) {
            page.put(RSDP, &self.rsdp.to_le_bytes());
        }
        page.put(SETUP_HEADER, &self.kernel.setup_header);
        page.put(0x1fa, &0xffff_u16.to_le_bytes()); // vid_mode: as it is
        page.put(0x210, &[KEXEC]); // type_of_loader
        page.put(0x226, &[0, 0]); // ext_loader_ver, ext_loader_type
        page.split(0x218, 0x0c0, self.initrd.start); // ramdisk_image, ext_ramdisk_image
        page.split(0x21c, 0x0c4, self.initrd.end.saturating_sub(self.initrd.start)); // ramdisk_size

        let mut behind = Behind { at: at.saturating_add(to_u64(LEN)), bytes: Vec::new() };
        let cmdline = behind.add(self.cmdline.as_bytes(), &[0]);
        page.split(0x228, 0x0c8, cmdline); // cmd_line_ptr, ext_cmd_line_ptr

        let entries: Vec<u8> = self.map.iter().flat_map(e820_entry).collect();
        let (here, more) = entries.split_at_checked(E820_ROOM * 20).unwrap_or((&entries, &[]));
        page.put(E820_TABLE, here);
        page.put(E820_COUNT, &[u8::try_from(self.map.len().min(E820_ROOM)).unwrap_or(0)]);
        let mut list = 0;
        if !more.is_empty() {
            list = behind.add_setup_data(list, SETUP_E820_EXT, more);
        }
        if let Some(efi) = self.efi {
            let map = efi.memory_map();
            let map_len = u32::try_from(map.len()).unwrap_or(0);
            let map_at = behind.add(&map, &[]);
            page.put(EFI_INFO, &efi.info(map_at, map_len));
            list = behind.add_setup_data(list, SETUP_EFI, &efi.setup_data());
        }
        page.put(0x250, &list.to_le_bytes()); // setup_data
        page.0.append(&mut behind.bytes);
        Ok(page.0)
    }

    /// Bytes of memory that it takes, whole pages.
    pub fn size(&self) -> Result<u64, CmdlineTooLong> {
        Ok(page_up(to_u64(self.build(0)?.len())))
    }
}

fn e820_entry(line: &E820) -> Vec<u8> {
    let size = line.range.end.saturating_sub(line.range.start);
    let fields = [line.range.start.to_le_bytes(), size.to_le_bytes()];
    [fields.as_flattened(), &line.kind.number().to_le_bytes()].concat()
}

struct Page(Vec<u8>);

impl Page {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let room = self.0.get_mut(at..).unwrap_or_default();
        room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    /// Writes an address or a length in two halves.
    fn split(&mut self, low: usize, high: usize, value: u64) {
        let mut bytes = [0; 8];
        LE::write_u64(&mut bytes, value);
        let (l, h) = bytes.split_at(4);
        self.put(low, l);
        self.put(high, h);
    }
}

/// What stands behind the page.
struct Behind {
    /// Where it begins.
    at: u64,
    bytes: Vec<u8>,
}

impl Behind {
    /// Adds two pieces; says where they begin.
    fn add(&mut self, first: &[u8], second: &[u8]) -> u64 {
        let aligned = self.bytes.len().next_multiple_of(16);
        self.bytes.resize(aligned, 0);
        self.bytes.extend(first);
        self.bytes.extend(second);
        self.at.saturating_add(to_u64(aligned))
    }

    /// Adds an element before `next` of the list; says where it is.
    fn add_setup_data(&mut self, next: u64, kind: u32, data: &[u8]) -> u64 {
        let len = u32::try_from(data.len()).unwrap_or(0);
        let mut header = next.to_le_bytes().to_vec();
        header.extend(kind.to_le_bytes());
        header.extend(len.to_le_bytes());
        debug_assert_eq!(to_u64(header.len()), SETUP_DATA);
        self.add(&header, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bzimage::testing::bzimage;
    use crate::e820::Kind;
    use crate::efi::Descriptor;
    use base::fields::Fields;

    fn kernel() -> BzImage {
        BzImage::parse_whole(&bzimage(b"kernel")).unwrap()
    }

    fn params<'a>(kernel: &'a BzImage, map: &'a [E820], inherited: &'a [u8]) -> BootParams<'a> {
        let initrd = 0x1_3000_0000..0x1_3010_0123;
        BootParams { inherited, kernel, map, efi: None, rsdp: 0xe_0000, initrd, cmdline: "a=b quiet" }
    }

    fn lines(count: u64) -> Vec<E820> {
        (0..count).map(|n| E820 { range: n * 0x2000..n * 0x2000 + 0x1000, kind: Kind::Ram }).collect()
    }

    #[test]
    fn every_field_stands_where_the_kernel_looks() {
        let (kernel, map) = (kernel(), lines(3));
        let mut running = vec![0xee; LEN];
        running[RSDP..RSDP + 8].fill(0);
        let bytes = params(&kernel, &map, &running).build(0x3500_0000).unwrap();
        let f = Fields(&bytes);
        assert_eq!(f.u32(0x202), Some(u32::from_le_bytes(*b"HdrS")));
        assert_eq!((f.u8(0x210), f.u16(0x1fa)), (Some(0xd0), Some(0xffff)));
        assert_eq!((f.u32(0x218), f.u32(0xc0)), (Some(0x3000_0000), Some(1)));
        assert_eq!((f.u32(0x21c), f.u32(0xc4)), (Some(0x10_0123), Some(0)));
        assert_eq!((f.u32(0x228), f.u32(0xc8)), (Some(0x3500_1000), Some(0)));
        assert_eq!(&bytes[0x1000..0x100a], b"a=b quiet\0");
        assert_eq!(f.u64(0x70), Some(0xe_0000), "the running kernel was not told; we know");
        assert_eq!((f.u8(0), f.u8(0x3f), f.u8(0x40)), (Some(0xee), Some(0xee), Some(0)));
        assert_eq!((f.u8(0x1e8), f.u64(0x250)), (Some(3), Some(0)));
        assert_eq!(
            (f.u64(0x2d0 + 40), f.u64(0x2d0 + 48), f.u32(0x2d0 + 56)),
            (Some(0x4000), Some(0x1000), Some(1))
        );
        assert_eq!(f.bytes(0x1c0, 32), Some(&[0; 32][..]), "no EFI");
        assert_eq!(f.u8(0x1ef), Some(0), "the sentinel");
    }

    #[test]
    fn a_long_map_and_efi_go_behind_the_page() {
        let (kernel, map) = (kernel(), lines(130));
        let efi =
            Efi { descriptor_size: 48, runtime: vec![Descriptor::default(); 2], tables: 7, ..Efi::default() };
        let params = BootParams { efi: Some(&efi), ..params(&kernel, &map, &[]) };
        let bytes = params.build(0x10_0000).unwrap();
        assert_eq!(params.build(0).unwrap().len(), bytes.len());
        let f = Fields(&bytes);
        assert_eq!(f.u8(0x1e8), Some(128));
        let at = |address: u64| usize::try_from(address - 0x10_0000).unwrap();
        let first = at(f.u64(0x250).unwrap());
        assert_eq!((f.u32(first + 8), f.u32(first + 12)), (Some(SETUP_EFI), Some(96)));
        assert_eq!(f.u64(first + 16 + 16), Some(7), "the tables");
        let second = at(f.u64(first).unwrap());
        assert_eq!(
            (f.u64(second), f.u32(second + 8), f.u32(second + 12)),
            (Some(0), Some(SETUP_E820_EXT), Some(40))
        );
        assert_eq!(f.u64(second + 16), Some(128 * 0x2000));
        let map = at(f.u32(0x1c0 + 16).unwrap().into());
        assert_eq!((f.bytes(0x1c0, 4), f.u32(0x1c0 + 20)), (Some(&b"EL64"[..]), Some(96)));
        assert!(map + 96 <= bytes.len() && map > 0x1000);
    }

    #[test]
    fn a_command_line_that_does_not_fit_is_refused() {
        let (kernel, map) = (kernel(), lines(1));
        let long = "x".repeat(2048);
        let params = BootParams { cmdline: &long, ..params(&kernel, &map, &[]) };
        assert_eq!(
            params.build(0).unwrap_err().to_string(),
            "the command line has 2048 bytes, the kernel takes 2047"
        );
        assert!(BootParams { cmdline: "a\0b", ..params }.build(0).is_err());
    }
}
