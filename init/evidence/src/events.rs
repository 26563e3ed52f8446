//! `events.jsonl`: what was done, a line each. Every line has the SHA-256 of the line before it, the first
//! that of the arm record; the manifest has that of the last. So no line can be changed, taken out or moved
//! without its being seen.

use serde::{Deserialize, Serialize};

use crate::canonical::{self, CanonicalError};
use crate::manifest::Chain;
use crate::{hex, sha256};

/// A line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Counts from 0.
    pub number: u64,
    /// Milliseconds since the capture process began, by a clock that does not jump.
    pub ms: u64,
    /// The capture kernel's clock, RFC 3339.
    pub utc: String,
    /// What was done, or happened.
    pub what: String,
    /// SHA-256 of the line before it, hex.
    pub before: String,
}

/// What is wrong with a chain.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not a line of it.
    #[error("line {0} is no event")]
    Format(usize),
    /// A line was put in, taken out or moved.
    #[error("line {line} has the number {number}: lines are missing, or were added or moved")]
    Number {
        /// Which, from 1.
        line: usize,
        /// What it says.
        number: u64,
    },
    /// The line before it is not the one that it was written behind.
    #[error("line {0} was not written behind the line that stands before it: that one was changed")]
    Broken(usize),
    /// Lines at the end.
    #[error("the manifest has another last line: {found} lines are there, {wanted} were written")]
    Head {
        /// How many there are.
        found: u64,
        /// How many the manifest has.
        wanted: u64,
    },
}

/// The text of a chain behind an arm record (its SHA-256, hex; empty if there is none), and its end. What
/// happened is given as milliseconds, clock and text.
pub fn chain<'a>(
    arm: &str,
    events: impl Iterator<Item = (u64, String, &'a str)>,
) -> Result<(String, Chain), CanonicalError> {
    let (mut text, mut chain) = (String::new(), Chain { count: 0, head: arm.to_owned() });
    for (ms, utc, what) in events {
        let line = Line { number: chain.count, ms, utc, what: what.to_owned(), before: chain.head };
        let line = canonical::to_string(&line)?;
        chain = Chain { count: chain.count.saturating_add(1), head: hex(&sha256(line.as_bytes())) };
        text.push_str(&line);
        text.push('\n');
    }
    Ok((text, chain))
}

/// Checks a chain against what the manifest says of it. Returns its lines.
pub fn check(text: &str, arm: &str, wanted: &Chain) -> Result<Vec<Line>, ChainError> {
    let (mut before, mut lines) = (arm.to_owned(), Vec::new());
    for (index, text) in text.lines().enumerate() {
        let at = index.saturating_add(1);
        let line: Line = serde_json::from_str(text).map_err(|_| ChainError::Format(at))?;
        if line.number != base::addr::to_u64(index) {
            return Err(ChainError::Number { line: at, number: line.number });
        }
        if line.before != before {
            return Err(ChainError::Broken(at));
        }
        before = hex(&sha256(text.as_bytes()));
        lines.push(line);
    }
    let found = base::addr::to_u64(lines.len());
    if found != wanted.count || before != wanted.head {
        return Err(ChainError::Head { found, wanted: wanted.count });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (String, Chain) {
        let what = ["armed", "log saved", "dump saved"];
        chain("ab", what.into_iter().map(|what| (7, "2026-01-01T00:00:00Z".into(), what))).unwrap()
    }

    #[test]
    fn a_chain_holds_until_a_line_is_changed() {
        let (text, end) = sample();
        let lines = check(&text, "ab", &end).unwrap();
        assert_eq!((lines.len(), lines[1].what.as_str()), (3, "log saved"));
        let lines: Vec<&str> = text.lines().collect();
        let with = |lines: &[&str]| check(&(lines.join("\n") + "\n"), "ab", &end);
        assert_eq!(with(&lines[..2]), Err(ChainError::Head { found: 2, wanted: 3 }));
        assert_eq!(with(&[lines[0], lines[2]]), Err(ChainError::Number { line: 2, number: 2 }));
        assert_eq!(with(&[lines[1], lines[0], lines[2]]), Err(ChainError::Number { line: 1, number: 1 }));
        let edited = lines[1].replace("log", "dog");
        assert_eq!(with(&[lines[0], &edited, lines[2]]), Err(ChainError::Broken(3)));
        let edited = lines[2].replace("dump", "pump");
        assert_eq!(with(&[lines[0], lines[1], &edited]), Err(ChainError::Head { found: 3, wanted: 3 }));
        assert_eq!(check(&text, "other arm record", &end), Err(ChainError::Broken(1)));
        assert_eq!(with(&[lines[0], "{}"]), Err(ChainError::Format(2)));
    }
}
