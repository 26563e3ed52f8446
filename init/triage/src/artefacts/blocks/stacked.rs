//! Disks that are made of others: device-mapper and md. Their structures are those of modules, whose types
//! are known if the kernel has them (`CONFIG_DEBUG_INFO_BTF_MODULES`, since 5.11).

use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;
use vmcore::kernel::KernelError;

use super::super::{Ground, Row};
use crate::mounts;

/// Targets of a table that are believed.
const MAX_TARGETS: u32 = 10_000;
/// Bytes of a sector.
const SECTOR: u64 = 512;

layouts! {
    MappedLayout of "mapped_device" {
        name: "interface_ptr",
        table: "map",
    }
    CellLayout of "hash_cell" {
        name: "name",
        uuid: "uuid",
    }
    TableLayout of "dm_table" {
        count: "num_targets",
        targets: "targets",
    }
    TargetLayout of "dm_target" {
        kind: "type",
        start: "begin",
        sectors: "len",
    }
    KindLayout of "target_type" {
        name: "name",
    }
    ArrayLayout of "mddev" {
        level: "level",
        disks: "raid_disks",
        sectors: "array_sectors",
        degraded: "degraded",
        read_only: "ro",
    } [
        recovery: "recovery",
        personality: "pers",
    ]
    PersonalityLayout of "md_personality" {
        name: "head.name" | "name",
    }
}

/// device-mapper.
struct Mapper {
    mapped: MappedLayout,
    cell: CellLayout,
    table: TableLayout,
    target: TargetLayout,
    kind: KindLayout,
    size: u64,
}

impl Mapper {
    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            mapped: MappedLayout::ask(known)?,
            cell: CellLayout::ask(known)?,
            table: TableLayout::ask(known)?,
            target: TargetLayout::ask(known)?,
            kind: KindLayout::ask(known)?,
            size: known.size_of("dm_target").ok_or(Missing { structure: "dm_target", member: "size" })?,
        })
    }
}

/// Both.
pub(super) struct Stacked {
    mapper: Result<Mapper, Missing>,
    array: Result<ArrayLayout, Missing>,
    personality: Option<PersonalityLayout>,
}

impl Stacked {
    pub(super) fn ask(known: &dyn Knowledge) -> Self {
        Self {
            mapper: Mapper::ask(known),
            array: ArrayLayout::ask(known),
            personality: PersonalityLayout::ask(known).ok(),
        }
    }

    /// What one of the two says of a disk of this name.
    pub(super) fn of(
        &self,
        ground: &Ground<'_>,
        name: &str,
        private: Result<Option<VirtAddr>, KernelError>,
        row: &mut Row,
    ) {
        let (key, missing) = if name.starts_with("dm-") {
            ("linux.dm", self.mapper.as_ref().err())
        } else if name.starts_with("md") {
            ("linux.md", self.array.as_ref().err())
        } else {
            return;
        };
        let private = match (missing, private) {
            // Nothing is lost: a kernel without types of modules does not tell more.
            (Some(missing), _) => return row.set(&format!("{key}.not_known"), missing.to_string()),
            (None, Err(error)) => return row.error(key, &base::log::chain(&error)),
            (None, Ok(None)) => return,
            (None, Ok(Some(private))) => private,
        };
        match (key, &self.mapper, &self.array) {
            ("linux.dm", Ok(mapper), _) => mapper.of(ground, private, row),
            ("linux.md", _, Ok(array)) => self.array(ground, array, private, row),
            _ => {}
        }
    }

    fn array(&self, ground: &Ground<'_>, layout: &ArrayLayout, at: VirtAddr, row: &mut Row) {
        let system = ground.system;
        // Below zero for what is no RAID: linear is -1.
        row.read("linux.md.level", system.half(at, layout.level, "mddev.level").map(u32::cast_signed));
        row.read("linux.md.disks", system.half(at, layout.disks, "mddev.raid_disks"));
        row.read("linux.md.degraded", system.half(at, layout.degraded, "mddev.degraded"));
        row.read("linux.md.read_only", system.half(at, layout.read_only, "mddev.ro").map(|ro| ro != 0));
        let bytes = system.word(at, layout.sectors, "mddev.array_sectors");
        row.read("linux.md.bytes", bytes.map(|sectors| sectors.saturating_mul(SECTOR)));
        if let Some(recovery) = layout.recovery {
            let flags = system.word(at, recovery, "mddev.recovery");
            row.read("linux.md.recovery", flags.map(|flags| format!("{flags:#x}")));
        }
        let (Some(offset), Some(personality)) = (layout.personality, &self.personality) else { return };
        match system.pointer(at, offset, "mddev.pers") {
            Ok(Some(at)) => row.read("linux.md.personality", mounts::text(system, at, personality.name)),
            // It does not run.
            Ok(None) => {}
            Err(error) => row.error("linux.md.personality", &base::log::chain(&error)),
        }
    }
}

impl Mapper {
    fn of(&self, ground: &Ground<'_>, at: VirtAddr, row: &mut Row) {
        let system = ground.system;
        match system.pointer(at, self.mapped.name, "mapped_device.interface_ptr") {
            Ok(Some(cell)) => {
                row.read("linux.dm.name", mounts::text(system, cell, self.cell.name));
                match system.pointer(cell, self.cell.uuid, "hash_cell.uuid") {
                    Ok(None) => {}
                    Ok(Some(_)) => row.read("linux.dm.uuid", mounts::text(system, cell, self.cell.uuid)),
                    Err(error) => row.error("linux.dm.uuid", &base::log::chain(&error)),
                }
            }
            Ok(None) => {}
            Err(error) => row.error("linux.dm.name", &base::log::chain(&error)),
        }
        match system.pointer(at, self.mapped.table, "mapped_device.map") {
            Ok(Some(table)) => row.read("linux.dm.table", self.table(ground, table)),
            Ok(None) => {}
            Err(error) => row.error("linux.dm.table", &base::log::chain(&error)),
        }
    }

    /// The targets of a table, as `dmsetup table` begins its lines: start, length (in sectors), type.
    fn table(&self, ground: &Ground<'_>, table: VirtAddr) -> Result<Vec<String>, KernelError> {
        let system = ground.system;
        let count = system.half(table, self.table.count, "dm_table.num_targets")?.min(MAX_TARGETS);
        let Some(targets) = system.pointer(table, self.table.targets, "dm_table.targets")? else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for number in 0..u64::from(count) {
            let offset = number.saturating_mul(self.size);
            let at = targets
                .checked_add(offset)
                .ok_or(KernelError::Absurd { what: "dm_table.targets", value: targets.0 })?;
            let word = |offset| system.word(at, offset, "dm_target");
            let (start, sectors) = (word(self.target.start)?, word(self.target.sectors)?);
            let kind = system.follow(at, self.target.kind, "dm_target.type")?;
            all.push(format!("{start} {sectors} {}", mounts::text(system, kind, self.kind.name)?));
        }
        Ok(all)
    }
}
