//! Which drivers the capture kernel needs to reach a target device, found on the running host: the
//! device's chain in sysfs, each link by its driver's module and by what its modalias matches in
//! the capture kernel.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::config::{DeviceId, FsType, NfsVersion, Place, Target};
use base::facts::Recorded;
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
    /// A further device of a file system.
    #[error("a further device of the file system on {0}")]
    Further(PathBuf, #[source] block::NotFound),
    /// Some devices of a btrfs.
    #[error(
        "{node} is one of {count} devices of a btrfs, and only {found} are on this host: attach the others"
    )]
    Members {
        /// The device.
        node: PathBuf,
        /// How many there should be.
        count: u64,
        /// How many there are.
        found: usize,
    },
    /// It takes no captures.
    #[error("{0} cannot take captures: {1}; name another target")]
    Obstacle(PathBuf, &'static str),
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
            let fstype = wanted.fstype.or(found.filesystem.as_ref().map(|fs| fs.kind));
            if let Some(obstacle) = found.needs.obstacle {
                return Err(DriversError::Obstacle(found.node, obstacle));
            }
            Some(fstype.ok_or(DriversError::NoFilesystem(found.node))?)
        }
        _ => None,
    };
    Ok(Drivers { modules, fstype })
}

/// A device and the further ones of the file system on it: all of a btrfs, the journal of an ext4. The
/// device itself comes first.
pub fn with_further(device: &Device) -> Result<Vec<Device>, DriversError> {
    let mut devices = block::members(device, Recorded::default(), Duration::ZERO);
    let own = devices.iter().filter(|member| member.filesystem == device.filesystem).count();
    if let Some(member) = device.needs.member.as_ref().filter(|member| u64::try_from(own) != Ok(member.count))
    {
        let (node, count) = (device.node.clone(), member.count);
        return Err(DriversError::Members { node, count, found: own });
    }
    if let Some(uuid) = &device.needs.journal {
        let journal = block::journal(uuid, Duration::ZERO);
        devices.push(journal.map_err(|error| DriversError::Further(device.node.clone(), error))?);
    }
    Ok(devices)
}

/// Finds a device on this host, and the modules by which the capture kernel reaches it.
pub fn reach(device: &DeviceId, tree: &ModuleTree) -> Result<(Device, Vec<String>), DriversError> {
    let found = block::find(device, Duration::ZERO)?;
    let mut modules = Vec::new();
    for one in with_further(&found)? {
        modules.extend(modules_under(&one, tree)?);
    }
    modules.extend(found.needs.modules.iter().map(|name| format!("-{name}")));
    let mut seen = BTreeSet::new();
    modules.retain(|name| seen.insert(name.clone()));
    Ok((found, modules))
}

/// The modules by which one device is reached.
fn modules_under(device: &Device, tree: &ModuleTree) -> Result<Vec<String>, DriversError> {
    let name = device.node.file_name().unwrap_or_default().to_string_lossy();
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
    Ok(modules)
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
        let controllers: Vec<PathBuf> = entries.filter(|path| path.join("transport").exists()).collect();
        if controllers.iter().any(|path| is_on_fabric(path)) {
            return Err("network (NVMe over Fabrics)");
        }
        return Ok(controllers.into_iter().filter_map(|path| fs::canonicalize(path).ok()).collect());
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

/// Whether an NVMe controller is reached over a network.
fn is_on_fabric(controller: &Path) -> bool {
    fs::read_to_string(controller.join("transport")).is_ok_and(|transport| transport.trim() != "pcie")
}

/// Modules of every device from the root bus to `sysfs`, the outermost first.
pub(crate) fn modules_on_the_way(sysfs: &Path, tree: &ModuleTree) -> Vec<String> {
    let mut chain = Vec::new();
    add_chain(sysfs, 0, &mut chain);
    let mut seen = BTreeSet::new();
    let mut modules = Vec::new();
    for device in &chain {
        let alias = fs::read_to_string(device.join("modalias")).unwrap_or_default();
        let name_of = |link: &str| {
            Some(fs::canonicalize(device.join(link)).ok()?.file_name()?.to_string_lossy().into_owned())
        };
        // A driver without a link to its module may have the module's name.
        let loaded = name_of("driver/module").or_else(|| name_of("driver"));
        // The running kernel's driver by name too: it may have been bound by hand, or be renamed in
        // the other.
        let names = tree.providers(alias.trim()).into_iter().chain(loaded.filter(|name| tree.has(name)));
        modules.extend(names.filter(|name| seen.insert(name.clone())));
    }
    modules
}

/// How far a device may depend on others that depend on others.
const MAX_SUPPLIERS: usize = 4;

/// The devices from the root bus to `sysfs`, each behind those without which it does not work and which
/// are no parents of it: a Thunderbolt controller makes the PCI tunnel to a disk, a clock or a power supply
/// is elsewhere (Documentation/ABI/testing/sysfs-devices-supplier).
fn add_chain(sysfs: &Path, depth: usize, chain: &mut Vec<PathBuf>) {
    let mut own: Vec<&Path> = sysfs
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.ends_with("sys/devices"))
        .collect();
    own.reverse();
    for device in own {
        let entries = fs::read_dir(device).into_iter().flatten().flatten();
        let links = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("supplier:"));
        let mut suppliers: Vec<PathBuf> =
            links.filter_map(|link| fs::canonicalize(link.path().join("supplier")).ok()).collect();
        suppliers.sort();
        for supplier in suppliers.iter().filter(|_| depth < MAX_SUPPLIERS) {
            if !chain.contains(supplier) {
                add_chain(supplier, depth.saturating_add(1), chain);
            }
        }
        if !chain.iter().any(|other| other == device) {
            chain.push(device.to_owned());
        }
    }
}

/// What the kernel asks for while it mounts a file system, beside the module itself and what that names
/// as its dependencies: by `request_module()`, which has no modprobe in the capture. All that features of
/// such a file system can make it ask for is here, since an image may be built where its target is not,
/// and a feature may be switched on later. What a kernel lacks or has built in is left out.
const ASKED_FOR: [(FsType, &[&str]); 4] = [
    // Checksums (metadata_csum); quota, project; casefold.
    (FsType::Ext4, &["crypto-crc32c", "crc32c", "quota_v2", "utf8data"]),
    (FsType::Xfs, &["crypto-crc32c", "crc32c"]),
    // Each kind of checksum that mkfs.btrfs has.
    (
        FsType::Btrfs,
        &[
            "crypto-crc32c",
            "crc32c",
            "crypto-xxhash64",
            "xxhash64",
            "crypto-sha256",
            "sha256",
            "crypto-blake2b-256",
            "blake2b-256",
        ],
    ),
    // The character sets that its default mount options want.
    (FsType::Vfat, &["nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"]),
];

/// The modules of a file system.
#[must_use]
pub fn filesystem_modules(fstype: FsType, tree: &ModuleTree) -> Vec<String> {
    let mut modules = vec![fstype.name().to_owned()];
    for (_, names) in ASKED_FOR.iter().filter(|(kind, _)| *kind == fstype) {
        let is_there = |name: &&&str| tree.has(name) || !tree.providers(name).is_empty();
        modules.extend(names.iter().filter(is_there).map(|name| format!("-{name}")));
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

    #[test]
    fn a_namespace_over_the_network_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (transport, is_fabric) in [("pcie", false), ("tcp", true), ("rdma", true), ("fc", true)] {
            let path = dir.path().join(transport);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("transport"), format!("{transport}\n")).unwrap();
            assert_eq!(is_on_fabric(&path), is_fabric, "{transport}");
        }
    }

    fn tree(dep: &str, builtin: &str, alias: &str) -> ModuleTree {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("modules.dep", dep), ("modules.builtin", builtin), ("modules.alias", alias)] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        ModuleTree::read(dir.path()).unwrap()
    }

    #[test]
    fn what_a_mount_asks_for_is_packed_where_the_kernel_has_it_as_a_module() {
        let dep = "k/ext4.ko:\nk/quota_v2.ko: k/quota_tree.ko\nk/quota_tree.ko:\nk/utf8data.ko:\nk/xfs.ko:\n\
                   k/btrfs.ko:\nk/xxhash_generic.ko:\nk/blake2b_generic.ko:\nk/vfat.ko:\nk/nls_cp437.ko:\n\
                   k/crc32c_generic.ko:\n";
        let alias = "alias crypto-xxhash64 xxhash_generic\nalias crypto-blake2b-256 blake2b_generic\n\
                     alias crypto-crc32c crc32c_generic\n";
        let tree = tree(dep, "k/sha256.ko\nk/nls_utf8.ko\n", alias);
        let packed = |fstype| {
            let modules = tree.closure(&filesystem_modules(fstype, &tree)).unwrap();
            modules.into_iter().map(|module| module.name).collect::<Vec<_>>()
        };
        let expected = [
            (FsType::Ext4, vec!["ext4", "crc32c_generic", "quota_tree", "quota_v2", "utf8data"]),
            (FsType::Xfs, vec!["xfs", "crc32c_generic"]),
            (FsType::Btrfs, vec!["btrfs", "crc32c_generic", "xxhash_generic", "blake2b_generic"]),
            (FsType::Vfat, vec!["vfat", "nls_cp437"]),
        ];
        for (fstype, names) in expected {
            assert_eq!(packed(fstype), names, "{fstype:?}");
        }
    }

    #[test]
    fn a_device_needs_what_supplies_it() {
        let dir = tempfile::tempdir().unwrap();
        let devices = fs::canonicalize(dir.path()).unwrap().join("sys/devices");
        // A disk behind a PCI tunnel that a Thunderbolt controller makes.
        let (disk, host) = (devices.join("pci0/0d.0/nvme"), devices.join("pci0/0d.2"));
        let link = devices.join("virtual/devlink/a--b");
        for path in [&disk, &host, &link] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(disk.join("modalias"), "pci:nvme\n").unwrap();
        fs::write(host.join("modalias"), "pci:thunderbolt\n").unwrap();
        std::os::unix::fs::symlink(&host, link.join("supplier")).unwrap();
        std::os::unix::fs::symlink(&link, devices.join("pci0/0d.0/supplier:pci:0d.2")).unwrap();
        let alias = "alias pci:nvme nvme\nalias pci:thunderbolt thunderbolt\n";
        let tree = tree("k/nvme.ko:\nk/thunderbolt.ko:\n", "", alias);
        assert_eq!(modules_on_the_way(&disk, &tree), ["thunderbolt", "nvme"]);
    }
}
