//! Names, types and stack frames of a Linux kernel, out of nothing but its own memory.
//!
//! A kernel carries what a debugger needs: the names of its symbols (`kallsyms`), its types (BTF)
//! and how its stacks are unwound (ORC). This crate reads them from a dump, and writes them as the
//! file that debuggers ask for, so that nothing has to be downloaded, for any kernel, years later.
//!
//! ## Start here
//! - [`kallsyms`]: symbols by name and by address.
//! - [`btf`]: the types of the kernel and its modules.
//! - [`globals`]: the types of global variables, from a table of C declarations; [`declaration`]
//!   reads those.
//! - [`model`]: the three of them together; [`knowledge`]: what walkers ask of them.
//! - [`modules`]: loaded modules and their functions.
//! - [`orc`]: tables that say how stacks are unwound; [`unwind`] does it; [`pt_regs`] is where registers
//!   are saved.
//! - [`debuginfo`]: the ELF file with a symbol table, DWARF and call frame information, and one of each
//!   module.
//! - [`isf`]: the same for volatility3.
//! - [`list`], [`tree`]: how the kernel strings structures together.
//!
//! ## Words
//! *Link-time address*: where a symbol is without KASLR, as in the distribution's `vmlinux`.
//! *Types*: all types of a kernel and its modules in one row, by [`btf::TypeId`].
//!
//! The memory is hostile: every parser is total, every loop has a bound, and what contradicts itself
//! is refused with the reason.
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

pub mod btf;
pub mod debuginfo;
pub mod declaration;
pub mod globals;
mod image;
pub mod isf;
pub mod kallsyms;
pub mod knowledge;
pub mod list;
mod memory;
pub mod model;
pub mod modules;
pub mod orc;
mod prologue;
pub mod pt_regs;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tree;
pub mod unwind;
