//! Kernels to be started by kexec: the capture kernel in its reservation, and the next kernel in
//! memory that nobody needs any more.
//!
//! ## Start here
//! - [`bzimage`], [`e820`], [`boot_params`], [`efi`], [`trampoline`]: builders, values in and bytes
//!   out.
//! - [`next`] lays the next kernel out from them. The crate `placement` does that for the capture
//!   image, on the host.
//! - [`machine`] reads what they need to know of the running kernel, and is the only one that reads
//!   anything.
//!
//! x86_64 only. The structures are those of Documentation/arch/x86/boot.rst, zero-page.rst and
//! arch/x86/include/uapi/asm/bootparam.h.
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

pub mod boot_params;
pub mod bzimage;
pub mod e820;
pub mod efi;
pub mod machine;
pub mod next;
pub mod sys;
pub mod trampoline;

pub use bzimage::BzImage;
pub use e820::{E820, Kind};
pub use machine::Machine;

/// Bytes in a page, the unit of segments.
pub const PAGE: u64 = 4096;

/// Bytes at a physical address, as kexec_load(2) places them. What lies between `bytes` and `size`
/// is zeroed.
#[derive(Clone, PartialEq, Eq)]
pub struct Segment<'a> {
    /// What it is, for messages.
    pub name: &'static str,
    /// Physical address, a multiple of [`PAGE`].
    pub at: u64,
    /// Its bytes.
    pub bytes: std::borrow::Cow<'a, [u8]>,
    /// Bytes of memory that it takes, a multiple of [`PAGE`].
    pub size: u64,
}

impl<'a> Segment<'a> {
    /// A segment that takes as many whole pages as `bytes` need.
    #[must_use]
    pub fn new(name: &'static str, at: u64, bytes: impl Into<std::borrow::Cow<'a, [u8]>>) -> Self {
        let bytes = bytes.into();
        let size = page_up(base::addr::to_u64(bytes.len()));
        Self { name, at, bytes, size }
    }

    /// The first address behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.at.saturating_add(self.size)
    }
}

/// Not its bytes: they may hold keys.
impl core::fmt::Debug for Segment<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} {:#x}-{:#x}", self.name, self.at, self.end())
    }
}

/// The next multiple of a page, at most the last one.
#[must_use]
pub fn page_up(address: u64) -> u64 {
    address.checked_next_multiple_of(PAGE).unwrap_or(!(PAGE.wrapping_sub(1)))
}

/// The last multiple of a page that is not above `address`.
#[must_use]
pub fn page_down(address: u64) -> u64 {
    address & !(PAGE.wrapping_sub(1))
}

/// The I/O port of the serial console on a kernel command line: `console=ttyS0` to `ttyS3` are
/// where PCs have had them (arch/x86/include/asm/serial.h). 0 without.
#[must_use]
pub fn serial_port(cmdline: &str) -> u16 {
    let consoles = cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix("console=ttyS"));
    let port = |number: &str| match number.split(',').next() {
        Some("0") => Some(0x3f8),
        Some("1") => Some(0x2f8),
        Some("2") => Some(0x3e8),
        Some("3") => Some(0x2e8),
        _ => None,
    };
    consoles.filter_map(port).next_back().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_serial_console_hears_complaints() {
        assert_eq!(serial_port("console=tty0 console=ttyS0,115200 x console=ttyS1"), 0x2f8);
        assert_eq!(serial_port("console=tty0 console=ttyAMA0 console=ttyS9"), 0);
    }
}
