//! Files of systemd-logind: lines of KEY=VALUE (src/login of systemd).

use super::super::Row;
use super::super::timeline::Moment;

/// Keys that are kept, at most.
const MAX_KEYS: usize = 200;

/// Keys of a session with the names that the schema has for them.
const NAMES: [(&str, &str); 5] = [
    ("USER", "user.name"),
    ("NAME", "user.name"),
    ("UID", "user.id"),
    ("REMOTE_HOST", "source.domain"),
    ("TTY", "linux.login.line"),
];

pub(super) fn fill(kind: &str, name: &str, text: &str, row: &mut Row) {
    row.set(&format!("linux.login.{kind}"), name);
    let pairs: Vec<(&str, &str)> =
        text.lines().filter_map(|line| line.split_once('=')).take(MAX_KEYS).collect();
    let get = |wanted: &str| pairs.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
    // In a file of a user UID is the file's name, and USER is not there.
    let (user, id) = (get("USER"), get("UID"));
    for (key, name) in NAMES {
        if let Some(value) = get(key) {
            row.set(name, value);
        }
    }
    // Before there was UID, USER was none but a number in files of sessions.
    if let (Some(user), None) = (user, id)
        && user.bytes().all(|byte| byte.is_ascii_digit())
    {
        row.set("user.id", user);
    }
    if kind == "user" {
        row.set("user.id", name);
    }
    if let Some(Ok(leader)) = get("LEADER").map(str::parse::<u32>) {
        row.set("process.pid", leader);
    }
    for (key, value) in &pairs {
        let is_word = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if is_word && !key.is_empty() {
            row.set(&format!("linux.logind.{}", key.to_ascii_lowercase()), *value);
        }
    }
    // Microseconds since 1970.
    let Some(Ok(time)) = get("REALTIME").map(str::parse::<u64>) else { return };
    let at = time / 1_000_000;
    row.put("linux.login.time", base::time::utc(at).ok_or("the time is damaged"));
    let who = get("USER").or_else(|| get("NAME")).unwrap_or_default();
    row.happened(Moment { at, message: format!("{kind} {name} of {who} began"), kind: "Logon Time" });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_read() {
        let text =
            "# private\nUID=1000\nUSER=alice\nACTIVE=1\nTTY=pts/0\nLEADER=812\nREALTIME=1700000000000000\n";
        let mut row = Row::default();
        fill("session", "3", text, &mut row);
        let get = |key: &str| row.get(key).map(ToString::to_string).unwrap_or_default();
        assert_eq!((get("user.name"), get("user.id")), ("\"alice\"".to_owned(), "\"1000\"".to_owned()));
        assert_eq!((get("process.pid"), get("linux.logind.active")), ("812".to_owned(), "\"1\"".to_owned()));
        assert_eq!(row.events().count(), 1);
    }
}
