//! Numbers of bytes as people write them.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes: `500M`, `2G`, or a bare number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

/// No number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a size: write bytes as a string, with K, M, G or T for powers of 1024, such as \"500M\""
)]
pub struct SizeError(String);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let unit = UNITS.iter().find(|(letter, _)| text.ends_with(*letter));
        let (digits, shift) =
            unit.map_or((text, 0), |&(letter, shift)| (text.strip_suffix(letter).unwrap_or(text), shift));
        let number = digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let bytes = number.and_then(|number| number.checked_mul(1_u64.checked_shl(shift)?));
        bytes.map(Self).ok_or_else(|| SizeError(text.to_owned()))
    }
}

impl TryFrom<String> for Size {
    type Error = SizeError;

    fn try_from(text: String) -> Result<Self, SizeError> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |&&(_, shift): &&(char, u32)| self.0 > 0 && self.0.trailing_zeros() >= shift;
        match UNITS.iter().find(fits) {
            Some((letter, shift)) => write!(f, "{}{letter}", self.0.checked_shr(*shift).unwrap_or(0)),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("512", 512), ("500M", 500 << 20), ("2G", 2 << 30), ("3T", 3 << 40)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
            assert_eq!(Size(bytes).to_string(), text);
        }
        for bad in ["", "M", "-1", "1 G", "1g", "MM", "99999999999T", "1MM", "+1"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
