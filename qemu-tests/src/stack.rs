//! The encrypted volume that a test's production system makes, as both sides know it.

use crate::marker;

/// UUID of the file system in it.
pub const FS_UUID: &str = "5a17c0de-0000-4000-8000-00000000dc5e";
/// Where the production system keeps the pass phrase.
pub const KEY_FILE: &str = "/tmp/pass";
/// Directory on the production disk to which a second boot copies what is in the volume.
pub const COPY: &str = "volume";

/// The volume key of a run: 64 bytes, as aes-xts-plain64 takes them for AES-256.
#[must_use]
pub fn volume_key(seed: &str) -> Vec<u8> {
    let halves = [marker::prefix(seed, "volume-key"), marker::prefix(seed, "other-half")];
    halves.concat().bytes().cycle().take(64).collect()
}

/// The pass phrase of a run.
#[must_use]
pub fn pass_phrase(seed: &str) -> String {
    marker::prefix(seed, "pass-phrase")
}
