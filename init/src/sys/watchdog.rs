//! The hardware watchdog's ioctls (include/uapi/linux/watchdog.h), which nix has no wrapper for.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc::c_int;

nix::ioctl_read!(
    /// WDIOC_GETTIMEOUT
    get_timeout,
    b'W',
    7,
    c_int
);
nix::ioctl_readwrite!(
    /// WDIOC_SETTIMEOUT
    set_timeout_ioctl,
    b'W',
    6,
    c_int
);

/// Seconds after which an unfed watchdog resets the machine.
pub(crate) fn timeout(watchdog: &File) -> io::Result<u32> {
    let mut seconds: c_int = 0;
    // SAFETY: the ioctl writes one int, to `seconds`, which outlives the call.
    unsafe { get_timeout(watchdog.as_raw_fd(), &raw mut seconds) }?;
    Ok(u32::try_from(seconds).unwrap_or(0))
}

/// Sets them; gives what the hardware made of it.
pub(crate) fn set_timeout(watchdog: &File, seconds: u32) -> io::Result<u32> {
    let mut seconds = c_int::try_from(seconds).unwrap_or(c_int::MAX);
    // SAFETY: the ioctl reads and writes one int, `seconds`, which outlives the call.
    unsafe { set_timeout_ioctl(watchdog.as_raw_fd(), &raw mut seconds) }?;
    Ok(u32::try_from(seconds).unwrap_or(0))
}
