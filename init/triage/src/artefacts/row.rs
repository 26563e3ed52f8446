//! A row: JSON with keys in the names of the Elastic Common Schema, where it has one.

use base::addr::VirtAddr;
use serde::Serialize;
use serde_json::{Map, Value};
use vmcore::kernel::KernelError;

use super::timeline::Moment;

/// A row.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Row {
    values: Map<String, Value>,
    /// What the timeline is to say.
    #[serde(skip)]
    moments: Vec<Moment>,
}

impl Row {
    /// A row about what lies at an address of the kernel.
    #[must_use]
    pub fn at(address: VirtAddr) -> Self {
        let mut row = Self::default();
        row.set("linux.address", format!("{:#x}", address.0));
        row
    }

    /// Sets a value; dots in the key lead into objects.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let mut at = &mut self.values;
        let mut words = key.split('.').peekable();
        while let Some(word) = words.next() {
            if words.peek().is_none() {
                at.insert(word.to_owned(), value.into());
                return;
            }
            let inner = at.entry(word.to_owned()).or_insert_with(|| Value::Object(Map::new()));
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            let Value::Object(inner) = inner else { return };
            at = inner;
        }
    }

    /// Sets what could be read, or says why it could not be.
    pub fn put<T: Into<Value>, E: core::fmt::Display>(&mut self, key: &str, value: Result<T, E>) {
        match value {
            Ok(value) => self.set(key, value),
            Err(error) => self.error(key, &error),
        }
    }

    /// The same of the kernel's memory.
    pub fn read<T: Into<Value>>(&mut self, key: &str, value: Result<T, KernelError>) {
        self.put(key, value.map_err(|error| base::log::chain(&error)));
    }

    /// Says that something could not be read.
    pub fn error(&mut self, what: &str, why: &dyn core::fmt::Display) {
        let errors = self.values.entry("errors").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(errors) = errors {
            errors.push(Value::String(format!("{what}: {why}")));
        }
    }

    /// A value by its key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        let mut words = key.split('.');
        let first = self.values.get(words.next()?)?;
        words.try_fold(first, |value, word| value.get(word))
    }

    /// Whether something could not be read.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.values.contains_key("errors")
    }

    /// Adds something to the timeline.
    pub(super) fn happened(&mut self, moment: Moment) {
        self.moments.push(moment);
    }

    /// Rows of the timeline.
    pub(super) fn events(&self) -> impl Iterator<Item = Self> {
        self.moments.iter().map(Moment::row)
    }

    /// One line of JSON.
    #[must_use]
    pub fn to_line(&self) -> String {
        let mut line = base::text::json(&serde_json::to_string(self).unwrap_or_default());
        line.push('\n');
        line
    }
}
