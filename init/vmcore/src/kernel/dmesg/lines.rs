//! Lines of the log one by one, for those who look for something in it.

use std::collections::VecDeque;
use std::fmt::Write as _;

use super::{ID_MASK, Ring, is_plain, printed_len};

/// A line of the log. The text is escaped, as [`super::write()`] does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Time stamp, nanoseconds since boot.
    pub nanoseconds: u64,
    /// Whether the kernel wrote it itself, and no program.
    pub by_kernel: bool,
    /// Its text, without what stands before it.
    pub text: String,
}

impl Ring<'_, '_> {
    /// Calls `each` with the lines of the newest `records` records, the oldest first, no more than
    /// `limit` bytes of text. What cannot be read is passed over.
    pub fn newest(&self, records: u64, limit: u64, each: &mut dyn FnMut(Line)) {
        let mut all = VecDeque::new();
        let (mut text, mut limit) = (Vec::new(), limit);
        for newer in 0..self.span().1.min(records) {
            let id = self.head_id.wrapping_sub(newer) & ID_MASK;
            let Ok(Some(info)) = self.record(id, &mut text) else { continue };
            let Some(left) = limit.checked_sub(printed_len("", &text)) else { break };
            limit = left;
            all.push_front((info, text.clone()));
        }
        for (info, text) in all {
            for line in text.split(|byte| *byte == b'\n') {
                let (nanoseconds, by_kernel) = (info.ts_nsec, info.by_kernel);
                each(Line { nanoseconds, by_kernel, text: escaped(line) });
            }
        }
    }
}

fn escaped(text: &[u8]) -> String {
    let mut line = String::with_capacity(text.len());
    for &byte in text {
        if is_plain(byte) {
            line.push(char::from(byte));
        } else {
            let _ = write!(line, "\\x{byte:02x}");
        }
    }
    line
}
