//! Registers of threads: those of user space, wherever they were kept when the machine stopped.

use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::Fields;
use symbols::pt_regs::{CS, FLAGS, IP, SS, WORDS};
use vmcore::format::note::NoteKind;
use vmcore::source::Core;

use crate::layout::FpuLayout;
use crate::system::System;
use crate::tasks::Task;

/// `struct user_regs_struct` of x86_64 (arch/x86/include/asm/user_64.h).
pub const REGISTERS: usize = 27;
/// The first of them are those of `struct pt_regs`; behind them are these.
const FS_BASE: usize = 21;
const GS_BASE: usize = 22;
const DS: usize = 23;
/// `__USER_CS`, `__USER32_CS`, `__USER_DS`
const USER_CODE: [u64; 2] = [0x33, 0x23];
const USER_DATA: u64 = 0x2b;
/// User space ends below.
const USER_END: u64 = 1 << 56;
/// Where `pr_pid` and `pr_reg` are in `struct elf_prstatus`.
const NOTE_PID: usize = 32;
const NOTE_REGISTERS: usize = 112;
/// Bytes of a note that are looked at.
const NOTE_LEN: usize = NOTE_REGISTERS + REGISTERS * 8;
/// `TOP_OF_KERNEL_STACK_PADDING`: 16 since kernels know FRED (6.9).
const PADDINGS: [u64; 2] = [0, 16];

/// Where registers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The processor had them when it was stopped: the thread ran in user space.
    Processor,
    /// The thread's kernel stack.
    Stack,
    /// The same, though the thread ran on a CPU whose registers are not in the dump: they are those
    /// of the last time that it entered the kernel.
    Stale,
    /// They are nowhere.
    Nowhere,
}

/// The registers of a thread.
#[derive(Clone, Debug)]
pub struct Registers {
    /// As `user_regs_struct` has them.
    pub general: [u64; REGISTERS],
    /// Where they come from.
    pub origin: Origin,
    /// `NT_X86_XSTATE` without what is beyond AVX; the first 512 bytes are `NT_FPREGSET`, and there
    /// are no more on a CPU without XSAVE. None while the thread runs: they are in the processor.
    pub floating: Option<Vec<u8>>,
}

/// What the processors had in their registers, with the number that the note of each has: of the
/// thread that it ran, or, where QEMU has made the dump, its own, counted from 1.
#[derive(Clone, Debug, Default)]
pub struct Processors(Vec<(u32, [u64; REGISTERS])>);

impl Processors {
    /// Reads the notes of a dump.
    #[must_use]
    pub fn read(core: &dyn Core) -> Self {
        let mut all = Vec::new();
        for note in core.notes().notes.iter().filter(|note| note.kind == NoteKind::CpuRegisters) {
            let mut bytes = [0; NOTE_LEN];
            if note.desc_len < to_u64(NOTE_LEN) || core.read_note_bytes(note.desc_offset, &mut bytes).is_err()
            {
                continue;
            }
            let registers = words(bytes.get(NOTE_REGISTERS..).unwrap_or_default());
            all.push((Fields(&bytes).u32(NOTE_PID).unwrap_or(0), registers));
        }
        Self(all)
    }

    /// What the CPUs had in their registers that ran these threads (their numbers; 0 is idle): CPUs in
    /// ascending order, as their notes are, but not all of them need to have written one.
    #[must_use]
    pub fn of_cpus(&self, pids: &[Option<u32>]) -> Vec<Option<[u64; REGISTERS]>> {
        let counted = (1_u32..).zip(&self.0).all(|(number, (of, _))| number == *of);
        let mut notes = self.0.iter().peekable();
        let of_cpu = |pid: &Option<u32>| {
            let fits = |note: &&(u32, [u64; REGISTERS])| counted || Some(note.0) == *pid;
            notes.next_if(fits).map(|(_, registers)| *registers)
        };
        pids.iter().map(of_cpu).collect()
    }

    /// The registers of the processor `cpu`, which ran the thread `pid`.
    fn of(&self, cpu: Option<u32>, pid: u32) -> Option<&[u64; REGISTERS]> {
        let counted = (1_u32..).zip(&self.0).all(|(number, (of, _))| number == *of);
        let found = if counted {
            cpu.and_then(|cpu| self.0.get(to_usize(cpu.into())))
        } else {
            self.0.iter().find(|(of, _)| *of == pid)
        };
        found.map(|(_, registers)| registers)
    }
}

fn words(bytes: &[u8]) -> [u64; REGISTERS] {
    let mut words = [0; REGISTERS];
    for (index, word) in words.iter_mut().enumerate() {
        *word = Fields(bytes).u64(index.saturating_mul(8)).unwrap_or(0);
    }
    words
}

fn get(registers: &[u64; REGISTERS], index: usize) -> u64 {
    registers.get(index).copied().unwrap_or(0)
}

fn set(registers: &mut [u64; REGISTERS], index: usize, value: Option<u64>) {
    if let (Some(register), Some(value)) = (registers.get_mut(index), value) {
        *register = value;
    }
}

/// Names of the first of them.
pub const NAMES: [&str; WORDS] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss",
];

/// Whether these can be registers of user space. FRED keeps more than the selectors in their words.
fn are_of_user(registers: &[u64; REGISTERS]) -> bool {
    USER_CODE.contains(&(get(registers, CS) & 0xffff))
        && get(registers, SS) & 0xffff == USER_DATA
        && get(registers, IP) < USER_END
        && get(registers, FLAGS) & 2 != 0
}

/// The registers of a thread.
#[must_use]
pub fn of(system: &System<'_>, processors: &Processors, task: &Task) -> Registers {
    let layout = &system.layout.task;
    let word = |offset: Option<u64>| system.word(task.address, offset?, "task_struct.thread").ok();
    let runs = is_running(system, task);
    let cpu = layout.cpu.and_then(|at| system.half(task.address, at, "task_struct.cpu").ok());
    let in_processor = if runs { processors.of(cpu, task.pid) } else { None };
    let (mut general, origin) = match in_processor.filter(|registers| are_of_user(registers)) {
        Some(registers) => (*registers, Origin::Processor),
        None => match on_stack(system, task.address) {
            Some(registers) if runs && in_processor.is_none() => (registers, Origin::Stale),
            Some(registers) => (registers, Origin::Stack),
            None => ([0; REGISTERS], Origin::Nowhere),
        },
    };
    for selector in [CS, SS] {
        let value = get(&general, selector) & 0xffff;
        set(&mut general, selector, Some(value));
    }
    set(&mut general, FS_BASE, word(layout.fs_base));
    set(&mut general, GS_BASE, word(layout.gs_base));
    // 16 bits each: ds, es, fs, gs.
    for (index, offset) in (DS..).zip([layout.ds, layout.es, layout.fs, layout.gs]) {
        set(&mut general, index, word(offset).map(|value| value & 0xffff));
    }
    let floating = if runs { None } else { floating(system, task.address) };
    Registers { general, origin, floating }
}

/// What the thread's entry into the kernel has left at the top of its kernel stack.
fn on_stack(system: &System<'_>, task: VirtAddr) -> Option<[u64; REGISTERS]> {
    let stack = system.pointer(task, system.layout.task.stack, "task_struct.stack").ok()??;
    let len = WORDS.saturating_mul(8);
    PADDINGS.into_iter().find_map(|padding| {
        let offset = system.layout.stack_size.checked_sub(padding)?.checked_sub(to_u64(len))?;
        let bytes = system.bytes(stack, offset, len, "a kernel stack").ok()?;
        let registers = words(&bytes);
        are_of_user(&registers).then_some(registers)
    })
}

/// Bytes of the area that FXSAVE writes, and the header of XSAVE behind it.
const FXSAVE: usize = 512;
const HEADER: usize = 64;
/// Upper halves of the AVX registers, always behind the header.
const AVX: usize = 256;
/// `NT_X86_XSTATE` with those.
const XSTATE: usize = FXSAVE + HEADER + AVX;
/// Where the kernel, and a note, have what components there can be (`sw_reserved`).
const COMPONENTS: usize = 464;
/// x87, SSE and AVX.
const KNOWN: u64 = 7;
/// `XCOMP_BV_COMPACTED_FORMAT`
const COMPACTED: u64 = 1 << 63;

/// What was saved of the FPU when the thread last left a CPU.
fn floating(system: &System<'_>, task: VirtAddr) -> Option<Vec<u8>> {
    let (base, offset) = match system.layout.fpu {
        FpuLayout::Inline(offset) => (task, offset),
        FpuLayout::Behind { pointer, registers } => {
            (system.pointer(task, pointer, "fpu.fpstate").ok()??, registers)
        }
        FpuLayout::Unknown => return None,
    };
    let bytes = system.bytes(base, offset, XSTATE, "the registers of the FPU").ok()?;
    xstate(bytes)
}

/// As a note has them: components that were in their initial state have none, and are zeros.
fn xstate(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let there = Fields(&bytes).u64(FXSAVE)?;
    let format = Fields(&bytes).u64(FXSAVE.saturating_add(8))?;
    // MXCSR is never zero, but where nothing was saved.
    Fields(&bytes).u32(24).filter(|mxcsr| *mxcsr != 0 && *mxcsr <= 0xffff)?;
    if there == 0 && format == 0 {
        // A CPU without XSAVE.
        bytes.truncate(FXSAVE);
        return Some(bytes);
    }
    let has_avx = there & 4 != 0 && (format & COMPACTED == 0 || format & 4 != 0);
    let header = |bytes: &mut [u8], at: usize, value: u64| base::fields::put(bytes, at, &value.to_le_bytes());
    if !has_avx {
        bytes.get_mut(FXSAVE.saturating_add(HEADER)..)?.fill(0);
    }
    if there & 1 == 0 {
        // x87 in its initial state: the control word of FNINIT.
        bytes.get_mut(..24)?.fill(0);
        bytes.get_mut(32..160)?.fill(0);
        base::fields::put(&mut bytes, 0, &0x37f_u16.to_le_bytes());
    }
    if there & 2 == 0 {
        // XMM registers in their initial state.
        bytes.get_mut(160..416)?.fill(0);
    }
    header(&mut bytes, COMPONENTS, KNOWN);
    let kept = there & if has_avx { KNOWN } else { 3 };
    bytes.get_mut(FXSAVE..FXSAVE.saturating_add(HEADER))?.fill(0);
    header(&mut bytes, FXSAVE, kept);
    Some(bytes)
}

/// The number of the CPU on which the kernel panicked, if it did.
#[must_use]
pub fn crashed_cpu(system: &System<'_>) -> Option<u32> {
    // Both are -1 as long as nobody panics.
    let cpu = |at: Option<VirtAddr>| {
        system.kernel.read_u32(at?, "the number of the CPU").ok().filter(|cpu| *cpu < 1 << 16)
    };
    cpu(system.variables.crashing_cpu).or_else(|| cpu(system.variables.panic_cpu))
}

/// Whether it panicked in this thread.
#[must_use]
pub fn crashed(system: &System<'_>, task: &Task) -> bool {
    let cpu = crashed_cpu(system);
    let layout = &system.layout.task;
    let on = layout.cpu.and_then(|at| system.half(task.address, at, "task_struct.cpu").ok());
    cpu.is_some() && cpu == on && is_running(system, task)
}

/// Whether a CPU ran the task (`on_cpu`, which has become a byte: what lies beside it is no part of it).
fn is_running(system: &System<'_>, task: &Task) -> bool {
    let at = system.layout.task.on_cpu;
    let byte = at.and_then(|at| system.bytes(task.address, at, 1, "task_struct.on_cpu").ok());
    byte.is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0))
}

/// Bytes of a thread's FPU registers that `NT_FPREGSET` has.
pub const FPREGSET: usize = FXSAVE;

const _: () = assert!(NOTE_LEN == 328 && XSTATE == 832 && WORDS == FS_BASE);

/// The instruction that a thread was at.
#[must_use]
pub fn instruction(registers: &Registers) -> u64 {
    get(&registers.general, IP)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What XSAVES has left: all bytes of a register's area are `byte`.
    fn area(there: u64, format: u64) -> Vec<u8> {
        let mut bytes = vec![0x5a; XSTATE];
        base::fields::put(&mut bytes, 24, &0x1f80_u32.to_le_bytes());
        base::fields::put(&mut bytes, FXSAVE, &there.to_le_bytes());
        base::fields::put(&mut bytes, FXSAVE + 8, &format.to_le_bytes());
        bytes
    }

    #[test]
    fn registers_in_their_initial_state_are_those_and_not_what_lies_there() {
        let note = |there, format| xstate(area(there, format)).unwrap();
        let is = |bytes: &[u8], byte: u8| bytes.iter().all(|&found| found == byte);
        let all = note(7, COMPACTED | 7);
        assert_eq!(
            (all.len(), Fields(&all).u64(COMPONENTS), Fields(&all).u64(FXSAVE)),
            (832, Some(7), Some(7))
        );
        assert!(is(&all[160..416], 0x5a) && is(&all[576..], 0x5a) && is(&all[520..576], 0));
        let sse = note(2, COMPACTED | 7);
        assert!(is(&sse[160..416], 0x5a) && is(&sse[576..], 0) && is(&sse[32..160], 0));
        assert_eq!((Fields(&sse).u16(0), Fields(&sse).u64(FXSAVE)), (Some(0x37f), Some(2)));
        // AVX is not where it would be, but another component.
        assert!(is(&note(0x206, COMPACTED | 0x203)[576..], 0));
        assert_eq!(xstate(area(0, 0)).unwrap().len(), FXSAVE, "no XSAVE");
        assert!(xstate(vec![0; XSTATE]).is_none(), "nothing was saved");
    }
}
