//! What the targets stand on, and what final actions need, with the keys to it.

use std::path::Path;
use std::time::Duration;

use base::config::{Config, DeviceId};
use base::facts::stack::{Encrypted, Layer};
use base::facts::{Disk, Stack, View};
use storage::block::{self, Device};
use zeroize::Zeroizing;

use crate::boot_entry::Next;
use crate::drivers;
use crate::loader::LoadError;
use crate::place;
use crate::stack::{self, Found, StackError};
use crate::volume_key;

/// What the targets stand on, with the keys. What keeps a final action from its device is a
/// warning: there is a reboot instead.
pub(super) fn stacks(config: &Config, next: &Next, key_file: Option<&Path>) -> Result<Vec<Stack>, LoadError> {
    let mut stacks: Vec<Stack> = Vec::new();
    let mut secret = None;
    let devices = config.target.iter().filter_map(|target| Some((target, target.device()?)));
    for (target, device) in devices {
        let file = key_file.or(target.key_file().map(Path::new));
        if key_file.is_none_or(|file| file != Path::new("-")) {
            secret = None; // what comes from standard input comes once, for all targets
        }
        stacks.extend(stack(device, file, &mut secret)?);
    }
    for (device, _) in next.devices() {
        let name = device.to_string();
        if stacks.iter().any(|stack| stack.target == name) {
            continue;
        }
        let file = key_file.or(config.boot.key_file.as_deref().map(Path::new));
        if key_file.is_none_or(|file| file != Path::new("-")) {
            secret = None;
        }
        match stack(device, file, &mut secret) {
            Ok(stack) => stacks.extend(stack),
            Err(error) => {
                log::warn!("{name} of [boot], a reboot instead: {}", base::log::chain(&error));
            }
        }
    }
    Ok(stacks)
}

/// What a device stands on; `None` if that is a disk, or it is not there.
fn stack(
    id: &DeviceId,
    key_file: Option<&Path>,
    secret: &mut Option<Zeroizing<Vec<u8>>>,
) -> Result<Option<Stack>, LoadError> {
    let Ok(device) = block::find(id, Duration::ZERO) else {
        log::warn!("{id} is not on this host now; if it stands on LVM or LUKS, a capture cannot use it");
        return Ok(None);
    };
    let name_of =
        |device: &Device| device.node.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let devices = drivers::with_further(&device).unwrap_or_else(|error| {
        log::warn!("{id}: {}", base::log::chain(&error));
        vec![device.clone()]
    });
    // The uppermost device, which is mounted, is the last one; of a btrfs each of them will do.
    let mut names: Vec<String> = devices.iter().map(name_of).collect();
    names.sort_by_key(|name| (stack::is_stacked(name), *name == name_of(&device)));
    if !names.iter().any(|name| stack::is_stacked(name)) {
        for name in &names {
            stack::discover(name)?; // software RAID is refused, with the reason
        }
        return Ok(None);
    }
    if matches!(id, DeviceId::Path(_)) {
        return Err(StackError::Number(id.to_string()).into());
    }
    volume_key::protect_process(); // a LUKS1 table has its key in it
    let mut found: Vec<Found> = Vec::new();
    for name in &names {
        let new = stack::discover(name)?.into_iter().filter(|one| !found.contains(one)).collect::<Vec<_>>();
        found.extend(new);
    }
    let mut layers = Vec::new();
    for device in found {
        layers.push(match device {
            Found::Lvm(volume) => Layer::Lvm(volume),
            Found::Luks { header, node } => {
                if secret.is_none() {
                    *secret = Some(volume_key::secret(key_file, &id.to_string())?);
                }
                let secret = secret.as_ref().map(|secret| secret.as_slice()).unwrap_or_default();
                let key = volume_key::volume_key(&node, &header, secret)?;
                Layer::Luks(Encrypted { header, key })
            }
        });
    }
    Ok(Some(Stack { target: id.to_string(), layers }))
}

/// Which devices the names of targets and final actions mean now.
pub(super) fn disks(config: &Config, next: &Next) -> Vec<Disk> {
    let mut disks: Vec<Disk> = Vec::new();
    let of_targets = config.target.iter().filter_map(|target| target.device());
    for id in of_targets.chain(next.devices().into_iter().map(|(id, _)| id)) {
        let name = id.to_string();
        if disks.iter().any(|disk| disk.device == name) {
            continue;
        }
        if let Ok(device) = block::find(id, Duration::ZERO) {
            disks.extend(place::records(&name, &device));
        }
    }
    disks
}

/// Where the host sees the targets' directories; says it, and what is wrong with it. A machine whose dumps
/// will be at another place is better off than one without a panic kernel.
pub(super) fn views(config: &Config) -> Vec<View> {
    for told in place::tell(config) {
        log::info!("{}", told.text);
        if let Some(remark) = &told.remark {
            log::warn!("{remark}");
        }
        if let Some((why, remedy)) = told.trouble {
            log::warn!("target {}: {why}; {remedy}", told.target);
        }
    }
    place::views(config)
}
