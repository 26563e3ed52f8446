//! What was running when a kernel came to its end, out of its memory: the summary that is saved before
//! the first page of a dump, and that can be made of any dump later.
//!
//! ## Start here
//! - [`summary`]: walks through the memory and sends what it finds, piece by piece.
//! - [`findings`]: the pieces, and the summary that they become: as JSON and as text.
//! - [`cause`]: why the kernel came to its end, by its log; [`signature`]: a name for it.
//! - [`artefacts`]: triage: rows of processes, files, sockets, and what is in memory only; [`archive`]: all
//!   of it as one file; [`places`]: under which names.
//! - [`wanted`]: what the walkers have to know of a kernel.
//!
//! ## Words
//! *Walker*: code that follows pointers through the old kernel's memory. *Piece*: what a walker has
//! found. *Signature*: a hash by which crashes of one kind are recognised.
//!
//! The memory is hostile: every loop has a bound, and whoever starts a walker lets it run in a process of
//! its own, which may be killed.
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

pub mod archive;
pub mod artefacts;
pub mod cause;
pub mod findings;
mod known;
mod mounts;
mod numbers;
pub mod places;
pub mod signature;
mod stacks;
pub mod summary;
mod text;
pub mod wanted;
