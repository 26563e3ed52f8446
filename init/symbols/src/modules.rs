//! Loaded modules: where their code is, what their functions are called and how their stacks are
//! unwound (`struct module`, include/linux/module.h).

mod parts;

use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::Fields;
use vmcore::kernel::{Kernel, KernelError};

use crate::kallsyms::{Builder, SymbolTable};
use crate::knowledge::Knowledge;
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
    /// Its `struct module`.
    pub address: VirtAddr,
    /// Its name; bytes that are not printable are replaced.
    pub name: String,
    /// Its code: first address and the one behind the last.
    pub text: (u64, u64),
    /// Its symbols; empty if they cannot be read, or were not (see [`list()`]).
    pub symbols: SymbolTable,
    /// Where they lie.
    pub(crate) functions: Option<Functions>,
    /// How its stacks are unwound.
    pub orc: Option<Tables>,
}

/// Where the symbols of a module lie (`struct mod_kallsyms`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Functions {
    symtab: VirtAddr,
    count: u32,
    strtab: VirtAddr,
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
    fn find(known: &dyn Knowledge) -> Option<Self> {
        let module = |path| known.offset("module", path);
        let table = |path| known.offset("mod_kallsyms", path);
        let layout = module("core_layout.base").zip(module("core_layout.text_size"));
        // An array of memories by kind since 6.4 (ac3b43283923); the first is the code.
        let memory = || {
            let first = module("mem")?;
            let of = |path| known.offset("module_memory", path)?.checked_add(first);
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

/// Reads the list of modules, and their symbols. One that cannot be read is left out, and so is what
/// follows it.
#[must_use]
pub fn read(kernel: &Kernel<'_>, known: &dyn Knowledge, layout: Option<Layout>) -> Vec<Module> {
    let mut modules = list(kernel, known, layout);
    for module in &mut modules {
        module.symbols = module.read_symbols(kernel);
    }
    modules
}

/// The same without their symbols, which may take some MiB.
#[must_use]
pub fn list(kernel: &Kernel<'_>, known: &dyn Knowledge, layout: Option<Layout>) -> Vec<Module> {
    let (offsets, head) = (Offsets::find(known), known.symbol("modules"));
    let (Some(head), Some(offsets)) = (head, offsets) else { return Vec::new() };
    let (entries, _) = list::all(kernel, head, MAX_MODULES);
    let base = |entry: &VirtAddr| entry.0.wrapping_sub(offsets.list);
    let mut budget = MAX_ALL_SYMBOLS;
    let mut next = |entry| module(kernel, base(entry), &offsets, layout, &mut budget).ok().flatten();
    entries.iter().map_while(&mut next).collect()
}

impl Module {
    /// One of a test.
    #[cfg(test)]
    pub(crate) fn made_up(name: String, text: (u64, u64), symbols: SymbolTable) -> Self {
        Self { address: VirtAddr(0), name, text, symbols, functions: None, orc: None }
    }

    /// Reads its symbols; none if they cannot be read.
    #[must_use]
    pub fn read_symbols(&self, kernel: &Kernel<'_>) -> SymbolTable {
        self.functions.and_then(|functions| functions.read(kernel).ok()).unwrap_or_default()
    }
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
        address: VirtAddr(base),
        name: printable.collect(),
        text: (start, end),
        symbols: SymbolTable::default(),
        functions: functions(kernel, base, offsets, budget).ok(),
        orc: tables(kernel, base, offsets, layout),
    }))
}

/// Where the symbols of a module lie.
fn functions(
    kernel: &Kernel<'_>,
    base: u64,
    offsets: &Offsets,
    budget: &mut u32,
) -> Result<Functions, KernelError> {
    let what = "a module's symbols";
    let table = kernel.read_u64(at(base, offsets.kallsyms), what)?;
    let symtab = VirtAddr(kernel.read_u64(at(table, offsets.symtab), what)?);
    let strtab = VirtAddr(kernel.read_u64(at(table, offsets.strtab), what)?);
    let count = kernel.read_u32(at(table, offsets.num_symtab), what)?;
    let rest = budget.checked_sub(count).filter(|_| count <= MAX_SYMBOLS);
    *budget = rest.ok_or(KernelError::Absurd { what, value: count.into() })?;
    Ok(Functions { symtab, count, strtab })
}

impl Functions {
    /// The symbols that have an address.
    fn read(self, kernel: &Kernel<'_>) -> Result<SymbolTable, KernelError> {
        let count = to_usize(self.count.into());
        let mut bytes = vec![0; count.saturating_mul(SYMBOL)];
        kernel.read(self.symtab, &mut bytes, "a module's symbols")?;
        let mut builder = Builder::with_capacity(count);
        for symbol in bytes.chunks_exact(SYMBOL).map(Fields) {
            let (name, info, section, value) = (symbol.u32(0), symbol.u8(4), symbol.u16(6), symbol.u64(8));
            let (Some(name), Some(info), Some(section), Some(value)) = (name, info, section, value) else {
                continue;
            };
            // SHN_UNDEF, and names of sections and files.
            if section == 0 || name == 0 || value == 0 {
                continue;
            }
            let text = text(kernel, at(self.strtab.0, name.into()));
            let plain = !text.is_empty() && text.iter().all(u8::is_ascii_graphic);
            // STB_LOCAL is 0.
            let kind = if info >> 4 == 0 { b't' } else { b'T' };
            if plain {
                builder.push(VirtAddr(value), kind, &text);
            }
        }
        Ok(builder.finish())
    }
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
