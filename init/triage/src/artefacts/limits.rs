//! Bounds of what triage brings out.

use std::time::Duration;

/// Bounds of what is brought out.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one file.
    pub file: u64,
    /// Bytes of all files.
    pub files: u64,
    /// How long one artefact may take: damaged structures can lead through all of memory.
    pub time: Duration,
    /// Whether contents of files and variables of the environment are brought out: what people keep
    /// secret is in them.
    pub contents: bool,
    /// Paths of which files are recovered; none: all of them. `*` stands for any text, `?` for a
    /// letter.
    pub only: Vec<String>,
    /// Paths of which none is recovered.
    pub except: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file: 64 << 20,
            files: 2 << 30,
            time: Duration::from_mins(1),
            contents: true,
            only: Vec::new(),
            except: Vec::new(),
        }
    }
}

impl Limits {
    /// Why a file of so many bytes is not recovered, if it is not. `left` is how many bytes of all
    /// files there is still room for.
    pub(super) fn leaves_out(&self, path: &str, bytes: u64, left: u64) -> Option<String> {
        let fits = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, path));
        if !self.contents {
            return Some("contents are left out".to_owned());
        }
        if fits(&self.except) {
            return Some("its path is one that is left out".to_owned());
        }
        if !self.only.is_empty() && !fits(&self.only) {
            return Some("its path is none of those that are wanted".to_owned());
        }
        let limit = self.file.min(left);
        (bytes > limit).then(|| {
            let what =
                if bytes > self.file { "that one file may have" } else { "that are left for all files" };
            format!("{bytes} bytes are more than the {limit} {what}")
        })
    }
}

/// Whether a pattern fits all of a text. In steps of the length of both, multiplied, at most: after a
/// mismatch only the last `*` takes one letter more.
fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    let mut again: Option<(core::str::Chars<'_>, core::str::Chars<'_>)> = None;
    loop {
        let at = text.clone();
        match (pattern.next(), text.next()) {
            (Some('*'), _) => {
                text = at;
                again = Some((pattern.clone(), text.clone()));
                if pattern.as_str().is_empty() {
                    return true;
                }
            }
            (None, None) => return true,
            (Some(wanted), Some(letter)) if wanted == '?' || wanted == letter => {}
            _ => {
                let Some((behind, from)) = &mut again else { return false };
                if from.next().is_none() {
                    return false;
                }
                (pattern, text) = (behind.clone(), from.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_a_shell() {
        for (pattern, text, fits) in [
            ("/var/log/*", "/var/log/a/b.log", true),
            ("/var/log/*.log", "/var/log/a/b.log", true),
            ("/var/log/*.log", "/var/log/a/b.txt", false),
            ("*secret*", "/home/u/my-secret.txt", true),
            ("/tmp/?", "/tmp/a", true),
            ("/tmp/?", "/tmp/ab", false),
            ("/tmp", "/tmp/a", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*a*b*c", "xxaxxbxxbc", true),
            ("*a*b*c", "xxaxxbxxb", false),
            ("/é*", "/éa", true),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
        assert!(!matches(&"*a".repeat(200), &"a".repeat(199)));
    }

    #[test]
    fn what_is_left_out_says_why() {
        let limits = Limits {
            file: 10,
            only: vec!["/tmp/*".to_owned()],
            except: vec!["*.key".to_owned()],
            ..Limits::default()
        };
        let why = |path: &str, bytes, left| limits.leaves_out(path, bytes, left).unwrap_or_default();
        assert_eq!(why("/tmp/a", 10, 100), "");
        assert!(why("/tmp/a", 11, 100).contains("11 bytes are more than the 10 that one file may have"));
        assert!(why("/tmp/a", 9, 8).contains("more than the 8 that are left"));
        assert!(why("/tmp/a.key", 1, 100).contains("left out"));
        assert!(why("/etc/a", 1, 100).contains("none of those"));
        let rows = Limits { contents: false, ..limits.clone() };
        assert!(rows.leaves_out("/tmp/a", 1, 100).is_some());
    }
}
