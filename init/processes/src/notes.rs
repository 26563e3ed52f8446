//! The notes of a core file (fs/binfmt_elf.c, include/linux/elfcore.h).

use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::put;

use crate::mappings::Space;
use crate::names;
use crate::registers::{FPREGSET, Registers};
use crate::resident::Pages;
use crate::system::System;
use crate::tasks::{Process, Task};
use crate::user;

const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_FILE: u32 = 0x4649_4c45;
const NT_X86_XSTATE: u32 = 0x202;
/// Ours: what is absent, as text. BFD goes by the number alone where it does not know the owner, so
/// that it is none that others have.
const OWNER: &str = "AFTERIMAGE";
const OWN: u32 = 0x4149_0001;
/// Bytes of `struct elf_prstatus`, `struct elf_prpsinfo`.
const PRSTATUS: usize = 336;
const PRPSINFO: usize = 136;
/// Names of files in a core, in bytes; the kernel allows four million.
const MAX_NAMES: usize = 4 << 20;

/// Appends a note.
pub(crate) fn note(out: &mut Vec<u8>, name: &str, kind: u32, content: &[u8]) {
    let number = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    out.extend(
        [number(name.len().saturating_add(1)), number(content.len()), kind.to_le_bytes()].as_flattened(),
    );
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Numbers of a process that are not in its task itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ids {
    parent: u32,
    group: u32,
    session: u32,
    user: u32,
    group_id: u32,
    flags: u32,
    state: u32,
}

impl Ids {
    /// What cannot be read is 0.
    pub(crate) fn read(system: &System<'_>, task: VirtAddr) -> Self {
        let layout = &system.layout;
        let pointer = |base, offset: Option<u64>| system.pointer(base, offset?, "task_struct").ok().flatten();
        let half = |base: Option<VirtAddr>, offset: Option<u64>| {
            base.zip(offset).and_then(|(base, offset)| system.half(base, offset, "a task").ok()).unwrap_or(0)
        };
        let parent = pointer(task, layout.task.parent);
        let signal = pointer(task, Some(layout.task.signal));
        // enum pid_type: PID, TGID, PGID, SID.
        let number = |kind: u64| {
            let at = layout.signal.pids.and_then(|pids| pids.checked_add(kind.saturating_mul(8)));
            half(signal.and_then(|signal| pointer(signal, at)), layout.pid_number)
        };
        let cred = pointer(task, layout.task.cred);
        Self {
            parent: half(parent, Some(layout.task.tgid)),
            group: number(2),
            session: number(3),
            user: half(cred, layout.ids.map(|ids| ids.0)),
            group_id: half(cred, layout.ids.map(|ids| ids.1)),
            flags: half(Some(task), Some(layout.task.flags)),
            state: half(Some(task), layout.task.state),
        }
    }

    /// `pr_state` and `pr_sname` (fill_psinfo).
    fn letter(self) -> [u8; 2] {
        let number = if self.state == 0 { 0 } else { self.state.trailing_zeros().saturating_add(1) };
        let letter = b"RSDTZW".get(to_usize(number.into())).copied().unwrap_or(b'.');
        [u8::try_from(number).unwrap_or(0), letter]
    }
}

/// Appends what is known of a thread: `NT_PRSTATUS`, and the FPU's registers.
pub(crate) fn thread(out: &mut Vec<u8>, task: &Task, ids: Ids, registers: &Registers) {
    let mut status = vec![0; PRSTATUS];
    for (index, number) in (0_usize..).zip([task.pid, ids.parent, ids.group, ids.session]) {
        put(&mut status, 32_usize.saturating_add(index.saturating_mul(4)), &number.to_le_bytes());
    }
    let general: Vec<u8> = registers.general.iter().flat_map(|register| register.to_le_bytes()).collect();
    put(&mut status, 112, &general);
    put(&mut status, 328, &u32::from(registers.floating.is_some()).to_le_bytes());
    note(out, "CORE", NT_PRSTATUS, &status);
    if let Some(floating) = &registers.floating {
        note(out, "CORE", NT_FPREGSET, floating.get(..FPREGSET).unwrap_or_default());
        if floating.len() > FPREGSET {
            note(out, "LINUX", NT_X86_XSTATE, floating);
        }
    }
}

/// Appends `NT_PRPSINFO`: the process and its arguments.
pub(crate) fn process(out: &mut Vec<u8>, process: &Process, ids: Ids, arguments: &[u8]) {
    let mut info = vec![0; PRPSINFO];
    put(&mut info, 0, &ids.letter());
    put(&mut info, 8, &u64::from(ids.flags).to_le_bytes());
    let numbers = [ids.user, ids.group_id, process.leader.pid, ids.parent, ids.group, ids.session];
    for (index, number) in (0_usize..).zip(numbers) {
        put(&mut info, 16_usize.saturating_add(index.saturating_mul(4)), &number.to_le_bytes());
    }
    let comm = process.leader.comm.as_bytes();
    put(&mut info, 40, comm.get(..comm.len().min(15)).unwrap_or_default());
    let arguments: Vec<u8> =
        arguments.iter().take(79).map(|&byte| if byte == 0 { b' ' } else { byte }).collect();
    let readable = arguments.trim_ascii_end();
    put(&mut info, 56, if readable.is_empty() { comm } else { readable });
    note(out, "CORE", NT_PRPSINFO, &info);
}

/// Appends `NT_AUXV`.
pub(crate) fn auxv(out: &mut Vec<u8>, auxv: &[u8]) {
    // Up to AT_NULL, and that.
    let pairs = auxv.chunks_exact(16).position(|pair| pair.iter().take(8).all(|byte| *byte == 0));
    let len = pairs.map_or(auxv.len(), |index| index.saturating_add(1).saturating_mul(16));
    if let Some(whole) = auxv.get(..len).filter(|whole| !whole.is_empty()) {
        note(out, "CORE", NT_AUXV, whole);
    }
}

/// The names of the files that are mapped, by the number of the mapping. A name that cannot be read
/// is told by its absence.
#[must_use]
pub(crate) fn files(system: &System<'_>, space: &Space) -> Vec<Option<Vec<u8>>> {
    let mut left = MAX_NAMES;
    let mut name = |file| {
        let name = names::path(system, file).ok()?;
        left = left.checked_sub(name.len().saturating_add(1))?;
        Some(name)
    };
    space.mappings.iter().map(|mapping| mapping.file.and_then(&mut name)).collect()
}

/// Appends `NT_FILE`.
pub(crate) fn mapped_files(out: &mut Vec<u8>, space: &Space, files: &[Option<Vec<u8>>]) {
    let mut rows = Vec::new();
    let mut names = Vec::new();
    for (mapping, name) in space.mappings.iter().zip(files) {
        let Some(name) = name else { continue };
        rows.extend([mapping.start, mapping.end, mapping.offset].map(u64::to_le_bytes));
        names.extend_from_slice(name);
        names.push(0);
    }
    let count = to_u64(rows.len() / 3);
    let head = [count, 4096].map(u64::to_le_bytes);
    let content = [head.as_flattened(), rows.as_flattened(), &names].concat();
    if count > 0 {
        note(out, "CORE", NT_FILE, &content);
    }
}

/// Appends our own: text.
pub(crate) fn own(out: &mut Vec<u8>, text: &str) {
    note(out, OWNER, OWN, text.as_bytes());
}

/// The arguments of a process, as many as fit in `limit` bytes, each with a NUL behind it; empty if
/// they are not to be had.
#[must_use]
pub fn arguments(pages: &Pages<'_>, space: &Space, limit: usize) -> Vec<u8> {
    let (start, end) = space.arguments;
    let len = to_usize(end.saturating_sub(start)).min(limit);
    let mut bytes = vec![0; len];
    match user::read(pages, space, start, &mut bytes) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}
