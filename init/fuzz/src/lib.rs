//! What the fuzz targets share: a file in memory, seeds, and small builders of the formats that
//! they take apart.
//!
//! A target turns its input into a file, reads it with the product's code and checks what the
//! product promises beyond "does not panic". The builders here are deliberately not the product's
//! own: a mistake must not be made twice.

pub mod build;
mod memory;
pub mod targets;

pub use memory::{check_ranges, chosen_pages, page};

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A file in memory with a path, since the product opens files by path.
#[derive(Debug)]
pub struct Scratch(File);

impl Scratch {
    /// A file with these bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let file = File::from(memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        file.write_all_at(bytes, 0).expect("writing to a memfd");
        Self(file)
    }

    /// Its path, good as long as the file lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// Cuts the file to `len` bytes, under whoever has it mapped.
    pub fn truncate(&self, len: u64) {
        self.0.set_len(len).expect("truncating a memfd");
    }
}

/// Takes `count` bytes from the front of `input`, fewer at its end.
pub fn take<'a>(input: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, rest) = input.split_at(count.min(input.len()));
    *input = rest;
    head
}

/// Takes a little-endian `u16` from the front of `input`; 0 at its end.
pub fn take_u16(input: &mut &[u8]) -> u16 {
    let bytes = take(input, 2);
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u16::from(byte))
}
