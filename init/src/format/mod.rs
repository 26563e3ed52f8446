//! Bytes to types and back: the file formats that a capture touches. No module here does I/O, allocates by a
//! number it has read, or can panic on any input; each parser has a fuzz target in `init/fuzz`.

pub mod elf;
pub mod fields;
pub mod flattened;
pub mod gpt;
pub mod kdump;
pub mod lime;
pub mod luks;
pub mod lvm;
pub mod note;
pub mod rawdump;
pub mod superblock;
pub mod vmcoreinfo;
