//! Names of recovered files: paths of a damaged or hostile kernel, made safe and distinct.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Where recovered files are, at their paths: analysts' tools take such a folder for a machine's root.
pub const ROOT: &str = "[root]";
/// Bytes of a name in a path (`NAME_MAX`), and of a path in a folder that may have a long name itself.
const NAME: usize = 255;
const PATH: usize = 3000;
/// Where files are that would take another one's place.
const OTHER: &str = "[other]";

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thing {
    File,
    Folder,
}

/// The paths that were given, so that no file takes the place of another one. Of each only a hash is
/// kept.
#[derive(Debug, Default)]
pub struct Places {
    given: HashMap<u64, Thing>,
    hasher: RandomState,
    number: u64,
}

impl Places {
    /// A path below [`ROOT`] for the file that had `path`, which nothing else has.
    pub fn give(&mut self, path: &str) -> String {
        let wanted = safe(path);
        if self.is_free(&wanted) {
            self.take(&wanted);
            return wanted;
        }
        self.number = self.number.saturating_add(1);
        format!("{OTHER}/{}", self.number)
    }

    fn what(&self, path: &str) -> Option<Thing> {
        self.given.get(&self.hasher.hash_one(path)).copied()
    }

    /// Whether nothing is there, and no file is where a folder has to be.
    fn is_free(&self, path: &str) -> bool {
        let own = path.split('/').next().is_some_and(|first| first == OTHER);
        !own && self.what(path).is_none() && above(path).all(|folder| self.what(folder) != Some(Thing::File))
    }

    fn take(&mut self, path: &str) {
        for folder in above(path) {
            self.given.insert(self.hasher.hash_one(folder), Thing::Folder);
        }
        self.given.insert(self.hasher.hash_one(path), Thing::File);
    }
}

/// The folders that a path lies in.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').filter_map(|(at, _)| path.get(..at))
}

/// A path below the root: no part of it leads up, is too long or has a NUL.
fn safe(path: &str) -> String {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "." | "..") && !part.contains('\0'));
    let mut whole = String::new();
    for part in parts {
        let end = part.floor_char_boundary(NAME);
        let part = part.get(..end).unwrap_or_default();
        if whole.len().saturating_add(part.len()) > PATH {
            break;
        }
        if !whole.is_empty() {
            whole.push('/');
        }
        whole.push_str(part);
    }
    if whole.is_empty() { "[no name]".to_owned() } else { whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_out() {
        assert_eq!(safe("/var/log/../../etc/./passwd"), "var/log/etc/passwd");
        assert_eq!(safe("/../.."), "[no name]");
        assert_eq!(safe("/a\0b/c"), "c");
        assert!(safe(&format!("/{}", "x".repeat(400))).len() <= NAME);
        assert!(safe(&"/xxxxxxxx".repeat(2000)).len() <= PATH + 300);
        assert!(safe("/é".repeat(300).as_str()).is_char_boundary(3));
    }

    #[test]
    fn each_file_has_a_place_of_its_own() {
        let mut places = Places::default();
        let names = ["/tmp/a", "/tmp/a", "/tmp/a/b", "/tmp", "/tmp/c", "/[other]/1", "/.."];
        let given = names.map(|name| places.give(name));
        assert_eq!(
            given,
            ["tmp/a", "[other]/1", "[other]/2", "[other]/3", "tmp/c", "[other]/4", "[no name]"]
                .map(str::to_owned)
        );
    }
}
