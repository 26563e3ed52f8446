//! What PID 1 asks of one attempt at the capture, and what the attempts before it came to. Travels
//! through the child's standard input.

use core::fmt;

use serde::{Deserialize, Serialize};

/// How much an attempt dares. Each rung leaves out something that may have ended the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Everything as it is configured.
    #[default]
    Full,
    /// No mmap, one worker, small buffers.
    Careful,
    /// And struct pages are not looked at: no page is left out by its type.
    Unfiltered,
    /// The log and the notes only.
    LogOnly,
}

impl Rung {
    /// The next one that dares less.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        match self {
            Self::Full => Some(Self::Careful),
            Self::Careful => Some(Self::Unfiltered),
            Self::Unfiltered => Some(Self::LogOnly),
            Self::LogOnly => None,
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "as configured",
            Self::Careful => "carefully: no mmap, one worker, small buffers",
            Self::Unfiltered => "without page types",
            Self::LogOnly => "the log only",
        })
    }
}

/// An attempt at the capture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attempt {
    /// How much it dares.
    pub rung: Rung,
    /// Targets under which an earlier one got stuck, by index in the configuration.
    pub skip_targets: Vec<usize>,
    /// Modules in which an earlier one got stuck.
    pub skip_modules: Vec<String>,
    /// Pages at which an earlier one came to its end: (first page frame number, the one after the
    /// last).
    pub skip_pages: Vec<(u64, u64)>,
    /// The capture's name, if an earlier one has found it.
    pub name: Option<String>,
    /// The attempts before it.
    pub earlier: Vec<Earlier>,
}

/// An attempt that came to a bad end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// How much it dared.
    pub rung: Rung,
    /// How it ended: "was killed by SIGBUS".
    pub end: String,
    /// The step that it was at, if it had begun one.
    pub step: Option<String>,
    /// Where it was saving to, if it had come that far. What it has saved stays there.
    pub location: Option<String>,
}

impl Attempt {
    /// Reads what PID 1 wrote. The first attempt, as configured, if that is nothing.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// For the child's standard input.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl fmt::Display for Earlier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an attempt ({}) {}", self.rung, self.end)?;
        if let Some(step) = &self.step {
            write!(f, " in step {step}")?;
        }
        if let Some(location) = &self.location {
            write!(f, ", saving to {location}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_survives_the_pipe() {
        let earlier = Earlier {
            rung: Rung::Full,
            end: "was killed by SIGBUS".into(),
            step: Some("dump".into()),
            location: Some("/dev/vda:/x".into()),
        };
        assert_eq!(
            earlier.to_string(),
            "an attempt (as configured) was killed by SIGBUS in step dump, saving to /dev/vda:/x"
        );
        let attempt = Attempt {
            rung: Rung::Careful,
            skip_targets: vec![1],
            skip_modules: vec!["m".into()],
            skip_pages: vec![(7, 9)],
            name: Some("n".into()),
            earlier: vec![earlier],
        };
        assert_eq!(Attempt::parse(&attempt.to_json()), attempt);
        assert_eq!(Attempt::parse(""), Attempt::default());
    }
}
