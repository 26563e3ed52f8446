//! The host side of afterimage: builds the capture image, loads it beside the running kernel, and
//! reads what a capture has left.
//!
//! | module | idea |
//! |---|---|
//! | [`cpio`], [`modules`], [`signatures`], [`strip`], [`drivers`], [`watchdog`], [`network`], [`image`] | what goes into an image, and its bytes |
//! | [`fingerprint`], [`rivals`], [`check`] | whether a crash now would be saved |
//! | [`stack`], [`volume_key`], [`place`] | what a target stands on: LVM and LUKS; where the host sees it |
//! | [`remote`] | what is known of targets on the network |
//! | [`cmdline`], [`crashkernel`], [`host`], [`who`], [`loader`], [`status`] | arming the panic kernel |
//! | [`output`] | what is printed, and which files may be replaced |
//! | [`trusted`] | files that nobody else may write, and no FIFO is waited for |
//! | [`keys`] | keys for collectors that are reached by SSH |
//! | [`planned`] | switching kernels on purpose |
//! | [`boot_entry`] | what the machine goes on to after a capture |
//! | [`raw`] | raw devices: making one a target, copying a capture off it |
//! | [`debuginfo`], [`isf`], [`readers`], [`unreadable`] | what debuggers and volatility3 need to read a dump |
//! | [`gcore`] | a process of a dump, for debuggers |
//! | [`input`], [`inspect`], [`survey`], [`map`], [`offline`], [`estimate`] | looking into cores and dumps, dumping a core that is a file |
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

mod beside;
pub mod boot_entry;
pub mod check;
pub mod cmdline;
mod compress;
pub mod cpio;
pub mod crashkernel;
pub mod debuginfo;
pub mod drivers;
pub mod estimate;
pub mod evidence;
pub mod fingerprint;
pub mod gcore;
pub mod host;
pub mod image;
pub mod input;
pub mod inspect;
pub mod isf;
pub mod keys;
pub mod knowledge;
pub mod loader;
pub mod map;
pub mod modules;
pub mod network;
pub mod offline;
pub mod output;
pub mod place;
pub mod planned;
pub mod raw;
pub mod readers;
pub mod remote;
pub mod rivals;
pub mod signatures;
pub mod stack;
pub mod status;
pub mod stream;
pub mod strip;
pub mod summary;
pub mod survey;
pub mod sys;
pub mod triage;
pub mod trusted;
pub mod unreadable;
pub mod volume_key;
pub mod watchdog;
pub mod who;
