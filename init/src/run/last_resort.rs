//! When no target takes anything: the end of the old kernel's log goes where no device is needed,
//! to the firmware's variables if there are such, and to the consoles.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use triage::findings::Findings;
use vmcore::kernel::Kernel;
use vmcore::kernel::dmesg::{self, DmesgError};

/// Bytes of the log's end that are looked at, in memory that is scarce.
const TAIL: u64 = 256 << 10;
/// Lines that go to the consoles, and the most bytes of them: a slow console takes 10 KiB a second.
const TAIL_LINES: usize = 60;
const TAIL_BYTES: usize = 16 << 10;
const EFIVARS: &str = "/sys/firmware/efi/efivars";
/// LINUX_EFI_CRASH_GUID (include/linux/efi.h): under these names the next boot's efi-pstore shows
/// the text, and systemd-pstore collects it.
const CRASH_GUID: &str = "cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0";
/// Non-volatile, for the boot services and at run time (EFI_VARIABLE_*): what efi-pstore gives its
/// own.
const ATTRIBUTES: [u8; 4] = [7, 0, 0, 0];
/// Text in a variable: with its attributes and a heading less than the 1024 bytes that all firmware
/// takes (EFIVARS_DATA_SIZE_MAX).
const PART: usize = 960;
/// Variables that are written. Firmware has some tens of KiB for all its variables, and some does
/// not boot when they are used up.
const PARTS: usize = 8;

/// Puts the head of the summary on the consoles: what happened, and on which stack.
pub(super) fn say(findings: &Findings) {
    let head = Findings { log: Vec::new(), ..findings.clone() };
    for line in head.to_text(TAIL_BYTES).lines().take(TAIL_LINES) {
        log::error!("summary: {line}");
    }
}

/// Saves the end of the log without a target.
pub(super) fn save(kernel: &Kernel<'_>, time: u64) {
    let mut text = Vec::new();
    let written = dmesg::Ring::discover(kernel).map_err(DmesgError::from);
    if let Err(error) = written.and_then(|ring| ring.write(&mut text, TAIL)) {
        log::warn!("{}", base::log::chain(&error));
    }
    save_to_firmware(&text, time);
    let text = text.get(text.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)) {
        log::error!("old: {line}"); // nobody can have asked for less than this
    }
}

fn save_to_firmware(text: &[u8], time: u64) {
    let at = Path::new(EFIVARS);
    if !at.is_dir() {
        return; // not an EFI machine, or the capture kernel was not told of it
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    match mount(Some("efivarfs"), at, Some("efivarfs"), flags, None::<&str>) {
        Ok(()) | Err(Errno::EBUSY) => (),
        Err(errno) => {
            log::warn!("the log does not go to the firmware: mounting {EFIVARS}: {}", errno.desc());
            return;
        }
    }
    let mut saved = 0_usize;
    for (path, value) in variables(at, text, time) {
        match fs::write(&path, value) {
            Ok(()) => saved = saved.saturating_add(1),
            Err(error) => {
                log::warn!("{}: {error}", path.display());
                break;
            }
        }
    }
    log::info!(
        "the end of the log is in {saved} variables of the firmware (pstore shows them after the next boot)"
    );
}

/// Names and values of the variables: part 1 is the end of the log, as with pstore.
fn variables(dir: &Path, text: &[u8], time: u64) -> Vec<(PathBuf, Vec<u8>)> {
    let parts = text.rchunks(PART).take(PARTS);
    (1..)
        .zip(parts)
        .map(|(number, part)| {
            // efi_pstore_write(), drivers/firmware/efi/efi-pstore.c: type 0 is dmesg, D is not
            // compressed.
            let name = format!("dump-type0-{number}-1-{time}-D-{CRASH_GUID}");
            let mut value = ATTRIBUTES.to_vec();
            value.extend(format!("Panic#1 Part{number}\n").as_bytes());
            value.extend(part);
            (dir.join(name), value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_log_comes_in_parts_that_firmware_takes() {
        let text: Vec<u8> = (0..20_000_u32).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect();
        let found = variables(Path::new("/v"), &text, 1_763_900_000);
        assert_eq!(found.len(), PARTS);
        assert!(found.iter().all(|(_, value)| value.len() <= 1024 && value.starts_with(&ATTRIBUTES)));
        let expected = format!("/v/dump-type0-1-1-1763900000-D-{CRASH_GUID}");
        assert_eq!(found[0].0, Path::new(&expected));
        assert!(found[0].1.ends_with(&text[text.len() - PART..]));
        assert!(found[1].1.ends_with(&text[text.len() - 2 * PART..text.len() - PART]));
        assert_eq!(variables(Path::new("/v"), b"short", 0).len(), 1);
        assert_eq!(variables(Path::new("/v"), b"", 0).len(), 0);
    }
}
