//! `blocks.jsonl`: disks and their partitions, with what they are made of: device-mapper and md as well.

mod class;
mod stacked;

use ::processes::system::System;
use base::addr::VirtAddr;
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::{layouts, tree};
use vmcore::kernel::KernelError;

use self::class::Class;
use self::stacked::Stacked;
use super::{Artefact, Ground, Row, Rows, Stop};
use crate::mounts;

/// Names in a directory of sysfs that are believed.
const MAX_NAMES: usize = 10_000;
/// Bytes of a sector, as sizes are counted.
const SECTOR: u64 = 512;
/// Bytes of `gendisk.disk_name` (`DISK_NAME_LEN`), and of the name of a module (`MODULE_NAME_LEN`).
const NAME: usize = 32;
const MODULE: usize = 56;
/// Number and lock of a partition in `block_device.__bd_flags` (6.10, 1116b9fa15c0).
const NUMBER: u32 = 0xff;
const READ_ONLY: u32 = 1 << 8;
/// A device's number: `MINORBITS`.
const MINOR_BITS: u32 = 20;

layouts! {
    DeviceLayout of "device" {
        name: "kobj.name",
        parent: "parent",
        number: "devt",
    }
    DiskLayout of "gendisk" {
        name: "disk_name",
        queue: "queue",
        driver: "fops",
        private: "private_data",
        below: "slave_dir",
    }
    DriverLayout of "block_device_operations" {
        module: "owner",
    }
    ModuleLayout of "module" {
        name: "name",
    }
    QueueLayout of "request_queue" {
        requests: "nr_requests",
    } [
        elevator: "elevator",
        sector: "limits.logical_block_size",
        hardware: "nr_hw_queues",
    ]
    ElevatorLayout of "elevator_queue" {
        kind: "type",
    }
    KindLayout of "elevator_type" {
        name: "elevator_name",
    }
    DirectoryLayout of "kobject" {
        node: "sd",
    }
    NodeLayout of "kernfs_node" {
        name: "name",
        children: "dir.children",
        tree: "rb",
    }
}

layouts! {
    // Before 5.11 (0d02129e76ed) a partition was a structure of its own, and a disk had one for all of it.
    OldLayout of "hd_struct" {
        device: "__dev",
        start: "start_sect",
        sectors: "nr_sects",
        number: "partno",
        read_only: "policy",
        above: "holder_dir",
    }
    PartLayout of "block_device" {
        device: "bd_device",
        disk: "bd_disk",
        start: "bd_start_sect",
    } [
        sectors: "bd_nr_sectors",
        number: "bd_partno",
        read_only: "bd_read_only",
        flags: "__bd_flags",
        above: "bd_holder_dir",
        openers: "bd_openers",
    ]
}

/// What a partition is in this kernel.
enum Parts {
    Old(OldLayout, u64),
    New(PartLayout),
}

/// The members of a partition.
struct Part {
    at: VirtAddr,
    disk: Result<VirtAddr, KernelError>,
    number: Result<u32, KernelError>,
    start: Result<u64, KernelError>,
    sectors: Option<Result<u64, KernelError>>,
    read_only: Option<Result<bool, KernelError>>,
    above: Option<u64>,
    openers: Option<Result<u32, KernelError>>,
}

impl Parts {
    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        if let (Ok(old), Some(first)) = (OldLayout::ask(known), known.offset("gendisk", "part0")) {
            return Ok(Self::Old(old, first));
        }
        Ok(Self::New(PartLayout::ask(known)?))
    }

    /// The partition that a device is; a disk is one, too.
    fn of(&self, system: &System<'_>, layout: &DeviceLayout, device: VirtAddr) -> Part {
        match self {
            Self::Old(old, first) => {
                let part = |device: VirtAddr| VirtAddr(device.0.wrapping_sub(old.device));
                let disk = |part: VirtAddr| VirtAddr(part.0.wrapping_sub(*first));
                let at = part(device);
                let number = system.half(at, old.number, "hd_struct.partno");
                let whole = match &number {
                    Ok(0) => Ok(device),
                    _ => system.follow(device, layout.parent, "device.parent"),
                };
                Part {
                    at,
                    disk: whole.map(|device| disk(part(device))),
                    number,
                    start: system.word(at, old.start, "hd_struct.start_sect"),
                    sectors: Some(system.word(at, old.sectors, "hd_struct.nr_sects")),
                    read_only: Some(
                        system.half(at, old.read_only, "hd_struct.policy").map(|policy| policy != 0),
                    ),
                    above: Some(old.above),
                    openers: None,
                }
            }
            Self::New(new) => {
                let at = VirtAddr(device.0.wrapping_sub(new.device));
                let flags = |offset| system.half(at, offset, "block_device.__bd_flags");
                let byte = |offset| system.byte(at, offset, "a member of block_device");
                let number = match (new.flags, new.number) {
                    (Some(offset), _) => flags(offset).map(|flags| flags & NUMBER),
                    (None, Some(offset)) => byte(offset).map(u32::from),
                    (None, None) => Err(KernelError::MissingKey("block_device.bd_partno".to_owned())),
                };
                let read_only = match (new.flags, new.read_only) {
                    (Some(offset), _) => Some(flags(offset).map(|flags| flags & READ_ONLY != 0)),
                    (None, Some(offset)) => Some(byte(offset).map(|byte| byte & 1 != 0)),
                    (None, None) => None,
                };
                Part {
                    at,
                    disk: system.follow(at, new.disk, "block_device.bd_disk"),
                    number,
                    start: system.word(at, new.start, "block_device.bd_start_sect"),
                    sectors: new.sectors.map(|offset| system.word(at, offset, "block_device.bd_nr_sectors")),
                    read_only,
                    above: new.above,
                    openers: new.openers.map(|offset| system.half(at, offset, "block_device.bd_openers")),
                }
            }
        }
    }
}

pub(super) struct Layout {
    class: Class,
    device: DeviceLayout,
    parts: Parts,
    disk: DiskLayout,
    driver: DriverLayout,
    module: ModuleLayout,
    queue: QueueLayout,
    scheduler: Option<(ElevatorLayout, KindLayout)>,
    directory: Option<(DirectoryLayout, NodeLayout)>,
    stacked: Stacked,
}

impl Artefact for Layout {
    const NAME: &'static str = "blocks";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            class: Class::ask(known)?,
            device: DeviceLayout::ask(known)?,
            parts: Parts::ask(known)?,
            disk: DiskLayout::ask(known)?,
            driver: DriverLayout::ask(known)?,
            module: ModuleLayout::ask(known)?,
            queue: QueueLayout::ask(known)?,
            scheduler: ElevatorLayout::ask(known).ok().zip(KindLayout::ask(known).ok()),
            directory: DirectoryLayout::ask(known).ok().zip(NodeLayout::ask(known).ok()),
            stacked: Stacked::ask(known),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let block = self.class.symbol.ok_or_else(|| Stop::no_symbol("block_class"))?;
        let (devices, fault) = self.class.devices(ground.system, block);
        for device in devices {
            let part = self.parts.of(ground.system, &self.device, device);
            rows.add(&self.row(ground, device, &part))?;
        }
        fault.map_or(Ok(()), |why| rows.miss("block devices", &why))
    }
}

impl Layout {
    fn row(&self, ground: &Ground<'_>, device: VirtAddr, part: &Part) -> Row {
        let system = ground.system;
        let chain = |error: &KernelError| base::log::chain(error);
        let mut row = Row::at(part.at);
        let is_disk = matches!(part.number, Ok(0));
        row.set("linux.block.what", if is_disk { "disk" } else { "partition" });
        row.read("linux.block.name", mounts::text(system, device, self.device.name));
        let number = system.half(device, self.device.number, "device.devt");
        let minor = (1_u32 << MINOR_BITS).wrapping_sub(1);
        row.read(
            "linux.block.device",
            number.map(|number| format!("{}:{}", number >> MINOR_BITS, number & minor)),
        );
        let bytes = |sectors: &u64| sectors.saturating_mul(SECTOR);
        match &part.sectors {
            Some(Ok(sectors)) => row.set("linux.block.bytes", bytes(sectors)),
            Some(Err(error)) => row.error("linux.block.bytes", &chain(error)),
            None => {}
        }
        match &part.read_only {
            Some(Ok(read_only)) => row.set("linux.block.read_only", *read_only),
            Some(Err(error)) => row.error("linux.block.read_only", &chain(error)),
            None => {}
        }
        match &part.openers {
            Some(Ok(openers)) => row.set("linux.block.openers", *openers),
            Some(Err(error)) => row.error("linux.block.openers", &chain(error)),
            None => {}
        }
        if let Some(above) = part.above {
            self.names(ground, (part.at, above), "linux.block.used_by", &mut row);
        }
        match (&part.number, &part.disk) {
            (Ok(0), Ok(disk)) => self.disk(ground, *disk, &mut row),
            (Ok(0), Err(error)) => row.error("linux.block.disk", &chain(error)),
            (Ok(number), disk) => {
                row.set("linux.block.partition", *number);
                match &part.start {
                    Ok(sectors) => row.set("linux.block.start", bytes(sectors)),
                    Err(error) => row.error("linux.block.start", &chain(error)),
                }
                match disk.as_ref().map(|disk| self.disk_name(ground, *disk)) {
                    Ok(Ok(name)) => row.set("linux.block.disk", name),
                    Ok(Err(error)) => row.error("linux.block.disk", &chain(&error)),
                    Err(error) => row.error("linux.block.disk", &chain(error)),
                }
            }
            (Err(error), _) => row.error("linux.block.partition", &chain(error)),
        }
        row
    }

    fn disk_name(&self, ground: &Ground<'_>, disk: VirtAddr) -> Result<String, KernelError> {
        let bytes = ground.system.bytes(disk, self.disk.name, NAME, "gendisk.disk_name")?;
        Ok(Fields(&bytes).text(0, NAME).unwrap_or_default())
    }

    /// What only a disk has.
    fn disk(&self, ground: &Ground<'_>, disk: VirtAddr, row: &mut Row) {
        let system = ground.system;
        match self.driver(system, disk) {
            Ok(Some(name)) => row.set("linux.block.driver", name),
            // It is a part of the kernel.
            Ok(None) => {}
            Err(error) => row.error("linux.block.driver", &base::log::chain(&error)),
        }
        match system.pointer(disk, self.disk.queue, "gendisk.queue") {
            Ok(Some(queue)) => self.queue(ground, queue, row),
            Ok(None) => {}
            Err(error) => row.error("linux.block.requests", &base::log::chain(&error)),
        }
        self.names(ground, (disk, self.disk.below), "linux.block.made_of", row);
        match self.disk_name(ground, disk) {
            Ok(name) => {
                let private = system.pointer(disk, self.disk.private, "gendisk.private_data");
                self.stacked.of(ground, &name, private, row);
            }
            Err(error) => row.error("linux.block.name", &base::log::chain(&error)),
        }
    }

    /// The module that a disk's driver is in.
    fn driver(&self, system: &System<'_>, disk: VirtAddr) -> Result<Option<String>, KernelError> {
        let driver = system.follow(disk, self.disk.driver, "gendisk.fops")?;
        let Some(module) = system.pointer(driver, self.driver.module, "block_device_operations.owner")?
        else {
            return Ok(None);
        };
        let name = system.bytes(module, self.module.name, MODULE, "module.name")?;
        Ok(Some(Fields(&name).text(0, MODULE).unwrap_or_default()))
    }

    fn queue(&self, ground: &Ground<'_>, queue: VirtAddr, row: &mut Row) {
        let (system, layout) = (ground.system, &self.queue);
        row.set("linux.block.queue", format!("{:#x}", queue.0));
        // Of 64 bits until 7.x: the lower half is what counts.
        row.read("linux.block.requests", system.half(queue, layout.requests, "request_queue.nr_requests"));
        for (key, offset) in
            [("linux.block.sector_bytes", layout.sector), ("linux.block.hardware_queues", layout.hardware)]
        {
            let Some(offset) = offset else { continue };
            row.read(key, system.half(queue, offset, "a member of request_queue"));
        }
        if let (Some(elevator), Some((elevator_layout, kind_layout))) = (layout.elevator, &self.scheduler) {
            match system.pointer(queue, elevator, "request_queue.elevator") {
                Ok(None) => row.set("linux.block.scheduler", "none"),
                Ok(Some(elevator)) => {
                    let kind = system.follow(elevator, elevator_layout.kind, "elevator_queue.type");
                    let name = kind.and_then(|kind| mounts::text(system, kind, kind_layout.name));
                    row.read("linux.block.scheduler", name);
                }
                Err(error) => row.error("linux.block.scheduler", &base::log::chain(&error)),
            }
        }
    }

    /// Names in a directory of sysfs: `slaves` and `holders` are links to other disks.
    fn names(&self, ground: &Ground<'_>, (base, offset): (VirtAddr, u64), key: &str, row: &mut Row) {
        let system = ground.system;
        let Some((directory, layout)) = &self.directory else { return };
        let node = || -> Result<Option<VirtAddr>, KernelError> {
            let Some(object) = system.pointer(base, offset, "a directory of a disk")? else {
                return Ok(None);
            };
            system.pointer(object, directory.node, "kobject.sd")
        };
        let node = match node() {
            Ok(Some(node)) => node,
            Ok(None) => return,
            Err(error) => return row.error(key, &base::log::chain(&error)),
        };
        let root = VirtAddr(node.0.wrapping_add(layout.children));
        let (nodes, whole) = tree::all(system.kernel, root, MAX_NAMES);
        let mut names = Vec::new();
        for node in nodes {
            let node = VirtAddr(node.0.wrapping_sub(layout.tree));
            match mounts::text(system, node, layout.name) {
                Ok(name) => names.push(name),
                Err(error) => row.error(key, &base::log::chain(&error)),
            }
        }
        if !whole {
            row.error(key, &"they are not all");
        }
        if !names.is_empty() {
            row.set(key, names);
        }
    }
}
