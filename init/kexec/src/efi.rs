//! What a kernel that was not started by EFI firmware itself needs to go on using it
//! (arch/x86/platform/efi/quirks.c, `struct efi_setup_data` in arch/x86/include/asm/efi.h): the
//! runtime services as they are mapped, since they can be mapped once only.

/// "EL64": 64-bit firmware.
const SIGNATURE: u32 = u32::from_le_bytes(*b"EL64");
/// `efi_memory_desc_t` without what later versions of it may add.
const DESCRIPTOR: usize = 40;

/// The firmware's hand-over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Efi {
    /// Physical address of the system table.
    pub system_table: u64,
    /// Bytes from one memory descriptor to the next.
    pub descriptor_size: u32,
    /// Version of the descriptors.
    pub descriptor_version: u32,
    /// The runtime services' memory.
    pub runtime: Vec<Descriptor>,
    /// Physical address of the vendor's name.
    pub fw_vendor: u64,
    /// Physical address of the configuration tables.
    pub tables: u64,
    /// Physical address of the SMBIOS tables; 0 without.
    pub smbios: u64,
}

/// A range of memory, mapped for the runtime services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// `EFI_RUNTIME_SERVICES_CODE` and the like.
    pub kind: u32,
    /// Physical address.
    pub physical: u64,
    /// Where it is mapped.
    pub mapped: u64,
    /// Pages of 4 KiB.
    pub pages: u64,
    /// Attributes.
    pub attributes: u64,
}

impl Efi {
    /// The memory descriptors as bytes.
    #[must_use]
    pub fn memory_map(&self) -> Vec<u8> {
        let stride = usize::try_from(self.descriptor_size).unwrap_or(DESCRIPTOR).clamp(DESCRIPTOR, 256);
        let mut out = Vec::new();
        for one in &self.runtime {
            let end = out.len().saturating_add(stride);
            out.extend(u64::from(one.kind).to_le_bytes());
            for field in [one.physical, one.mapped, one.pages, one.attributes] {
                out.extend(field.to_le_bytes());
            }
            out.resize(end, 0);
        }
        out
    }

    /// `efi_info` of boot_params, for a memory map of `len` bytes at `at`.
    #[must_use]
    pub fn info(&self, at: u64, len: u32) -> [u8; 32] {
        let halves = |value: u64| {
            let bytes = value.to_le_bytes();
            let half = |range| {
                u32::from_le_bytes(
                    bytes.get(range).and_then(|b: &[u8]| b.try_into().ok()).unwrap_or_default(),
                )
            };
            (half(0..4), half(4..8))
        };
        let (table, table_high) = halves(self.system_table);
        let (map, map_high) = halves(at);
        let fields =
            [SIGNATURE, table, self.descriptor_size, self.descriptor_version, map, len, table_high, map_high];
        let mut out = [0; 32];
        for (bytes, field) in out.chunks_exact_mut(4).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        out
    }

    /// `struct efi_setup_data`.
    #[must_use]
    pub fn setup_data(&self) -> Vec<u8> {
        let fields = [self.fw_vendor, 0, self.tables, self.smbios, 0, 0, 0, 0, 0, 0, 0, 0];
        fields.iter().flat_map(|field| field.to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_keep_the_firmwares_stride() {
        let one = Descriptor {
            kind: 5,
            physical: 0x1000,
            mapped: 0xffff_fffe_0000_0000,
            pages: 2,
            attributes: 1 << 63,
        };
        let efi = Efi { descriptor_size: 48, runtime: vec![one, one], ..Efi::default() };
        let map = efi.memory_map();
        assert_eq!((map.len(), map[0], map[48], &map[40..48]), (96, 5, 5, &[0; 8][..]));
        assert_eq!(map[8..16], 0x1000_u64.to_le_bytes());
        assert_eq!(Efi { descriptor_size: u32::MAX, ..efi }.memory_map().len(), 512);
    }

    #[test]
    fn addresses_are_cut_in_halves() {
        let efi =
            Efi { system_table: 0x1_2345_6789, descriptor_size: 48, descriptor_version: 1, ..Efi::default() };
        let info = efi.info(0x9_0000_1000, 96);
        assert_eq!(&info[..4], b"EL64");
        assert_eq!((&info[4..8], &info[24..28]), (&0x2345_6789_u32.to_le_bytes()[..], &[1, 0, 0, 0][..]));
        assert_eq!((&info[16..20], &info[28..32]), (&0x1000_u32.to_le_bytes()[..], &[9, 0, 0, 0][..]));
        assert_eq!(efi.setup_data().len(), 96);
    }
}
