//! Bytes to types and back: what is on block devices. No module here does I/O, allocates by a
//! number it has read, or can panic on any input; each parser has a fuzz target in `init/fuzz`.

pub mod features;
pub mod gpt;
pub mod luks;
pub mod lvm;
pub mod rawdump;
pub mod superblock;
