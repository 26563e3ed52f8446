//! What makes a capture evidence: who does not trust us can check years later that nothing of it was changed.
//!
//! ## Start here
//! - [`witness`]: a target that keeps the sums of what is saved there; [`sums`]: how that is done while a
//!   file is written, in whatever order.
//! - [`manifest`]: what a capture is, and the sums of its files; [`events`]: what was done, as a chain.
//! - [`arm`]: what was written down at load, with the key for this load; [`minisign`]: keys and signatures.
//! - [`verify`]: checks a directory, and says what does not hold and what is still good.
//!
//! ## Words
//! *Load key*: made for one load, it signs the manifest of the capture by that image. *Host key*: made once,
//! it signs the arm records of a host, which name its load keys. *Piece*: a part of a dump with a sum of its
//! own.
//!
//! What it proves, and what it cannot, is in `docs/design/evidence.md`.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

pub mod arm;
pub mod canonical;
pub mod events;
pub mod manifest;
pub mod minisign;
pub mod sums;
pub mod verify;
pub mod witness;

pub use base::text::hex;
use sha2::{Digest, Sha256};

/// The SHA-256 of some bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> sums::Sum {
    Sha256::digest(bytes).into()
}
