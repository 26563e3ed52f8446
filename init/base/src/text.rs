//! Text that others have a hand in (names of hosts and volumes, text of the old kernel), made safe
//! for terminals and for lines.

use core::fmt::Write;

/// Whether a character does something to a terminal, or to the order in which others are shown:
/// control characters (C0, DEL, C1), ends of lines, and the marks that turn the direction of text
/// (Unicode UAX #9) or show nothing.
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Bytes as hex digits, lower case, as sha256sum prints a sum.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The text on one line, with what a terminal would act upon as `\u{…}`, `\n` and so on. A
/// backslash before such an escape is not told from one of ours; where that matters, use JSON.
#[must_use]
pub fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// The same for text of several lines, which stay lines.
#[must_use]
pub fn lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) && c != '\n' && c != '\t' { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// JSON without a character that a terminal acts upon: in strings, where alone there can be one,
/// it is written `\u0080`, which means the same.
#[must_use]
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) && !matches!(c, '\n' | '\r' | '\t') {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What terminals act upon: an escape sequence, the one-byte CSI, DEL, a bell, a line that is
    /// none, and text that is shown from right to left.
    const HOSTILE: &str = "a\u{1b}[2J\u{9b}2J\u{7f}\u{7}\nb\u{202e}c\u{200b}\u{2028}d\u{85}\u{feff}";

    #[test]
    fn nothing_is_left_that_a_terminal_acts_upon() {
        for text in [line(HOSTILE), lines(HOSTILE).replace('\n', ""), json(HOSTILE).replace('\n', "")] {
            assert!(!text.chars().any(is_unsafe), "{text:?}");
        }
        assert_eq!(line("a\nb\u{9b}"), "a\\nb\\u{9b}");
        assert_eq!(lines("a\tä\nb\u{1b}"), "a\tä\nb\\u{1b}");
    }

    #[test]
    fn json_says_the_same_without_them() {
        let text = json(&serde_json::to_string(HOSTILE).unwrap());
        assert!(text.contains("\\u009b2J") && text.contains("\\u202e"), "{text}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), HOSTILE);
    }
}
