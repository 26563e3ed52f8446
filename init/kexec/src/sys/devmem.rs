//! `/dev/mem`: physical memory that is not this kernel's own. In the capture kernel that is all of
//! the production kernel's, which CONFIG_STRICT_DEVMEM therefore lets be mapped
//! (drivers/char/mem.c; arch/x86/mm/init.c, `devmem_is_allowed`).
//!
//! read(2) and write(2) do not reach above this kernel's own memory, so the pages are mapped. What
//! is copied may change meanwhile, if a device still writes there: nothing is borrowed, only
//! copied, and the copy is checked by who needs that.

use std::fs::{File, OpenOptions};
use std::io;
use std::ptr;

use memmap2::MmapOptions;

use base::addr::to_usize;

const PATH: &str = "/dev/mem";

/// Physical memory, open for reading and writing.
#[derive(Debug)]
pub struct DevMem(File);

impl DevMem {
    /// Opens it; under lockdown nobody may.
    pub fn open() -> io::Result<Self> {
        Ok(Self(OpenOptions::new().read(true).write(true).open(PATH)?))
    }

    /// Copies `bytes` to the physical address `at`.
    pub fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let map = MmapOptions::new().offset(at).len(bytes.len()).map_raw(&self.0)?;
        // SAFETY:
        // - The mapping is that of `bytes.len()` bytes at `at` and lives until the end of this
        //   function.
        // - Nothing in this process refers to it, so it does not overlap `bytes`.
        // - It is device memory to the compiler: written through a raw pointer, never borrowed.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), map.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies `len` bytes from the physical address `at`.
    pub fn read(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; to_usize(len)];
        let map = MmapOptions::new().offset(at).len(bytes.len()).map_raw_read_only(&self.0)?;
        // SAFETY: as in `write`, the other way round.
        unsafe { ptr::copy_nonoverlapping(map.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        Ok(bytes)
    }
}

/// Reads `len` bytes at the physical address `at`.
pub fn read(at: base::addr::PhysAddr, len: u64) -> io::Result<Vec<u8>> {
    let file = File::open(PATH)?;
    DevMem(file).read(at.0, len)
}
