//! A debug file out of a dump: what the distribution's `vmlinux` with debug information is to crash,
//! drgn and gdb.
//!
//! It has the symbol table of kallsyms, DWARF of the types of the kernel and its modules, of global
//! variables and functions, and call frame information of ORC, all at link-time addresses. It has no
//! line numbers, inlined functions or local variables, because the kernel does not carry them. The
//! same dump gives the same bytes, and so does a filtered dump of the same crash: only what every
//! dump holds is read.
//!
//! The build id is that of the kernel: never install the file where the distribution's is looked for.

mod cfi;
mod checks;
mod closure;
mod dies;
mod dwarf;
mod elf;
mod module;
mod sections;
#[cfg(test)]
mod tests;

use std::io::{self, Seek, Write};

use vmcore::kernel::Kernel;

use crate::btf::{BtfError, Types};
use crate::image::Image;
use crate::kallsyms::KallsymsError;
use crate::knowledge::Read;
use crate::model::Model;
use crate::modules;
use crate::orc::Tables;
pub use module::ModuleReport;
use sections::{BITS, Section};

/// Bytes of the files of all modules.
const MAX_SPLIT: usize = 1 << 30;

/// Why there is no debug file.
#[derive(Debug, thiserror::Error)]
pub enum DebuginfoError {
    /// No symbols.
    #[error("reading the kernel's symbols")]
    Symbols(#[from] KallsymsError),
    /// No types.
    #[error("reading the kernel's types")]
    Types(#[from] BtfError),
    /// The kernel has functions only in its symbol table.
    #[error(
        "the kernel's symbol table has functions only, no variables (CONFIG_KALLSYMS_ALL is off), and without those \
         neither debuggers nor we find a process"
    )]
    NoVariables,
    /// It has variables, but not the first process.
    #[error("the kernel's symbol table has no init_task, where each list of processes begins")]
    NoInitTask,
    /// A part of the image that a debug file must have.
    #[error("the kernel's symbol table has no {0}, so the parts of its image are not known")]
    NoPart(&'static str),
    /// Two parts of the image that cannot lie where they do.
    #[error("the kernel's symbol table is damaged: {one} and {other} overlap")]
    Overlap {
        /// The lower one.
        one: String,
        /// The other one.
        other: String,
    },
    /// The file could not be written.
    #[error("writing the debug file")]
    Write(#[from] io::Error),
}

/// What is in a debug file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Symbols.
    pub symbols: usize,
    /// Types.
    pub types: u32,
    /// Functions with their types.
    pub functions: usize,
    /// Global variables with their types.
    pub variables: usize,
    /// Pieces of code with call frame information.
    pub frames: u64,
    /// Modules whose types are in it.
    pub modules: usize,
    /// Modules whose types could not be had, and why.
    pub without_types: Vec<String>,
    /// Variables that readers compute with and whose type is not known: what they print may be wrong.
    pub unresolved: Vec<String>,
    /// What else is missing.
    pub missing: Vec<String>,
    /// Members that crash looks modules up with and that this kernel does not have.
    pub gone: Vec<&'static str>,
    /// Bytes of the file, holes among them.
    pub bytes: u64,
}

/// Writes the debug file of the kernel in a dump.
pub fn write<W: Write + Seek>(kernel: &Kernel<'_>, out: &mut W) -> Result<Report, DebuginfoError> {
    let mut model = Model::read(kernel)?;
    let mut report = Report {
        symbols: model.symbols.all().len(),
        types: model.types_read,
        modules: model.modules.len(),
        without_types: std::mem::take(&mut model.without_types),
        gone: gone(&model.types),
        ..Report::default()
    };
    let Model { symbols, mut types, globals: found, .. } = model;
    let image = Image::new(kernel, &symbols);
    if image.text().is_none() {
        return Err(DebuginfoError::NoPart("_text and _etext"));
    }
    let (orc, fault) = match Tables::find(kernel, &symbols).map(|tables| checks::orc(&image, tables)) {
        None => (None, Some("stacks are not unwound exactly: the kernel has no ORC tables".to_owned())),
        Some(Ok(orc)) => {
            let unknown = "gdb does not unwind stacks: the layout of the kernel's ORC tables is not known";
            let fault = orc.tables.layout.is_none().then(|| unknown.to_owned());
            (Some(orc), fault)
        }
        Some(Err(fault)) => (None, Some(fault)),
    };
    report.missing.extend(fault.into_iter().chain(checks::build_id(&image).map(str::to_owned)));
    let layout = orc.as_ref().and_then(|orc| orc.tables.layout);
    let loaded = modules::read(kernel, &Read { symbols: &symbols, types: &types }, layout);
    let (of_modules, missing) = checks::orc_of_modules(&image, &loaded);
    report.missing.extend(missing);
    let dwarf = dwarf::write(&mut types, &found.variables, &image);
    let frames = cfi::write(&image, orc.as_ref(), &of_modules);
    drop(of_modules);
    report.functions = dwarf.functions;
    report.variables = found.variables.len();
    report.frames = frames.functions;
    report.unresolved = found.unresolved;

    let mut all = sections::of_image(&image, orc);
    if let Some((one, other)) = checks::overlap(&all) {
        return Err(DebuginfoError::Overlap { one, other });
    }
    let debug = [
        (".debug_info", dwarf.info, 1),
        (".debug_abbrev", dwarf.abbrev, 1),
        (".debug_str", types.strings().to_vec(), 1),
        (".debug_frame", frames.bytes, 8),
        (".debug_aranges", dwarf.aranges, 16),
        (".afterimage", about(&report).into_bytes(), 1),
    ];
    all.extend(debug.map(|(name, bytes, align)| Section::of_file(name, BITS, bytes, align)));
    let [table, strings] = elf::symbols(&image, &types, &found.variables, &all);
    all.extend([table, strings]);
    report.bytes = elf::write(out, elf::Kind::Executable, all)?;
    Ok(report)
}

/// What came of the files of modules.
#[derive(Clone, Debug, Default)]
pub struct Split {
    /// Modules that have one.
    pub modules: Vec<ModuleReport>,
    /// Which have none, or not all of it, and why.
    pub missing: Vec<String>,
}

/// Makes a debug file of each loaded module and gives it, with the module's name, to `each`. A name is
/// one that may be a file's, and no two are the same.
pub fn write_modules(
    kernel: &Kernel<'_>,
    each: &mut dyn FnMut(&str, &[u8]) -> io::Result<()>,
) -> Result<Split, DebuginfoError> {
    let Model { symbols, mut types, modules: typed, without_types, .. } = Model::read(kernel)?;
    let image = Image::new(kernel, &symbols);
    let layout = Tables::find(kernel, &symbols).and_then(|tables| tables.layout);
    let loaded = modules::read(kernel, &Read { symbols: &symbols, types: &types }, layout);
    let (mut of_orc, missing) = checks::orc_of_modules(&image, &loaded);
    let mut split = Split { modules: Vec::new(), missing };
    let of_types = without_types.into_iter().map(|what| format!("types of the module {what}"));
    split.missing.extend(of_types);
    let mut rest = MAX_SPLIT;
    for module in &loaded {
        let name = &module.name;
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
        if name.is_empty()
            || !name.chars().all(is_name)
            || split.modules.iter().any(|made| made.name == *name)
        {
            split
                .missing
                .push(format!("a file of the module {name}: its name cannot be a file's, or is there twice"));
            continue;
        }
        let parts = modules::parts(kernel, &types, module);
        if parts.is_empty() {
            split
                .missing
                .push(format!("a file of the module {name}: where its sections lie is not in the dump"));
            continue;
        }
        let ids = typed.iter().find(|(typed, _)| typed == name).map_or(0..0, |(_, ids)| ids.clone());
        let orc = of_orc
            .iter()
            .position(|(of, _)| of.address == module.address)
            .map(|index| of_orc.swap_remove(index).1);
        let source = module::Source { module, parts: &parts, types: ids, orc: orc.as_ref() };
        let (bytes, report) = module::write(&image, &mut types, &source)?;
        let Some(left) = rest.checked_sub(bytes.len()) else {
            split.missing.push(format!("files of the module {name} and those behind it: they are too large"));
            break;
        };
        rest = left;
        each(name, &bytes)?;
        split.modules.push(report);
    }
    Ok(split)
}

/// What crash 9.0.2 wants of `struct module` in any kernel; 7.2 does not have it.
fn gone(types: &Types) -> Vec<&'static str> {
    let has_modules = types.offset("module", "list").is_some();
    let is_gone = has_modules && types.offset("module", "num_gpl_syms").is_none();
    is_gone.then_some("module.num_gpl_syms").into_iter().collect()
}

/// What the file says of itself, as text.
fn about(report: &Report) -> String {
    let mut text =
        format!("made by afterimage {} of the kernel's own symbols and types\n", env!("CARGO_PKG_VERSION"));
    for name in &report.unresolved {
        text.push_str("unresolved: ");
        text.push_str(name);
        text.push('\n');
    }
    text
}
