//! Terminals that processes have (`signal_struct.tty`), who leads their session, and what is in front.

use std::collections::BTreeMap;

use base::addr::VirtAddr;
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;
use vmcore::kernel::KernelError;

use super::super::{Ground, Row, Rows, Stop};
use super::row;

/// Bytes of `tty_struct.name`, and processes of a terminal that are listed.
const NAME: usize = 64;
const MAX: usize = 1000;

layouts! {
    SignalLayout of "signal_struct" {
        terminal: "tty",
        leader: "leader",
    }
    TerminalLayout of "tty_struct" {
        name: "name",
        session: "ctrl.session" | "session",
        front: "ctrl.pgrp" | "pgrp",
    }
}

pub(super) struct Layout {
    signal: SignalLayout,
    terminal: TerminalLayout,
}

/// A terminal with its processes: numbers, and whether one leads a session.
type Terminals = BTreeMap<VirtAddr, Vec<u32>>;

impl Layout {
    pub(super) fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self { signal: SignalLayout::ask(known)?, terminal: TerminalLayout::ask(known)? })
    }

    pub(super) fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let system = ground.system;
        let mut terminals = Terminals::new();
        let mut faults = Vec::new();
        for process in &ground.processes.all {
            let task = &process.leader;
            let terminal = || -> Result<Option<VirtAddr>, KernelError> {
                let signal = system.pointer(task.address, system.layout.task.signal, "task_struct.signal")?;
                let Some(signal) = signal else { return Ok(None) };
                system.pointer(signal, self.signal.terminal, "signal_struct.tty")
            };
            match terminal() {
                Ok(Some(at)) => terminals.entry(at).or_default().push(task.pid),
                Ok(None) => {}
                Err(error) => faults.push((task, base::log::chain(&error))),
            }
        }
        for (terminal, pids) in terminals {
            rows.add(&self.row(ground, terminal, &pids))?;
        }
        for (task, fault) in faults.into_iter().take(MAX) {
            let mut row = row("terminal", task.address);
            row.set("process.pid", task.pid);
            row.error("linux.terminal", &fault);
            rows.add(&row)?;
        }
        Ok(())
    }

    fn row(&self, ground: &Ground<'_>, terminal: VirtAddr, pids: &[u32]) -> Row {
        let system = ground.system;
        let mut row = row("terminal", terminal);
        let name = system.bytes(terminal, self.terminal.name, NAME, "tty_struct.name");
        row.read("linux.login.line", name.map(|bytes| Fields(&bytes).text(0, NAME).unwrap_or_default()));
        let number = |offset: u64| -> Result<Option<u32>, KernelError> {
            let pid = system.pointer(terminal, offset, "tty_struct.session")?;
            let (Some(pid), Some(number)) = (pid, system.layout.pid_number) else { return Ok(None) };
            system.half(pid, number, "pid.numbers").map(Some)
        };
        for (key, offset) in [
            ("linux.terminal.session_leader", self.terminal.session),
            ("linux.terminal.foreground_group", self.terminal.front),
        ] {
            match number(offset) {
                Ok(Some(number)) => row.set(key, number),
                Ok(None) => {}
                Err(error) => row.error(key, &base::log::chain(&error)),
            }
        }
        row.set("linux.terminal.processes", pids.iter().take(MAX).copied().collect::<Vec<u32>>());
        row
    }
}
