//! Who runs this program.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use base::facts::Intent;

use crate::host;

/// What (uid_t)-1 is in /proc/self/loginuid: nobody has logged in.
const NOBODY: &str = "4294967295";

/// Who runs this: the user, the one who logged in, and the one who called sudo, as far as they
/// differ.
#[must_use]
pub fn who() -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let login = host::read("/proc/self/loginuid");
    let sudo = std::env::var("SUDO_USER").unwrap_or_default();
    describe(&users, nix::unistd::geteuid().as_raw(), &login, &sudo)
}

/// What (unsigned)-1 is in /proc/self/sessionid: no session.
const NO_SESSION: &str = "4294967295";
/// What systemd-logind says of sessions.
const SESSIONS: &str = "/run/systemd/sessions";

/// What is known of who wants something, apart from the text: for a record that is to be searched.
#[must_use]
pub fn intent() -> Intent {
    let env = |name: &str| std::env::var(name).unwrap_or_default();
    let session = host::read("/proc/self/sessionid");
    let logind = host::read(&Path::new(SESSIONS).join(&session).to_string_lossy());
    of(
        who(),
        &host::read("/proc/self/loginuid"),
        &session,
        &env("SUDO_USER"),
        &env("SSH_CONNECTION"),
        &logind,
    )
}

// Wide: each comes from another place of the host.
fn of(who: String, login: &str, session: &str, sudo: &str, ssh: &str, logind: &str) -> Intent {
    let given = |key: &str| {
        let line = logind.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.filter(|value| !value.is_empty())
    };
    // sudo lets SSH_CONNECTION through only where it is told to.
    let address = ssh.split_whitespace().next().or_else(|| given("REMOTE_HOST"));
    let from = address.or_else(|| given("TTY")).unwrap_or_default();
    let plain = |text: &str| text.chars().filter(|&c| !base::text::is_unsafe(c)).take(64).collect();
    Intent {
        who,
        login_uid: Some(login).filter(|&login| login != NOBODY).and_then(|login| login.parse().ok()),
        sudo_user: plain(sudo),
        session: if session == NO_SESSION { String::new() } else { plain(session) },
        from: plain(from),
        ..Intent::default()
    }
}

fn describe(users: &str, uid: u32, login: &str, sudo: &str) -> String {
    let user = name(users, &uid.to_string());
    let login = if login.is_empty() || login == NOBODY { user.clone() } else { name(users, login) };
    let mut text = user.clone();
    if login != user {
        let _ = write!(text, ", logged in as {login}");
    }
    if !sudo.is_empty() && sudo != user && sudo != login {
        let _ = write!(text, ", by sudo of {sudo}");
    }
    text
}

/// The name of a user; users of other directories are shown by their number: to ask for them takes
/// programs and a network.
fn name(users: &str, uid: &str) -> String {
    let found = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| format!("uid {uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\nbroken\n";

    #[test]
    fn a_record_has_each_of_them() {
        let logind = "UID=1000\nUSER=ada\nREMOTE=1\nREMOTE_HOST=192.0.2.7\nTTY=pts/0\n";
        let intent = of("root".into(), "1000", "7", "ada", "", logind);
        assert_eq!((intent.login_uid, &*intent.sudo_user, &*intent.session), (Some(1000), "ada", "7"));
        assert_eq!(intent.from, "192.0.2.7");
        let by_ssh = of("root".into(), "1000", "7", "ada", "2001:db8::1 50000 2001:db8::2 22", logind);
        assert_eq!(by_ssh.from, "2001:db8::1");
        assert_eq!(of("root".into(), "0", "3", "", "", "TTY=tty1\n").from, "tty1");
        let nobody = of("root".into(), NOBODY, NO_SESSION, "", "", "");
        assert_eq!(nobody, Intent { who: "root".into(), ..Intent::default() });
        let hostile = of("root".into(), "x", "", "a\u{1b}[2J\n\u{202e}", &"9".repeat(500), "");
        assert!(hostile.login_uid.is_none() && hostile.sudo_user == "a[2J" && hostile.from.len() == 64);
    }

    #[test]
    fn whoever_is_behind_root_is_named() {
        assert_eq!(describe(USERS, 0, NOBODY, ""), "root");
        assert_eq!(describe(USERS, 0, "", ""), "root");
        assert_eq!(describe(USERS, 0, "1000", "ada"), "root, logged in as ada");
        assert_eq!(describe(USERS, 0, "1001", "ada"), "root, logged in as uid 1001, by sudo of ada");
        assert_eq!(describe(USERS, 7, "0", ""), "uid 7, logged in as root");
    }
}
