//! Processes of a kernel in a dump: tasks, mappings, pages, registers; and their core files.
//!
//! Everything is found by the kernel's own types and symbols (crate `symbols`), never by a version.
//!
//! ## Start here
//! - [`system`]: a kernel with what is known of its structures ([`layout`]).
//! - [`tasks`]: processes and threads.
//! - [`mappings`]: an address space and its mappings.
//! - [`tables`], [`cache`]: page tables of a process, page cache of a file; [`xarray`] is what the latter
//!   is kept in, [`maple`] what mappings and interrupts are kept in.
//! - [`resident`]: the two of them together: where each page is, and why it is not to be had.
//! - [`user`], [`names`], [`registers`]: memory by a process's addresses, paths of files, registers
//!   of threads.
//! - [`core_file`]: a core file of a process.
//!
//! ## Words
//! *Here*: a page that was in memory and that the dump holds. *Untouched*: a page that nobody has
//! used yet, which would read as zeros. *Absent*: a page whose content is not to be had.
//!
//! The memory is hostile: lists have to lead back, loops have bounds, and what is mapped more often
//! than there is memory is left out.
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

pub mod cache;
pub mod core_file;
pub mod layout;
pub mod maple;
pub mod mappings;
pub mod names;
pub mod notes;
mod plan;
pub mod registers;
pub mod resident;
pub mod system;
pub mod tables;
pub mod tasks;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod user;
pub mod xarray;

pub use plan::{Absent, Counts};
