//! The key of this host for collectors that are reached by SSH: made here, its public half
//! installed there so that it opens nothing but SFTP, and the collector's own keys for the
//! configuration.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::sys::wiping;
use russh::keys::key::safe_rng;
use russh::keys::ssh_key::{self, LineEnding};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::host;
use crate::trusted;

/// Where the key is, unless said otherwise.
pub const PATH: &str = "/etc/afterimage/keys/id_ed25519";
/// Requests that the target never makes: with this key nothing on the collector is removed, renamed
/// over or linked. Names of requests that only newer servers know are not among them: an older one
/// would refuse to start.
const DENIED: &str = "remove,rmdir,setstat,fsetstat,symlink,hardlink,posix-rename";
/// Appends the line on standard input to the account's keys, unless it is there. In one line and
/// without single quotes: it goes through a login shell that may be any.
const INSTALL: &str = "umask 077; mkdir -p .ssh && touch .ssh/authorized_keys && cd .ssh && \
    IFS= read -r line && if grep -qxF -e \"$line\" authorized_keys; then exit 0; fi; \
    if [ -n \"$(tail -c 1 authorized_keys)\" ]; then echo >>authorized_keys || exit 1; fi; \
    printf \"%s\\n\" \"$line\" >>authorized_keys";

/// Why there is no key, or it was not installed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A key is never replaced: collectors know the old one.
    #[error("{0} is there already; to make another key, move it away")]
    Exists(PathBuf),
    /// No key was made.
    #[error("making a key")]
    Make(#[source] ssh_key::Error),
    /// The file cannot be written.
    #[error("writing {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("reading {path}; `afterimage keys` makes one")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file is no key, or has a pass phrase.
    #[error("{path} is no private key that opens without a pass phrase")]
    NoKey {
        /// Which.
        path: PathBuf,
    },
    /// sshd would read something else in it.
    #[error("{0:?} is no directory for a line of authorized_keys: letters, digits and ./_-+@%=: only")]
    Directory(String),
    /// Not a user at a host.
    #[error("\"{}\": write USER@HOST, USER@HOST:PORT or ssh://USER@HOST:PORT", base::text::line(.0))]
    Host(String),
    /// A program of OpenSSH does not start.
    #[error("running {program}: is the package openssh-client installed?")]
    Start {
        /// Which.
        program: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// It failed, and has said why itself.
    #[error("{program} {host} failed ({status})")]
    Failed {
        /// Which.
        program: &'static str,
        /// For which host.
        host: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// The host shows no key.
    #[error("ssh-keyscan has found no key of {0}")]
    NoHostKey(String),
}

/// Makes a key in a file that only root reads; gives its public half.
pub fn make(path: &Path) -> Result<String, KeysError> {
    wiping::begin();
    if path.symlink_metadata().is_ok() {
        return Err(KeysError::Exists(path.to_owned()));
    }
    let mut key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).map_err(KeysError::Make)?;
    key.set_comment(comment());
    let pem = key.to_openssh(LineEnding::LF).map_err(KeysError::Make)?;
    write_new(path, pem.as_bytes()).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeysError::Exists(path.to_owned()),
        _ => KeysError::Write { path: path.to_owned(), source },
    })?;
    key.public_key().to_openssh().map_err(KeysError::Make)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The line for the collector's authorized_keys: the key in the file opens SFTP that begins in
/// `directory`, and nothing else.
pub fn line(path: &Path, directory: &str) -> Result<String, KeysError> {
    let text = trusted::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|source| KeysError::Read { path: path.to_owned(), source })?;
    let key = PrivateKey::from_openssh(text.trim()).ok().filter(|key| !key.is_encrypted());
    let mut public = key.ok_or_else(|| KeysError::NoKey { path: path.to_owned() })?.public_key().clone();
    public.set_comment(comment());
    restricted(&public, directory)
}

fn restricted(key: &PublicKey, directory: &str) -> Result<String, KeysError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"./_-+@%=:".contains(&byte);
    if directory.is_empty() || directory.starts_with('-') || !directory.bytes().all(plain) {
        return Err(KeysError::Directory(directory.to_owned()));
    }
    let key = key.to_openssh().map_err(KeysError::Make)?;
    Ok(format!("restrict,command=\"internal-sftp -d {directory} -P {DENIED}\" {key}"))
}

fn comment() -> String {
    comment_of(&host::read("/proc/sys/kernel/hostname"))
}

/// sethostname(2) takes any bytes: the end of a line would begin a line of authorized_keys without
/// restrictions.
fn comment_of(host: &str) -> String {
    format!("afterimage@{}", vmcore::target::name::sanitize(host))
}

/// Installs the line at `user@host` by ssh, which asks for what it needs, and gives the host's keys
/// as a part of the configuration.
pub fn install(line: &str, at: &str, port: u16) -> Result<String, KeysError> {
    let (user, host, given) = destination(at).ok_or_else(|| KeysError::Host(at.to_owned()))?;
    let port = given.unwrap_or(port).to_string();
    let at = format!("{user}@{host}");
    let (at, host) = (at.as_str(), host.as_str());
    let program = "ssh";
    let mut child = Command::new(program)
        .args(["-p", &port, "--", at])
        .arg(format!("exec sh -c '{INSTALL}'"))
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|source| KeysError::Start { program, source })?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = writeln!(stdin, "{line}"); // who does not read it says why
    }
    let status = child.wait().map_err(|source| KeysError::Start { program, source })?;
    if !status.success() {
        return Err(KeysError::Failed { program, host: at.to_owned(), status });
    }
    let program = "ssh-keyscan";
    let scan =
        Command::new(program).args(["-T", "10", "-p", &port, "--", host]).stderr(Stdio::null()).output();
    let scan = scan.map_err(|source| KeysError::Start { program, source })?;
    host_keys(&String::from_utf8_lossy(&scan.stdout)).ok_or_else(|| KeysError::NoHostKey(host.to_owned()))
}

/// User, host and port of `user@host`, `user@host:port`, or the URL that the configuration has; an
/// IPv6 address with a port is in brackets.
fn destination(at: &str) -> Option<(String, String, Option<u16>)> {
    let rest = at.strip_prefix("ssh://").map(|rest| rest.split('/').next().unwrap_or_default());
    let (user, host) = rest.unwrap_or(at).rsplit_once('@')?;
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None if host.matches(':').count() == 1 => {
            host.split_once(':').map(|(host, port)| (host, Some(port)))?
        }
        None => (host, None),
    };
    let port = match port.map(str::parse) {
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return None,
        None => None,
    };
    let is_word = |text: &str| {
        !text.is_empty()
            && !text.starts_with('-')
            && !text.chars().any(|c| c.is_whitespace() || base::text::is_unsafe(c))
    };
    (is_word(user) && is_word(host)).then(|| (user.to_owned(), host.to_owned(), port))
}

/// `host_key` by what ssh-keyscan prints. It asks whoever answers: the fingerprints are there to be
/// compared.
fn host_keys(scanned: &str) -> Option<String> {
    let mut keys = Vec::new();
    for line in scanned.lines().filter(|line| !line.starts_with('#')) {
        let Some((_, key)) = line.trim().split_once(char::is_whitespace) else { continue };
        let Ok(mut key) = PublicKey::from_openssh(key.trim()) else { continue };
        key.set_comment(""); // the host's own text, which could end the string
        let Ok(text) = key.to_openssh() else { continue };
        keys.push(format!("    \"{text}\", # {}\n", key.fingerprint(HashAlg::Sha256)));
    }
    (!keys.is_empty()).then(|| {
        format!(
            "# Compare these with what `ssh-keygen -lf` says on that host.\nhost_key = [\n{}]\n",
            keys.concat()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_ssh_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/id");
        let public = make(&path).unwrap();
        assert!(public.starts_with("ssh-ed25519 AAAA") && public.contains(" afterimage@"), "{public}");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let before = fs::read(&path).unwrap();
        assert!(matches!(make(&path), Err(KeysError::Exists(_))));
        assert_eq!(fs::read(&path).unwrap(), before);
        let read = Command::new("ssh-keygen").arg("-yf").arg(&path).output();
        let read = read.expect("ssh-keygen is missing: install the package openssh-client");
        let read = String::from_utf8(read.stdout).unwrap();
        assert_eq!(read.split_whitespace().nth(1), public.split_whitespace().nth(1), "{read}");
        let line = line(&path, "/srv/crash").unwrap();
        assert_eq!(line, format!("restrict,command=\"internal-sftp -d /srv/crash -P {DENIED}\" {public}"));
    }

    #[test]
    fn a_directory_cannot_break_the_line() {
        let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
        for bad in ["", "a b", "/a\" ssh-rsa", "/a\nssh-rsa AAAA", "-R", "/a'b", "/a\\b", "/ä", "$HOME"] {
            assert!(matches!(restricted(key.public_key(), bad), Err(KeysError::Directory(_))), "{bad}");
        }
        assert!(restricted(key.public_key(), "/var/crash/%u").is_ok());
    }

    #[test]
    fn a_host_name_cannot_add_a_line() {
        let mut key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap().public_key().clone();
        for host in ["a\nssh-ed25519 AAAA", "a\r\nssh-rsa", "\u{1b}[2J", "a\" b", "a\u{85}b", "a\0b"] {
            key.set_comment(comment_of(host));
            let line = restricted(&key, "/c").unwrap();
            let (_, comment) = line.rsplit_once('@').unwrap();
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            assert!(comment.chars().all(plain) && line.lines().count() == 1, "{line:?}");
        }
        assert_eq!(comment_of("web-1.example"), "afterimage@web-1.example");
    }

    #[test]
    fn a_collector_is_named_as_people_and_configurations_name_it() {
        let of = |user: &str, host: &str, port| Some((user.to_owned(), host.to_owned(), port));
        for (at, expected) in [
            ("dump@h", of("dump", "h", None)),
            ("dump@h:2222", of("dump", "h", Some(2222))),
            ("ssh://dump@h", of("dump", "h", None)),
            ("ssh://dump@h:2222/var/crash", of("dump", "h", Some(2222))),
            ("a@b@h", of("a@b", "h", None)),
            ("dump@2001:db8::1", of("dump", "2001:db8::1", None)),
            ("dump@[2001:db8::1]:22", of("dump", "2001:db8::1", Some(22))),
            ("dump@[2001:db8::1]", of("dump", "2001:db8::1", None)),
            ("dump@h:", None),
            ("dump@h:0", None),
            ("dump@h:70000", None),
            ("dump@[::1", None),
            ("dump@h\nx", None),
            ("h:22", None),
        ] {
            assert_eq!(destination(at), expected, "{at}");
        }
    }

    #[test]
    fn hosts_that_ssh_would_take_for_options_are_refused() {
        for bad in ["host", "@host", "user@", "-oProxyCommand=x@h", "user@-oProxyCommand=x"] {
            assert!(matches!(install("line", bad, 22), Err(KeysError::Host(_))), "{bad}");
        }
    }

    #[test]
    fn the_line_is_appended_once_on_a_line_of_its_own() {
        let home = tempfile::tempdir().unwrap();
        let keys = home.path().join(".ssh/authorized_keys");
        let line = "restrict,command=\"internal-sftp -d /c -P remove\" ssh-ed25519 AAAA \\x $(false) `x`";
        let install = || {
            let mut child = Command::new("sh")
                .args(["-c", &format!("exec sh -c '{INSTALL}'")])
                .current_dir(home.path())
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            writeln!(child.stdin.take().unwrap(), "{line}").unwrap();
            assert!(child.wait().unwrap().success());
            fs::read_to_string(&keys).unwrap()
        };
        assert_eq!(install(), format!("{line}\n"));
        assert_eq!(fs::metadata(&keys).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(install(), format!("{line}\n"));
        fs::write(&keys, "ssh-rsa BBBB no newline").unwrap();
        assert_eq!(install(), format!("ssh-rsa BBBB no newline\n{line}\n"));
    }

    #[test]
    fn scanned_keys_are_a_part_of_a_configuration() {
        let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
        let public = key.public_key().to_openssh().unwrap();
        let scanned =
            format!("# h:22 SSH-2.0\n[h]:2222 {public} \\\", \"ssh-rsa AAAA\nh ssh-ed25519 rubbish\nh\n\n");
        let text = host_keys(&scanned).unwrap();
        let parsed: toml::Table = text.parse().unwrap();
        assert_eq!(parsed["host_key"].as_array().unwrap().len(), 1);
        assert_eq!(parsed["host_key"][0].as_str(), Some(public.as_str()));
        assert!(text.contains("SHA256:"));
        assert_eq!(host_keys("# nothing\n"), None);
    }
}
