//! Who runs this program.

use std::fmt::Write as _;
use std::fs;

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
    fn whoever_is_behind_root_is_named() {
        assert_eq!(describe(USERS, 0, NOBODY, ""), "root");
        assert_eq!(describe(USERS, 0, "", ""), "root");
        assert_eq!(describe(USERS, 0, "1000", "ada"), "root, logged in as ada");
        assert_eq!(describe(USERS, 0, "1001", "ada"), "root, logged in as uid 1001, by sudo of ada");
        assert_eq!(describe(USERS, 7, "0", ""), "uid 7, logged in as root");
    }
}
