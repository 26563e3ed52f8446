//! `sync_file_range(2)`, which nix does not wrap: starts or awaits the writing of a part of a file.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

/// Begins to write the dirty pages of `len` bytes at `offset`, and does not wait for them.
pub(crate) fn start(file: &File, offset: u64, len: u64) -> io::Result<()> {
    call(file, offset, len, libc::SYNC_FILE_RANGE_WRITE)
}

/// Waits until the dirty pages of `len` bytes at `offset` are written. Says nothing about metadata:
/// what is to survive a power cut needs `fdatasync(2)`.
pub(crate) fn finish(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    call(file, offset, len, wait | libc::SYNC_FILE_RANGE_WRITE)
}

fn call(file: &File, offset: u64, len: u64, flags: libc::c_uint) -> io::Result<()> {
    let signed = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::FileTooLarge);
    let (offset, len) = (signed(offset)?, signed(len)?);
    // SAFETY: takes a descriptor that `file` keeps open and numbers; touches no memory of ours.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
