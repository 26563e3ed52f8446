//! A block device with the LVM and LUKS layers under it: found or set up first, taken down last.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::block::{self, Device, NotFound};
use crate::stack::{self, Active, StackError};
use base::config::DeviceId;
use base::facts::Recorded;

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It is not there.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// What it stands on cannot be set up.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// Something else is on it.
    #[error("{0} was set up for {1}, which is not on it")]
    OtherContent(PathBuf, DeviceId),
    /// It takes no writes.
    #[error("{0} is read-only")]
    ReadOnly(PathBuf),
}

/// A device that is ready to be used.
#[derive(Debug)]
pub struct PreparedDevice {
    /// The device.
    pub device: Device,
    /// The layers that were set up for it. Whoever uses the device drops them after it.
    pub layers: Option<Active>,
}

impl PreparedDevice {
    /// Waits up to `wait` for the device, and tells PID 1 meanwhile; sets up its layers if the loader
    /// has recorded some for it.
    pub fn find(wanted: &DeviceId, recorded: Recorded<'_>, wait: Duration) -> Result<Self, DeviceError> {
        let name = wanted.to_string();
        let record = recorded.disk(wanted);
        let Some(stack) = recorded.stacks.iter().find(|stack| stack.target == name) else {
            let device = block::find_recorded(wanted, record, wait)?;
            if let Some(remark) = &device.remark {
                log::warn!("{remark}");
            }
            return Ok(Self { device, layers: None });
        };
        let layers = stack::activate(stack, wait)?;
        // That very device: a copy elsewhere may have the same UUID.
        let device = block::inspect(layers.top().unwrap_or(Path::new("")));
        // A link of udev's is not there any more; what it led to may be recorded.
        let content = match wanted {
            DeviceId::Link(_) => record.and_then(|record| record.content.as_ref()),
            _ => Some(wanted),
        };
        if content.is_some_and(|content| !device.matches(content)) {
            return Err(DeviceError::OtherContent(device.node, wanted.clone()));
        }
        Ok(Self { device, layers: Some(layers) })
    }

    /// The same, unless it is read-only.
    pub fn writable(self) -> Result<Self, DeviceError> {
        if self.device.read_only { Err(DeviceError::ReadOnly(self.device.node)) } else { Ok(self) }
    }
}
