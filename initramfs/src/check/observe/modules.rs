//! The modules that are needed on the way to a target.

use crate::modules::ModuleTree;

/// Why the modules of a device are not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The capture kernel cannot set up such a device.
    Stacked(String),
    /// Anything else.
    Other(String),
}

/// Modules with all that they depend on, built-in and optional ones left out.
pub(super) fn closure(roots: &[String], tree: &ModuleTree) -> Result<Vec<String>, String> {
    let closure = tree.closure(roots).map_err(|error| base::log::chain(&error))?;
    Ok(closure.into_iter().filter(|module| !module.optional).map(|module| module.name).collect())
}
