//! The kernel's global variables and their types.
//!
//! BTF has the types of per-CPU variables only. The types of the others come from a table that
//! `scripts/globals` makes from the debug packages of several kernels. A declaration counts only if
//! this kernel has the types in it, has one symbol of the name, and has the room for it up to the
//! next symbol; of several that do, the one that fills the room best.

use std::collections::BTreeSet;

use base::addr::VirtAddr;

use crate::btf::{Kind, TypeId, Types};
use crate::declaration::Declarations;
use crate::kallsyms::{Symbol, SymbolTable};

#[cfg(test)]
mod tests;

/// `NAME`, a tab, its declaration; a line each, several of a name where kernels differ.
const TABLE: &str = include_str!("globals/table.txt");
/// An array that takes what room there is: its length is another one in each kernel.
const ANY_LENGTH: &str = "[?";
/// Variables that readers compute with, and would compute wrongly with if they had to guess a type.
const CORE: &str = include_str!("globals/core.txt");

/// Symbols of a name that are looked at.
const MAX_NAMESAKES: usize = 64;

/// A variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: VirtAddr,
    /// What it is.
    pub of: TypeId,
    /// Whether other files see it.
    pub is_global: bool,
}

/// The variables of a kernel.
#[derive(Clone, Debug, Default)]
pub struct Globals {
    /// By name.
    pub variables: Vec<Variable>,
    /// Names that readers compute with and that this kernel has, but whose type is not known.
    pub unresolved: Vec<String>,
}

/// Finds the types of all variables that can be had.
#[must_use]
pub fn resolve(types: &mut Types, symbols: &SymbolTable) -> Globals {
    let mut variables = of_btf(types, symbols);
    let known: BTreeSet<String> = variables.iter().map(|variable| variable.name.clone()).collect();
    let mut declarations = Declarations::new(types);
    let mut lines = TABLE.lines().filter_map(|line| line.split_once('\t')).peekable();
    while let Some((name, first)) = lines.next() {
        let mut texts = vec![first];
        while let Some((_, text)) = lines.next_if(|(next, _)| *next == name) {
            texts.push(text);
        }
        let mut namesakes = symbols.all_named(name);
        let symbol = namesakes.next().filter(|_| namesakes.next().is_none());
        let Some(symbol) = symbol.filter(|_| !known.contains(name)) else { continue };
        let room = symbols.gap(symbol.address).unwrap_or(0);
        let candidates = texts.into_iter().filter_map(|text| fitting(&mut declarations, text, name, room));
        if let Some((_, of)) = candidates.reduce(|best, next| if next.0 > best.0 { next } else { best }) {
            variables.push(variable(name, symbol, of));
        }
    }
    variables.sort_by(|one, other| one.name.cmp(&other.name));
    let found: BTreeSet<&str> = variables.iter().map(|variable| variable.name.as_str()).collect();
    let is_lost = |name: &&str| !found.contains(name) && symbols.find(name).is_some();
    let unresolved =
        CORE.lines().filter(|line| !line.starts_with('#')).filter(is_lost).map(str::to_owned).collect();
    Globals { variables, unresolved }
}

fn variable(name: &str, symbol: &Symbol, of: TypeId) -> Variable {
    Variable { name: name.to_owned(), address: symbol.address, of, is_global: symbol.is_global() }
}

/// The variables that the kernel's own types tell of: where BTF and the symbol table agree on where one
/// lies, and it ends before the next symbol.
fn of_btf(types: &Types, symbols: &SymbolTable) -> Vec<Variable> {
    let per_cpu = symbols.find("__per_cpu_start");
    let mut seen = BTreeSet::new();
    let mut variables = Vec::new();
    let sections =
        types.kernel_ids().filter_map(|id| types.get(id)).filter(|found| found.kind == Kind::Section);
    for section in sections.filter(|section| types.string(section.name) == ".data..percpu") {
        for (id, offset, len) in section.variables() {
            let Some(found) = types.get(id).filter(|found| found.kind == Kind::Variable) else { continue };
            let name = types.string(found.name);
            let address = per_cpu.and_then(|start| start.checked_add(offset.into()));
            let mut namesakes = symbols.all_named(name).take(MAX_NAMESAKES);
            let symbol = namesakes.find(|symbol| Some(symbol.address) == address);
            let fits = |symbol: &Symbol| {
                let room = symbols.gap(symbol.address);
                types.size(found.target()) == Some(len.into()) && room.is_none_or(|room| room >= len.into())
            };
            if let Some(symbol) = symbol.filter(|symbol| fits(symbol))
                && seen.insert(name)
            {
                variables.push(variable(name, symbol, found.target()));
            }
        }
    }
    variables
}

/// The type that a declaration has in this kernel, and its bytes, if it fits into `room` bytes. Arrays
/// take what there is: kernels differ in their lengths.
fn fitting(declarations: &mut Declarations<'_>, text: &str, name: &str, room: u64) -> Option<(u64, TypeId)> {
    let (declared, of) = declarations.declare(text).ok()?;
    if declared != name {
        return None;
    }
    let types = declarations.types();
    let plain = types.strip(of);
    let array = types.get(plain).and_then(|found| found.elements());
    if let Some((element, length)) = array {
        let bytes = types.size(element).filter(|bytes| *bytes > 0)?;
        let fit = room.checked_div(bytes)?;
        if text.contains(ANY_LENGTH) || u64::from(length) > fit {
            let fit = length_seen(text, fit).unwrap_or(u32::try_from(fit).ok()?);
            let of = declarations.array(element, fit);
            return Some((u64::from(fit).saturating_mul(bytes), of));
        }
    }
    // What has no size can still be named, such as a declared structure; its bytes cannot be read.
    let bytes = types.size(plain).unwrap_or(0);
    (bytes <= room).then_some((bytes, of))
}

/// The length that an array has in another kernel, if the room is enough for one element more: the
/// rest is what the compiler leaves empty.
fn length_seen(text: &str, fit: u64) -> Option<u32> {
    let (_, lengths) = text.split_once(ANY_LENGTH)?;
    let (lengths, _) = lengths.split_once(']')?;
    let seen = |length: u64| lengths.split('|').any(|seen| seen.parse() == Ok(length));
    let one_less = fit.checked_sub(1)?;
    (seen(one_less) && !seen(fit)).then_some(one_less).and_then(|length| u32::try_from(length).ok())
}
