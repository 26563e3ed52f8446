//! What stands in the pages of a made-up machine: text, one byte all over, or zeros.

use base::addr::to_usize;

/// Bytes of text; a page is a piece of it.
const TEXT: usize = 64 << 10;
/// Pieces that begin at different bytes.
const PIECES: u64 = 60 << 10;
const WORDS: [&str; 16] = [
    "kernel", "page", "struct", "task", "inode", "0x7ffe", "mapping", "flags", "lock", "return", "static",
    "void", "slab", "cpu", "timer", "device",
];

/// How pages are filled.
#[derive(Debug)]
pub struct Content {
    /// Of 16 pages, those with text.
    text_pages: u64,
    /// Of 16 pages, those with one byte all over that is not zero; the rest is zero.
    same_pages: u64,
    text: Vec<u8>,
}

impl Content {
    /// Of 16 pages (of the same parity), `text_pages` hold text and `same_pages` the same byte all
    /// over.
    #[must_use]
    pub fn new(text_pages: u64, same_pages: u64) -> Self {
        Self { text_pages, same_pages, text: text() }
    }

    /// Fills `out` with the bytes of page `pfn` from `ahead` on.
    pub fn fill(&self, pfn: u64, ahead: usize, out: &mut [u8]) {
        let kind = pfn >> 1 & 15;
        if kind < self.text_pages {
            let from = to_usize(pfn.wrapping_mul(0x9e37_79b9_7f4a_7c15) % PIECES).saturating_add(ahead);
            out.copy_from_slice(self.text.get(from..from.saturating_add(out.len())).unwrap_or_default());
        } else if kind < self.text_pages.saturating_add(self.same_pages) {
            let [byte, ..] = (pfn >> 5 & 0x3f | 0x40).to_le_bytes();
            out.fill(byte);
        } else {
            out.fill(0);
        }
    }
}

/// Words and numbers, always the same.
fn text() -> Vec<u8> {
    let (mut text, mut x) = (String::new(), 1_u64);
    while text.len() < TEXT {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let word = WORDS.get(to_usize(x >> 8 & 15)).copied().unwrap_or_default();
        text.push_str(word);
        text.push(if x & 0x1000 == 0 { ' ' } else { '_' });
        if x & 0x6_0000 == 0 {
            text.push_str(&(x >> 40).to_string());
            text.push('\n');
        }
    }
    text.truncate(TEXT);
    text.into_bytes()
}
