//! The whole job on real kernels: boots a production system in QEMU, crashes it, lets the capture
//! run, and reads back what it left behind.
//!
//! ```text
//! kernel ─ binaries ─► initramfs ─► scenario ─► vm + console ─► outcome ─► readers
//! ```
//!
//! Nothing here interprets a dump: that is left to crash, drgn and makedumpfile, so that the
//! product's own reader is never its own judge. Of the product only the image builder's parts are
//! used as a library; everything else goes through its command line. [`mod@bench`] is about time
//! and memory, and calls the dump engine itself.

pub mod accel;
pub mod bench;
pub mod binaries;
pub mod bitmap;
pub mod boot;
pub mod cache;
pub mod capture_config;
pub mod collector;
pub mod command;
pub mod console;
pub mod control;
pub mod crash_copy;
pub mod cut;
pub mod damage;
pub mod debug_files;
pub mod disk;
pub mod end;
pub mod evidence;
pub mod extra_disk;
pub mod fault;
pub mod formats;
pub mod gdb;
pub mod initramfs;
pub mod inputs;
pub mod kernel;
pub mod last_words;
pub mod marker;
pub mod network;
pub mod outcome;
pub mod page_check;
pub mod page_flags;
pub mod pages;
pub mod peer;
pub mod planted;
pub mod process_core;
pub mod qmp;
pub mod raw_core;
pub mod readers;
pub mod scenario;
pub mod stack;
pub mod target_disk;
pub mod trigger;
pub mod vm;
pub mod volatility;
pub mod workdir;
