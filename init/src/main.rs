//! `/init` of the capture image: PID 1 supervises, its child captures.

use std::process::{self, ExitCode};

fn main() -> ExitCode {
    if process::id() == 1 {
        capture::pid1::supervise();
    }
    ExitCode::from(capture::run::child().exit_code())
}
