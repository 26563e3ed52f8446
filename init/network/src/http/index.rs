//! What an artifact was divided into: JSON, for whoever puts it together again (`cat` in this order
//! does).

use serde::Serialize;

use super::object::{Part, Sum, part_name};

/// The whole.
#[derive(Debug, Serialize)]
pub(super) struct Index<'a> {
    /// Its name, once it is put together.
    pub(super) name: &'a str,
    /// Whether all of it is there; only an index of what was cut has this, and has no sum.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub(super) incomplete: bool,
    pub(super) bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) sha256: String,
    /// In order.
    pub(super) objects: Vec<Entry>,
}

/// An object of it.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) sha256: String,
    /// How many parts it was sent in.
    pub(super) parts: usize,
    /// They, in order, where each is a file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) files: Vec<File>,
}

/// A part of its own.
#[derive(Debug, Serialize)]
pub(super) struct File {
    name: String,
    bytes: u64,
    sha256: String,
}

impl Entry {
    /// Of an object and its parts.
    pub(super) fn new(name: &str, sum: &Sum, parts: &[Part], keeps_parts: bool) -> Self {
        Self { sha256: hex(sum), ..Self::of_cut(name, parts, keeps_parts) }
    }

    /// Of an object that is not whole, so that there is no sum of it.
    pub(super) fn of_cut(name: &str, parts: &[Part], keeps_parts: bool) -> Self {
        let files = parts.iter().filter(|_| keeps_parts);
        let files = files.map(|part| File {
            name: part_name(name, part.number),
            bytes: part.bytes,
            sha256: hex(&part.sum),
        });
        Self {
            name: name.to_owned(),
            bytes: parts.iter().fold(0, |sum, part| sum.saturating_add(part.bytes)),
            sha256: String::new(),
            parts: parts.len(),
            files: files.collect(),
        }
    }
}

impl Index<'_> {
    /// As text.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default(); // text and numbers do not fail
        base::text::json(&text).into_bytes()
    }
}

/// Lower case, as sha256sum prints it.
pub(super) fn hex(sum: &Sum) -> String {
    base::text::hex(sum)
}

/// `vmcore.flat`, `vmcore.flat.2`, …: the objects of an artifact, numbered from 1.
pub(super) fn object_name(artifact: &str, number: usize) -> String {
    if number <= 1 { artifact.to_owned() } else { format!("{artifact}.{number}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_what_was_sent_in_order() {
        let part = |number, bytes, byte| Part { number, bytes, sum: [byte; 32], tag: Box::default() };
        let parts = [part(1, 5, 0xab), part(2, 3, 0x01)];
        let entry = |number, keeps_parts| {
            Entry::new(&object_name("vmcore.flat", number), &[7; 32], &parts, keeps_parts)
        };
        let objects = vec![entry(1, true), entry(2, false)];
        let index =
            Index { name: "vmcore.flat", incomplete: false, bytes: 16, sha256: hex(&[9; 32]), objects };
        let json: serde_json::Value = serde_json::from_slice(&index.to_json()).unwrap();
        let expected = serde_json::json!({
            "name": "vmcore.flat",
            "bytes": 16,
            "sha256": "09".repeat(32),
            "objects": [
                {
                    "name": "vmcore.flat", "bytes": 8, "sha256": "07".repeat(32), "parts": 2,
                    "files": [
                        { "name": "vmcore.flat.part00001", "bytes": 5, "sha256": "ab".repeat(32) },
                        { "name": "vmcore.flat.part00002", "bytes": 3, "sha256": "01".repeat(32) },
                    ],
                },
                { "name": "vmcore.flat.2", "bytes": 8, "sha256": "07".repeat(32), "parts": 2 },
            ],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn names_sort_as_parts_follow() {
        let names: Vec<_> = [1, 2, 9, 10, 99, 100, 9_999, 10_000].map(|n| part_name("v", n)).into();
        assert!(names.is_sorted(), "{names:?}");
    }
}
