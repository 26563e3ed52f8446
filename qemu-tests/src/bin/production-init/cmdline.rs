//! The `prod.` words of the kernel command line.

use anyhow::{Context, Result};
use std::fs;

/// The kernel command line.
pub(crate) struct CommandLine(String);

impl CommandLine {
    /// Reads it; `/proc` is mounted.
    pub(crate) fn read() -> Result<Self> {
        Ok(Self(fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?))
    }

    /// The value of `key=value`.
    pub(crate) fn get(&self, key: &str) -> Result<&str> {
        let value = |word: &'_ str| word.strip_prefix(key).is_some_and(|rest| rest.starts_with('='));
        let word = self.0.split_whitespace().find(|word| value(word));
        let (_, value) =
            word.and_then(|word| word.split_once('=')).with_context(|| format!("no {key}= given"))?;
        Ok(value)
    }

    /// Whether `word` is given, without a value.
    pub(crate) fn has(&self, word: &str) -> bool {
        self.0.split_whitespace().any(|given| given == word)
    }

    /// The words that start with `prefix`, whole.
    pub(crate) fn words<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.split_whitespace().filter(move |word| word.starts_with(prefix))
    }

    /// The members of `key=a,b,c`; none without the key.
    pub(crate) fn list(&self, key: &str) -> impl Iterator<Item = &str> {
        self.get(key).unwrap_or_default().split(',').filter(|member| !member.is_empty())
    }
}
