//! What the kinds of stores have in common: objects, their parts, and their sums.

use sha2::{Digest, Sha256};

/// SHA-256.
pub(super) type Sum = [u8; 32];

/// An object of which parts are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) name: String,
    /// What S3 calls it until it is complete.
    pub(super) upload: String,
}

/// A part that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// From 1 on.
    pub(super) number: u32,
    pub(super) bytes: u64,
    pub(super) sum: Sum,
    /// What S3 calls it.
    pub(super) tag: Box<str>,
}

/// Five digits are as many as there are parts, so that the order of names is the order of parts.
pub(super) fn part_name(object: &str, number: u32) -> String {
    format!("{object}.part{number:05}")
}

/// Computes it.
pub(super) fn sum(bytes: &[u8]) -> Sum {
    Sha256::digest(bytes).into()
}
