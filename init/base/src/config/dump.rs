//! `[dump]`: what is saved, and in which form.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use super::checked;
use super::{Compress, DumpLevel, Exclude};

/// `[dump]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawDump", into = "RawDump")]
pub struct Dump {
    /// Which pages are left out: `level`, `exclude` or `preset`.
    pub exclude: Exclude,
    /// Compression of page data.
    pub compress: Compress,
    /// Format of the dump.
    pub format: Format,
}

/// The form of a dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// kdump-compressed: for crash, drgn, makedumpfile.
    #[default]
    Kdump,
    /// The same as a stream, for a pipe: for crash, drgn, makedumpfile -R.
    Flattened,
    /// An ELF core, a PT_LOAD per run of pages: for volatility3, gdb, crash, drgn.
    Elf,
    /// LiME, a header per run of pages: for volatility3.
    Lime,
    /// Memory at its physical address, with holes: for strings and scanners.
    Raw,
}

/// A format that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no dump format: there are kdump, flattened, elf, lime and raw")]
pub struct FormatError(String);

impl Format {
    const ALL: [Self; 5] = [Self::Kdump, Self::Flattened, Self::Elf, Self::Lime, Self::Raw];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kdump => "kdump",
            Self::Flattened => "flattened",
            Self::Elf => "elf",
            Self::Lime => "lime",
            Self::Raw => "raw",
        }
    }

    /// Whether pages may be written in any order. Flattened and kdump have the same one:
    /// rearranged, a stream is the same file. The other formats grow with the pages.
    #[must_use]
    pub fn takes_any_order(self) -> bool {
        matches!(self, Self::Kdump | Self::Flattened)
    }

    /// Whether pages are stored compressed.
    #[must_use]
    pub fn is_compressed(self) -> bool {
        matches!(self, Self::Kdump | Self::Flattened)
    }
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| FormatError(text.to_owned()))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The keys as they stand in the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawDump {
    #[serde(skip_serializing)]
    level: Option<DumpLevel>,
    #[serde(skip_serializing, deserialize_with = "checked::preset")]
    preset: Option<Exclude>,
    #[serde(serialize_with = "names", deserialize_with = "checked::classes")]
    exclude: Option<Exclude>,
    read_poisoned_and_offline_pages: bool,
    compress: Compress,
    format: Format,
}

#[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn names<S: serde::Serializer>(exclude: &Option<Exclude>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(exclude.unwrap_or_default().names())
}

impl TryFrom<RawDump> for Dump {
    type Error = &'static str;

    fn try_from(raw: RawDump) -> Result<Self, Self::Error> {
        let given = [raw.level.map(Exclude::from), raw.preset, raw.exclude];
        let mut given = given.into_iter().flatten();
        let exclude = given.next().unwrap_or_default();
        if given.next().is_some() {
            return Err("level, exclude and preset say the same thing: give one of them");
        }
        let exclude = exclude.reading_poisoned(raw.read_poisoned_and_offline_pages);
        Ok(Self { exclude, compress: raw.compress, format: raw.format })
    }
}

impl From<Dump> for RawDump {
    fn from(dump: Dump) -> Self {
        Self {
            exclude: Some(dump.exclude),
            read_poisoned_and_offline_pages: dump.exclude.reads_poisoned(),
            compress: dump.compress,
            format: dump.format,
            ..Self::default()
        }
    }
}
