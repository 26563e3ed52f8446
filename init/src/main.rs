//! `/init` of the capture image: PID 1 supervises, its child captures, its child's children are the user's hooks.

use std::process::{self, ExitCode};

use capture::run::hooks;

fn main() -> ExitCode {
    if process::id() == 1 {
        capture::pid1::supervise();
    }
    if let Some(arguments) = hooks::arguments() {
        eprintln!("afterimage: hook: {}", hooks::become_hook(&arguments));
        return ExitCode::FAILURE;
    }
    ExitCode::from(capture::run::child().exit_code())
}
