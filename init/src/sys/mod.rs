//! The only unsafe code of afterimage: one file per kernel interface that has no safe wrapper.
//!
//! | file | why unsafe is needed |
//! |---|---|
//! | [`mmap`] | memory that another party may change or take away while it is read; a SIGBUS handler |
//! | [`writeback`] | `sync_file_range(2)` has no wrapper in nix |
//! | [`watchdog`] | the hardware watchdog's ioctls have no wrapper in nix |
//! | [`dm`] | the ioctls of the device mapper have no wrapper in nix |
//! | [`wiping`] | a global allocator is an unsafe trait |
//! | [`kexec`] | `kexec_load(2)` and `kexec_file_load(2)` have no wrapper in nix |
//! | [`devmem`] | physical memory that no borrow can protect |
//! | [`trampoline`] | machine code that runs between two kernels |
#![expect(unsafe_code, reason = "this is the room for it; each file says what it relies on")]

pub mod devmem;
pub mod dm;
pub mod kexec;
pub mod mmap;
pub mod trampoline;
pub mod watchdog;
pub mod wiping;
pub mod writeback;
