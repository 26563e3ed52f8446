//! Adding to the kernel's random numbers (include/uapi/linux/random.h), which nix has no wrapper for.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use base::config::SEED_LEN;
use nix::libc::{self, c_int};

/// `struct rand_pool_info` with its bytes.
#[repr(C)]
struct PoolInfo {
    entropy_count: c_int,
    buf_size: c_int,
    buf: [u8; SEED_LEN],
}

nix::ioctl_write_ptr!(
    /// RNDADDENTROPY, whose number is that of an array of two ints.
    add_entropy,
    b'R',
    3,
    [c_int; 2]
);

/// Has the kernel mix in `seed` and count all of its bits as random; needs CAP_SYS_ADMIN.
pub(crate) fn credit(random: &File, seed: &[u8; SEED_LEN]) -> io::Result<()> {
    let len = c_int::try_from(SEED_LEN).unwrap_or(c_int::MAX);
    let info = PoolInfo { entropy_count: len.saturating_mul(8), buf_size: len, buf: *seed };
    // SAFETY:
    // - The ioctl reads two ints and then `buf_size` bytes; `info` has both, laid out so, and
    //   outlives the call.
    // - It writes nothing.
    unsafe { add_entropy(random.as_raw_fd(), (&raw const info).cast()) }?;
    Ok(())
}

/// Random bytes of the kernel's by getrandom(2). Waits, without an end, until it has any.
pub(crate) fn wait() -> io::Result<()> {
    let mut byte = [0_u8; 1];
    // SAFETY: the call writes at most one byte, to `byte`, which outlives it.
    let got = unsafe { libc::getrandom(byte.as_mut_ptr().cast(), byte.len(), 0) };
    if got == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
