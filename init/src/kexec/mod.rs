//! Kernels to be started by kexec: the capture kernel in its reservation, and the next kernel in memory that nobody needs any more.
//!
//! - [`bzimage`], [`e820`], [`boot_params`], [`efi`], [`core_header`], [`trampoline`]: builders, values in and bytes out.
//! - [`capture`] lays the capture image out from them, [`next`] the next kernel.
//! - [`machine`] reads what they need to know of the running kernel, and is the only one that reads anything.
//!
//! x86_64 only. The structures are those of Documentation/arch/x86/boot.rst, zero-page.rst and arch/x86/include/uapi/asm/bootparam.h.

pub mod boot_params;
pub mod bzimage;
pub mod capture;
pub mod core_header;
pub mod e820;
pub mod efi;
pub mod machine;
pub mod next;
pub mod trampoline;

pub use bzimage::BzImage;
pub use e820::{E820, Kind};
pub use machine::Machine;

/// Bytes in a page, the unit of segments.
pub const PAGE: u64 = 4096;

/// Bytes at a physical address, as kexec_load(2) places them. What lies between `bytes` and `size` is zeroed.
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
    fn new(name: &'static str, at: u64, bytes: impl Into<std::borrow::Cow<'a, [u8]>>) -> Self {
        let bytes = bytes.into();
        let size = page_up(crate::addr::to_u64(bytes.len()));
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
