//! `/init` of the capture image: PID 1 supervises, its child captures, its child's children are the user's hooks,
//! and another child of its own prepares the final action.

use std::process::{self, ExitCode};

use capture::run::{handoff, hooks};

fn main() -> ExitCode {
    if process::id() == 1 {
        capture::pid1::supervise();
    }
    if let Some(arguments) = hooks::arguments() {
        eprintln!("afterimage: hook: {}", hooks::become_hook(&arguments));
        return ExitCode::FAILURE;
    }
    if let Some(order) = handoff::order() {
        return if handoff::child(&order) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    ExitCode::from(capture::run::child().exit_code())
}
