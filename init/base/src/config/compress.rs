//! How page data is compressed: `auto`, `zstd:LEVEL`, `zlib`, `none`.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// Compression of page data, per page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Compress {
    /// zstd at the level that ends soonest: measured while the dump runs.
    Auto,
    /// zstd at this level, -7 to 22.
    Zstd(i32),
    /// zlib level 1, for readers from before 2021.
    Zlib,
    /// No compression.
    None,
}

/// A compression that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no compression: use auto, zstd:LEVEL (LEVEL from -7 to 22), zlib or none")]
pub struct CompressError(String);

impl Default for Compress {
    fn default() -> Self {
        Self::Zstd(1)
    }
}

impl FromStr for Compress {
    type Err = CompressError;

    fn from_str(text: &str) -> Result<Self, CompressError> {
        let error = || CompressError(text.to_owned());
        match text {
            "auto" => Ok(Self::Auto),
            "zlib" => Ok(Self::Zlib),
            "none" => Ok(Self::None),
            "zstd" => Ok(Self::default()),
            _ => {
                let level: i32 =
                    text.strip_prefix("zstd:").and_then(|level| level.parse().ok()).ok_or_else(error)?;
                (-7..=22).contains(&level).then_some(Self::Zstd(level)).ok_or_else(error)
            }
        }
    }
}

impl TryFrom<String> for Compress {
    type Error = CompressError;

    fn try_from(text: String) -> Result<Self, CompressError> {
        text.parse()
    }
}

impl From<Compress> for String {
    fn from(compress: Compress) -> Self {
        compress.to_string()
    }
}

impl fmt::Display for Compress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
            Self::Zlib => f.write_str("zlib"),
            Self::None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses() {
        for text in ["auto", "zstd:1", "zstd:-7", "zstd:22", "zlib", "none"] {
            assert_eq!(text.parse::<Compress>().unwrap().to_string(), text);
        }
        for text in ["", "zstd:23", "zstd:-8", "zstd:x", "lzo", "zlib:9"] {
            assert!(text.parse::<Compress>().is_err(), "{text}");
        }
    }
}
