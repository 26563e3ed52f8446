//! Values that every part of afterimage shares. Nothing here reads a vmcore, opens a target or
//! starts a kernel.
//!
//! ## Start here
//! - [`addr`]: physical and virtual addresses, page frame numbers, each in a type of its own.
//! - [`config`]: the configuration file, checked while it is parsed.
//! - [`facts`]: what the loader recorded about the production kernel while it was healthy.
//! - [`attempt`]: what PID 1 asks of one attempt at the capture.
//! - [`beat`]: what the capture tells PID 1 about its progress.
//! - [`log`]: messages, and errors with all their causes on one line.
//! - [`text`]: text that others have a hand in, made safe for terminals, lines and JSON.
//! - [`fields`], [`lock`], [`read_at`], [`time`]: helpers that parsers and reports share.
//!
//! ## Words
//! *Production kernel*: the kernel whose memory is saved. *Capture kernel*: the kernel that
//! afterimage runs in. *Target*: where a dump goes. *Facts*: what the loader learned while the
//! production kernel was healthy.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

pub mod addr;
pub mod attempt;
pub mod beat;
pub mod config;
pub mod facts;
pub mod fields;
pub mod lock;
pub mod log;
pub mod read_at;
pub mod text;
pub mod time;
