//! Which drivers the capture kernel needs to reach a target device, found on the running host: the
//! device's chain in sysfs, each link by its driver's module and by what its modalias matches in
//! the capture kernel.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::config::{DeviceId, FsType, NfsVersion, Place, Target};
use storage::block::{self, Device};

use crate::modules::ModuleTree;
use crate::stack::{self, StackError};

/// Why the drivers could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum DriversError {
    /// The device is not on this host.
    #[error(
        "the target device is not on this host; to build for another machine, name image.modules and \
         target.fstype"
    )]
    Device(#[from] block::NotFound),
    /// A device on other devices.
    #[error(
        "target device {0} is a {1} device, which the capture kernel cannot set up yet: \
         use a file system on a partition or a whole disk"
    )]
    Stacked(PathBuf, &'static str),
    /// LVM or LUKS that the capture could not set up.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// No file system that we know.
    #[error("{0} holds no ext4, xfs, btrfs or vfat file system, and target.fstype does not name one")]
    NoFilesystem(PathBuf),
}

/// What a target device needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drivers {
    /// Modules by name, for the capture kernel.
    pub modules: Vec<String>,
    /// The file system on it; a raw target has none.
    pub fstype: Option<FsType>,
}

/// Finds the drivers of a target's device on this host. One on the network has none.
pub fn discover(target: &Target, tree: &ModuleTree) -> Result<Drivers, DriversError> {
    let Some(device) = target.device() else { return Ok(Drivers { modules: Vec::new(), fstype: None }) };
    let (found, modules) = reach(device, tree)?;
    let fstype = match &target.place {
        Place::Filesystem(wanted) => {
            let fstype = wanted.fstype.or(found.filesystem.map(|fs| fs.kind));
            Some(fstype.ok_or(DriversError::NoFilesystem(found.node))?)
        }
        _ => None,
    };
    Ok(Drivers { modules, fstype })
}

/// Finds a device on this host, and the modules by which the capture kernel reaches it.
pub fn reach(device: &DeviceId, tree: &ModuleTree) -> Result<(Device, Vec<String>), DriversError> {
    let found = block::find(device, Duration::ZERO)?;
    let name = found.node.file_name().unwrap_or_default().to_string_lossy();
    let under = if stack::is_stacked(&name) {
        Under { disks: stack::bottom(&name), modules: stack::modules(&stack::discover(&name)?) }
    } else {
        Under { disks: vec![name.into_owned()], modules: Vec::new() }
    };
    let mut links = Vec::new();
    for disk in &under.disks {
        let sysfs = fs::canonicalize(Path::new("/sys/class/block").join(disk)).unwrap_or_default();
        links.extend(
            physical(&sysfs).map_err(|kind| DriversError::Stacked(Path::new("/dev").join(disk), kind))?,
        );
    }
    let mut modules: Vec<String> = links.iter().flat_map(|link| modules_on_the_way(link, tree)).collect();
    modules.extend(under.modules);
    let mut seen = BTreeSet::new();
    modules.retain(|name| seen.insert(name.clone()));
    Ok((found, modules))
}

/// What a target stands on.
struct Under {
    disks: Vec<String>,
    modules: Vec<String>,
}

/// The devices on buses that a block device in sysfs stands on: itself, or the controllers of an
/// NVMe subsystem. The error says what kind of device stands on no bus.
fn physical(sysfs: &Path) -> Result<Vec<PathBuf>, &'static str> {
    let text = sysfs.to_string_lossy();
    if let Some((subsystem, _)) =
        text.split_once("/nvme-subsystem/").and_then(|(_, rest)| rest.split_once('/'))
    {
        let dir = Path::new("/sys/class/nvme-subsystem").join(subsystem);
        let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let controllers = entries.filter(|path| path.join("transport").exists());
        return Ok(controllers.filter_map(|path| fs::canonicalize(path).ok()).collect());
    }
    let name = sysfs.iter().skip_while(|part| *part != "block").nth(1).unwrap_or_default().to_string_lossy();
    match &text {
        _ if name.starts_with("dm-") => Err("device-mapper (LVM or LUKS)"),
        _ if name.starts_with("md") => Err("software RAID"),
        text if text.contains("/virtual/") => Err("virtual"),
        text if text.contains("/session") => Err("network (iSCSI)"),
        _ => Ok(vec![sysfs.to_owned()]),
    }
}

/// Modules of every device from the root bus to `sysfs`, the outermost first.
pub(crate) fn modules_on_the_way(sysfs: &Path, tree: &ModuleTree) -> Vec<String> {
    let mut chain: Vec<&Path> =
        sysfs.ancestors().take_while(|path| *path != Path::new("/sys/devices")).collect();
    chain.reverse();
    let mut seen = BTreeSet::new();
    let mut modules = Vec::new();
    for device in chain {
        let alias = fs::read_to_string(device.join("modalias")).unwrap_or_default();
        let driver = fs::canonicalize(device.join("driver/module")).ok();
        let loaded = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        // The running kernel's driver by name too: it may have been bound by hand, or be renamed in
        // the other.
        let names = tree.providers(alias.trim()).into_iter().chain(loaded.filter(|name| tree.has(name)));
        modules.extend(names.filter(|name| seen.insert(name.clone())));
    }
    modules
}

/// The modules of a file system; for vfat also the character sets that its default mount options
/// want.
#[must_use]
pub fn filesystem_modules(fstype: FsType, tree: &ModuleTree) -> Vec<String> {
    let mut modules = vec![fstype.name().to_owned()];
    if fstype == FsType::Vfat {
        let charsets = ["nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"];
        modules.extend(charsets.iter().filter(|name| tree.has(name)).map(|&name| name.to_owned()));
    }
    modules
}

/// The modules by which the kernel speaks to an NFS server.
#[must_use]
pub fn nfs_modules(version: NfsVersion) -> Vec<String> {
    let of_version = if version == NfsVersion::V3 { "nfsv3" } else { "nfsv4" };
    ["nfs", of_version].map(str::to_owned).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_on_no_bus_are_refused_by_kind() {
        let kind = |path: &str| physical(Path::new(path));
        let disk = "/sys/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda1";
        assert_eq!(kind(disk), Ok(vec![PathBuf::from(disk)]));
        assert_eq!(kind("/sys/devices/virtual/block/dm-0"), Err("device-mapper (LVM or LUKS)"));
        assert_eq!(kind("/sys/devices/virtual/block/md127/md127p1"), Err("software RAID"));
        assert_eq!(kind("/sys/devices/virtual/block/loop5"), Err("virtual"));
        assert_eq!(
            kind("/sys/devices/platform/host2/session1/target2:0:0/2:0:0:1/block/sda"),
            Err("network (iSCSI)")
        );
        assert_eq!(kind("/sys/devices/virtual/nvme-subsystem/no-such/nvme0n1"), Ok(vec![]));
    }
}
