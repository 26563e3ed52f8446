//! Kernels made up by tests: an image with symbols, types, notes and ORC tables, and the VMCOREINFO
//! that tells of it. Straight from the formats' definitions: nothing of the readers is used.

#![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "for tests, which may panic")]
#![cfg_attr(not(test), expect(clippy::arithmetic_side_effects, reason = "likewise"))]

use std::fmt::Write as _;

/// Where the image of the kernel lies without KASLR.
pub const LINK: u64 = 0xffff_ffff_8100_0000;
/// How far KASLR has moved it.
pub const OFFSET: u64 = 0x200_0000;
/// Where the image begins.
pub const START: u64 = LINK + OFFSET;
/// Its release.
pub const RELEASE: &str = "6.1.0-made-up";

/// How the table of symbols has addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// 64-bit addresses.
    Absolute,
    /// Distances from a base.
    Relative,
    /// The same; per-CPU variables lie at 0 and are addresses, all others count down.
    PerCpu,
    /// Distances from the entry.
    FromPlace,
}

/// Types in BTF, one added after the other.
#[derive(Clone, Debug)]
pub struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where strings and types of this blob begin to be counted.
    base: (u32, u32),
    next: u32,
}

impl Default for Btf {
    fn default() -> Self {
        Self { types: Vec::new(), strings: vec![0], base: (0, 1), next: 1 }
    }
}

impl Btf {
    /// Types that go on where those of `base` end.
    #[must_use]
    pub fn split(base: &Self) -> Self {
        let strings = u32::try_from(base.strings.len()).unwrap();
        Self { types: Vec::new(), strings: vec![0], base: (strings, base.next), next: base.next }
    }

    /// The number that the next type gets.
    #[must_use]
    pub fn next(&self) -> u32 {
        self.next
    }

    /// Where a name is; it is added.
    pub fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.base.0 + u32::try_from(self.strings.len()).unwrap();
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        at
    }

    /// Adds a type: `kind` is its `BTF_KIND_*`, `vlen` its number of elements with the flag as bit 31,
    /// `word` its size or type, `more` what is behind that. Returns its number.
    pub fn add(&mut self, kind: u32, name: &str, vlen: u32, word: u32, more: &[u32]) -> u32 {
        let name = self.string(name);
        for word in [name, kind << 24 | vlen, word].iter().chain(more) {
            self.types.extend(word.to_le_bytes());
        }
        self.next += 1;
        self.next - 1
    }

    /// An integer.
    pub fn int(&mut self, name: &str, size: u32, encoding: u32) -> u32 {
        self.add(1, name, 0, size, &[(encoding << 24) | (size * 8)])
    }

    /// A structure of members: name, type, bit.
    pub fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let more: Vec<u32> =
            members.iter().flat_map(|(name, of, bit)| [self.string(name), *of, *bit]).collect();
        self.add(4, name, u32::try_from(members.len()).unwrap(), size, &more)
    }

    /// The blob.
    #[must_use]
    pub fn blob(&self) -> Vec<u8> {
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let mut blob = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, len(&self.types), len(&self.types), len(&self.strings)] {
            blob.extend(word.to_le_bytes());
        }
        [&blob[..], &self.types, &self.strings].concat()
    }
}

/// The types of the made-up kernel: what readers of it look for.
#[must_use]
pub fn types() -> Btf {
    let mut btf = Btf::default();
    let int = btf.int("int", 4, 1);
    let char = btf.int("char", 1, 0);
    let long = btf.int("long unsigned int", 8, 0);
    let list = int + 4;
    let pointer = btf.add(2, "", 0, list, &[]);
    assert_eq!(btf.structure("list_head", 16, &[("next", pointer, 0), ("prev", pointer, 64)]), list);
    let name = btf.add(3, "", 0, 0, &[char, int, 16]);
    let members = [("state", int, 0), ("pid", int, 32), ("tasks", list, 64), ("comm", name, 192)];
    let task = btf.structure("task_struct", 48, &members);
    let prototype_names = [btf.string("task"), btf.string("flags")];
    let task_pointer = btf.add(2, "", 0, task, &[]);
    let [first, second] = prototype_names;
    let prototype = btf.add(13, "", 2, int, &[first, task_pointer, second, long]);
    btf.add(12, "do_it", 1, prototype, &[]);
    let counter = btf.add(14, "counter", 0, long, &[1]);
    btf.add(15, ".data..percpu", 1, 64, &[counter, 16, 8]);
    btf
}

/// A made-up kernel.
#[derive(Clone, Debug)]
pub struct MadeUp {
    /// Its image, from [`START`] on.
    pub bytes: Vec<u8>,
    /// VMCOREINFO.
    pub info: String,
    /// All symbols, in the order of the table: address, type, name.
    pub symbols: Vec<(u64, char, String)>,
    /// Where parts of the image begin, by name: `btf`, `orc`, `addresses`, `base`, `count`, `names`,
    /// `marks`, `tokens`, `index`.
    pub places: Vec<(&'static str, usize)>,
    has_long_name: bool,
}

impl MadeUp {
    /// A kernel with these types and as many functions beside its own; VMCOREINFO says where the
    /// symbol table is if `named`.
    #[must_use]
    pub fn new(encoding: Encoding, named: bool, btf: &[u8], functions: u32) -> Self {
        Self::with(encoding, named, btf, functions, true)
    }

    /// The same without a name whose length takes two bytes, which kernels before 6.1 do not have.
    #[must_use]
    pub fn short(encoding: Encoding, named: bool, btf: &[u8], functions: u32) -> Self {
        Self::with(encoding, named, btf, functions, false)
    }

    fn with(encoding: Encoding, named: bool, btf: &[u8], functions: u32, long: bool) -> Self {
        let (bytes, symbols, places) = (Vec::new(), Vec::new(), Vec::new());
        let mut made = Self { bytes, info: String::new(), symbols, places, has_long_name: long };
        made.image(encoding, btf, functions);
        let hex = "5a".repeat(20);
        let stext = made.address("_stext").unwrap();
        made.info = format!(
            "OSRELEASE={RELEASE}\nPAGESIZE=4096\nBUILD-ID={hex}\nKERNELOFFSET={OFFSET:x}\nSYMBOL(_stext)={stext:x}\n\
             SIZE(list_head)=16\nOFFSET(list_head.prev)=8\n"
        );
        made.table(encoding, named);
        made
    }

    /// The address of a symbol.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<u64> {
        self.symbols.iter().find(|(_, _, known)| known == name).map(|(address, _, _)| *address)
    }

    /// Where a part of the image begins.
    #[must_use]
    pub fn place(&self, name: &str) -> usize {
        self.places.iter().find(|(known, _)| *known == name).unwrap().1
    }

    /// Where the next byte of the image comes to lie.
    fn end(&self) -> u64 {
        START + u64::try_from(self.bytes.len()).unwrap()
    }

    fn symbol(&mut self, kind: char, name: &str) {
        self.symbols.push((self.end(), kind, name.to_owned()));
    }

    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    /// Code, read-only data, notes, types, data, ORC.
    fn image(&mut self, encoding: Encoding, btf: &[u8], functions: u32) {
        if encoding == Encoding::PerCpu {
            for (address, name) in [(0, "__per_cpu_start"), (16, "counter"), (64, "__per_cpu_end")] {
                self.symbols.push((address, 'A', name.to_owned()));
            }
        }
        self.symbol('T', "_text");
        self.symbol('T', "_stext");
        self.bytes.extend([0x90; 16]);
        self.symbol('T', "do_it");
        self.bytes.extend([0x90; 32]);
        for number in 0..functions {
            self.symbol('t', &format!("f{number}"));
            self.bytes.push(0x90);
        }
        // Two bytes of length.
        let repeated = if self.has_long_name { 40 } else { 1 };
        self.symbol('t', &"long_name_".repeat(repeated));
        self.align(4096);
        self.symbol('T', "_etext");
        self.symbol('R', "__start_rodata");
        self.symbol('R', "linux_banner");
        self.bytes.extend(format!("Linux version {RELEASE} (somebody) #1\n\0").bytes());
        self.align(16);
        self.symbol('r', "__start_notes");
        self.bytes.extend(b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0");
        self.bytes.extend([0x5a; 20]);
        self.symbol('r', "__stop_notes");
        self.symbol('r', "__start_BTF");
        self.places.push(("btf", self.bytes.len()));
        self.bytes.extend(btf);
        self.symbol('r', "__stop_BTF");
        self.align(64);
        self.symbol('R', "__end_rodata");
        self.symbol('D', "_sdata");
        self.symbol('D', "init_task");
        self.bytes.extend([0; 48]);
        self.symbol('d', "modules");
        let head = self.end().to_le_bytes();
        self.bytes.extend([head, head].as_flattened());
        self.symbol('b', "a_byte");
        self.bytes.extend([0; 16]);
        self.orc();
        self.symbol('D', "_edata");
        if encoding != Encoding::PerCpu {
            // As since 6.15: among what is thrown away after the start.
            self.symbol('D', "__init_begin");
            self.bytes.extend([0; 16]);
            self.symbol('D', "__per_cpu_start");
            self.bytes.extend([0; 16]);
            self.symbol('d', "counter");
            self.bytes.extend([0; 48]);
            self.symbol('D', "__per_cpu_end");
            self.bytes.extend([0; 16]);
            self.symbol('D', "__init_end");
        }
        self.symbol('B', "_end");
    }

    /// A stack of 8 bytes at the start of a function, of 16 behind its first instruction, then of none.
    fn orc(&mut self) {
        let rows = [(START, 8, 5_u16), (START + 16, 8, 5), (START + 20, 16, 5), (START + 48, 0, 0)];
        self.symbol('r', "__start_orc_unwind_ip");
        self.places.push(("orc", self.bytes.len()));
        for (address, _, _) in rows {
            let distance = i32::try_from(address.wrapping_sub(self.end()).cast_signed()).unwrap();
            self.bytes.extend(distance.to_le_bytes());
        }
        self.symbol('r', "__stop_orc_unwind_ip");
        self.symbol('r', "__start_orc_unwind");
        for (_, sp, flags) in rows {
            self.bytes.extend([sp, 0, flags].map(u16::to_le_bytes).as_flattened());
        }
        self.symbol('r', "__stop_orc_unwind");
    }

    /// The table of symbols, in the order of 5.10 (`write_src()`, scripts/kallsyms.c).
    fn table(&mut self, encoding: Encoding, named: bool) {
        let symbols = self.symbols.clone();
        let (mut text_of_names, mut marks) = (Vec::new(), Vec::new());
        for (number, (_, kind, name)) in symbols.iter().enumerate() {
            if number % 256 == 0 {
                marks.push(u32::try_from(text_of_names.len()).unwrap());
            }
            let text: Vec<u8> = format!("{kind}{name}").replace("long_", "\u{1}").into_bytes();
            let len = u16::try_from(text.len()).unwrap();
            let [low, high] = [len & 0x7f, len >> 7].map(|byte| u8::try_from(byte).unwrap());
            text_of_names.extend(if high == 0 { vec![low] } else { vec![low | 0x80, high] });
            text_of_names.extend(text);
        }
        let (mut tokens, mut index) = (Vec::new(), Vec::new());
        for token in 0..=255_u8 {
            index.extend(u16::try_from(tokens.len()).unwrap().to_le_bytes());
            match token {
                1 => tokens.extend(b"long_"),
                b'!'..=b'~' => tokens.push(token),
                _ => {}
            }
            tokens.push(0);
        }
        self.align(8);
        let at = self.end();
        let addresses: Vec<Vec<u8>> = (0_u64..)
            .zip(&symbols)
            .map(|(number, (address, _, _))| word(encoding, *address, at + 4 * number))
            .collect();
        let count = u32::try_from(symbols.len()).unwrap().to_le_bytes();
        let marks: Vec<u8> = marks.into_iter().flat_map(u32::to_le_bytes).collect();
        let parts = [
            ("addresses", addresses.concat()),
            ("base", START.to_le_bytes().to_vec()),
            ("count", count.to_vec()),
            ("names", text_of_names),
            ("marks", marks),
            ("tokens", tokens),
            ("index", index),
        ];
        for (name, bytes) in parts {
            self.align(8);
            self.places.push((name, self.bytes.len()));
            let key = match (name, encoding) {
                ("addresses", Encoding::Absolute) => "kallsyms_addresses",
                ("addresses", _) => "kallsyms_offsets",
                ("base", Encoding::Relative | Encoding::PerCpu) => "kallsyms_relative_base",
                ("count", _) => "kallsyms_num_syms",
                ("names", _) => "kallsyms_names",
                ("tokens", _) => "kallsyms_token_table",
                ("index", _) => "kallsyms_token_index",
                _ => "",
            };
            if named && !key.is_empty() {
                let at = self.end();
                writeln!(self.info, "SYMBOL({key})={at:x}").unwrap();
            }
            self.bytes.extend(bytes);
        }
        self.align(4096);
    }
}

/// An address in the table of addresses; in the last encoding it lies at `place`.
fn word(encoding: Encoding, address: u64, place: u64) -> Vec<u8> {
    let distance = |from: u64| address.wrapping_sub(from).cast_signed();
    let word = match encoding {
        Encoding::Absolute => return address.to_le_bytes().to_vec(),
        Encoding::Relative => distance(START),
        Encoding::PerCpu if address < START => address.cast_signed(),
        Encoding::PerCpu => -1 - distance(START),
        Encoding::FromPlace => distance(place),
    };
    i32::try_from(word).unwrap().to_le_bytes().to_vec()
}

/// Calls `check` with the kernel in an image, of which VMCOREINFO is `info`.
#[cfg(test)]
pub(crate) fn with_kernel<T>(
    info: &str,
    image: &[u8],
    check: impl FnOnce(&vmcore::kernel::Kernel<'_>) -> T,
) -> T {
    use base::addr::{PhysAddr, VirtAddr};
    let file = vmcore::source::testing::CoreFile::new().segment(0x1_0000, image).write();
    let core = vmcore::source::Vmcore::open(file.path(), vmcore::source::Access::Pread).unwrap();
    let info = vmcore::format::vmcoreinfo::VmcoreInfo::parse(info.as_bytes());
    let linear = [(VirtAddr(START), PhysAddr(0x1_0000), u64::try_from(image.len()).unwrap())];
    check(&vmcore::kernel::Kernel::new(&core, &info, &linear))
}
