//! The only unsafe code of this program.
//!
//! | file | why unsafe code is needed |
//! |---|---|
//! | [`random`] | neither getrandom(2) nor RNDADDENTROPY has a wrapper in nix |
//! | [`watchdog`] | the hardware watchdog's ioctls have no wrapper in nix |
#![expect(unsafe_code, reason = "this is the room for it; each file says what it relies on")]

pub(crate) mod random;
pub(crate) mod watchdog;
