//! The text that LVM2 writes its metadata in: `key = value`, `name { … }`, comments. Syntax only.

use crate::format::lvm::LvmError;

/// Sections in sections: LVM's metadata have four levels.
const MAX_DEPTH: usize = 8;

/// What stands between braces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Section<'a>(Vec<(&'a str, Node<'a>)>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node<'a> {
    Section(Section<'a>),
    Value(Value),
    List(Vec<Value>),
}

/// A single value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A number from 0 up to `i64::MAX`.
    Number(u64),
    /// A quoted text.
    Text(String),
    /// A number that we have no use for: negative, or a fraction.
    Other,
}

/// Parses a whole text.
pub(super) fn parse(text: &str) -> Result<Section<'_>, LvmError> {
    let mut parser = Parser { text, at: 0 };
    parser.section(0)
}

impl<'a> Section<'a> {
    /// The sections in it with their names.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&'a str, &Self)> {
        self.0.iter().filter_map(|(name, node)| match node {
            Node::Section(section) => Some((*name, section)),
            _ => None,
        })
    }

    /// The section of a name.
    pub(super) fn section(&self, name: &str) -> Option<&Self> {
        self.sections().find(|(other, _)| *other == name).map(|(_, section)| section)
    }

    /// The number behind a key.
    pub(super) fn number(&self, key: &'static str) -> Result<u64, LvmError> {
        match self.node(key) {
            Some(Node::Value(Value::Number(number))) => Ok(*number),
            _ => Err(LvmError::Missing(key)),
        }
    }

    /// The text behind a key.
    pub(super) fn text(&self, key: &'static str) -> Result<&str, LvmError> {
        match self.node(key) {
            Some(Node::Value(Value::Text(text))) => Ok(text),
            _ => Err(LvmError::Missing(key)),
        }
    }

    /// The list behind a key.
    pub(super) fn list(&self, key: &'static str) -> Result<&[Value], LvmError> {
        match self.node(key) {
            Some(Node::List(list)) => Ok(list),
            _ => Err(LvmError::Missing(key)),
        }
    }

    fn node(&self, key: &str) -> Option<&Node<'a>> {
        self.0.iter().find(|(other, _)| *other == key).map(|(_, node)| node)
    }
}

/// A cursor over the text; it only moves on.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    /// Reads entries up to the `}` that ends them, or to the end of the text at depth 0.
    fn section(&mut self, depth: usize) -> Result<Section<'a>, LvmError> {
        let mut entries = Vec::new();
        loop {
            match self.peek() {
                None if depth == 0 => return Ok(Section(entries)),
                Some('}') if depth > 0 => {
                    self.skip(1);
                    return Ok(Section(entries));
                }
                _ => (),
            }
            let name = self.take(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | '/'));
            if name.is_empty() {
                return Err(self.error("expected a name"));
            }
            let node = match self.peek() {
                Some('{') if depth < MAX_DEPTH => {
                    self.skip(1);
                    Node::Section(self.section(depth.saturating_add(1))?)
                }
                Some('{') => return Err(self.error("too many sections in each other")),
                Some('=') => {
                    self.skip(1);
                    self.value()?
                }
                _ => return Err(self.error("expected = or {")),
            };
            entries.push((name, node));
        }
    }

    fn value(&mut self) -> Result<Node<'a>, LvmError> {
        if self.peek() != Some('[') {
            return self.single().map(Node::Value);
        }
        self.skip(1);
        let mut list = Vec::new();
        while self.peek() != Some(']') {
            list.push(self.single()?);
            match self.peek() {
                Some(',') => self.skip(1),
                Some(']') => (),
                _ => return Err(self.error("expected , or ]")),
            }
        }
        self.skip(1);
        Ok(Node::List(list))
    }

    fn single(&mut self) -> Result<Value, LvmError> {
        if self.peek() == Some('"') {
            self.skip(1);
            return self.quoted();
        }
        let word = self.take(|c| c.is_ascii_digit() || matches!(c, '-' | '.'));
        match word.parse::<i64>() {
            Ok(number) => Ok(u64::try_from(number).map_or(Value::Other, Value::Number)),
            Err(_) if word.parse::<f64>().is_ok() => Ok(Value::Other),
            Err(_) => Err(self.error("expected a value")),
        }
    }

    /// Reads up to the closing quote; a backslash makes the next character one of the text.
    fn quoted(&mut self) -> Result<Value, LvmError> {
        let mut text = String::new();
        let mut escaped = false;
        for c in self.rest().chars() {
            self.skip(c.len_utf8());
            match c {
                '"' if !escaped => return Ok(Value::Text(text)),
                '\\' if !escaped => escaped = true,
                c => {
                    text.push(c);
                    escaped = false;
                }
            }
        }
        Err(self.error("a text without an end"))
    }

    /// The next character that is neither space nor comment.
    fn peek(&mut self) -> Option<char> {
        loop {
            self.take(char::is_whitespace);
            let next = self.rest().chars().next()?;
            if next != '#' {
                return Some(next);
            }
            self.take(|c| c != '\n');
        }
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let (word, _) = rest.split_at(rest.find(|c| !wanted(c)).unwrap_or(rest.len()));
        self.skip(word.len());
        word
    }

    fn skip(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn error(&self, what: &'static str) -> LvmError {
        LvmError::Syntax(self.at, what)
    }
}
