//! What the running kernel says of itself and its firmware, as far as the next kernel must be told.
//! Works the same in the production kernel and in a capture kernel that was told it by us.

use std::fs;
use std::path::Path;

use base::facts::MemoryRange;

use crate::efi::{Descriptor, Efi};

const EFI: &str = "/sys/firmware/efi";
const FIRMWARE_MAP: &str = "/sys/firmware/memmap";

/// Firmware and screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The kernel's own boot_params; empty if it does not show them.
    pub boot_params: Vec<u8>,
    /// EFI firmware with its runtime services.
    pub efi: Option<Efi>,
    /// Physical address of ACPI's root pointer, as EFI tells it; 0 without.
    pub rsdp: u64,
}

impl Machine {
    /// Reads what there is; what is missing the next kernel does without.
    #[must_use]
    pub fn read() -> Self {
        let boot_params = fs::read("/sys/kernel/boot_params/data").unwrap_or_default();
        let system_tables = text(&format!("{EFI}/systab"));
        let of = |name: &str| {
            let value = system_tables.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.and_then(hex).unwrap_or(0)
        };
        let rsdp = Some(of("ACPI20")).filter(|&at| at != 0).unwrap_or_else(|| of("ACPI"));
        let smbios = Some(of("SMBIOS3")).filter(|&at| at != 0).unwrap_or_else(|| of("SMBIOS"));
        Self { efi: efi(&boot_params, smbios), boot_params, rsdp }
    }
}

/// The firmware's tables; `None` without EFI, or without runtime services that can be handed on.
fn efi(boot_params: &[u8], smbios: u64) -> Option<Efi> {
    use base::fields::Fields;
    let f = Fields(boot_params);
    f.bytes(0x1c0, 4).filter(|signature| signature == b"EL64")?;
    let mut runtime = Vec::new();
    for number in 0_u32.. {
        let dir = format!("{EFI}/runtime-map/{number}");
        if !Path::new(&dir).exists() {
            break;
        }
        let field = |name: &str| hex(&text(&format!("{dir}/{name}")));
        runtime.push(Descriptor {
            kind: u32::try_from(field("type")?).ok()?,
            physical: field("phys_addr")?,
            mapped: field("virt_addr")?,
            pages: field("num_pages")?,
            attributes: field("attribute")?,
        });
    }
    let table = |name: &str| hex(&text(&format!("{EFI}/{name}")));
    (!runtime.is_empty()).then_some(())?;
    Some(Efi {
        system_table: u64::from(f.u32(0x1c4)?) | u64::from(f.u32(0x1d8)?).wrapping_shl(32),
        descriptor_size: f.u32(0x1c8)?,
        descriptor_version: f.u32(0x1cc)?,
        runtime,
        fw_vendor: table("fw_vendor").unwrap_or(0),
        tables: table("config_table")?,
        smbios,
    })
}

/// The memory map as the firmware gave it, in order of addresses.
#[must_use]
pub fn firmware_map() -> Vec<MemoryRange> {
    let entries = fs::read_dir(FIRMWARE_MAP).into_iter().flatten().flatten();
    let mut map: Vec<_> = entries
        .filter_map(|entry| {
            let field =
                |name: &str| Some(fs::read_to_string(entry.path().join(name)).ok()?.trim().to_owned());
            Some(MemoryRange {
                start: hex(&field("start")?)?,
                last: hex(&field("end")?)?,
                kind: field("type")?,
            })
        })
        .collect();
    map.sort_by_key(|line| line.start);
    map
}

/// The text of a file of the kernel without its last newline; empty if it cannot be read.
#[must_use]
pub fn text(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// What the kernel says of kexec: `crash_loaded`, `crash_size`, `loaded`, `crash_elfcorehdr_size`,
/// `crash_cma_ranges`. They are in /sys/kernel/kexec since 6.19 ("kexec: move sysfs entries to
/// /sys/kernel/kexec"); the names of before go after 2028. Empty if it says nothing.
#[must_use]
pub fn of_kexec(name: &str) -> String {
    of_kexec_in(Path::new("/sys/kernel"), name)
}

fn of_kexec_in(kernel: &Path, name: &str) -> String {
    // The size of the core header never had the word before its name.
    let paths = [kernel.join("kexec").join(name), kernel.join(format!("kexec_{name}")), kernel.join(name)];
    let text = paths.iter().find_map(|path| fs::read_to_string(path).ok());
    text.unwrap_or_default().trim_end().to_owned()
}

/// Reads a hexadecimal number, with or without `0x`.
#[must_use]
pub fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_efi_there_is_nothing_to_hand_on() {
        assert_eq!(efi(&[0; 4096], 0), None);
        assert_eq!(efi(&[], 0), None);
    }

    #[test]
    fn the_names_of_6_19_come_before_the_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let says = |name| of_kexec_in(dir.path(), name);
        assert_eq!(says("crash_size"), "");
        put("kexec_crash_size", "1\n");
        put("crash_elfcorehdr_size", "3\n");
        assert_eq!([says("crash_size"), says("crash_elfcorehdr_size")], ["1", "3"]);
        put("kexec/crash_size", "2\n");
        put("kexec/crash_elfcorehdr_size", "4\n");
        put("kexec/crash_cma_ranges", "5\n");
        let names = ["crash_size", "crash_elfcorehdr_size", "crash_cma_ranges"];
        assert_eq!(names.map(says), ["2", "4", "5"]);
        put("kexec_crash_loaded", "1\n");
        assert_eq!(says("crash_loaded"), "1");
    }
}
