//! The running kernel's memory by /proc/kcore: its data by virtual address, and what lies in the
//! reservation by physical address. Lockdown's mode confidentiality closes it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use base::addr::{to_u64, to_usize};
use base::fields::Fields;

use crate::sys::wiping;

const EHDR: usize = 64;
const PHDR: usize = 56;
const PT_LOAD: u32 = 1;
/// Program headers that are looked at: a machine with many pieces of memory has some hundreds.
const MOST_SEGMENTS: usize = 0x1_0000;
/// Bytes that are read at a time.
const PIECE: u64 = 1 << 20;

/// Physical address of memory that holds no key: where the kernel used to be loaded, and memory on every
/// machine.
const OTHER: u64 = 1 << 20;

/// An open /proc/kcore.
#[derive(Debug)]
pub(super) struct Kcore {
    file: File,
    loads: Vec<Load>,
}

/// A mapping.
#[derive(Clone, Copy, Debug)]
struct Load {
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    size: u64,
}

impl Kcore {
    /// Opens it.
    pub(super) fn open() -> io::Result<Self> {
        Self::open_at(Path::new("/proc/kcore"))
    }

    pub(super) fn open_at(path: &Path) -> io::Result<Self> {
        wiping::begin(); // keys are among what is read
        let file = File::open(path)?;
        let mut header = [0; EHDR];
        file.read_exact_at(&mut header, 0)?;
        let f = Fields(&header);
        let bad = || io::Error::other("no 64-bit ELF header");
        let is_elf = f.bytes(0, 6) == Some(b"\x7fELF\x02\x01");
        let (at, count) = (f.u64(32).ok_or_else(bad)?, usize::from(f.u16(56).ok_or_else(bad)?));
        if !is_elf || count > MOST_SEGMENTS {
            return Err(bad());
        }
        let mut headers = vec![0; count.saturating_mul(PHDR)];
        file.read_exact_at(&mut headers, at)?;
        let loads = headers.chunks_exact(PHDR).map(Fields).filter(|f| f.u32(0) == Some(PT_LOAD));
        let loads = loads.filter_map(|f| {
            let (offset, virtual_address) = (f.u64(8)?, f.u64(16)?);
            Some(Load { offset, virtual_address, physical_address: f.u64(24)?, size: f.u64(40)? })
        });
        let loads = loads.collect();
        Ok(Self { file, loads })
    }

    /// Has the kernel read something else. What is read goes through a page of the kernel's that belongs to
    /// the open file and is given back as it is when that is closed (fs/proc/kcore.c, `private_data`): the
    /// facts with their keys would stay there, in memory that the next dump has.
    fn overwrite_buffer(&self) {
        let mut bytes = vec![0; 64 << 10];
        let offset = self.find(OTHER, to_u64(bytes.len()), |load| load.physical_address);
        if let Err(error) = offset.and_then(|offset| self.file.read_exact_at(&mut bytes, offset)) {
            log::warn!("/proc/kcore: {error}: a key may be left in a buffer of the kernel");
        }
    }

    /// `len` bytes at a virtual address.
    pub(super) fn at_virtual(&self, address: u64, len: usize) -> io::Result<Vec<u8>> {
        let offset = self.find(address, to_u64(len), |load| load.virtual_address)?;
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// CRC32 of `len` bytes at a physical address, as 8 hex digits; and whether an ELF header is what
    /// they begin with.
    pub(super) fn crc32(&self, address: u64, len: u64) -> io::Result<(String, bool)> {
        let mut offset = self.find(address, len, |load| load.physical_address)?;
        let (mut left, mut hasher, mut is_elf) = (len, crc32fast::Hasher::new(), None);
        let mut bytes = vec![0; to_usize(PIECE.min(len))];
        while left > 0 {
            let now = left.min(PIECE);
            let piece = bytes.get_mut(..to_usize(now)).unwrap_or_default();
            self.file.read_exact_at(piece, offset)?;
            is_elf.get_or_insert(piece.starts_with(b"\x7fELF"));
            hasher.update(piece);
            (offset, left) = (offset.saturating_add(now), left.saturating_sub(now));
        }
        Ok((format!("{:08x}", hasher.finalize()), is_elf.unwrap_or(false)))
    }

    /// Where in the file a range of addresses is. The direct map comes before other mappings of the
    /// same memory where both have it.
    fn find(&self, address: u64, len: u64, start: impl Fn(&Load) -> u64) -> io::Result<u64> {
        let inside = |load: &&Load| {
            let at = address.checked_sub(start(load));
            at.and_then(|at| at.checked_add(len)).is_some_and(|end| end <= load.size)
        };
        let load = self.loads.iter().find(inside);
        let load = load.ok_or_else(|| io::Error::other(format!("{address:#x} is not mapped in it")))?;
        Ok(load.offset.saturating_add(address.saturating_sub(start(load))))
    }
}

impl Drop for Kcore {
    fn drop(&mut self) {
        self.overwrite_buffer();
    }
}

/// The address of a symbol in /proc/kallsyms; `None` where there is none, or no address is shown
/// (kernel.kptr_restrict = 2).
pub(super) fn symbol(name: &str) -> Option<u64> {
    symbol_in(&fs::read_to_string("/proc/kallsyms").ok()?, name)
}

fn symbol_in(symbols: &str, name: &str) -> Option<u64> {
    let line = symbols.lines().find(|line| line.split_ascii_whitespace().nth(2) == Some(name))?;
    let address = u64::from_str_radix(line.split_ascii_whitespace().next()?, 16).ok()?;
    Some(address).filter(|&address| address != 0)
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A kcore with `memory` at virtual and at physical addresses.
    pub(in crate::loader) fn kcore(path: &Path, virtual_at: u64, physical_at: u64, memory: &[u8]) {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(EHDR, 0);
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[56..58].copy_from_slice(&2_u16.to_le_bytes());
        let size = to_u64(memory.len());
        // The modules' area comes first, and has no physical address.
        for (offset, at, physical) in [(0, 0xffff_ffff_c000_0000, u64::MAX), (4096, virtual_at, physical_at)]
        {
            file.extend(PT_LOAD.to_le_bytes());
            file.extend(7_u32.to_le_bytes());
            for field in [offset, at, physical, size, size, 0_u64] {
                file.extend(field.to_le_bytes());
            }
        }
        file.resize(4096, 0);
        file.extend(memory);
        fs::write(path, file).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_by_both_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kcore");
        testing::kcore(&path, 0xffff_8880_0000_0000, 0x10_0000, b"0123456789");
        let kcore = Kcore::open_at(&path).unwrap();
        assert_eq!(kcore.at_virtual(0xffff_8880_0000_0003, 4).unwrap(), b"3456");
        let (crc, is_elf) = kcore.crc32(0x10_0002, 8).unwrap();
        assert_eq!((crc, is_elf), (format!("{:08x}", crc32fast::hash(b"23456789")), false));
        assert!(kcore.crc32(0x10_0008, 3).is_err(), "it ends before");
        assert!(kcore.at_virtual(0, 1).unwrap_err().to_string().contains("not mapped"));
        fs::write(&path, b"something else").unwrap();
        assert!(Kcore::open_at(&path).is_err());
    }

    #[test]
    fn a_hidden_address_is_none() {
        let symbols = "ffffffff81000000 T _text\nffffffff82000010 D kexec_crash_image\nffffffff8 b x [m]\n";
        assert_eq!(symbol_in(symbols, "kexec_crash_image"), Some(0xffff_ffff_8200_0010));
        assert_eq!(symbol_in(symbols, "kexec_image"), None);
        assert_eq!(symbol_in("0000000000000000 D kexec_crash_image\n", "kexec_crash_image"), None);
    }
}
