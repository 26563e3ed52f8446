//! The dump engine: reads the production kernel's memory, knows the kernel in it, and writes
//! filtered dumps of it. It is used by the capture and by `afterimage dump` alike. It never learns
//! where a dump goes: it knows a [`sink::Sink`] to write to, and the trait [`target::Target`] that
//! makes sinks.
//!
//! ## Start here
//! - [`session`]: opens a core, chooses the VMCOREINFO to believe, and decides what the dump is to
//!   be.
//! - [`source`]: where memory comes from: `/proc/vmcore`, an ELF file, a dump.
//! - [`kernel`]: what the kernel's own structures say: log, page tables, struct pages.
//! - [`filter`]: the class of each page.
//! - [`dump`]: the plan, the pipeline and a writer per format. `dump::plan` decides by the class
//!   whether a page goes into the dump.
//! - [`report`]: what `result.json` holds.
//! - [`target`]: what a target is; the kinds of target are in the crates `storage` and `network`.
//!
//! ```text
//! /proc/vmcore ─ source::Vmcore (ELF: PT_LOAD → ranges, PT_NOTE → VMCOREINFO, CPU registers)
//!    ├─ kernel::dmesg ──────────────────────► target, durable FIRST (small, most wanted)
//!    ├─ kernel: page, memmap ─► filter: struct pages ─► a class per page
//!    └─ dump: plan (which pages) ─► headers and bitmaps ─► sink (INCOMPLETE)
//!             pipeline: read → zero? → compress ─[pool]→ a writer per format ─► sink ─► publish
//! ```
//!
//! ## Words
//! *Sink*: positioned bytes inside a target. *Artifact*: a file of a capture. *Class*: what kind of
//! page a page is. *Plan*: which pages a dump keeps, and in which order. *Degradation*: something
//! that failed while the capture went on.
//!
//! The production kernel's memory is hostile input: every parser is total, every loop is bounded by
//! the format.
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

pub mod budget;
pub mod dump;
pub mod filter;
pub mod format;
pub mod kernel;
pub mod report;
pub mod session;
pub mod sink;
pub mod source;
mod sys;
pub mod target;
