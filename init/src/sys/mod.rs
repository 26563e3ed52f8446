//! The only unsafe code of this program.
//!
//! | file | why unsafe code is needed |
//! |---|---|
//! | [`watchdog`] | the hardware watchdog's ioctls have no wrapper in nix |
#![expect(unsafe_code, reason = "this is the room for it; each file says what it relies on")]

pub(crate) mod watchdog;
