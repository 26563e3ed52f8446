//! The kernel's own symbol table, `kallsyms` (kernel/kallsyms.c, scripts/kallsyms.c).
//!
//! Names lie in a row, each as a length and indices into a table of 256 tokens. Addresses have had
//! four encodings; which one it is is told by the keys of VMCOREINFO and by the values, never by a
//! version:
//! - 64-bit addresses (`CONFIG_KALLSYMS_BASE_RELATIVE` off),
//! - 32-bit distances from `kallsyms_relative_base`,
//! - the same, but what is not negative is an address by itself, and what is negative counts down
//!   from base - 1 (`CONFIG_KALLSYMS_ABSOLUTE_PERCPU`, x86 before 6.15),
//! - 32-bit distances from the entry itself (without `kallsyms_relative_base`, 7.x).
//!
//! Kernels before 6.0 do not have the tables in VMCOREINFO: `scan` finds them in the image.

pub mod index;
mod names;
mod scan;
mod table;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use vmcore::kernel::{Kernel, KernelError};

use base::addr::{VirtAddr, to_u64};

use crate::image::IMAGE;
use crate::knowledge::{Answers, Knowledge, Question};
use names::{Names, Tokens};
pub(crate) use table::Builder;
use table::is_global;
pub use table::{Symbol, SymbolTable};

/// Symbols that are believed; kernels with all options have 250,000.
const MAX_SYMBOLS: u32 = 1 << 21;
/// `KSYM_NAME_LEN` is 512; the first character is the type.
const MAX_NAME: usize = 513;
/// Bytes of all names; kernels with all options have 8 MiB.
const MAX_TEXT: usize = 64 << 20;
/// Bytes of memory that are read at a time: a page, because the page behind may not be mapped.
const PIECE: u64 = 4096;

/// Why there are no symbols.
#[derive(Debug, thiserror::Error)]
pub enum KallsymsError {
    /// A table could not be read.
    #[error("reading the kernel's symbol table")]
    Memory(#[from] KernelError),
    /// VMCOREINFO does not tell where the tables are, and they were not found in the image.
    #[error(
        "VMCOREINFO does not say where the kernel's symbol table is, and none was found in the kernel's image: the \
         kernel was built without CONFIG_KALLSYMS, or its table is damaged"
    )]
    NotFound,
    /// A number in the tables that no kernel has.
    #[error("the kernel's symbol table is damaged: {what} is {value:#x}")]
    Damaged {
        /// Which number.
        what: &'static str,
        /// The number.
        value: u64,
    },
    /// What the symbol table says is the banner is another text.
    #[error(
        "where the kernel's symbol table has linux_banner is no banner of {release}: one of them is damaged"
    )]
    Banner {
        /// `OSRELEASE` in VMCOREINFO.
        release: String,
    },
    /// The table has another address for a symbol than VMCOREINFO.
    #[error("the kernel's symbol table has {name} at {ours}, VMCOREINFO at {theirs}: one of them is damaged")]
    Contradicts {
        /// Which symbol.
        name: String,
        /// Its address in the table.
        ours: VirtAddr,
        /// Its address in VMCOREINFO.
        theirs: VirtAddr,
    },
}

/// Symbols of a kernel, however they are kept.
pub trait Symbols {
    /// The address of a symbol; of several of the name a global one, then the lowest.
    fn find(&self, name: &str) -> Option<VirtAddr>;

    /// Whether there is one symbol of this name, and no second one.
    fn is_only(&self, name: &str) -> bool;

    /// Its type as nm prints it, if that is known; see [`Symbol::kind`].
    fn kind(&self, name: &str) -> Option<u8>;

    /// The symbol that `address` lies behind, and how far.
    fn at(&self, address: VirtAddr) -> Option<(Cow<'_, str>, u64)>;
}

/// No symbols at all: of a kernel whose table cannot be read.
#[derive(Clone, Copy, Debug)]
pub struct Nameless;

impl Symbols for Nameless {
    fn find(&self, _: &str) -> Option<VirtAddr> {
        None
    }

    fn is_only(&self, _: &str) -> bool {
        false
    }

    fn kind(&self, _: &str) -> Option<u8> {
        None
    }

    fn at(&self, _: VirtAddr) -> Option<(Cow<'_, str>, u64)> {
        None
    }
}

impl Symbols for SymbolTable {
    fn find(&self, name: &str) -> Option<VirtAddr> {
        Self::find(self, name)
    }

    fn is_only(&self, name: &str) -> bool {
        self.only(name).is_some()
    }

    fn kind(&self, name: &str) -> Option<u8> {
        self.symbol(name).map(|symbol| symbol.kind)
    }

    fn at(&self, address: VirtAddr) -> Option<(Cow<'_, str>, u64)> {
        let (symbol, offset) = Self::at(self, address)?;
        Some((self.name(symbol).into(), offset))
    }
}

/// Symbols alone answer where symbols are.
impl Knowledge for SymbolTable {
    fn ask(&self, question: Question<'_>) -> Option<u64> {
        match question {
            Question::Symbol(name) => self.find(name).map(|address| address.0),
            _ => None,
        }
    }
}

/// Where the tables lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    names: VirtAddr,
    count: u32,
    tokens: VirtAddr,
    index: VirtAddr,
    addresses: Addresses,
}

impl Places {
    const NAMES: Question<'static> = Question::Symbol("kallsyms_names");
    const COUNT: Question<'static> = Question::Value("kallsyms", "count");
    const TOKENS: Question<'static> = Question::Symbol("kallsyms_token_table");
    const INDEX: Question<'static> = Question::Symbol("kallsyms_token_index");
    const ADDRESSES: Question<'static> = Question::Symbol("kallsyms_addresses");
    const OFFSETS: Question<'static> = Question::Symbol("kallsyms_offsets");
    const BASE: Question<'static> = Question::Value("kallsyms", "base");

    /// Writes it down.
    fn note(self, answers: &mut Answers) {
        answers.note(Self::NAMES, self.names.0);
        answers.note(Self::COUNT, self.count.into());
        answers.note(Self::TOKENS, self.tokens.0);
        answers.note(Self::INDEX, self.index.0);
        match self.addresses {
            Addresses::Absolute(at) => answers.note(Self::ADDRESSES, at.0),
            Addresses::Relative { at, base } => {
                answers.note(Self::OFFSETS, at.0);
                answers.note(Self::BASE, base);
            }
            Addresses::FromPlace(at) => answers.note(Self::OFFSETS, at.0),
        }
    }

    /// What was written down.
    fn noted(answers: &Answers) -> Option<Self> {
        let at = |question| answers.ask(question).map(VirtAddr);
        let addresses = match (at(Self::ADDRESSES), at(Self::OFFSETS), answers.ask(Self::BASE)) {
            (Some(at), _, _) => Addresses::Absolute(at),
            (None, Some(at), Some(base)) => Addresses::Relative { at, base },
            (None, Some(at), None) => Addresses::FromPlace(at),
            (None, None, _) => return None,
        };
        let count = u32::try_from(answers.ask(Self::COUNT)?).ok()?;
        let (names, tokens, index) = (at(Self::NAMES)?, at(Self::TOKENS)?, at(Self::INDEX)?);
        Some(Self { names, count, tokens, index, addresses })
    }
}

/// Where the addresses lie, and from where they count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addresses {
    /// 64-bit addresses.
    Absolute(VirtAddr),
    /// Distances from `base`.
    Relative { at: VirtAddr, base: u64 },
    /// Distances from where they lie.
    FromPlace(VirtAddr),
}

/// Reads all symbols of the kernel.
pub fn read(kernel: &Kernel<'_>) -> Result<SymbolTable, KallsymsError> {
    let table = decode(kernel, places(kernel)?)?;
    verify(kernel, &table)?;
    Ok(table)
}

fn places(kernel: &Kernel<'_>) -> Result<Places, KallsymsError> {
    match named(kernel)? {
        Some(places) => Ok(places),
        None => scan::find(kernel),
    }
}

/// The tables as VMCOREINFO names them, if it does.
fn named(kernel: &Kernel<'_>) -> Result<Option<Places>, KallsymsError> {
    let symbol = |name: &str| kernel.info().symbol(name);
    let (Some(names), Some(count), Some(tokens), Some(index)) = (
        symbol("kallsyms_names"),
        symbol("kallsyms_num_syms"),
        symbol("kallsyms_token_table"),
        symbol("kallsyms_token_index"),
    ) else {
        return Ok(None);
    };
    let addresses = match (symbol("kallsyms_offsets"), symbol("kallsyms_relative_base")) {
        (Some(at), Some(base)) => {
            Addresses::Relative { at, base: kernel.read_u64(base, "kallsyms_relative_base")? }
        }
        (Some(at), None) => Addresses::FromPlace(at),
        (None, _) => match symbol("kallsyms_addresses") {
            Some(at) => Addresses::Absolute(at),
            None => return Ok(None),
        },
    };
    let count = kernel.read_u32(count, "kallsyms_num_syms")?;
    Ok(Some(Places { names, count, tokens, index, addresses }))
}

/// Reads `len` bytes from `at` on.
fn bytes(kernel: &Kernel<'_>, at: VirtAddr, len: usize, what: &'static str) -> Result<Vec<u8>, KernelError> {
    let mut bytes = vec![0; len];
    kernel.read(at, &mut bytes, what)?;
    Ok(bytes)
}

fn check_count(places: Places) -> Result<usize, KallsymsError> {
    if !(1..=MAX_SYMBOLS).contains(&places.count) {
        let value = u64::from(places.count);
        return Err(KallsymsError::Damaged { what: "the number of symbols", value });
    }
    Ok(usize::try_from(places.count).unwrap_or(usize::MAX))
}

/// Expands all names and addresses.
fn decode(kernel: &Kernel<'_>, places: Places) -> Result<SymbolTable, KallsymsError> {
    let count = check_count(places)?;
    let addresses = addresses(kernel, places.addresses, count)?;
    let tokens = Tokens::read(kernel, places)?;
    let mut names = Names::new(kernel, places.names);
    let mut table = Builder::with_capacity(count);
    let mut name = Vec::new();
    for address in addresses {
        name.clear();
        for &token in names.next()? {
            let text = tokens.get(token);
            name.extend_from_slice(
                text.ok_or(KallsymsError::Damaged { what: "a token", value: u64::from(token) })?,
            );
        }
        // Tokens have nothing but printed characters.
        let kind = name
            .split_first()
            .filter(|(kind, rest)| kind.is_ascii_alphabetic() && !rest.is_empty() && rest.len() < MAX_NAME);
        let Some((&kind, name)) = kind else {
            let value = name.first().copied().unwrap_or(0).into();
            return Err(KallsymsError::Damaged { what: "the type of a symbol", value });
        };
        if table.text_len().saturating_add(name.len()) > MAX_TEXT {
            let value = to_u64(table.text_len());
            return Err(KallsymsError::Damaged { what: "the length of all names", value });
        }
        table.push(VirtAddr(address), kind, name);
    }
    names.check_marks()?;
    Ok(table.finish())
}

/// The address of each symbol, in ascending order.
fn addresses(kernel: &Kernel<'_>, places: Addresses, count: usize) -> Result<Vec<u64>, KallsymsError> {
    let addresses = read_addresses(kernel, places, count)?;
    let mut pairs = addresses.iter().zip(addresses.iter().skip(1));
    match pairs.find(|(one, next)| one > next) {
        None => Ok(addresses),
        Some((_, &value)) => {
            Err(KallsymsError::Damaged { what: "an address that is below the one before it", value })
        }
    }
}

fn read_addresses(
    kernel: &Kernel<'_>,
    addresses: Addresses,
    count: usize,
) -> Result<Vec<u64>, KallsymsError> {
    let read = |at, size: usize| bytes(kernel, at, count.saturating_mul(size), "the addresses of symbols");
    let words = |bytes: &[u8]| -> Vec<i32> {
        bytes.chunks_exact(4).filter_map(|word| word.try_into().ok()).map(i32::from_le_bytes).collect()
    };
    Ok(match addresses {
        Addresses::Absolute(at) => {
            let bytes = read(at, 8)?;
            bytes.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_le_bytes).collect()
        }
        Addresses::Relative { at, base } => {
            let words = words(&read(at, 4)?);
            // Without ABSOLUTE_PERCPU a negative word is a distance of over 2 GiB, which no image has.
            let negative = words.iter().filter(|word| **word < 0).count();
            let counts_down = negative.saturating_mul(2) > words.len();
            let address = |word: i32| match u64::try_from(word) {
                Ok(up) if counts_down => up,
                Err(_) if counts_down => {
                    base.wrapping_sub(1).wrapping_add_signed(i64::from(word).saturating_neg())
                }
                _ => base.wrapping_add(u64::from(word.cast_unsigned())),
            };
            words.into_iter().map(address).collect()
        }
        Addresses::FromPlace(at) => {
            let words = words(&read(at, 4)?);
            let places = (0_u64..).map(|index| at.0.wrapping_add(index.wrapping_mul(4)));
            places.zip(words).map(|(place, word)| place.wrapping_add_signed(i64::from(word))).collect()
        }
    })
}

/// Whether VMCOREINFO can have what a variable points to instead of its address.
fn is_pointer(kind: Option<u8>, theirs: VirtAddr) -> bool {
    matches!(kind, Some(b'd' | b'D' | b'b' | b'B' | b'r' | b'R')) && theirs.0 < IMAGE
}

/// Compares with the symbols that VMCOREINFO has: all must be equal. A symbol that only one of them
/// has says nothing: data is not in the table without `CONFIG_KALLSYMS_ALL`, and some names are
/// macros (`swapper_pg_dir`, `node_online_map`, `vmemmap`). Nor does a variable whose value in
/// VMCOREINFO lies outside the image, where no variable is: it is a pointer that was told as an array
/// (`VMCOREINFO_SYMBOL_ARRAY()`), which is told by what it points to. `mem_section` is one with
/// `CONFIG_SPARSEMEM_EXTREME`. Then the banner of the kernel must be where the table has it.
fn verify(kernel: &Kernel<'_>, table: &dyn Symbols) -> Result<(), KallsymsError> {
    let mut equal = 0_usize;
    for (name, theirs) in kernel.info().symbols() {
        match table.find(name) {
            Some(ours) if ours == theirs => equal = equal.saturating_add(1),
            Some(ours) if table.is_only(name) && !is_pointer(table.kind(name), theirs) => {
                return Err(KallsymsError::Contradicts { name: base::text::line(name), ours, theirs });
            }
            _ => {}
        }
    }
    if equal == 0 {
        return Err(KallsymsError::Damaged { what: "the number of known symbols", value: 0 });
    }
    let banner = table.find("linux_banner").filter(|_| table.is_only("linux_banner"));
    let (Some(release), Some(banner)) = (kernel.info().get("OSRELEASE"), banner) else {
        return Ok(());
    };
    let wanted = format!("Linux version {release} ");
    let mut text = vec![0; wanted.len()];
    // Not every dump has the page; that a debugger misses it is not this table's fault.
    match kernel.read(banner, &mut text, "linux_banner") {
        Ok(()) if text != wanted.as_bytes() => {
            Err(KallsymsError::Banner { release: base::text::line(release) })
        }
        _ => Ok(()),
    }
}
