//! The capture side of afterimage: everything that happens between the panic and the final action, and the same
//! engine for `afterimage dump` on a file.
//!
//! ```text
//! /proc/vmcore ─ source::Vmcore (ELF: PT_LOAD → ranges, PT_NOTE → VMCOREINFO, CPU registers)
//!    ├─ kernel::dmesg ──────────────────────► target, durable FIRST (small, most wanted)
//!    ├─ kernel: page, memmap ─► filter: struct pages ─► a class per page
//!    └─ dump: plan (which pages) ─► headers and bitmaps ─► sink (INCOMPLETE)
//!             pipeline: read → zero? → compress ─[pool]→ a writer per format ─► sink ─► publish
//! result.json ─► beside the dump; exit code ─► pid 1 ─► final action
//! ```
//!
//! A module may use only what stands left of it; a test checks the `use crate::` lines:
//! `addr → sys → format → sink → source → kernel → filter → dump → setup → target → kexec → run → pid1`.
//! `log config report budget facts beat attempt` may be used by all.
//!
//! The old kernel's memory is hostile input: every parser is total, every loop bounded by the format.
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

pub mod addr;
pub mod attempt;
pub mod beat;
pub mod budget;
pub mod config;
pub mod dump;
pub mod facts;
pub mod filter;
pub mod format;
pub mod kernel;
pub mod kexec;
pub mod log;
pub mod pid1;
pub mod report;
pub mod run;
pub mod setup;
pub mod sink;
pub mod source;
pub mod sys;
pub mod target;
