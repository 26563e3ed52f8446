//! The symbols of a kernel, its types and ORC tables out of hostile memory, and the files that are
//! made of them: in order, bounded, the same twice, and nothing in them that a terminal acts upon.
//!
//! Input: a control byte, a length, that many bytes of VMCOREINFO, an image. The image lies where a
//! made-up kernel's does; unless the control byte says otherwise, the VMCOREINFO of that kernel comes
//! first, so that the input only has to change what it wants to.

use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Seek, SeekFrom, Write};

use crate::build::{Load, elf_core, note, put};
use crate::{Scratch, take, take_u16};
use symbols::isf::IsfError;
use symbols::kallsyms::SymbolTable;
use symbols::testing::{Encoding, MadeUp, START, types};
use symbols::{debuginfo, isf, kallsyms};
use vmcore::kernel::Kernel;
use vmcore::source::{Access, Core, Vmcore};

const PADDR: u64 = 0x1000;
/// Encodings, in the lower bits of the control byte.
const ENCODINGS: [Encoding; 4] =
    [Encoding::Absolute, Encoding::Relative, Encoding::PerCpu, Encoding::FromPlace];
/// Control bits: VMCOREINFO does not say where the table is; there is no VMCOREINFO but that of the input.
const UNNAMED: u8 = 4;
const BARE: u8 = 8;

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    let mut input = data;
    let control = take(&mut input, 1).first().copied().unwrap_or(0);
    let text_len = usize::from(take_u16(&mut input));
    let text = take(&mut input, text_len);
    let standard = if control & BARE == 0 { info(control) } else { String::new() };
    read(&[standard.as_bytes(), text].concat(), input);
}

/// Makes all that can be made of an image; whether a debug file was among it.
pub(super) fn read(info: &[u8], image: &[u8]) -> bool {
    let notes = note("VMCOREINFO", 0, info);
    let file = Scratch::new(&elf_core(&notes, &[Load { vaddr: START, paddr: PADDR, bytes: image }]));
    let Ok(core) = Vmcore::open(&file.path(), Access::Pread) else { return false };
    let kernel = Kernel::new(&core, core.info(), core.mappings());
    let Ok(table) = kallsyms::read(&kernel) else { return false };
    check_table(&kernel, &table);
    let [mut one, mut other] = [Output::default(), Output::default()];
    let report = debuginfo::write(&kernel, &mut one);
    let Ok(report) = report else { return false };
    assert_eq!(report.bytes, one.len, "the file is as long as the report says");
    // What takes most of the time is done with one image in eight.
    if image.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) % 8 != 0 {
        return true;
    }
    assert!(debuginfo::write(&kernel, &mut other).is_ok());
    assert_eq!(one.hash.finish(), other.hash.finish(), "the same dump gives the same file");
    let mut json = Vec::new();
    match isf::write(&kernel, &mut json) {
        Ok(_) => {}
        // volatility3 knows a kernel by its banner, a debugger does not.
        Err(IsfError::NoBanner) => return true,
        Err(error) => panic!("what a debug file can be made of: {}", base::log::chain(&error)),
    }
    let json = String::from_utf8(json).expect("JSON is UTF-8");
    assert!(!json.contains(base::text::is_unsafe), "a terminal shows it");
    true
}

fn check_table(kernel: &Kernel<'_>, table: &SymbolTable) {
    let all = table.all();
    assert!(all.is_sorted_by_key(|symbol| symbol.address));
    for symbol in all.iter().take(2000) {
        let name = table.name(symbol);
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
        assert!(table.find(name).is_some());
        let (found, behind) = table.at(symbol.address).expect("a symbol at a symbol");
        assert_eq!((found.address, behind), (symbol.address, 0));
        if let Some(only) = table.only(name) {
            assert_eq!(only, symbol.address);
        }
        if let Some(gap) = table.gap(symbol.address) {
            let next = base::addr::VirtAddr(symbol.address.0 + gap);
            assert!(
                gap > 0 && table.at(next).is_some_and(|(found, behind)| found.address == next && behind == 0)
            );
        }
    }
    for (name, address) in kernel.info().symbols().filter(|(name, _)| *name != "mem_section") {
        assert!(table.only(name).is_none_or(|found| found == address), "{name} is where VMCOREINFO has it");
    }
}

/// Keeps nothing but a hash of what is written where.
#[derive(Default)]
struct Output {
    at: u64,
    len: u64,
    hash: DefaultHasher,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.write_u64(self.at);
        self.hash.write(bytes);
        self.at += u64::try_from(bytes.len()).expect("64-bit lengths");
        self.len = self.len.max(self.at);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Output {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.at.checked_add_signed(by).expect("a place in the file"),
            SeekFrom::End(by) => self.len.checked_add_signed(by).expect("a place in the file"),
        };
        Ok(self.at)
    }
}

/// The kernel that the control byte stands for.
fn made(control: u8) -> MadeUp {
    let encoding = ENCODINGS[usize::from(control & 3)];
    let named = control & UNNAMED == 0;
    if named {
        MadeUp::new(encoding, named, &types().blob(), 20)
    } else {
        // A table that is searched for has at least 1,000 symbols.
        MadeUp::short(encoding, named, &types().blob(), 1000)
    }
}

fn info(control: u8) -> String {
    made(control).info
}

/// First inputs.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let seed = |control: u8, text: &str, image: &[u8]| {
        let len = u16::try_from(text.len()).unwrap().to_le_bytes();
        [&[control], &len[..], text.as_bytes(), image].concat()
    };
    let mut seeds = Vec::new();
    // Without its keys only the table of distances is looked for.
    for control in [0, 1, 2, 3, UNNAMED | 1] {
        let made = made(control);
        assert!(read(made.info.as_bytes(), &made.bytes), "the fuzzer starts from kernels that can be read");
        seeds.push(seed(control, "", &made.bytes));
        seeds.push(seed(control | BARE, &made.info, &made.bytes));
        let start = made.bytes.len();
        for (name, value) in [
            ("count", u64::MAX),
            ("count", 0),
            ("base", 0),
            ("names", 0xffff),
            ("index", 1),
            ("orc", u64::MAX),
        ] {
            let mut image = made.bytes.clone();
            put(&mut image, made.place(name), &value.to_le_bytes());
            image.truncate(start);
            seeds.push(seed(control, "", &image));
        }
    }
    for text in
        ["KERNELOFFSET=ffffffffffffffff\n", "BUILD-ID=\n", "OSRELEASE=\u{1b}[2J\n", "SIZE(list_head)=8\n"]
    {
        seeds.push(seed(1, text, &made(1).bytes));
    }
    seeds
}
