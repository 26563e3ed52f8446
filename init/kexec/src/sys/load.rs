//! The two system calls that load a kernel (include/uapi/linux/kexec.h): `kexec_load(2)`, which
//! takes segments as they are to lie in memory, and `kexec_file_load(2)`, by which the kernel
//! places, checks and measures the capture kernel itself, which is the only road under lockdown.

use std::ffi::{CStr, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

use base::addr::to_usize;

const KEXEC_FILE_UNLOAD: libc::c_ulong = 0x1;
const KEXEC_FILE_ON_CRASH: libc::c_ulong = 0x2;

/// Most segments (`KEXEC_SEGMENT_MAX`).
pub const MOST_SEGMENTS: usize = 16;

/// Bytes and where they go; those from the end of `bytes` to `size` are zeroed.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Physical address, a multiple of the page size.
    pub at: u64,
    /// Bytes of memory, a multiple of the page size, at least as many as there are in `bytes`.
    pub size: u64,
}

/// When a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// On reboot(2) with `LINUX_REBOOT_CMD_KEXEC`.
    Reboot,
    /// On a panic; all segments lie in the reservation.
    Panic {
        /// Whether the kernel may write the core header anew when CPUs and memory come and go (6.5:
        /// "x86/crash: add x86 crash hotplug support"). Older kernels refuse the flag.
        updates_header: bool,
    },
}

const KEXEC_ON_CRASH: libc::c_ulong = 0x1;
const KEXEC_UPDATE_ELFCOREHDR: libc::c_ulong = 0x4;
const KEXEC_ARCH_X86_64: libc::c_ulong = 62 << 16;

/// `struct kexec_segment`.
#[repr(C)]
struct RawSegment {
    buf: *const c_void,
    bufsz: libc::size_t,
    mem: *const c_void,
    memsz: libc::size_t,
}

/// Loads segments; none unload what was loaded. `entry` is where the processor goes.
pub fn load(entry: u64, segments: &[Segment<'_>], start: Start) -> io::Result<()> {
    let raw: Vec<_> = segments.iter().map(RawSegment::of).collect();
    let flags = match start {
        Start::Reboot => 0,
        Start::Panic { updates_header: false } => KEXEC_ON_CRASH,
        Start::Panic { updates_header: true } => KEXEC_ON_CRASH | KEXEC_UPDATE_ELFCOREHDR,
    };
    // SAFETY:
    // - `raw` has as many entries as are announced, laid out as the kernel's own structure; the
    //   kernel copies it.
    // - Each `buf` points to `bufsz` readable bytes that are borrowed for the call. `mem` is a
    //   number to us.
    let result = unsafe {
        libc::syscall(libc::SYS_kexec_load, entry, raw.len(), raw.as_ptr(), flags | KEXEC_ARCH_X86_64)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl RawSegment {
    fn of(segment: &Segment<'_>) -> Self {
        Self {
            buf: segment.bytes.as_ptr().cast(),
            bufsz: segment.bytes.len(),
            mem: std::ptr::without_provenance(to_usize(segment.at)),
            memsz: to_usize(segment.size),
        }
    }
}

/// Has the kernel load `kernel` and `initrd` as the panic kernel, with `cmdline`. The kernel
/// appends `elfcorehdr=` itself.
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
