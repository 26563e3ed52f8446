//! The names of symbols, out of tokens.

use base::addr::{VirtAddr, to_u64, to_usize};
use base::fields::Fields;
use vmcore::kernel::{Kernel, KernelError};

use super::{KallsymsError, MAX_NAME, PIECE, Places, bytes};

/// The token table: 256 tokens, which are shorter than a name.
const MAX_TOKENS: usize = 256 * 512;
/// Names from one mark to the next.
const MARKED: usize = 256;

/// The tokens, by their number.
pub(super) struct Tokens {
    text: Vec<u8>,
    /// Where each one begins, and behind it its NUL.
    places: Vec<(usize, usize)>,
}

impl Tokens {
    /// Reads them; they lie one behind the other, each with a NUL behind it.
    pub(super) fn read(kernel: &Kernel<'_>, places: Places) -> Result<Self, KallsymsError> {
        let index = bytes(kernel, places.index, 512, "kallsyms_token_index")?;
        let starts: Vec<usize> = (0..256)
            .filter_map(|token| Fields(&index).u16(usize::saturating_mul(token, 2)))
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
        let mut places = Vec::new();
        let mut at = 0_usize;
        for start in starts {
            let token = text.get(start..).and_then(|text| text.split(|&byte| byte == 0).next());
            let token = token.filter(|token| start == at && token.iter().all(u8::is_ascii_graphic));
            let token =
                token.ok_or(KallsymsError::Damaged { what: "the place of a token", value: to_u64(start) })?;
            let end = start.saturating_add(token.len());
            places.push((start, end));
            at = end.saturating_add(1);
        }
        Ok(Self { text, places })
    }

    /// The text of a token, without the NUL behind it.
    pub(super) fn get(&self, token: u8) -> Option<&[u8]> {
        let &(start, end) = self.places.get(usize::from(token))?;
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
pub(super) struct Names<'a, 'k> {
    start: VirtAddr,
    pieces: Pieces<'a, 'k>,
    buffer: Vec<u8>,
    /// Bytes of the buffer, and of all, that were taken.
    at: usize,
    passed: usize,
    /// Names that were taken, and where every 256th one began.
    count: usize,
    marks: Vec<usize>,
}

impl<'a, 'k> Names<'a, 'k> {
    pub(super) fn new(kernel: &'a Kernel<'k>, start: VirtAddr) -> Self {
        let pieces = Pieces::new(kernel, start);
        Self { start, pieces, buffer: Vec::new(), at: 0, passed: 0, count: 0, marks: Vec::new() }
    }

    /// The next `len` bytes.
    fn take(&mut self, len: usize) -> Result<&[u8], KallsymsError> {
        while self.buffer.len().saturating_sub(self.at) < len {
            self.buffer.drain(..self.at);
            self.at = 0;
            let piece = self.pieces.next()?;
            self.buffer.extend(piece);
        }
        self.passed = self.passed.saturating_add(len);
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
    pub(super) fn next(&mut self) -> Result<&[u8], KallsymsError> {
        if self.count.is_multiple_of(MARKED) {
            self.marks.push(self.passed);
        }
        self.count = self.count.saturating_add(1);
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

    /// `kallsyms_markers`, where every 256th name begins, lie behind the names in all kernels, aligned
    /// to 4 or 8 bytes. They tell whether all lengths of names are right.
    pub(super) fn check_marks(&mut self) -> Result<(), KallsymsError> {
        let place = VirtAddr(self.start.0.wrapping_add(to_u64(self.passed)));
        let wanted = std::mem::take(&mut self.marks);
        let words = bytes(
            self.pieces.kernel,
            place,
            wanted.len().saturating_mul(4).saturating_add(8),
            "kallsyms_markers",
        )?;
        let is_marks = |align: u64| {
            let at = to_usize(place.0.wrapping_neg() & (align.wrapping_sub(1)));
            let word = |index: usize| Fields(&words).u32(index.checked_mul(4)?.checked_add(at)?);
            wanted.iter().enumerate().all(|(index, mark)| word(index) == u32::try_from(*mark).ok())
        };
        if [8, 4].into_iter().any(is_marks) {
            return Ok(());
        }
        Err(KallsymsError::Damaged {
            what: "the place of the marks that do not fit to the names",
            value: place.0,
        })
    }
}
