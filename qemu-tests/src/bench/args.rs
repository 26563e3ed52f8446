//! Arguments of the benchmark: `--name value` pairs among words.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// Words and options that have not been taken yet.
#[derive(Debug)]
pub struct Args {
    words: Vec<String>,
    options: BTreeMap<String, String>,
}

impl Args {
    /// Sorts out arguments.
    pub fn parse(args: impl Iterator<Item = String>) -> Result<Self> {
        let (mut words, mut options) = (Vec::new(), BTreeMap::new());
        let mut args = args;
        while let Some(arg) = args.next() {
            match arg.strip_prefix("--") {
                Some(name) => {
                    let value = args.next().with_context(|| format!("--{name} needs a value"))?;
                    options.insert(name.to_owned(), value);
                }
                None => words.push(arg),
            }
        }
        words.reverse();
        Ok(Self { words, options })
    }

    /// Takes the next word.
    pub fn word(&mut self, what: &str) -> Result<String> {
        self.words.pop().with_context(|| format!("missing: {what}"))
    }

    /// Takes an option.
    pub fn option<T>(&mut self, name: &str, default: T) -> Result<T>
    where
        T: FromStr,
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let Some(value) = self.options.remove(name) else { return Ok(default) };
        value.parse().with_context(|| format!("--{name} {value}"))
    }

    /// Fails if something is left over.
    pub fn done(self) -> Result<()> {
        let names = self.options.into_keys().map(|name| format!("--{name}"));
        let left: Vec<String> = self.words.into_iter().rev().chain(names).collect();
        if left.is_empty() { Ok(()) } else { bail!("not understood: {}", left.join(" ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_options_are_taken_once() {
        let mut args = Args::parse("sink a --level 3 b".split(' ').map(str::to_owned)).unwrap();
        assert_eq!(args.word("command").unwrap(), "sink");
        assert_eq!((args.option("level", 1_u32).unwrap(), args.option("level", 1_u32).unwrap()), (3, 1));
        assert_eq!((args.word("core").unwrap(), args.word("core").unwrap()), ("a".into(), "b".into()));
        assert!(args.word("core").is_err());
        args.done().unwrap();
        assert!(Args::parse(["--level".to_owned()].into_iter()).is_err());
        assert!(Args::parse(["x".to_owned()].into_iter()).unwrap().done().is_err());
    }
}
