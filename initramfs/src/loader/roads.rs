//! The two system calls that load an image.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;

use base::addr::{to_u64, to_usize};
use base::config::Loader;
use base::facts::Facts;
use kexec::sys::load;
use kexec::{BzImage, Machine};
use nix::sys::memfd::{MFdFlags, memfd_create};
use placement::place::{self as layout, Image, PlaceError, Placed};
use placement::production::Production;
use zeroize::Zeroizing;

use crate::cpio;
use crate::crashkernel::Need;
use crate::fingerprint::crc32;
use crate::host;
use crate::loader::proof::{Piece, Print};
use crate::loader::{LoadError, Loaded, Road, archive};

/// What is to be loaded.
pub(super) struct Arms<'a> {
    pub(super) kernel_file: &'a Path,
    pub(super) kernel: &'a [u8],
    pub(super) bz: &'a BzImage,
    pub(super) image: Vec<u8>,
    pub(super) facts: Facts,
    pub(super) need: Need,
}

impl Arms<'_> {
    /// Loads by the road that the configuration names, or by our own where it is open; `loaded`
    /// says which one it was, and what comes with it.
    pub(super) fn load(&self, how: Loader, loaded: &mut Loaded) -> Result<(), LoadError> {
        match (how, host::lockdown()) {
            (Loader::KexecFileLoad, _) => return self.by_file(loaded),
            (Loader::Auto, mode) if mode != "none" => {
                log::info!(
                    "lockdown mode {mode}: a panic will be captured, a planned switch only by --via panic"
                );
                return self.by_file(loaded);
            }
            _ => (),
        }
        let error = match self.own(loaded) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // What keeps us need not keep the kernel, unless it is for both of us. The image that was
        // loaded before is gone by now.
        let for_both = matches!(
            error,
            LoadError::TooSmall { .. }
                | LoadError::Disabled
                | LoadError::Limit(_)
                | LoadError::NotRoot
                | LoadError::Busy
        );
        if how == Loader::KexecLoad || for_both {
            return Err(error);
        }
        log::warn!("{}; kexec_file_load is used instead", base::log::chain(&error));
        self.by_file(loaded)
    }

    fn own(&self, loaded: &mut Loaded) -> Result<(), LoadError> {
        let production = Production::read()?;
        let facts = Facts { handover: layout::handover(&production), ..self.facts.clone() };
        let mut initrd = Zeroizing::new(self.image.clone());
        cpio::pad(&mut initrd);
        initrd.extend_from_slice(&archive(&facts));
        let serial = kexec::serial_port(&loaded.cmdline);
        let image =
            Image { file: self.kernel, kernel: self.bz, initrd: &initrd, cmdline: &loaded.cmdline, serial };
        let placed = layout::place(image, &Machine::read(), &production).map_err(|error| match error {
            PlaceError::TooSmall { have, need } => {
                LoadError::too_small(have, Need { minimum: need.max(self.need.minimum), ..self.need })
            }
            other => other.into(),
        })?;
        self.kexec_load(&placed)?;
        loaded.road = Road::Own;
        (loaded.entry, loaded.handover) = (Some(placed.entry), Some(placed.handover));
        loaded.updates_header = placed.updates_header;
        loaded.print = Print::take(Some(placed.entry), pieces(&placed));
        Ok(())
    }

    fn kexec_load(&self, placed: &Placed<'_>) -> Result<(), LoadError> {
        let raw = placed.segments.iter().map(|segment| {
            log::debug!("{segment:?}");
            load::Segment { bytes: &segment.bytes, at: segment.at, size: segment.size }
        });
        let raw: Vec<_> = raw.collect();
        let start = load::Start::Panic { updates_header: placed.updates_header };
        load::load(placed.entry, &raw, start)
            .map_err(|error| LoadError::explain(Road::Own, error, self.kernel_file, self.need))
    }

    fn by_file(&self, loaded: &mut Loaded) -> Result<(), LoadError> {
        let mut initrd = in_memory(&self.image, &archive(&self.facts)).map_err(LoadError::Memory)?;
        let read = |source| LoadError::Read { path: self.kernel_file.to_owned(), source };
        let kernel = File::open(self.kernel_file).map_err(read)?;
        let cmdline = CString::new(loaded.cmdline.as_str()).map_err(|_| LoadError::Nul)?;
        let result = load::load_panic_kernel(kernel.as_fd(), initrd.as_fd(), &cmdline);
        if loaded.keys_in_image {
            wipe(&mut initrd).map_err(LoadError::Memory)?;
        }
        result.map_err(|error| LoadError::explain(Road::FileLoad, error, self.kernel_file, self.need))?;
        loaded.road = Road::FileLoad;
        // The kernel makes the core header itself then, and keeps it up to date if it can at all.
        loaded.updates_header = host::read("/sys/devices/system/cpu/crash_hotplug") == "1";
        loaded.print = Print::take(None, Vec::new());
        Ok(())
    }
}

/// What stays in the reservation as it was placed: not the handover page, and not a core header that
/// the kernel writes anew.
fn pieces(placed: &Placed<'_>) -> Vec<Piece> {
    let is_header = |segment: &&kexec::Segment<'_>| segment.bytes.starts_with(b"\x7fELF");
    let filled = placed.segments.iter().filter(|segment| !segment.bytes.is_empty());
    let stays = filled.filter(|segment| !placed.updates_header || !is_header(segment));
    let piece = |segment: &kexec::Segment<'_>| Piece {
        at: segment.at,
        len: to_u64(segment.bytes.len()),
        crc32: crc32(&segment.bytes),
    };
    stays.map(piece).collect()
}

/// The image with the facts behind it, as a file that is on no disk.
fn in_memory(image: &[u8], facts: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"afterimage", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(image)?;
    let padding = image.len().next_multiple_of(cpio::ALIGN).saturating_sub(image.len());
    file.write_all(&vec![0; padding])?;
    file.write_all(facts)?;
    Ok(file)
}

/// Writes zeros over a file in memory: its pages go back to the kernel, which clears them only when
/// it hands them out again.
fn wipe(file: &mut File) -> io::Result<()> {
    let zeros = vec![0; 1 << 16];
    let mut left = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    while left > 0 {
        let piece = zeros.get(..to_usize(left)).unwrap_or(&zeros);
        file.write_all(piece)?;
        left = left.saturating_sub(to_u64(piece.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn content(file: &mut File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn facts_follow_the_image_at_a_multiple_of_4() {
        let mut file = in_memory(&[9; 5], b"facts").unwrap();
        assert_eq!(content(&mut file), [&[9; 5][..], &[0; 3], b"facts"].concat());
    }

    #[test]
    fn a_wiped_file_is_all_zeros() {
        let mut file = in_memory(&vec![7; 100_000], b"secret").unwrap();
        wipe(&mut file).unwrap();
        assert_eq!(content(&mut file), vec![0; 100_006]);
    }
}
