//! PID 1 of the capture kernel. It holds no logic that can fail on data: it mounts, starts the capture as a
//! child, waits for it, and carries out the final action, whatever the child did.
//!
//! Modules are loaded by the child, not here: a module whose init hangs or oopses then costs an attempt and not
//! the machine.

mod finish;
mod mounts;
mod supervise;

pub use supervise::supervise;
