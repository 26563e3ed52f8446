//! The same symbols in a tenth of the memory: names stay in tokens.

use std::borrow::Cow;
use std::cell::OnceCell;

use base::addr::{VirtAddr, to_u64, to_usize};

use super::names::{Names, Tokens};
use crate::knowledge::Answers;

use super::{KallsymsError, MAX_TEXT, Places, Symbols, addresses, check_count, is_global, verify};
use vmcore::kernel::Kernel;

/// Names from one mark to the next.
const MARKED: usize = 64;

/// Symbols of a kernel, by address and by name.
pub struct Index {
    addresses: Vec<u64>,
    tokens: Tokens,
    /// Each name: its length in two bytes, then its tokens. The first character is the type.
    names: Vec<u8>,
    /// Where every 64th one begins.
    marks: Vec<u32>,
    /// A hash of each name, made when the first name is looked for.
    hashes: OnceCell<Vec<u32>>,
}

impl core::fmt::Debug for Index {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Index").field("symbols", &self.addresses.len()).finish_non_exhaustive()
    }
}

/// FNV-1a.
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

impl Index {
    pub(super) fn read(kernel: &Kernel<'_>, places: Places) -> Result<Self, KallsymsError> {
        let count = check_count(places)?;
        let addresses = addresses(kernel, places.addresses, count)?;
        let tokens = Tokens::read(kernel, places)?;
        let mut source = Names::new(kernel, places.names);
        let (mut names, mut marks) = (Vec::new(), Vec::new());
        for number in 0..count {
            if number.is_multiple_of(MARKED) {
                marks.push(u32::try_from(names.len()).unwrap_or(u32::MAX));
            }
            let name = source.next()?;
            let kind = name.first().and_then(|token| tokens.get(*token)).and_then(<[u8]>::first);
            let kind = kind.copied().unwrap_or(0);
            if !kind.is_ascii_alphabetic() {
                return Err(KallsymsError::Damaged { what: "the type of a symbol", value: kind.into() });
            }
            names.extend(u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
            names.extend_from_slice(name);
            if names.len() > MAX_TEXT {
                let value = to_u64(names.len());
                return Err(KallsymsError::Damaged { what: "the length of all names", value });
            }
        }
        source.check_marks()?;
        Ok(Self { addresses, tokens, names, marks, hashes: OnceCell::new() })
    }

    /// Calls `each` with the tokens of the names from `first` on, until it returns false.
    fn walk(&self, first: usize, each: &mut dyn FnMut(usize, &[u8]) -> bool) {
        let Some(&mark) = first.checked_div(MARKED).and_then(|mark| self.marks.get(mark)) else { return };
        let mut rest = self.names.get(to_usize(mark.into())..).unwrap_or_default();
        for number in first.saturating_sub(first % MARKED)..self.addresses.len() {
            let Some((len, behind)) = rest.split_first_chunk::<2>() else { return };
            let Some((name, behind)) = behind.split_at_checked(u16::from_le_bytes(*len).into()) else {
                return;
            };
            rest = behind;
            if number >= first && !each(number, name) {
                return;
            }
        }
    }

    /// Type and name of a symbol, into `out`.
    fn expand(&self, tokens: &[u8], out: &mut Vec<u8>) {
        out.clear();
        tokens
            .iter()
            .filter_map(|token| self.tokens.get(*token))
            .for_each(|text| out.extend_from_slice(text));
    }

    fn hashes(&self) -> &[u32] {
        self.hashes.get_or_init(|| {
            let (mut hashes, mut name) = (Vec::with_capacity(self.addresses.len()), Vec::new());
            self.walk(0, &mut |_, tokens| {
                self.expand(tokens, &mut name);
                hashes.push(hash(name.get(1..).unwrap_or_default()));
                true
            });
            hashes
        })
    }

    /// The numbers of the symbols of this name, and whether other files see them.
    fn all_named(&self, name: &str) -> impl Iterator<Item = (usize, bool)> {
        let wanted = hash(name.as_bytes());
        let numbers = self.hashes().iter().enumerate().filter(move |(_, hash)| **hash == wanted);
        numbers.filter_map(move |(number, _)| {
            let (kind, found) = self.named(number)?;
            (found == name.as_bytes()).then_some((number, is_global(kind)))
        })
    }

    /// The number of the symbol that is meant by a name: a global one, then the lowest.
    fn number(&self, name: &str) -> Option<usize> {
        let mut all = self.all_named(name).peekable();
        let first = all.peek().map(|(number, _)| *number)?;
        Some(all.find(|(_, global)| *global).map_or(first, |(number, _)| number))
    }

    fn named(&self, number: usize) -> Option<(u8, Vec<u8>)> {
        let mut name = Vec::new();
        self.walk(number, &mut |_, tokens| {
            self.expand(tokens, &mut name);
            false
        });
        let (kind, name) = name.split_first()?;
        Some((*kind, name.to_vec()))
    }
}

impl Symbols for Index {
    fn find(&self, name: &str) -> Option<VirtAddr> {
        self.addresses.get(self.number(name)?).copied().map(VirtAddr)
    }

    fn kind(&self, name: &str) -> Option<u8> {
        self.named(self.number(name)?).map(|(kind, _)| kind)
    }

    fn is_only(&self, name: &str) -> bool {
        self.all_named(name).take(2).count() == 1
    }

    fn at(&self, address: VirtAddr) -> Option<(Cow<'_, str>, u64)> {
        let behind = self.addresses.partition_point(|symbol| *symbol <= address.0);
        let last = *self.addresses.get(behind.checked_sub(1)?)?;
        let first = self.addresses.partition_point(|symbol| *symbol < last);
        let name = String::from_utf8(self.named(first)?.1).ok()?;
        Some((name.into(), address.0.checked_sub(last)?))
    }
}

/// Reads the symbols of the kernel, and checks them as [`super::read`] does.
pub fn read(kernel: &Kernel<'_>) -> Result<Index, KallsymsError> {
    let index = Index::read(kernel, super::places(kernel)?)?;
    verify(kernel, &index)?;
    Ok(index)
}

/// Notes where the tables lie, if they have to be searched for: kernels before 6.0 do not have them in
/// VMCOREINFO. What [`read_as_known`] is given then.
pub fn locate(kernel: &Kernel<'_>) -> Result<Answers, KallsymsError> {
    let mut answers = Answers::default();
    if super::named(kernel)?.is_none() {
        super::places(kernel)?.note(&mut answers);
    }
    Ok(answers)
}

/// The same as [`read()`], where something is known already: `known` are names and addresses that must
/// be in it, and `answers` may say where the tables lie.
pub fn read_as_known(
    kernel: &Kernel<'_>,
    answers: &Answers,
    known: &[(&str, VirtAddr)],
) -> Result<Index, KallsymsError> {
    let noted = Places::noted(answers);
    let index = Index::read(kernel, noted.map_or_else(|| super::places(kernel), Ok)?)?;
    for &(name, theirs) in known {
        // Several symbols may have one address.
        let first = index.addresses.partition_point(|symbol| *symbol < theirs.0);
        let numbers = first..index.addresses.partition_point(|symbol| *symbol <= theirs.0);
        let mut names = numbers.filter_map(|number| index.named(number));
        if !names.any(|(_, ours)| ours == name.as_bytes()) {
            let nearest = index.addresses.get(first).copied().unwrap_or(0);
            return Err(KallsymsError::Contradicts {
                name: name.to_owned(),
                ours: VirtAddr(nearest),
                theirs,
            });
        }
    }
    Ok(index)
}
