//! Call frame information out of ORC, so that readers that do not know ORC unwind stacks, too.

use base::addr::{VirtAddr, to_u64};

use super::checks::Orc;
use super::dies::{sleb, uleb};
use crate::image::Image;
use crate::kallsyms::SymbolTable;
use crate::modules::Module;
use crate::orc::{Base, ENTRY, Entry, Frame};
use crate::{prologue, pt_regs};

/// Numbers of registers in DWARF (System V ABI, AMD64 supplement, figure 3.36).
const BP: u8 = 6;
const SP: u8 = 7;
const RETURN: u8 = 16;
/// Functions that ORC does not know, because they never return into their caller, but that are in the
/// stack of every panic (`STACK_FRAME_NON_STANDARD`).
const WITHOUT_ORC: [&str; 4] = ["__crash_kexec", "crash_kexec", "machine_kexec", "panic_smp_self_stop"];
/// DWARF's numbers of what is in `struct pt_regs`, and its own.
const REGISTERS: [(u8, usize); 17] = [
    (15, pt_regs::R15),
    (14, pt_regs::R14),
    (13, pt_regs::R13),
    (12, pt_regs::R12),
    (BP, pt_regs::BP),
    (3, pt_regs::BX),
    (11, pt_regs::R11),
    (10, pt_regs::R10),
    (9, pt_regs::R9),
    (8, pt_regs::R8),
    (0, pt_regs::AX),
    (2, pt_regs::CX),
    (1, pt_regs::DX),
    (4, pt_regs::SI),
    (5, pt_regs::DI),
    (RETURN, pt_regs::IP),
    (SP, pt_regs::SP),
];

/// `.debug_frame`, and the functions that are in it.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pub(super) bytes: Vec<u8>,
    pub(super) functions: u64,
    /// Where the common entries are: of calls, of signals.
    common: [Option<u32>; 2],
    /// Where the first address of each piece is written, and that address, if that is wanted.
    pub(super) places: Option<Vec<(u32, u64)>>,
}

/// What one entry of ORC says of a run of code.
struct Row {
    start: u64,
    end: u64,
    entry: Entry,
}

/// Writes call frame information of all functions of the kernel and, at the same distance from where they
/// run, of its modules.
pub(super) fn write(image: &Image<'_>, orc: Option<&Orc>, modules: &[(&Module, Orc)]) -> Frames {
    let mut frames = Frames::default();
    let link = |address| image.link(VirtAddr(address));
    if let Some(orc) = orc {
        let last = image.text().map_or(0, |(_, end)| end);
        let functions = starts(image.symbols, |address| image.is_text(address));
        of_orc(&mut frames, orc, &functions, last, link);
    }
    for name in WITHOUT_ORC {
        let Some(symbol) = image.only(name) else { continue };
        let len = image.function_len(symbol.address);
        let code = image.bytes(symbol.address.0, symbol.address.0.saturating_add(len.min(96)));
        let found = prologue::decode(&code);
        let body = len.saturating_sub(found.len).max(1);
        let start = image.link(symbol.address).saturating_add(found.len);
        let mut program = Vec::new();
        match found.frame_pointer {
            Some(depth) => define(&mut program, BP, depth),
            None => define(&mut program, SP, found.depth),
        }
        for (depth, register) in found.saved {
            program.push(0x80 | register);
            uleb(&mut program, depth / 8);
        }
        frames.function(false, start, body, &program);
    }
    for (module, orc) in modules {
        of_module(&mut frames, module, orc, link);
    }
    frames
}

/// Writes that of a module; `link` makes addresses of the file out of those where it runs.
pub(super) fn of_module(frames: &mut Frames, module: &Module, orc: &Orc, link: impl Fn(u64) -> u64) {
    let (first, end) = module.text;
    let functions = starts(&module.symbols, |address| (first..end).contains(&address.0));
    of_orc(frames, orc, &functions, end, link);
}

/// Where functions begin, ascending.
fn starts(symbols: &SymbolTable, is_text: impl Fn(VirtAddr) -> bool) -> Vec<u64> {
    let symbols = symbols.all().iter().map(|symbol| symbol.address);
    let mut starts: Vec<u64> = symbols.filter(|address| is_text(*address)).map(|address| address.0).collect();
    starts.dedup();
    starts
}

/// `DW_CFA_def_cfa`
fn define(program: &mut Vec<u8>, register: u8, offset: u64) {
    program.extend([0x0c, register]);
    uleb(program, offset);
}

impl Frames {
    /// Those of which it is remembered where first addresses are.
    pub(super) fn marked() -> Self {
        Self { places: Some(Vec::new()), ..Self::default() }
    }

    /// The common entry of functions, or of what an interrupt pushes; written when it is wanted first.
    fn common(&mut self, signal: bool) -> u32 {
        let at = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        let slot = self.common.get_mut(usize::from(signal));
        match slot {
            Some(Some(place)) => return *place,
            Some(slot) => *slot = Some(at),
            None => {}
        }
        // Version 1; addresses count bytes, offsets -8 bytes, the return address is register 16.
        let augmentation: &[u8] = if signal { b"S\0" } else { b"\0" };
        let mut body = [&[0xff, 0xff, 0xff, 0xff, 1][..], augmentation, &[1, 0x78, RETURN]].concat();
        // The caller's stack is behind the return address, which is at its end.
        body.extend([0x0c, SP, 8, 0x80 | RETURN, 1]);
        self.block(&[&body]);
        at
    }

    /// The entry of a piece of code.
    fn function(&mut self, signal: bool, start: u64, len: u64, program: &[u8]) {
        let common = self.common(signal);
        if let Some(places) = &mut self.places {
            // Behind the length and the place of the common entry.
            let at = u32::try_from(self.bytes.len().saturating_add(8)).unwrap_or(u32::MAX);
            places.push((at, start));
        }
        self.block(&[&common.to_le_bytes(), &start.to_le_bytes(), &len.to_le_bytes(), program]);
        self.functions = self.functions.saturating_add(1);
    }

    /// A length and a body, filled up with DW_CFA_nop.
    fn block(&mut self, body: &[&[u8]]) {
        let len = body.iter().fold(4_usize, |len, part| len.saturating_add(part.len())).next_multiple_of(8);
        let end = self.bytes.len().saturating_add(len);
        let len = u32::try_from(len.saturating_sub(4)).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&len.to_le_bytes());
        for part in body {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.resize(end, 0);
    }
}

/// Entries of functions, which begin at `starts` and of which the last one ends at `last`.
fn of_orc(frames: &mut Frames, orc: &Orc, starts: &[u64], last: u64, link: impl Fn(u64) -> u64) {
    let Some(layout) = orc.tables.layout else { return };
    let mut all = orc.tables.code(&orc.ip).zip(orc.entries.chunks_exact(ENTRY)).peekable();
    let mut current: Option<(u64, &[u8])> = None;
    let (mut rows, mut program) = (Vec::new(), Vec::new());
    for (index, &start) in (1_usize..).zip(starts) {
        let end = starts.get(index).copied().unwrap_or(last);
        while let Some(next) = all.next_if(|(address, _)| *address <= start) {
            current = Some(next);
        }
        rows.clear();
        loop {
            let next = all.peek().map_or(end, |(address, _)| *address);
            if let Some((address, bytes)) = current {
                let (from, to) = (address.max(start), next.min(end));
                let entry = layout.decode(bytes).filter(|_| from < to);
                rows.extend(entry.map(|entry| Row { start: from, end: to, entry }));
            }
            match all.next_if(|(address, _)| *address < end) {
                Some(next) => current = Some(next),
                None => break,
            }
        }
        runs(frames, &link, &rows, &mut program);
    }
}

/// Writes what is known, a piece for each run of rows of one kind.
fn runs(frames: &mut Frames, link: impl Fn(u64) -> u64, rows: &[Row], program: &mut Vec<u8>) {
    let known = |row: &Row| {
        matches!(row.entry.frame, Frame::Call | Frame::Registers | Frame::Interrupt)
            && !matches!(row.entry.sp.0, Base::Undefined | Base::PreviousSp)
            // What lies on a stack are words.
            && row.entry.sp.1 % 8 == 0
    };
    let signal = |row: &Row| row.entry.frame != Frame::Call;
    let kind = |row: &Row| known(row).then(|| signal(row));
    for run in rows.chunk_by(|one, next| kind(one) == kind(next) && one.end == next.start) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let Some(signal) = kind(first) else { continue };
        write_program(program, run, first.start);
        let start = link(first.start);
        frames.function(signal, start, last.end.saturating_sub(first.start), program);
    }
}

/// Writes the instructions of a run in place of what is there.
fn write_program(program: &mut Vec<u8>, rows: &[Row], start: u64) {
    program.clear();
    let mut at = start;
    let mut saved = None;
    for row in rows {
        advance(program, row.start.saturating_sub(at));
        at = row.start;
        stack(program, row.entry);
        if row.entry.frame == Frame::Call {
            let bp = match row.entry.bp {
                (Base::PreviousSp, offset) if offset <= 0 && offset % 8 == 0 => {
                    Some(offset.unsigned_abs() / 8)
                }
                _ => None,
            };
            if saved != Some(bp) {
                saved = Some(bp);
                match bp {
                    Some(words) => {
                        program.push(0x80 | BP);
                        uleb(program, words.into());
                    }
                    // DW_CFA_same_value
                    None => program.extend([0x08, BP]),
                }
            }
        } else {
            registers(program, row.entry.frame);
        }
    }
}

/// `DW_CFA_advance_loc`
fn advance(program: &mut Vec<u8>, bytes: u64) {
    match (u8::try_from(bytes), u16::try_from(bytes), u32::try_from(bytes)) {
        (Ok(0), ..) => {}
        (Ok(short @ ..64), ..) => program.push(0x40 | short),
        (Ok(byte), ..) => program.extend([0x02, byte]),
        (_, Ok(word), _) => {
            program.push(0x03);
            program.extend(word.to_le_bytes());
        }
        (.., Ok(long)) => {
            program.push(0x04);
            program.extend(long.to_le_bytes());
        }
        // No function is that long.
        _ => {}
    }
}

/// Where the caller's stack begins: or the registers, where they lie there.
fn stack(program: &mut Vec<u8>, entry: Entry) {
    let (base, offset) = entry.sp;
    let register = match base {
        Base::Ax => 0,
        Base::Dx => 1,
        Base::Di => 5,
        Base::Bp | Base::BpIndirect => BP,
        Base::R10 => 10,
        Base::R13 => 13,
        Base::Sp | Base::SpIndirect | Base::PreviousSp | Base::Undefined => SP,
    };
    let mut expression = vec![0x70 | register]; // DW_OP_breg0 + register
    match base {
        Base::BpIndirect => {
            sleb(&mut expression, offset.into());
            expression.push(0x06); // DW_OP_deref
        }
        Base::SpIndirect => {
            sleb(&mut expression, 0);
            expression.extend([0x06, 0x11]); // then DW_OP_consts
            sleb(&mut expression, offset.into());
            expression.push(0x22); // DW_OP_plus
        }
        _ => {
            if let Ok(offset) = u64::try_from(offset) {
                return define(program, register, offset);
            }
            // DW_CFA_def_cfa_sf, in words of -8 bytes.
            program.extend([0x12, register]);
            return sleb(program, i64::from(offset) / -8);
        }
    }
    // DW_CFA_def_cfa_expression
    program.push(0x0f);
    uleb(program, to_u64(expression.len()));
    program.extend(expression);
}

/// Where the registers of what was interrupted are.
fn registers(program: &mut Vec<u8>, frame: Frame) {
    // What the CPU pushes is at the end.
    let start = if frame == Frame::Registers { 0 } else { pt_regs::IP };
    for (register, number) in REGISTERS {
        let Some(words) = number.checked_sub(start) else { continue };
        // DW_CFA_offset_extended_sf, in words of -8 bytes.
        program.extend([0x11, register]);
        sleb(program, 0_i64.saturating_sub_unsigned(to_u64(words)));
    }
}
