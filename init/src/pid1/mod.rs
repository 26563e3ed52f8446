//! PID 1 of the capture kernel. It holds no logic that can fail on data: it mounts, starts the
//! capture as a child, waits for it, starts it again with less if it came to a bad end, and carries
//! out the final action, whatever the children did.
//!
//! Modules are loaded by the child, not here: a module whose init hangs then costs an attempt and
//! not the machine. One that oopses costs the capture (`oops=panic`), but the machine comes back:
//! what an oops leaves locked nobody knows.
//!
//! - `supervise`: the main loop; `mounts`: what it needs mounted; `sysctls`: what must not end it;
//!   `entropy`: what nobody must wait for.
//! - `child`: one child, started, waited for under limits of time, given up if it comes no further.
//! - `witness`: what a child has said, and whether its step takes too long.
//! - `ladder`: what the next attempt does without.
//! - `watchdog`, `handoff`, `finish`: the hardware watchdog, and the final action.

mod child;
mod entropy;
mod finish;
mod handoff;
mod ladder;
mod mounts;
mod supervise;
mod sysctls;
mod watchdog;
mod witness;

pub(crate) use supervise::supervise;
