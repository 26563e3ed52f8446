//! The dump level: which page types a dump leaves out, a bit per type, as `-d` of makedumpfile has it.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// A dump level: which page types are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct DumpLevel(u32);

/// Why a dump level is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// Not a number.
    #[error("a dump level is a number from 0 to 31")]
    NotANumber,
    /// No such level.
    #[error("dump level {0} does not exist: levels go from 0 to 31")]
    OutOfRange(u32),
    /// A level that filters by page type.
    #[error(
        "dump level {0} leaves out cache, user or free pages, which this version cannot do yet: \
         use 1 (leave out zero pages) or 0 (leave out nothing)"
    )]
    NotYet(u32),
}

impl DumpLevel {
    const ZERO_PAGES: u32 = 1;

    /// The level with this number.
    pub fn new(level: u32) -> Result<Self, LevelError> {
        match level {
            0 | Self::ZERO_PAGES => Ok(Self(level)),
            2..=31 => Err(LevelError::NotYet(level)),
            _ => Err(LevelError::OutOfRange(level)),
        }
    }

    /// Whether pages of zeros take no room of their own.
    #[must_use]
    pub fn leaves_out_zero_pages(self) -> bool {
        self.0 & Self::ZERO_PAGES != 0
    }
}

impl Default for DumpLevel {
    fn default() -> Self {
        Self(Self::ZERO_PAGES)
    }
}

impl TryFrom<u32> for DumpLevel {
    type Error = LevelError;

    fn try_from(level: u32) -> Result<Self, LevelError> {
        Self::new(level)
    }
}

impl From<DumpLevel> for u32 {
    fn from(level: DumpLevel) -> Self {
        level.0
    }
}

impl FromStr for DumpLevel {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        Self::new(text.parse().map_err(|_| LevelError::NotANumber)?)
    }
}

impl fmt::Display for DumpLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_that_need_page_types_are_refused_by_name() {
        assert!("0".parse::<DumpLevel>().is_ok() && "1".parse::<DumpLevel>().is_ok());
        assert_eq!("31".parse::<DumpLevel>(), Err(LevelError::NotYet(31)));
        assert_eq!("32".parse::<DumpLevel>(), Err(LevelError::OutOfRange(32)));
        assert_eq!("all".parse::<DumpLevel>(), Err(LevelError::NotANumber));
    }
}
