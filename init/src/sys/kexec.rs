//! `kexec_file_load(2)`: the kernel places, checks and measures the capture kernel itself, which is the only
//! road under lockdown (include/uapi/linux/kexec.h).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

const KEXEC_FILE_UNLOAD: libc::c_ulong = 0x1;
const KEXEC_FILE_ON_CRASH: libc::c_ulong = 0x2;

/// Loads `kernel` and `initrd` as the panic kernel, with `cmdline`. The kernel appends `elfcorehdr=` itself.
pub fn load_panic_kernel(kernel: BorrowedFd<'_>, initrd: BorrowedFd<'_>, cmdline: &CStr) -> io::Result<()> {
    // SAFETY:
    // - Both descriptors are borrowed and thus open for the call.
    // - `cmdline` is NUL-terminated and its length, NUL included, is what the kernel expects.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            cmdline.to_bytes_with_nul().len(),
            cmdline.as_ptr(),
            KEXEC_FILE_ON_CRASH,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Unloads the panic kernel; succeeds when none is loaded.
pub fn unload_panic_kernel() -> io::Result<()> {
    let flags = KEXEC_FILE_UNLOAD | KEXEC_FILE_ON_CRASH;
    // SAFETY: with the unload flag the kernel looks at no pointer and no descriptor.
    let result =
        unsafe { libc::syscall(libc::SYS_kexec_file_load, -1, -1, 0, std::ptr::null::<u8>(), flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
