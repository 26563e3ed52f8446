//! The only unsafe code of the host side.
//!
//! | file | why unsafe code is needed |
//! |---|---|
//! | [`wiping`] | a global allocator is an unsafe trait |
#![expect(unsafe_code, reason = "this is the room for it; each file says what it relies on")]

pub mod wiping;
