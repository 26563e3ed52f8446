//! Signs of enumerations in old BTF.
//!
//! Only since pahole 1.24 (with kernels of 6.0 on) does an enumeration say whether its values have a
//! sign (`kind_flag`). Before, all values are written as 32 bits with a sign. There, a value close to
//! 2^32 is a small negative number; without one, values of the upper half are bits.

use base::addr::to_usize;
use base::fields::{Fields, put};

use super::{Kind, TypeId, Types};

/// Values from here on are negative.
const NEGATIVE: u32 = 0xffff_0000;
/// `kind_flag` in the second word of a type.
const FLAG: u32 = 1 << 31;

impl Types {
    /// Whether enumerations say that they have signs.
    pub(super) fn has_signs(&self) -> bool {
        self.ids().filter_map(|id| self.get(id)).any(|found| match found.kind {
            Kind::Enum => found.flag,
            Kind::Enum64 => true,
            _ => false,
        })
    }

    /// Marks the enumerations from type `first` on that have negative values.
    pub(super) fn restore_signs(&mut self, first: u32) {
        for id in (first..self.len()).map(TypeId) {
            let Some(found) = self.get(id).filter(|found| found.kind == Kind::Enum) else { continue };
            let values = || found.enumerators().filter_map(|(_, value)| u32::try_from(value).ok());
            if !values().any(|value| value >= NEGATIVE) {
                continue;
            }
            let start = self.starts.get(to_usize(id.0.into())).copied().unwrap_or(0);
            let at = to_usize(start.into()).saturating_add(4);
            let info = Fields(&self.bytes).u32(at).unwrap_or(0) | FLAG;
            put(&mut self.bytes, at, &info.to_le_bytes());
        }
    }
}
