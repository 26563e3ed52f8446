//! `[[hook]]`: a program of the user's that runs in the capture kernel.

use core::fmt;

use serde::{Deserialize, Serialize};

use super::{Size, checked};

/// A static executable that `afterimage build` packs into the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// When it runs.
    pub when: When,
    /// The program on the host where the image is built; absolute.
    #[serde(deserialize_with = "checked::program")]
    pub path: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Seconds that it may take.
    #[serde(default = "default_timeout", deserialize_with = "checked::stall_timeout")]
    pub timeout: u64,
    /// Address space that it may have.
    #[serde(default = "default_memory")]
    pub memory: Size,
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// When the vmcore is open, before the first target is.
    Before,
    /// When the dump is safe, or as safe as it will be, while its target is still mounted.
    After,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Before => "before",
            Self::After => "after",
        })
    }
}

fn default_timeout() -> u64 {
    30
}

fn default_memory() -> Size {
    Size(32 << 20)
}
