//! The only unsafe code of this crate.
//!
//! | file | why unsafe code is needed |
//! |---|---|
//! | `mmap` | memory that another party may change or take away while it is read; a SIGBUS handler |
#![expect(unsafe_code, reason = "this is the room for it; each file says what it relies on")]

pub(crate) mod mmap;
