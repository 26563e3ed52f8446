//! Which bytes of `struct page` belong to which field.

use crate::format::vmcoreinfo::VmcoreInfo;
use crate::kernel::KernelError;
use base::addr::to_usize;

/// The bytes of `struct page` that fields have claimed: two fields in one place are a damaged
/// VMCOREINFO.
pub(super) struct Claims {
    size: u64,
    taken: Vec<(u64, u64)>,
}

impl Claims {
    pub(super) fn new(size: u64) -> Self {
        Self { size, taken: Vec::new() }
    }

    /// The offset of a field of `len` bytes, which is aligned, inside the struct and apart from the
    /// others.
    pub(super) fn claim(&mut self, info: &VmcoreInfo, name: &str, len: u64) -> Result<usize, KernelError> {
        let at = info.offset(name).ok_or_else(|| KernelError::MissingKey(format!("OFFSET({name})")))?;
        let end = at.saturating_add(len);
        let apart = self.taken.iter().all(|&(start, stop)| end <= start || stop <= at);
        if end > self.size || !at.is_multiple_of(len) || !apart {
            return Err(KernelError::Absurd { what: "the offset of a member of struct page", value: at });
        }
        self.taken.push((at, end));
        Ok(to_usize(at))
    }
}
