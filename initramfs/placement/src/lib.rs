//! Lays the capture image out in its reservation, on the host. The capture kernel itself has no use
//! for this.
//!
//! ## Start here
//! - [`production`]: reads what the core header must say of the production kernel.
//! - [`core_header`]: the ELF header in which the capture kernel finds the production kernel's
//!   memory.
//! - [`place`]: where kernel, trampoline, image and header go.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

pub mod core_header;
pub mod place;
pub mod production;
