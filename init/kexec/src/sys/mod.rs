//! The only unsafe code of this crate: one file per kernel interface that has no safe wrapper.
//!
//! | file | why unsafe code is needed |
//! |---|---|
//! | [`load`] | `kexec_load(2)` and `kexec_file_load(2)` have no wrapper in nix |
//! | [`devmem`] | physical memory that no borrow can protect |
//! | [`trampoline`] | machine code that runs between two kernels |
#![expect(unsafe_code, reason = "this is the room for it; each file says what it relies on")]

pub mod devmem;
pub mod load;
pub mod trampoline;
