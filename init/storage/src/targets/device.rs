//! The block device of a target, and the LVM and LUKS layers under it: set up first, taken down last.

use std::path::Path;
use std::time::Duration;

use crate::block::{self, Device};
use crate::stack::{self, Active};
use base::config::DeviceId;
use vmcore::target::{Capture, TargetError};

/// A device that can take a dump.
#[derive(Debug)]
pub(super) struct TargetDevice {
    pub(super) device: Device,
    /// The layers that were set up for it. Whoever uses the device drops them after it.
    pub(super) layers: Option<Active>,
}

impl TargetDevice {
    /// Finds the device; sets up its layers if the loader recorded some. Fails if it does not appear
    /// in time, or is read-only.
    pub(super) fn find(wanted: &DeviceId, wait: Duration, capture: Capture<'_>) -> Result<Self, TargetError> {
        let name = wanted.to_string();
        let target_device = match capture.stacks.iter().find(|stack| stack.target == name) {
            None => Self { device: block::find(wanted, wait)?, layers: None },
            Some(stack) => {
                let layers = stack::activate(stack, wait)?;
                // That very device: a copy elsewhere may have the same UUID.
                let device = block::inspect(layers.top().unwrap_or(Path::new("")));
                if !device.matches(wanted) {
                    let node = device.node.display();
                    return Err(TargetError::new(format!(
                        "{node} was set up for {wanted}, which is not on it"
                    )));
                }
                Self { device, layers: Some(layers) }
            }
        };
        if target_device.device.read_only {
            return Err(TargetError::new(format!("{} is read-only", target_device.device.node.display())));
        }
        Ok(target_device)
    }
}
