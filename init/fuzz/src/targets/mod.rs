//! The targets, a file for each parser or family of parsers.

mod btf;
mod config;
mod dmesg;
mod elf;
mod evidence;
mod filter;
mod image;
mod kdump;
mod kexec;
mod net;
mod rawdump;
mod stack;
mod superblocks;
mod symbols;
mod triage;
mod vmcoreinfo;

/// Something that reads bytes which anybody may have written.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of the file.
    pub name: &'static str,
    /// Longest input in bytes: room for the largest structure that the target takes apart, and not much more.
    pub max_len: usize,
    /// Reads these bytes; panics where a promise of the product is broken.
    pub check: fn(&[u8]),
    /// Well-formed inputs to start from, so that a run with an empty corpus starts behind the magic numbers.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Lists the targets by the names of their modules.
macro_rules! targets {
    ($($name:ident: $max_len:expr,)*) => {
        &[$(Target {
            name: stringify!($name),
            max_len: $max_len,
            check: self::$name::check,
            seeds: self::$name::seeds,
        }),*]
    };
}

/// All of them.
pub const TARGETS: &[Target] = targets! {
    btf: 8192,
    config: 4096,
    dmesg: 32768,
    elf: 32768,
    evidence: 8192,
    filter: 32768,
    image: 4096,
    kdump: 32768,
    kexec: 4096,
    net: 4096,
    rawdump: 4096,
    stack: 4096,
    superblocks: 4096,
    symbols: 32768,
    triage: 16384,
    vmcoreinfo: 4096,
};

/// The target of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
