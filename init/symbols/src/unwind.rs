//! Stacks of the kernel: which function called which (arch/x86/kernel/unwind_orc.c).
//!
//! ORC says for each address of code where the caller's frame is. Where it does not, the frame
//! pointer is believed if it leads to a return address; where that does not either, all words of
//! the rest of the stack that look like return addresses are listed. Each frame says how it was
//! found. The stack is hostile: no more than [`MAX_FRAMES`] are found, and it must go upwards but for
//! a few changes of the stack.

use std::borrow::Cow;
use std::cell::OnceCell;

use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::Fields;
use vmcore::kernel::Kernel;

use crate::kallsyms::{SymbolTable, Symbols};
use crate::knowledge::Knowledge;
use crate::modules::{self, Module};
use crate::orc::{Base, ENTRY, Entry, Tables};
use crate::pt_regs::{self, AX, BP, CS, DI, DX, IP, R10, R13, SP, WORDS};
use crate::{orc, prologue};

/// Frames of one stack.
pub const MAX_FRAMES: usize = 128;
/// Times that a stack may go down: from an interrupt's stack to that of the task, and the like.
const MAX_CHANGES: u32 = 8;
/// `THREAD_SIZE` of x86_64: a stack is aligned to it.
const STACK: u64 = 16 << 10;
/// Bytes at the start of a function that set up its frame.
const MAX_PROLOGUE: u64 = 64;
/// How a frame was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By what the registers hold.
    Registers,
    /// By ORC.
    Orc,
    /// By the first instructions of the function, for which there is no ORC: `__crash_kexec`, in which
    /// every panic ends, is such a one before 6.2 (STACK_FRAME_NON_STANDARD).
    Prologue,
    /// By the frame pointer.
    FramePointer,
    /// It looks like a return address: it may be one of an earlier call.
    Scan,
}

/// A function on a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it goes on.
    pub address: VirtAddr,
    /// Whether the address is that of the next instruction and not a return address: the registers
    /// were saved there.
    pub exact: bool,
    /// How it was found.
    pub how: How,
}

/// Registers to start from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Where it goes on.
    pub ip: u64,
    /// Whether `ip` is no return address.
    pub exact: bool,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub bp: u64,
    /// Registers that few functions keep their stack in: AX, DX, DI, R10, R13.
    pub others: [Option<u64>; 5],
}

impl Registers {
    /// Of `struct pt_regs`, or of the note of a CPU, which begins with it (`struct user_regs_struct`).
    #[must_use]
    pub fn of_pt_regs(bytes: &[u8]) -> Option<Self> {
        let word = |register: usize| Fields(bytes).u64(register.checked_mul(8)?);
        let others = [AX, DX, DI, R10, R13].map(word);
        Some(Self { ip: word(IP)?, exact: true, sp: word(SP)?, bp: word(BP)?, others })
    }

    /// Of a task that does not run: what `__switch_to_asm` has pushed (`struct inactive_task_frame`,
    /// arch/x86/include/asm/switch_to.h).
    #[must_use]
    pub fn of_sleeper(kernel: &Kernel<'_>, layout: &SleeperLayout, task: VirtAddr) -> Option<Self> {
        let frame = VirtAddr(kernel.read_u64(task.checked_add(layout.saved)?, "a task's stack").ok()?);
        let word = |offset| kernel.read_u64(frame.checked_add(offset)?, "a task's stack").ok();
        let sp = frame.checked_add(layout.size)?.0;
        Some(Self { ip: word(layout.ip)?, exact: false, sp, bp: word(layout.bp)?, others: [None; 5] })
    }
}

/// Where a task that does not run has its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleeperLayout {
    /// `task_struct.thread.sp`
    saved: u64,
    /// `inactive_task_frame.ret_addr`, `.bp`
    ip: u64,
    bp: u64,
    /// Bytes of it.
    size: u64,
}

impl SleeperLayout {
    /// Looks it up.
    #[must_use]
    pub fn ask(known: &dyn Knowledge) -> Option<Self> {
        Some(Self {
            saved: known.offset("task_struct", "thread.sp")?,
            ip: known.offset("inactive_task_frame", "ret_addr")?,
            bp: known.offset("inactive_task_frame", "bp")?,
            size: known.size_of("inactive_task_frame")?,
        })
    }
}

/// What a symbol says of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The function.
    pub name: Cow<'a, str>,
    /// Bytes from its start.
    pub offset: u64,
    /// The module that it belongs to.
    pub module: Option<&'a str>,
}

/// Unwinds stacks of a kernel.
#[expect(missing_debug_implementations, reason = "the table of symbols may be any")]
pub struct Unwinder<'a> {
    kernel: &'a Kernel<'a>,
    symbols: &'a dyn Symbols,
    /// The kernel's code.
    text: Option<(u64, u64)>,
    init: Option<(u64, u64)>,
    orc: Option<Tables>,
    modules: Vec<Module>,
    /// The symbols of each, read when the first of its functions is met.
    functions: Vec<OnceCell<SymbolTable>>,
    /// A task that was just made goes on here, not behind a call.
    fork: Option<u64>,
}

impl<'a> Unwinder<'a> {
    /// An unwinder with the tables of the kernel and its modules, as far as there are some.
    #[must_use]
    pub fn new(kernel: &'a Kernel<'a>, symbols: &'a dyn Symbols, known: &dyn Knowledge) -> Self {
        let orc = Tables::find(kernel, known);
        let modules = modules::list(kernel, known, orc.and_then(|orc| orc.layout));
        let fork = ["ret_from_fork_asm", "ret_from_fork"].iter().find_map(|name| known.symbol(name));
        Self {
            kernel,
            symbols,
            text: known.part(&["_text", "_stext"], &["_etext"]),
            init: known.part(&["_sinittext"], &["_einittext"]),
            orc,
            functions: modules.iter().map(|_| OnceCell::new()).collect(),
            modules,
            fork: fork.map(|address| address.0),
        }
    }

    /// The modules.
    #[must_use]
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// The function that an address lies in. A return address may be that of the next function,
    /// where the call does not return: look one byte before it.
    #[must_use]
    pub fn place(&self, address: VirtAddr) -> Option<Place<'_>> {
        let within = |&(start, end): &(u64, u64)| (start..end).contains(&address.0);
        if [self.text, self.init].iter().flatten().any(within) {
            let (name, offset) = self.symbols.at(address)?;
            return Some(Place { name, offset, module: None });
        }
        let mut modules = self.modules.iter().zip(&self.functions);
        let (module, functions) = modules.find(|(module, _)| within(&module.text))?;
        let functions = functions.get_or_init(|| module.read_symbols(self.kernel));
        let (symbol, offset) = functions.at(address)?;
        Some(Place { name: functions.name(symbol).into(), offset, module: Some(&module.name) })
    }

    /// The function of a frame.
    #[must_use]
    pub fn function(&self, frame: &Frame) -> Option<Place<'_>> {
        let back = u64::from(!frame.exact);
        let found = self.place(VirtAddr(frame.address.0.wrapping_sub(back)))?;
        Some(Place { offset: found.offset.wrapping_add(back), ..found })
    }

    fn is_text(&self, address: u64) -> bool {
        let modules = self.modules.iter().map(|module| module.text);
        let mut all = [self.text, self.init].into_iter().flatten().chain(modules);
        all.any(|(start, end)| (start..end).contains(&address))
    }

    /// The frames of a stack, the innermost first. It ends where user space was entered from, or
    /// where nothing more can be found.
    #[must_use]
    pub fn stack(&self, start: &Registers) -> Vec<Frame> {
        let mut at = *start;
        at.exact |= self.fork == Some(at.ip);
        let mut frames = Vec::new();
        let mut how = How::Registers;
        // A call of a function where there is none: where it would return to is on top of the stack. The
        // kernel's own unwinder does the same (null_orc_entry, arch/x86/kernel/unwind_orc.c).
        if !self.is_text(at.ip)
            && let Some(caller) = self.word(at.sp).filter(|caller| self.is_text(*caller))
        {
            (at.ip, at.sp, at.exact, how) = (caller, at.sp.wrapping_add(8), false, How::Orc);
        }
        let mut changes = 0;
        while frames.len() < MAX_FRAMES && self.is_text(at.ip) {
            frames.push(Frame { address: VirtAddr(at.ip), exact: at.exact, how });
            let next = match self.by_orc(&at) {
                Next::End => break,
                Next::Frame(next) => {
                    how = How::Orc;
                    Some(next)
                }
                Next::Unknown => {
                    let by_prologue = self.by_prologue(&at);
                    how = if by_prologue.is_some() { How::Prologue } else { How::FramePointer };
                    by_prologue.or_else(|| self.by_frame_pointer(&at))
                }
            };
            let Some(next) = next else {
                self.scan(at.sp, &mut frames);
                break;
            };
            if next.sp <= at.sp {
                changes = u32::saturating_add(changes, 1);
            }
            if changes > MAX_CHANGES {
                break;
            }
            at = next;
        }
        frames
    }

    fn word(&self, address: u64) -> Option<u64> {
        self.kernel.read_u64(VirtAddr(address), "a stack").ok()
    }

    /// The caller as ORC has it (unwind_next_frame()).
    fn by_orc(&self, at: &Registers) -> Next {
        let address = if at.exact { at.ip } else { at.ip.wrapping_sub(1) };
        let Some(entry) = self.entry(address) else { return Next::Unknown };
        match entry.frame {
            orc::Frame::End => return Next::End,
            orc::Frame::Undefined => return Next::Unknown,
            _ => {}
        }
        let Some(sp) = self.stack_pointer(at, entry) else { return Next::Unknown };
        let next = match entry.frame {
            orc::Frame::Call => {
                let ip = self.word(sp.wrapping_sub(8));
                ip.map(|ip| Registers { ip, exact: self.fork == Some(ip), sp, bp: at.bp, others: [None; 5] })
            }
            orc::Frame::Registers => {
                if self.word(sp.wrapping_add(pt_regs::offset(CS))).is_none_or(|cs| cs & 3 == 3) {
                    return Next::End;
                }
                let mut bytes = [0; WORDS * 8];
                let read = self.kernel.read(VirtAddr(sp), &mut bytes, "saved registers");
                read.ok().and_then(|()| Registers::of_pt_regs(&bytes))
            }
            // Only what the CPU pushes is there.
            _ => {
                let start = sp.wrapping_sub(pt_regs::offset(IP));
                let word = |register| self.word(start.wrapping_add(pt_regs::offset(register)));
                if word(CS).is_none_or(|cs| cs & 3 == 3) {
                    return Next::End;
                }
                word(IP).zip(word(SP)).map(|(ip, sp)| Registers { ip, exact: true, sp, ..*at })
            }
        };
        let Some(mut next) = next else { return Next::Unknown };
        let saved = match entry.bp {
            (Base::PreviousSp, offset) => self.word(sp.wrapping_add_signed(offset.into())),
            (Base::Bp, offset) => self.word(at.bp.wrapping_add_signed(offset.into())),
            _ => None,
        };
        next.bp = saved.unwrap_or(next.bp);
        Next::Frame(next)
    }

    fn stack_pointer(&self, at: &Registers, entry: Entry) -> Option<u64> {
        let (base, offset) = entry.sp;
        let [ax, dx, di, r10, r13] = at.others;
        let add = |value: u64| value.wrapping_add_signed(offset.into());
        match base {
            Base::Sp => Some(add(at.sp)),
            Base::Bp => Some(add(at.bp)),
            Base::SpIndirect => self.word(at.sp).map(add),
            Base::BpIndirect => self.word(add(at.bp)),
            Base::Ax => ax.map(add),
            Base::Dx => dx.map(add),
            Base::Di => di.map(add),
            Base::R10 => r10.map(add),
            Base::R13 => r13.map(add),
            Base::Undefined | Base::PreviousSp => None,
        }
    }

    /// The last entry that does not lie behind an address, of the tables that it belongs to.
    fn entry(&self, address: u64) -> Option<Entry> {
        let module = self.modules.iter().find(|module| (module.text.0..module.text.1).contains(&address));
        let tables = match module {
            Some(module) => module.orc?,
            None => self.orc?,
        };
        let layout = tables.layout?;
        let code = |index: u64| {
            let place = tables.ip.0.0.wrapping_add(index.wrapping_mul(4));
            let distance = self.kernel.read_u32(VirtAddr(place), "unwind tables").ok()?;
            Some(place.wrapping_add_signed(distance.cast_signed().into()))
        };
        let (mut low, mut high) = (0, tables.len());
        while low < high {
            let middle = low.midpoint(high);
            if code(middle)? <= address { low = middle.checked_add(1)? } else { high = middle }
        }
        let index = low.checked_sub(1)?;
        let at = tables.entries.0.0.wrapping_add(index.wrapping_mul(to_u64(ENTRY)));
        let mut bytes = [0; ENTRY];
        self.kernel.read(VirtAddr(at), &mut bytes, "unwind tables").ok()?;
        layout.decode(&bytes)
    }

    /// The caller by what the function has done to the stack since it was entered.
    fn by_prologue(&self, at: &Registers) -> Option<Registers> {
        let address = if at.exact { at.ip } else { at.ip.wrapping_sub(1) };
        let offset = self.place(VirtAddr(address))?.offset;
        let mut code = vec![0; to_usize(offset.min(MAX_PROLOGUE))];
        self.kernel.read(VirtAddr(address.wrapping_sub(offset)), &mut code, "code").ok()?;
        let found = prologue::decode(&code);
        let caller = match found.frame_pointer {
            Some(depth) => at.bp.wrapping_add(depth),
            None => at.sp.wrapping_add(found.depth),
        };
        let ip = self.word(caller.wrapping_sub(8)).filter(|ip| caller > at.sp && self.is_return(*ip))?;
        // RBP is 6 in DWARF.
        let saved = found.saved.iter().find(|(_, register)| *register == 6);
        let bp = saved.and_then(|(depth, _)| self.word(caller.wrapping_sub(*depth))).unwrap_or(at.bp);
        Some(Registers { ip, exact: false, sp: caller, bp, others: [None; 5] })
    }

    /// The caller by BP: it points to the saved one, behind which the return address is.
    fn by_frame_pointer(&self, at: &Registers) -> Option<Registers> {
        let within = at.bp >= at.sp && at.bp.wrapping_sub(at.sp) < STACK && at.bp.is_multiple_of(8);
        let ip = self.word(at.bp.wrapping_add(8)).filter(|ip| within && self.is_return(*ip))?;
        let (sp, bp) = (at.bp.wrapping_add(16), self.word(at.bp)?);
        Some(Registers { ip, exact: false, sp, bp, others: [None; 5] })
    }

    /// Adds what looks like return addresses in the rest of a stack.
    fn scan(&self, sp: u64, frames: &mut Vec<Frame>) {
        let start = sp.next_multiple_of(8);
        let end = (sp | STACK.wrapping_sub(1)).wrapping_add(1);
        let places = (0..STACK / 8).map(|index| start.wrapping_add(index.wrapping_mul(8)));
        for place in places.take_while(|place| *place < end) {
            let Some(word) = self.word(place) else { break };
            if frames.len() >= MAX_FRAMES {
                break;
            }
            if self.is_return(word) {
                frames.push(Frame { address: VirtAddr(word), exact: false, how: How::Scan });
            }
        }
    }

    /// Whether the instruction before an address of code is a call (Intel SDM, volume 2).
    fn is_return(&self, address: u64) -> bool {
        let mut code = [0; 7];
        let start = VirtAddr(address.wrapping_sub(7));
        if !self.is_text(address) || self.kernel.read(start, &mut code, "code").is_err() {
            return false;
        }
        let byte = |before: usize| code.len().checked_sub(before).and_then(|at| code.get(at)).copied();
        // Of a register or of memory: the middle three bits of the byte behind ff are 2.
        let indirect = |before: usize| {
            let operand = byte(before.saturating_sub(1));
            byte(before) == Some(0xff) && operand.is_some_and(|operand| operand >> 3 & 7 == 2)
        };
        byte(5) == Some(0xe8) || [2, 3, 4, 6, 7].into_iter().any(indirect)
    }
}

/// What ORC says.
enum Next {
    /// The stack ends.
    End,
    /// The caller.
    Frame(Registers),
    /// Nothing.
    Unknown,
}
