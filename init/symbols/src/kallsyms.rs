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
//! Kernels before 6.0 do not have the tables in VMCOREINFO: [`scan`] finds them in the image.

mod scan;
mod table;
#[cfg(test)]
mod tests;

use vmcore::kernel::{Kernel, KernelError};

use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::Fields;

pub(crate) use table::Builder;
pub use table::{Symbol, SymbolTable};

/// Symbols that are believed; kernels with all options have 250,000.
const MAX_SYMBOLS: u32 = 1 << 21;
/// The token table: 256 tokens, which are shorter than a name.
const MAX_TOKENS: usize = 256 * 512;
/// `KSYM_NAME_LEN` is 512; the first character is the type.
const MAX_NAME: usize = 513;
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
        "VMCOREINFO does not say where the kernel's symbol table is, and none was found in the kernel's image \
         (a kernel without CONFIG_KALLSYMS?)"
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

/// Where the tables lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    names: VirtAddr,
    count: u32,
    tokens: VirtAddr,
    index: VirtAddr,
    addresses: Addresses,
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
    let places = match named(kernel)? {
        Some(places) => places,
        None => scan::find(kernel)?,
    };
    let table = decode(kernel, places)?;
    verify(kernel, &table)?;
    Ok(table)
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

/// The tokens, by their number.
struct Tokens {
    text: Vec<u8>,
    /// First byte and last byte plus one.
    places: Vec<(usize, usize)>,
}

impl Tokens {
    fn read(kernel: &Kernel<'_>, places: Places) -> Result<Self, KallsymsError> {
        let index = bytes(kernel, places.index, 512, "kallsyms_token_index")?;
        let starts: Vec<usize> = (0..256)
            .filter_map(|token| Fields(&index).u16(2_usize.saturating_mul(token)))
            .map(usize::from)
            .collect();
        let last = starts.iter().copied().max().unwrap_or(0);
        let wanted = last.saturating_add(MAX_NAME).min(MAX_TOKENS);
        let mut text = Vec::new();
        let mut pieces = Pieces::new(kernel, places.tokens);
        // Behind the last token another table begins, or the end of what is mapped.
        while text.len() < wanted {
            match pieces.next() {
                Ok(piece) => text.extend_from_slice(&piece),
                Err(error) if text.len() <= last => return Err(error.into()),
                Err(_) => break,
            }
        }
        let len = |start: usize| text.get(start..).unwrap_or_default().iter().position(|&byte| byte == 0);
        let places =
            starts.iter().map(|&start| (start, start.saturating_add(len(start).unwrap_or(0)))).collect();
        Ok(Self { text, places })
    }

    /// The text of a token, without the NUL behind it.
    fn get(&self, token: u8) -> Option<&[u8]> {
        let (start, end) = *self.places.get(usize::from(token))?;
        self.text.get(start..end)
    }
}

/// Memory in pieces, from an address on.
struct Pieces<'a, 'k> {
    kernel: &'a Kernel<'k>,
    at: VirtAddr,
}

impl<'a, 'k> Pieces<'a, 'k> {
    fn new(kernel: &'a Kernel<'k>, at: VirtAddr) -> Self {
        Self { kernel, at }
    }

    /// What lies up to the end of the page.
    fn next(&mut self) -> Result<Vec<u8>, KernelError> {
        let len = PIECE.saturating_sub(self.at.0 % PIECE);
        let piece = bytes(self.kernel, self.at, to_usize(len), "kallsyms")?;
        self.at = VirtAddr(self.at.0.wrapping_add(len));
        Ok(piece)
    }
}

/// The compressed names, one after the other.
struct Names<'a, 'k> {
    pieces: Pieces<'a, 'k>,
    buffer: Vec<u8>,
    at: usize,
}

impl Names<'_, '_> {
    /// The next `len` bytes.
    fn take(&mut self, len: usize) -> Result<&[u8], KallsymsError> {
        while self.buffer.len().saturating_sub(self.at) < len {
            self.buffer.drain(..self.at);
            self.at = 0;
            let piece = self.pieces.next()?;
            self.buffer.extend(piece);
        }
        let end = self.at.saturating_add(len);
        let taken = self.buffer.get(self.at..end).unwrap_or_default();
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, KallsymsError> {
        Ok(self.take(1)?.first().copied().unwrap_or(0))
    }

    /// The tokens of the next name. Its length has a second byte if the first one has its upper bit
    /// set (73bbb94466fd, 6.1); no name of an older kernel is that long.
    fn next(&mut self) -> Result<&[u8], KallsymsError> {
        let first = self.byte()?;
        let mut len = usize::from(first & 0x7f);
        if first & 0x80 != 0 {
            len |= usize::from(self.byte()?) << 7;
        }
        if !(1..MAX_NAME).contains(&len) {
            return Err(KallsymsError::Damaged { what: "the length of a name", value: to_u64(len) });
        }
        self.take(len)
    }
}

/// Expands all names and addresses.
fn decode(kernel: &Kernel<'_>, places: Places) -> Result<SymbolTable, KallsymsError> {
    if !(1..=MAX_SYMBOLS).contains(&places.count) {
        let value = u64::from(places.count);
        return Err(KallsymsError::Damaged { what: "the number of symbols", value });
    }
    let count = usize::try_from(places.count).unwrap_or(usize::MAX);
    let addresses = addresses(kernel, places.addresses, count)?;
    let tokens = Tokens::read(kernel, places)?;
    let mut names = Names { pieces: Pieces::new(kernel, places.names), buffer: Vec::new(), at: 0 };
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
        let plain = name.len() > 1 && name.len() <= MAX_NAME && name.iter().all(u8::is_ascii_graphic);
        let (Some((&kind, name)), true) = (name.split_first(), plain) else {
            let value = name.first().copied().unwrap_or(0).into();
            return Err(KallsymsError::Damaged { what: "a character of a name", value });
        };
        table.push(VirtAddr(address), kind, name);
    }
    Ok(table.finish())
}

/// The address of each symbol.
fn addresses(kernel: &Kernel<'_>, addresses: Addresses, count: usize) -> Result<Vec<u64>, KallsymsError> {
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

/// Compares with the symbols that VMCOREINFO has; most must be equal. A symbol that only one of them
/// has says nothing: data is not in the table without `CONFIG_KALLSYMS_ALL`, and some names are
/// macros. Of arrays that are pointers (`mem_section`) VMCOREINFO has what they point to.
fn verify(kernel: &Kernel<'_>, table: &SymbolTable) -> Result<(), KallsymsError> {
    let mut equal = 0_usize;
    let mut other = Vec::new();
    for (name, theirs) in kernel.info().symbols() {
        match table.find(name) {
            Some(ours) if ours == theirs => equal = equal.saturating_add(1),
            Some(ours) if table.count(name) == 1 => other.push((name, ours, theirs)),
            _ => {}
        }
    }
    match other.first() {
        Some(&(name, ours, theirs)) if other.len() >= equal => {
            Err(KallsymsError::Contradicts { name: name.to_owned(), ours, theirs })
        }
        None if equal == 0 => Err(KallsymsError::Damaged { what: "the number of known symbols", value: 0 }),
        _ => Ok(()),
    }
}
