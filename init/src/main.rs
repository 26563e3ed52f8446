//! `/init` of the capture image: PID 1 supervises, its child captures, its child's children are the
//! user's hooks and the walker, and another child of PID 1 prepares the final action.
//!
//! ## Start here
//! - `run`: the capture, step by step, as PID 1's child runs it.
//! - `targets`: the one file that knows all kinds of target, and opens them.
//! - `pid1`: attempts, deadlines, the final action. `pid1::child` gives up a child that comes no further.
//! - `walker`: looks through the old kernel's memory for the summary, in a process without rights.
//! - `run::handoff`: what comes after the capture: the next kernel, the real root, a shell.
//!
//! ```text
//! /proc/vmcore ─► crate vmcore ─► a target of the crates storage or network; result.json beside the dump
//! exit code ─► pid1 ─► final action
//! ```
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

mod pid1;
mod run;
mod sys;
mod targets;
mod walker;

use std::process::{self, ExitCode};

use run::{handoff, hooks};

fn main() -> ExitCode {
    if process::id() == 1 {
        pid1::supervise();
    }
    if let Some(arguments) = hooks::arguments() {
        eprintln!("afterimage: hook: {}", hooks::become_hook(&arguments));
        return ExitCode::FAILURE;
    }
    if walker::is_wanted() {
        return if walker::child() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if let Some(order) = handoff::order() {
        return if handoff::child(&order) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    ExitCode::from(run::child().exit_code())
}
