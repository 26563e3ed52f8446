//! Loaded modules: where their code is, what their functions are called and how their stacks are
//! unwound (`struct module`, include/linux/module.h).

mod parts;

use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::Fields;
use vmcore::kernel::{Kernel, KernelError};

use crate::btf::Types;
use crate::kallsyms::{Builder, SymbolTable};
use crate::list;
use crate::orc::{ENTRY, Layout, Tables};
pub use parts::{Part, parts};

/// Modules, and symbols and unwind entries of a module, that are believed.
const MAX_MODULES: usize = 1024;
const MAX_SYMBOLS: u32 = 1 << 18;
/// Symbols of all modules.
const MAX_ALL_SYMBOLS: u32 = 1 << 21;
const MAX_ENTRIES: u32 = 1 << 20;
/// Bytes of code of a module that are believed.
const MAX_TEXT: u64 = 64 << 20;
/// `MODULE_NAME_LEN` on 64-bit machines.
const NAME: usize = 56;
/// Bytes of a symbol (`Elf64_Sym`), and of its name (`KSYM_NAME_LEN`).
const SYMBOL: usize = 24;
const SYMBOL_NAME: usize = 512;

/// A loaded module.
#[derive(Clone, Debug)]
pub struct Module {
    /// Where its `struct module` lies.
    pub at: VirtAddr,
    /// Its name; bytes that are not printable are replaced.
    pub name: String,
    /// Its code: first address and the one behind the last.
    pub text: (u64, u64),
    /// Its symbols; empty if they cannot be read.
    pub symbols: SymbolTable,
    /// How its stacks are unwound.
    pub orc: Option<Tables>,
}

/// Where members of the structures are.
struct Offsets {
    list: u64,
    name: u64,
    /// Where the code begins, and its size in 32 bits.
    text: (u64, u64),
    kallsyms: u64,
    symtab: u64,
    num_symtab: u64,
    strtab: u64,
    orc: Option<[u64; 3]>,
}

impl Offsets {
    fn find(types: &Types) -> Option<Self> {
        let module = |path| types.offset("module", path);
        let table = |path| types.offset("mod_kallsyms", path);
        let layout = module("core_layout.base").zip(module("core_layout.text_size"));
        // An array of memories by kind since 6.4 (ac3b43283923); the first is the code.
        let memory = || {
            let first = module("mem")?;
            let of = |path| types.offset("module_memory", path)?.checked_add(first);
            of("base").zip(of("size"))
        };
        let orc = ["arch.num_orcs", "arch.orc_unwind_ip", "arch.orc_unwind"].map(module);
        Some(Self {
            list: module("list")?,
            name: module("name")?,
            text: layout.or_else(memory)?,
            kallsyms: module("kallsyms")?,
            symtab: table("symtab")?,
            num_symtab: table("num_symtab")?,
            strtab: table("strtab")?,
            orc: match orc {
                [Some(count), Some(ip), Some(entries)] => Some([count, ip, entries]),
                _ => None,
            },
        })
    }
}

/// Reads the list of modules. One that cannot be read is left out, and so is what follows it.
#[must_use]
pub fn read(
    kernel: &Kernel<'_>,
    symbols: &SymbolTable,
    types: &Types,
    layout: Option<Layout>,
) -> Vec<Module> {
    let (Some(head), Some(offsets)) = (symbols.find("modules"), Offsets::find(types)) else {
        return Vec::new();
    };
    let (entries, _) = list::all(kernel, head, MAX_MODULES);
    let base = |entry: &VirtAddr| entry.0.wrapping_sub(offsets.list);
    let mut budget = MAX_ALL_SYMBOLS;
    let mut next = |entry| module(kernel, base(entry), &offsets, layout, &mut budget).ok().flatten();
    entries.iter().map_while(&mut next).collect()
}

fn at(base: u64, offset: u64) -> VirtAddr {
    VirtAddr(base.wrapping_add(offset))
}

fn module(
    kernel: &Kernel<'_>,
    base: u64,
    offsets: &Offsets,
    layout: Option<Layout>,
    budget: &mut u32,
) -> Result<Option<Module>, KernelError> {
    let mut name = [0; NAME];
    kernel.read(at(base, offsets.name), &mut name, "a module's name")?;
    let name = Fields(&name).text(0, NAME).unwrap_or_default();
    let start = kernel.read_u64(at(base, offsets.text.0), "a module's code")?;
    let len = u64::from(kernel.read_u32(at(base, offsets.text.1), "a module's code")?);
    let Some(end) = start.checked_add(len).filter(|_| len <= MAX_TEXT) else { return Ok(None) };
    let printable = name.chars().map(|char| if char.is_ascii_graphic() { char } else { '?' });
    Ok(Some(Module {
        at: VirtAddr(base),
        name: printable.collect(),
        text: (start, end),
        symbols: functions(kernel, base, offsets, budget).unwrap_or_default(),
        orc: tables(kernel, base, offsets, layout),
    }))
}

/// The symbols of a module that have an address (`struct mod_kallsyms`).
fn functions(
    kernel: &Kernel<'_>,
    base: u64,
    offsets: &Offsets,
    budget: &mut u32,
) -> Result<SymbolTable, KernelError> {
    let what = "a module's symbols";
    let table = kernel.read_u64(at(base, offsets.kallsyms), what)?;
    let symtab = kernel.read_u64(at(table, offsets.symtab), what)?;
    let strtab = kernel.read_u64(at(table, offsets.strtab), what)?;
    let count = kernel.read_u32(at(table, offsets.num_symtab), what)?;
    let rest = budget.checked_sub(count).filter(|_| count <= MAX_SYMBOLS);
    *budget = rest.ok_or(KernelError::Absurd { what, value: count.into() })?;
    let mut bytes = vec![0; to_usize(count.into()).saturating_mul(SYMBOL)];
    kernel.read(VirtAddr(symtab), &mut bytes, what)?;
    let mut builder = Builder::with_capacity(to_usize(count.into()));
    for symbol in bytes.chunks_exact(SYMBOL).map(Fields) {
        let (name, info, section, value) = (symbol.u32(0), symbol.u8(4), symbol.u16(6), symbol.u64(8));
        let (Some(name), Some(info), Some(section), Some(value)) = (name, info, section, value) else {
            continue;
        };
        // SHN_UNDEF, and names of sections and files.
        if section == 0 || name == 0 || value == 0 {
            continue;
        }
        let text = text(kernel, at(strtab, name.into()));
        let plain = !text.is_empty() && text.iter().all(u8::is_ascii_graphic);
        // STB_LOCAL is 0.
        let kind = if info >> 4 == 0 { b't' } else { b'T' };
        if plain {
            builder.push(VirtAddr(value), kind, &text);
        }
    }
    Ok(builder.finish())
}

/// A string, up to its NUL; empty if it is too long or cannot be read.
fn text(kernel: &Kernel<'_>, at: VirtAddr) -> Vec<u8> {
    let mut all = Vec::new();
    let mut from = at;
    while all.len() < SYMBOL_NAME {
        let mut piece = [0; 32];
        // Not beyond a page: the next one may not be there.
        let len = to_usize(4096_u64.saturating_sub(from.0 % 4096)).min(piece.len());
        let Some(piece) = piece.get_mut(..len) else { break };
        if kernel.read(from, piece, "a name").is_err() {
            break;
        }
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            all.extend_from_slice(piece.get(..end).unwrap_or_default());
            return all;
        }
        all.extend_from_slice(piece);
        from = VirtAddr(from.0.wrapping_add(to_u64(len)));
    }
    Vec::new()
}

/// The unwind tables of a module (`struct mod_arch_specific`, arch/x86/include/asm/module.h).
fn tables(kernel: &Kernel<'_>, base: u64, offsets: &Offsets, layout: Option<Layout>) -> Option<Tables> {
    let [count, ip, entries] = offsets.orc?;
    let what = "a module's unwind tables";
    let count =
        kernel.read_u32(at(base, count), what).ok().filter(|count| (1..=MAX_ENTRIES).contains(count))?;
    let ip = kernel.read_u64(at(base, ip), what).ok()?;
    let entries = kernel.read_u64(at(base, entries), what).ok()?;
    let end = |start: u64, bytes: usize| {
        start.checked_add(u64::from(count).checked_mul(to_u64(bytes))?).map(VirtAddr)
    };
    Some(Tables {
        ip: (VirtAddr(ip), end(ip, 4)?),
        entries: (VirtAddr(entries), end(entries, ENTRY)?),
        header: None,
        layout,
    })
}
