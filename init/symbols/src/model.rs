//! What there is to know of a kernel by its names: symbols, types, global variables.

use core::ops::Range;

use vmcore::kernel::Kernel;

use crate::btf::{self, Types};
use crate::debuginfo::DebuginfoError;
use crate::globals::{self, Globals};
use crate::kallsyms::{self, SymbolTable};
use crate::knowledge::Read;

/// Symbols, types and global variables of a kernel.
#[derive(Debug)]
pub struct Model {
    /// Symbols.
    pub symbols: SymbolTable,
    /// Types of the kernel, of its modules, and those that variables need.
    pub types: Types,
    /// Global variables.
    pub globals: Globals,
    /// Types that were read; behind them come those that variables need.
    pub types_read: u32,
    /// Modules whose types are there, and the numbers of those.
    pub modules: Vec<(String, Range<u32>)>,
    /// Modules whose types could not be had, and why.
    pub without_types: Vec<String>,
}

impl Model {
    /// What walkers ask of it.
    #[must_use]
    pub fn known(&self) -> Read<'_> {
        Read { symbols: &self.symbols, types: &self.types }
    }

    /// Reads all of it from memory.
    pub fn read(kernel: &Kernel<'_>) -> Result<Self, DebuginfoError> {
        let symbols = kallsyms::read(kernel)?;
        if symbols.find("init_task").is_none() {
            let is_variable = |kind: u8| b"dDbB".contains(&kind);
            let has_variables = symbols.all().iter().any(|symbol| is_variable(symbol.kind));
            return Err(if has_variables { DebuginfoError::NoInitTask } else { DebuginfoError::NoVariables });
        }
        let mut types = btf::read(kernel, &symbols)?;
        types.agree(kernel.info())?;
        let (mut modules, mut without_types) = (Vec::new(), Vec::new());
        for (name, added) in btf::module_types(kernel, &symbols, &mut types) {
            match added {
                Ok(types) => modules.push((name, types)),
                Err(error) => without_types.push(format!("{name}: {}", base::log::chain(&error))),
            }
        }
        let types_read = types.len().saturating_sub(1);
        let globals = globals::resolve(&mut types, &symbols);
        Ok(Self { symbols, types, globals, types_read, modules, without_types })
    }
}
