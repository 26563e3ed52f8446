//! The only unsafe code of this crate: one file per kernel interface that has no safe wrapper.
//!
//! | file | why unsafe code is needed |
//! |---|---|
//! | `writeback` | `sync_file_range(2)` has no wrapper in nix |
//! | [`dm`] | the ioctls of the device mapper have no wrapper in nix |
#![expect(unsafe_code, reason = "this is the room for it; each file says what it relies on")]

pub mod dm;
pub(crate) mod writeback;
