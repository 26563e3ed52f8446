//! `[triage]`: what is read from the old kernel's memory beside the dump.

use serde::{Deserialize, Serialize};

use super::{Exclude, Size, checked};

/// `[triage]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Triage {
    /// What is saved.
    pub save: Save,
    /// Seconds that it may take.
    #[serde(deserialize_with = "checked::stall_timeout")]
    pub time: u64,
    /// Bytes of one recovered file.
    pub file_limit: Size,
    /// Bytes of all recovered files.
    pub limit: Size,
    /// Paths of which files are recovered; none: all of them. `*` is any text, `?` a letter.
    pub only: Vec<String>,
    /// Paths of which none is recovered.
    pub except: Vec<String>,
}

/// What is saved as `triage.tar.zst`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Save {
    /// All of it where the dump keeps memory of users, else the rows.
    #[default]
    Auto,
    /// Nothing.
    Nothing,
    /// Rows, without what people keep secret: variables of the environment, contents of files.
    Rows,
    /// Rows and files.
    All,
}

impl Default for Triage {
    fn default() -> Self {
        Self {
            save: Save::Auto,
            time: 60,
            file_limit: Size(64 << 20),
            limit: Size(256 << 20),
            only: Vec::new(),
            except: Vec::new(),
        }
    }
}

impl Triage {
    /// Whether anything is saved, and then whether contents are, beside a dump that leaves these pages out.
    #[must_use]
    pub fn contents(&self, exclude: Exclude) -> Option<bool> {
        match self.save {
            Save::Nothing => None,
            Save::Auto => Some(!exclude.user()),
            Save::Rows => Some(false),
            Save::All => Some(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DumpLevel};

    #[test]
    fn a_dump_without_memory_of_users_has_no_secrets_beside_it() {
        let level = |level: u32| Exclude::from(DumpLevel::try_from(level).unwrap());
        let triage = |text: &str| Config::parse(text).unwrap().triage;
        assert_eq!(triage("").contents(level(1)), Some(true));
        assert_eq!(triage("").contents(level(31)), Some(false));
        assert_eq!(triage("[triage]\nsave = \"all\"").contents(level(31)), Some(true));
        assert_eq!(triage("[triage]\nsave = \"rows\"").contents(level(0)), Some(false));
        assert_eq!(triage("[triage]\nsave = \"nothing\"").contents(level(1)), None);
        assert!(Config::parse("[triage]\nsave = \"some\"").is_err());
    }
}
