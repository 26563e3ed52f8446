//! Targets on the network, against real servers in a second guest.
//!
//! Two emulated guests share two processors, so all tests run [`alone`](qemu_tests::turn::alone).

mod peer;
