//! `kernel.jsonl`: the kernel itself: its command line and taints, what it runs on, its settings, and whether
//! tables of functions that rootkits change still lead into its own code.

mod hooks;
mod hypervisor;
mod settings;

use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use vmcore::kernel::uts;

use super::{Artefact, Ground, Row, Rows, Stop};
use crate::numbers;
use crate::wanted::Wanted;

pub(super) struct Layout {
    command_line: Option<VirtAddr>,
    taints: Option<VirtAddr>,
    machine: Wanted,
    settings: Vec<settings::Found>,
    hooks: hooks::Tables,
    hypervisor: hypervisor::Hypervisor,
}

impl Artefact for Layout {
    const NAME: &'static str = "kernel";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let machine = Wanted::ask(known);
        Ok(Self {
            command_line: machine.machine.command_line,
            taints: machine.machine.tainted_mask,
            machine,
            settings: settings::ask(known),
            hooks: hooks::Tables::ask(known),
            hypervisor: hypervisor::Hypervisor::ask(known),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        rows.add(&self.about(ground))?;
        for setting in &self.settings {
            rows.add(&setting.row(ground))?;
        }
        self.hooks.walk(ground, rows)
    }
}

impl Layout {
    fn about(&self, ground: &Ground<'_>) -> Row {
        let kernel = ground.system.kernel;
        let mut row = self.command_line.map_or_else(Row::default, Row::at);
        let info = kernel.info();
        let names = uts::discover(kernel).unwrap_or_else(|_| uts::fallback(info, None));
        row.set("host.hostname", names.nodename);
        row.set("host.architecture", names.machine);
        row.set("host.os.kernel", names.release);
        row.set("linux.kernel.version", names.version);
        if let Some(id) = info.get("BUILD-ID") {
            row.set("linux.kernel.build_id", id);
        }
        let line = numbers::cmdline(kernel, &self.machine.machine);
        row.put("linux.kernel.command_line", line.ok_or("saved_command_line cannot be read"));
        let mask = self.taints.and_then(|at| kernel.read_u64(at, "tainted_mask").ok());
        let letters = |mask| {
            let all = numbers::letters(mask).map(|(letter, what)| format!("{letter} ({what})"));
            all.collect::<Vec<_>>()
        };
        row.put("linux.kernel.taints", mask.map(letters).ok_or("tainted_mask cannot be read"));
        self.hypervisor.of(ground, &mut row);
        row
    }
}
