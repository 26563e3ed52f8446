//! `modules.jsonl`: loaded modules, and such as hide: sysfs knows them, and the list does not.

use std::collections::BTreeSet;

use base::addr::VirtAddr;
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::{layouts, list};

use super::{Artefact, Ground, Row, Rows, Stop};
use crate::numbers;

/// Modules that are believed.
const MAX: usize = 4096;
/// `MODULE_NAME_LEN`
const NAME: usize = 56;

layouts! {
    ModuleLayout of "module" {
        name: "name",
        taints: "taints",
    } [
        state: "state",
        uses: "refcnt",
        version: "version",
    ]
}

/// `kset.list`, `kobject.entry`, `module_kobject.kobj`, `module_kobject.mod`, and where the set is.
struct Sysfs {
    set: VirtAddr,
    list: u64,
    entry: u64,
    kobject: u64,
    module: u64,
}

impl Sysfs {
    fn ask(known: &dyn Knowledge) -> Option<Self> {
        Some(Self {
            set: known.symbol("module_kset")?,
            list: known.offset("kset", "list")?,
            entry: known.offset("kobject", "entry")?,
            kobject: known.offset("module_kobject", "kobj")?,
            module: known.offset("module_kobject", "mod")?,
        })
    }
}

pub(super) struct Layout {
    module: ModuleLayout,
    sysfs: Option<Sysfs>,
}

impl Artefact for Layout {
    const NAME: &'static str = "modules";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self { module: ModuleLayout::ask(known)?, sysfs: Sysfs::ask(known) })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let listed = ground.code.modules();
        for module in listed {
            let mut row = self.row(ground, module.address);
            row.set("linux.module.code", format!("{:#x}", module.text.0));
            row.set("linux.module.code_bytes", module.text.1.saturating_sub(module.text.0));
            rows.add(&row)?;
        }
        let listed: BTreeSet<VirtAddr> = listed.iter().map(|module| module.address).collect();
        for address in self.in_sysfs(ground).into_iter().filter(|address| !listed.contains(address)) {
            let mut row = self.row(ground, address);
            row.set("linux.module.hidden", true);
            rows.add(&row)?;
        }
        Ok(())
    }
}

impl Layout {
    fn row(&self, ground: &Ground<'_>, module: VirtAddr) -> Row {
        let system = ground.system;
        let mut row = Row::at(module);
        let name = system.bytes(module, self.module.name, NAME, "module.name");
        row.read("linux.module.name", name.map(|bytes| Fields(&bytes).text(0, NAME).unwrap_or_default()));
        let taints = system.word(module, self.module.taints, "module.taints");
        let letters = |mask| numbers::letters(mask).map(|(letter, _)| letter).collect::<String>();
        row.read("linux.module.taints", taints.map(letters));
        if let Some(offset) = self.module.state {
            let state = system.half(module, offset, "module.state");
            // enum module_state, include/linux/module.h
            let name = |state| match state {
                0 => "live",
                1 => "coming",
                2 => "going",
                3 => "unformed",
                _ => "unknown",
            };
            row.read("linux.module.state", state.map(name));
        }
        row
    }

    /// Modules that have a directory in /sys/module.
    fn in_sysfs(&self, ground: &Ground<'_>) -> Vec<VirtAddr> {
        let system = ground.system;
        let Some(sysfs) = &self.sysfs else { return Vec::new() };
        let set = system.pointer(sysfs.set, 0, "module_kset").ok().flatten();
        let Some(head) = set.and_then(|set| set.checked_add(sysfs.list)) else { return Vec::new() };
        // Parts of the kernel itself have a directory there, too, and no module.
        let module = |entry: VirtAddr| {
            let kobject = VirtAddr(entry.0.wrapping_sub(sysfs.entry).wrapping_sub(sysfs.kobject));
            system.pointer(kobject, sysfs.module, "module_kobject.mod").ok().flatten()
        };
        list::all(system.kernel, head, MAX).0.into_iter().filter_map(module).collect()
    }
}
