//! Raw devices on the host: making one a target, and copying a capture off it.

mod cover;
pub mod recover;
mod repair;
mod report;

use std::path::Path;

use storage::format::rawdump::{Contents, State};
use storage::targets::raw::{Device, RawError};

pub use recover::{RecoverError, recover, refuse_collected};
pub use repair::Repair;
pub use report::{LogDamage, Recovered};

/// Makes the device at `node` an empty raw target and gives its UUID. What it holds is given up
/// only with `force`; a device in use is refused always.
pub fn prepare(node: &Path, force: bool) -> Result<String, RawError> {
    let mut device = Device::open(node)?;
    let name = node.display().to_string();
    let before = match device.contents()? {
        Contents::Blank => None,
        Contents::Ours(before) => {
            if !force && matches!(before.state, State::Writing | State::Sealed) {
                return Err(RawError::Uncollected { device: name, capture: before.capture });
            }
            Some(before)
        }
        Contents::Foreign(_) | Contents::Unknown if force => None,
        Contents::Foreign(found) => {
            return Err(RawError::Foreign { device: name, what: found.what, uuid: found.uuid });
        }
        Contents::Unknown => return Err(RawError::Unknown(name)),
    };
    device.format(before.as_deref())
}

/// Forgets the crashes that the raw target at `node` remembers, so that its captures are no loop
/// any more. A device that holds something else by now is not written to.
pub fn reset(node: &Path) -> Result<(), RawError> {
    Device::open(node)?.reset_ledger()
}
