//! Bytes to types and back: the formats of cores and dumps. No module here does I/O, allocates by a
//! number it has read, or can panic on any input; each parser has a fuzz target in `init/fuzz`.

pub mod elf;
pub mod flattened;
pub mod kdump;
pub mod lime;
pub mod note;
pub mod vmcoreinfo;
