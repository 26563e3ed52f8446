//! The name of a capture's directory: `<UTC time>-<host>-<first 8 of boot id>`.

use base::time::utc;

/// Longest host name in a directory name, bytes.
const MAX_HOST: usize = 64;

/// The directory's name. `time` is seconds since 1970. Host name and boot id come from the old
/// kernel, where sethostname(2) allows `/` and `..`: only `[A-Za-z0-9._-]` is left of them, and no
/// leading dot.
#[must_use]
pub fn directory(time: u64, host: &str, boot_id: &str) -> String {
    let time = utc(time).unwrap_or_else(|| "unknown-time".to_owned()).replace(':', "-");
    let boot_id: String = boot_id.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    let boot_id = if boot_id.is_empty() { "unknown".to_owned() } else { boot_id };
    format!("{time}-{}-{boot_id}", sanitize(host))
}

/// What of a host's name is safe as the name of a directory.
#[must_use]
pub fn sanitize(host: &str) -> String {
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let kept: String = host.chars().filter(allowed).skip_while(|&c| c == '.').take(MAX_HOST).collect();
    if kept.is_empty() { "unknown".to_owned() } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        assert_eq!(
            directory(1_763_900_000, "web-1.example", "0123abcd-4567"),
            "2025-11-23T12-13-20Z-web-1.example-0123abcd"
        );
        assert_eq!(directory(u64::MAX, "../../etc/passwd", "/.."), "unknown-time-etcpasswd-unknown");
    }

    proptest! {
        #[test]
        fn no_name_escapes(host in ".*", boot_id in ".*", time: u64) {
            let name = directory(time, &host, &boot_id);
            prop_assert!(name.len() < 120);
            prop_assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)), "{}", name);
            prop_assert!(!sanitize(&host).starts_with('.'));
        }
    }
}
