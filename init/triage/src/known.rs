//! What walkers are told of a kernel: answers that were written down while it was well, or its own tables.

use base::addr::VirtAddr;
use symbols::btf::{self, BtfError, Types};
use symbols::kallsyms::index::{self, Index};
use symbols::kallsyms::{KallsymsError, Nameless, Symbols};
use symbols::knowledge::{Answers, Knowledge, Read};
use vmcore::kernel::Kernel;

use crate::wanted::MODULES;

/// Why a kernel's own tables cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// Its symbols.
    #[error("reading the kernel's symbols")]
    Symbols(#[from] KallsymsError),
    /// Its types.
    #[error("reading the kernel's types")]
    Types(#[from] BtfError),
}

/// Calls `walk` with names of functions, with answers, and with the reason why there are no names, if there
/// are none. Fails if nothing is known.
pub(crate) fn with<T>(
    kernel: &Kernel<'_>,
    answers: Option<&Answers>,
    walk: impl FnOnce(&dyn Symbols, &dyn Knowledge, Option<&KallsymsError>) -> T,
) -> Result<T, TablesError> {
    let Some(answers) = answers.filter(|answers| !answers.is_empty()) else {
        let (index, types) = tables(kernel)?;
        return Ok(walk(&index, &Read { symbols: &index, types: &types }, None));
    };
    Ok(match index::read_as_known(kernel, answers, &places(answers)) {
        Ok(index) => walk(&index, answers, None),
        Err(error) => walk(&Nameless, answers, Some(&error)),
    })
}

fn tables(kernel: &Kernel<'_>) -> Result<(Index, Types), TablesError> {
    let index = index::read(kernel)?;
    let mut types = btf::read(kernel, &index)?;
    types.agree(kernel.info())?;
    // Those that are damaged are not there, as their rows say.
    let _ = btf::types_of_modules(kernel, &index, &mut types, &|name| MODULES.contains(&name));
    Ok((index, types))
}

/// Symbols whose addresses were written down: they show whether a table is sound.
fn places(answers: &Answers) -> Vec<(&'static str, VirtAddr)> {
    let names = ["init_task", "modules", "tainted_mask", "_etext", "linux_banner"];
    names.into_iter().filter_map(|name| Some((name, answers.symbol(name)?))).collect()
}
