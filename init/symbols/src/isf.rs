//! Symbols and types in volatility3's form (ISF 6.2.0, volatility3's `schema-6.2.0.json`), for the
//! kernel in a dump.
//!
//! The form differs from the kernel's types: it has no typedefs and no qualifiers, members without a
//! name are marked, and all structures and unions share one space of names (`names`). volatility3
//! knows a kernel by its banner, which is in the file byte for byte.

mod json;
mod names;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write};

use vmcore::kernel::Kernel;

use crate::btf::{Space, TypeId, Types};
use crate::debuginfo::DebuginfoError;
use crate::image::Image;
use crate::model::Model;
use names::Names;

/// Bytes of `linux_banner`.
const MAX_BANNER: u64 = 1024;
/// With what it begins (init/version.c).
const BANNER: &[u8] = b"Linux version ";
/// Symbols of the linker, which are in no table of variables, and whose types volatility3 asks for:
/// arrays of these.
const OF_LINKER: [(&str, &str); 3] =
    [("_text", "char"), ("_etext", "char"), ("__start___tracepoints_ptrs", "tracepoint_ptr_t")];
/// Variables whose types volatility3 (2.28) asks for: what needs one of them fails without.
const ASKED: [&str; 27] = [
    "_etext",
    "_text",
    "bpf_kallsyms",
    "cap_last_cap",
    "ftrace_list_end",
    "ftrace_mod_maps",
    "ftrace_ops_list",
    "idt_table",
    "init_task",
    "keyboard_notifier_list",
    "log_buf",
    "log_buf_len",
    "mod_tree",
    "module_kset",
    "modules",
    "net_namespace_list",
    "nf_hooks",
    "num_registered_fb",
    "prb",
    "prog_idr",
    "registered_fb",
    "sockfs_dentry_operations",
    "socket_file_ops",
    "taint_flags",
    "tk_core",
    "tty_drivers",
    "vmemmap_base",
];

/// Why there is no file of symbols.
#[derive(Debug, thiserror::Error)]
pub enum IsfError {
    /// No symbols or types.
    #[error(transparent)]
    Model(#[from] DebuginfoError),
    /// Without it volatility3 would not find the file.
    #[error("linux_banner, by which volatility3 knows a kernel, cannot be read")]
    NoBanner,
    /// The file could not be written.
    #[error("writing the symbols")]
    Write(#[from] io::Error),
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Symbols.
    pub symbols: usize,
    /// Symbols whose type is known.
    pub typed: usize,
    /// Structures and unions.
    pub structures: usize,
    /// Enumerations.
    pub enumerations: usize,
    /// Modules whose types are in it.
    pub modules: usize,
    /// Modules whose types could not be had, and why.
    pub without_types: Vec<String>,
    /// Variables that volatility3 asks for, that the kernel has, and whose type is not known.
    pub unresolved: Vec<&'static str>,
}

/// Writes the symbols of the kernel in a dump. The same kernel gives the same bytes.
pub fn write(kernel: &Kernel<'_>, out: &mut dyn Write) -> Result<Report, IsfError> {
    let mut model = Model::read(kernel)?;
    let linker = of_linker(&mut model.types);
    let image = Image::new(kernel, &model.symbols);
    let isf = Isf::new(&model, &linker, &image)?;
    let is_untyped = |name: &&str| isf.symbols.get(*name).is_some_and(|symbol| symbol.of.is_none());
    let report = Report {
        symbols: isf.symbols.len(),
        typed: isf.symbols.values().filter(|symbol| symbol.of.is_some()).count(),
        structures: isf.names.structures.len(),
        enumerations: isf.names.enumerations.len(),
        modules: model.modules.len(),
        without_types: model.without_types.clone(),
        unresolved: ASKED.into_iter().filter(is_untyped).collect(),
    };
    json::write(&isf, out)?;
    Ok(report)
}

/// The linker's symbols that this kernel has the types for.
fn of_linker(types: &mut Types) -> BTreeMap<&'static str, TypeId> {
    let all = OF_LINKER.into_iter();
    all.filter_map(|(name, of)| {
        let of = types.named(Space::Plain, of)?;
        Some((name, types.add_array(of, 0)))
    })
    .collect()
}

/// All that is written.
struct Isf<'a> {
    types: &'a Types,
    names: Names,
    symbols: BTreeMap<&'a str, Symbol>,
    banner: Vec<u8>,
}

/// A symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Symbol {
    /// At link time.
    address: u64,
    /// Its type, if that is known.
    of: Option<TypeId>,
}

impl<'a> Isf<'a> {
    fn new(
        model: &'a Model,
        linker: &BTreeMap<&'static str, TypeId>,
        image: &Image<'_>,
    ) -> Result<Self, IsfError> {
        let names = Names::new(&model.types);
        let variables = &model.globals.variables;
        let declared: BTreeMap<&str, _> = variables
            .iter()
            .map(|variable| (variable.name.as_str(), (variable.address, variable.of)))
            .collect();
        let mut symbols = BTreeMap::new();
        for symbol in model.symbols.all() {
            let name = model.symbols.name(symbol);
            // Of several of one name the one that a look-up gives.
            if name.is_empty() || model.symbols.find(name) != Some(symbol.address) {
                continue;
            }
            let declared = declared.get(name).filter(|(address, _)| *address == symbol.address);
            let of = declared.map(|(_, of)| *of).or_else(|| linker.get(name).copied());
            symbols.entry(name).or_insert(Symbol { address: image.link(symbol.address), of });
        }
        let banner = banner(image).ok_or(IsfError::NoBanner)?;
        Ok(Self { types: &model.types, names, symbols, banner })
    }
}

/// `linux_banner` with the NUL behind it, as it lies in memory, where volatility3 looks for it.
fn banner(image: &Image<'_>) -> Option<Vec<u8>> {
    let at = image.find(&["linux_banner"])?;
    let bytes = image.bytes(at, at.checked_add(MAX_BANNER)?);
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let banner = bytes.get(..=end)?;
    banner.starts_with(BANNER).then(|| banner.to_vec())
}
