//! What `recover` says of a capture and of each of its files. It only puts into words what others
//! have found.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use super::repair::Repair;

/// A file of the capture; or the capture itself, at the path of its device, if there is something
/// to say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Where it is now.
    pub path: PathBuf,
    /// Of the capture itself: what is wrong with it.
    pub log: Option<LogDamage>,
    /// Whether it is what the capture wrote and called whole.
    pub whole: bool,
    /// Whether the capture called it whole.
    pub published: bool,
    /// Records of it that are lost, as far as that is known.
    pub lost_records: u64,
    /// Ranges of bytes that are lost, as far as they are known.
    pub lost: Vec<(u64, u64)>,
    /// What was done to a dump that is not whole.
    pub repair: Option<Repair>,
}

/// Why a capture is not whole, whatever its files look like, or why it is still there for another
/// `recover`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogDamage {
    /// It never came to its end, so nothing says which files it was to have.
    pub unsealed: bool,
    /// Records that are missing, of files that are known or not.
    pub missing: u64,
    /// Records that are there although the capture was sealed with fewer.
    pub surplus: u64,
    /// Blocks of the log that could not be read.
    pub read_errors: u64,
    /// Why it was to be marked collected and was not.
    pub unmarked: Option<String>,
}

impl Recovered {
    pub(super) fn of_log(node: &Path, damage: LogDamage) -> Self {
        Self {
            path: node.to_owned(),
            whole: false,
            published: !damage.unsealed,
            lost_records: damage.missing,
            lost: Vec::new(),
            repair: None,
            log: Some(damage),
        }
    }

    /// A line for people.
    #[must_use]
    pub fn text(&self) -> String {
        let path = self.path.display();
        if let Some(log) = &self.log {
            return format!("{path}: the capture {log}");
        }
        if self.whole {
            return format!("{path}: whole");
        }
        let mut text = format!("{path}: incomplete");
        if self.lost_records > 0 {
            let _ = write!(text, ", {} records lost", self.lost_records);
        } else if !self.published {
            text.push_str(", the capture ended early");
        }
        for (start, end) in self.lost.iter().take(16) {
            let _ = write!(text, ", bytes {start}..{end}");
        }
        match self.repair {
            Some(Repair::Pages(pages)) => {
                let _ = write!(text, "; opens, {pages} pages are lost");
            }
            Some(Repair::Cut { pfn, pages }) => {
                let _ = write!(
                    text,
                    "; opens, its bitmap is damaged: all pages from {pfn:#x} on are lost, and {pages} before"
                );
            }
            Some(Repair::NoHeader) => {
                text.push_str("; its header is lost, or it is no kdump-compressed dump");
            }
            Some(Repair::NoBitmap) => {
                text.push_str("; its bitmaps are damaged: no page can be told from another");
            }
            None => (),
        }
        text
    }
}

impl fmt::Display for LogDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.unsealed {
            parts.push("never came to its end".to_owned());
        }
        if self.missing > 0 {
            parts.push(format!("misses {} records", self.missing));
        }
        if self.surplus > 0 {
            parts.push(format!("has {} records more than it was sealed with", self.surplus));
        }
        if self.read_errors > 0 {
            parts.push(format!("has {} blocks that cannot be read", self.read_errors));
        }
        if let Some(reason) = &self.unmarked {
            parts.push(format!("is not marked collected: {reason}"));
        }
        f.write_str(&parts.join(", "))
    }
}
