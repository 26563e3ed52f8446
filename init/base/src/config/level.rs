//! What a dump leaves out: by makedumpfile's dump level, by class names, or by purpose.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// A dump level, 0 to 31: a bit per page type that is left out, as `-d` of makedumpfile has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct DumpLevel(u32);

/// Why a dump level or a class is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// Not a number.
    #[error("a dump level is a number from 0 to 31")]
    NotANumber,
    /// No such level.
    #[error("dump level {0} does not exist: levels go from 0 to 31")]
    OutOfRange(u32),
    /// No such class.
    #[error(
        "no page class is called {0:?}: there are zero, cache, private-cache, user, free, unused-vmemmap"
    )]
    NoClass(String),
    /// No such preset.
    #[error(
        "no preset is called {0:?}: there are kernel (level 31), forensic (zero pages only) and full \
         (nothing)"
    )]
    NoPreset(String),
}

impl DumpLevel {
    const ZERO: u32 = 1;
    const CACHE: u32 = 2;
    const PRIVATE_CACHE: u32 = 4;
    const USER: u32 = 8;
    const FREE: u32 = 16;
    const ALL: u32 = 31;

    /// The level with this number.
    pub fn new(level: u32) -> Result<Self, LevelError> {
        if level <= Self::ALL { Ok(Self(level)) } else { Err(LevelError::OutOfRange(level)) }
    }

    fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
}

impl Default for DumpLevel {
    fn default() -> Self {
        Self(Self::ZERO)
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

/// The pages that a dump leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exclude {
    level: DumpLevel,
    unused_vmemmap: bool,
    reads_poisoned: bool,
}

impl From<DumpLevel> for Exclude {
    fn from(level: DumpLevel) -> Self {
        Self { level, ..Self::default() }
    }
}

impl Exclude {
    /// The classes with these names. `private-cache` is all page cache, private or not, as bit 4 of
    /// a level is.
    pub fn classes<S: AsRef<str>>(names: &[S]) -> Result<Self, LevelError> {
        let mut exclude = Self::from(DumpLevel(0));
        for name in names {
            exclude.level.0 |= match name.as_ref() {
                "zero" => DumpLevel::ZERO,
                "cache" => DumpLevel::CACHE,
                "private-cache" => DumpLevel::PRIVATE_CACHE,
                "user" => DumpLevel::USER,
                "free" => DumpLevel::FREE,
                "unused-vmemmap" => {
                    exclude.unused_vmemmap = true;
                    0
                }
                other => return Err(LevelError::NoClass(other.to_owned())),
            };
        }
        Ok(exclude)
    }

    /// The preset with this name: what is left out for a purpose.
    pub fn preset(name: &str) -> Result<Self, LevelError> {
        Ok(Self::from(DumpLevel(match name {
            "kernel" => DumpLevel::ALL,
            "forensic" => DumpLevel::ZERO,
            "full" => 0,
            other => return Err(LevelError::NoPreset(other.to_owned())),
        })))
    }

    /// The same, and poisoned and offline pages are read after all.
    #[must_use]
    pub fn reading_poisoned(self, reads_poisoned: bool) -> Self {
        Self { reads_poisoned, ..self }
    }

    /// The dump level; other classes are not part of it.
    #[must_use]
    pub fn level(self) -> DumpLevel {
        self.level
    }

    /// Names of the classes.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let classes = [
            ("zero", self.zero()),
            ("cache", self.cache()),
            ("private-cache", self.private_cache()),
            ("user", self.user()),
            ("free", self.free()),
            ("unused-vmemmap", self.unused_vmemmap),
        ];
        classes.into_iter().filter(|(_, is_in)| *is_in).map(|(name, _)| name).collect()
    }

    /// Pages of zeros, which then take no room of their own and still read as zeros.
    #[must_use]
    pub fn zero(self) -> bool {
        self.level.has(DumpLevel::ZERO)
    }

    /// Page cache without private data.
    #[must_use]
    pub fn cache(self) -> bool {
        self.level.has(DumpLevel::CACHE)
    }

    /// All page cache.
    #[must_use]
    pub fn private_cache(self) -> bool {
        self.level.has(DumpLevel::PRIVATE_CACHE)
    }

    /// Memory of processes.
    #[must_use]
    pub fn user(self) -> bool {
        self.level.has(DumpLevel::USER)
    }

    /// Free pages.
    #[must_use]
    pub fn free(self) -> bool {
        self.level.has(DumpLevel::FREE)
    }

    /// Struct pages of pages that are left out.
    #[must_use]
    pub fn unused_vmemmap(self) -> bool {
        self.unused_vmemmap
    }

    /// Whether poisoned and offline pages are read: off but for a key that says so.
    #[must_use]
    pub fn reads_poisoned(self) -> bool {
        self.reads_poisoned
    }
}

impl fmt::Display for Exclude {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.level)?;
        if self.unused_vmemmap { f.write_str("+unused-vmemmap") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_checked() {
        assert!((0..=31).all(|level| DumpLevel::new(level).is_ok()));
        assert_eq!("32".parse::<DumpLevel>(), Err(LevelError::OutOfRange(32)));
        assert_eq!("all".parse::<DumpLevel>(), Err(LevelError::NotANumber));
    }

    #[test]
    fn names_and_presets_are_levels() {
        let names = ["zero", "cache", "private-cache", "user", "free"];
        assert_eq!(Exclude::classes(&names), Exclude::preset("kernel"));
        assert_eq!(Exclude::preset("kernel").unwrap().level(), DumpLevel(31));
        assert_eq!(Exclude::preset("forensic").unwrap(), Exclude::default());
        assert_eq!(Exclude::classes::<&str>(&[]), Exclude::preset("full"));
        assert!(matches!(Exclude::classes(&["slab"]), Err(LevelError::NoClass(_))));
        let both = Exclude::classes(&["zero", "unused-vmemmap"]).unwrap();
        assert_eq!(Exclude::classes(&both.names()), Ok(both));
    }
}
