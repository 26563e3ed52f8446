//! What the targets stand on, with the keys to it.

use std::path::Path;
use std::time::Duration;

use capture::config::{Config, DeviceId};
use capture::facts::Stack;
use capture::facts::stack::{Encrypted, Layer};
use capture::setup::block;

use crate::loader::LoadError;
use crate::stack::{self, Found, StackError};
use crate::volume_key;

/// What the targets stand on, with the keys.
pub(super) fn stacks(config: &Config, key_file: Option<&Path>) -> Result<Vec<Stack>, LoadError> {
    let mut stacks = Vec::new();
    let mut secret = None;
    for target in &config.target {
        let Ok(device) = block::find(&target.device, Duration::ZERO, &|| ()) else {
            log::warn!(
                "target {} is not on this host now; if it stands on LVM or LUKS, a capture cannot use it",
                target.device
            );
            continue;
        };
        let name = device.node.file_name().unwrap_or_default().to_string_lossy();
        if !stack::is_stacked(&name) {
            stack::discover(&name)?; // software RAID is refused, with the reason
            continue;
        }
        if matches!(target.device, DeviceId::Path(_)) {
            return Err(StackError::Number(target.device.to_string()).into());
        }
        volume_key::protect_process(); // a LUKS1 table has its key in it
        let found = stack::discover(&name)?;
        let mut layers = Vec::new();
        if key_file.is_none_or(|file| file != Path::new("-")) {
            secret = None; // what comes from standard input comes once, for all targets
        }
        for device in found {
            layers.push(match device {
                Found::Lvm(volume) => Layer::Lvm(volume),
                Found::Luks { header, node } => {
                    if secret.is_none() {
                        let file = key_file.or(target.key_file.as_deref().map(Path::new));
                        secret = Some(volume_key::secret(file, &target.device.to_string())?);
                    }
                    let secret = secret.as_ref().map(|secret| secret.as_slice()).unwrap_or_default();
                    let key = volume_key::volume_key(&node, &header, secret)?;
                    Layer::Luks(Encrypted { header, key })
                }
            });
        }
        stacks.push(Stack { target: target.device.to_string(), layers });
    }
    Ok(stacks)
}
