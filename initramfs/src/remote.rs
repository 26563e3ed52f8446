//! Targets on the network, as this host knows them: addresses, certificates, and what proves who we
//! are. Read when the image is loaded, so that none of it lies in the image on disk.

use std::fs::Metadata;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use base::config::{Config, Place, Ssh, Target, Url};
use base::facts::{AccessKeys, Remote, Secret};
use russh::keys::ssh_key::{PrivateKey, PublicKey};
use serde::{Deserialize, Serialize};
use vmcore::target::TargetError;
use zeroize::Zeroizing;

use crate::trusted;
use crate::volume_key;

/// Where `afterimage keys` puts the key for SSH.
pub const IDENTITY: &str = "/etc/afterimage/keys/id_ed25519";
/// Longest file of keys or certificates, bytes.
const MOST: u64 = 1 << 20;
/// How long a host may take to answer when somebody only wants to know whether it does.
const ANSWER: Duration = Duration::from_secs(3);

/// Why a target on the network cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A file of keys or certificates.
    #[error("target {target}: reading {path}")]
    Read {
        /// Which target.
        target: String,
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The key for SSH is not there.
    #[error(
        "target {target}: there is no key {path}: make one with `afterimage keys` and send its public half \
         with `afterimage propagate`"
    )]
    NoIdentity {
        /// Which target.
        target: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// A key that cannot be used.
    #[error("target {target}: {what}")]
    Ssh {
        /// Which target.
        target: String,
        /// What is wrong.
        what: String,
    },
    /// Certificates, their key or a token that cannot be used.
    #[error(transparent)]
    Unusable(#[from] TargetError),
    /// The file of an object store's keys. The text does not show it.
    #[error("target {target}: {path}, line {line}: {reason}")]
    Credentials {
        /// Which target.
        target: String,
        /// Which file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The keys were good until a time that nobody can read.
    #[error("target {target}: {path}: expires = {expires:?} is no time: write it as 2026-11-28T12:00:00Z")]
    Expires {
        /// Which target.
        target: String,
        /// Which file.
        path: PathBuf,
        /// The text.
        expires: String,
    },
}

/// A file that was read when the image was loaded, to know whether it has changed since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFile {
    /// Which.
    pub path: PathBuf,
    /// Its time of modification, nanoseconds since 1970.
    pub modified: u64,
    /// Its inode: a file that was replaced within a second is another one.
    pub inode: u64,
}

/// Until when keys are good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// Of which target.
    pub target: String,
    /// Seconds since 1970.
    pub at: u64,
}

/// All that is known of the targets on the network.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// For the facts.
    pub remotes: Vec<Remote>,
    /// Files that were read.
    pub files: Vec<SecretFile>,
    /// Keys that are good for some time only.
    pub expiries: Vec<Expiry>,
}

/// Finds out about each target on the network. A host whose address is not known now may have one
/// when it is needed: that is a warning.
pub fn gather(config: &Config) -> Result<Gathered, RemoteError> {
    let mut gathered = Gathered::default();
    for (target, url) in config.target.iter().filter_map(|target| Some((target, target.url()?))) {
        volume_key::protect_process();
        let addresses = resolve(url).unwrap_or_else(|error| {
            log::warn!("target {target}: {}: {error}; the capture will have to ask for it", url.host);
            Vec::new()
        });
        let mut remote = Remote { url: url.to_string(), addresses, ..Remote::default() };
        read_secrets(target, &mut remote, &mut gathered)?;
        gathered.remotes.push(remote);
    }
    Ok(gathered)
}

/// Where each target on the network is, without its keys.
#[must_use]
pub fn located(config: &Config) -> Vec<Remote> {
    config
        .target
        .iter()
        .filter_map(Target::url)
        .map(|url| {
            let addresses = resolve(url).unwrap_or_default();
            Remote { url: url.to_string(), addresses, ..Remote::default() }
        })
        .collect()
}

fn read_secrets(target: &Target, remote: &mut Remote, gathered: &mut Gathered) -> Result<(), RemoteError> {
    let files = &mut gathered.files;
    let mut read = |path: &str| read_file(target, Path::new(path), files);
    match &target.place {
        Place::Ssh(ssh) => {
            let path = ssh.identity.as_deref().unwrap_or(IDENTITY);
            if !Path::new(path).exists() {
                return Err(RemoteError::NoIdentity { target: target.to_string(), path: path.into() });
            }
            let key = read(path)?;
            usable(target, ssh, Path::new(path), &key)?;
            remote.identity = Secret::new(key.to_string());
        }
        Place::Https(web) => {
            if let Some(roots) = &web.known_by.roots {
                remote.roots = read(roots)?.to_string();
            }
            if let Some(client) = &web.client {
                remote.client_cert = read(&client.cert)?.to_string();
                remote.client_key = Secret::new(read(&client.key)?.to_string());
            }
            if let Some(token) = &web.token_file {
                remote.token = Secret::new(read(token)?.trim().to_owned());
            }
        }
        Place::S3(store) => {
            if let Some(roots) = &store.known_by.roots {
                remote.roots = read(roots)?.to_string();
            }
            let path = Path::new(&store.credentials);
            let keys = access_keys(target, path, &read(&store.credentials)?)?;
            if let Some(at) = expiry(target, path, &keys)? {
                gathered.expiries.push(Expiry { target: target.to_string(), at });
            }
            remote.keys = Some(keys);
        }
        Place::Nfs(_) | Place::Filesystem(_) | Place::Raw(_) => {}
    }
    Ok(network::verify(target, remote)?)
}

/// Whether the capture will be able to log in: it has no terminal to ask for a pass phrase.
fn usable(target: &Target, ssh: &Ssh, path: &Path, key: &str) -> Result<(), RemoteError> {
    let failed = |what: String| RemoteError::Ssh { target: target.to_string(), what };
    let key = PrivateKey::from_openssh(key.trim())
        .map_err(|_| failed(format!("{} is no private key of OpenSSH's", path.display())))?;
    if key.is_encrypted() {
        return Err(failed(format!(
            "{} has a pass phrase, which nobody can give after a crash",
            path.display()
        )));
    }
    check_host_keys(target, ssh)
}

/// Whether each `host_key` can be one: a placeholder of the documentation is none.
fn check_host_keys(target: &Target, ssh: &Ssh) -> Result<(), RemoteError> {
    let Some(line) = ssh.host_key.iter().find(|line| PublicKey::from_openssh(line.trim()).is_err()) else {
        return Ok(());
    };
    let host = &ssh.url.host;
    let port = ssh.url.port.map(|port| format!(" --port {port}")).unwrap_or_default();
    let user = ssh.url.user.as_deref().unwrap_or("USER");
    Err(RemoteError::Ssh {
        target: target.to_string(),
        what: format!(
            "host_key \"{}\" is no public key: `afterimage propagate{port} {user}@{host}` prints those of the host",
            base::text::line(line)
        ),
    })
}

/// What can be known to be wrong with the targets on the network before their keys are read.
pub fn check_config(config: &Config) -> Result<(), RemoteError> {
    config.target.iter().try_for_each(|target| match &target.place {
        Place::Ssh(ssh) => check_host_keys(target, ssh),
        _ => Ok(()),
    })
}

fn access_keys(target: &Target, path: &Path, text: &str) -> Result<AccessKeys, RemoteError> {
    let failed = |line, reason| RemoteError::Credentials {
        target: target.to_string(),
        path: path.to_owned(),
        line,
        reason,
    };
    // The error's own text would show the line, and so the key.
    let keys: AccessKeys = toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count().saturating_add(1);
        failed(line, "no TOML with access_key, secret_key, session_token and expires".to_owned())
    })?;
    if keys.access_key.is_empty() || keys.secret_key.is_empty() {
        return Err(failed(1, "access_key or secret_key is missing".to_owned()));
    }
    Ok(keys)
}

fn expiry(target: &Target, path: &Path, keys: &AccessKeys) -> Result<Option<u64>, RemoteError> {
    if keys.expires.is_empty() {
        return Ok(None);
    }
    let time = humantime::parse_rfc3339_weak(&keys.expires).ok();
    let seconds = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
    seconds.map(Some).ok_or_else(|| RemoteError::Expires {
        target: target.to_string(),
        path: path.to_owned(),
        expires: keys.expires.clone(),
    })
}

/// A file of keys or certificates, in a buffer that never moves.
fn read_file(
    target: &Target,
    path: &Path,
    files: &mut Vec<SecretFile>,
) -> Result<Zeroizing<String>, RemoteError> {
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(MOST).unwrap_or(0)));
    let read = trusted::open(path).and_then(|file| {
        let seen = SecretFile::new(path, &file.metadata()?);
        let read = file.take(MOST).read_to_string(&mut text)?;
        if u64::try_from(read) == Ok(MOST) {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB"));
        }
        files.push(seen);
        Ok(())
    });
    let failed = |source| RemoteError::Read { target: target.to_string(), path: path.to_owned(), source };
    read.map(|()| text).map_err(failed)
}

impl SecretFile {
    fn new(path: &Path, metadata: &Metadata) -> Self {
        let nanoseconds =
            metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        let modified = u64::try_from(nanoseconds).unwrap_or(0);
        Self { path: path.to_owned(), modified, inode: metadata.ino() }
    }

    /// Whether the file is as it was. One that is gone is another one.
    #[must_use]
    pub fn is_same(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|now| Self::new(&self.path, &now) == *self)
    }
}

/// The addresses of a host, as this machine resolves names.
pub fn resolve(url: &Url) -> io::Result<Vec<IpAddr>> {
    let found = (url.host.as_str(), url.port()).to_socket_addrs()?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.map(|found| found.ip()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Whether a host takes connections at this moment.
pub fn connects(url: &Url, addresses: &[IpAddr]) -> Result<(), String> {
    let mut last = format!("{} has no address that is known", url.host);
    for &address in addresses {
        let at = SocketAddr::new(address, url.port());
        match TcpStream::connect_timeout(&at, ANSWER) {
            Ok(_) => return Ok(()),
            Err(error) => last = format!("{at}: {error}"),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Of nobody: its key is gone.
    const ROOT: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBcDCCARWgAwIBAgIUTFd6ylaGilOkSKr4XIewMnHN+GcwCgYIKoZIzj0EAwIw\n\
        DDEKMAgGA1UEAwwBcjAgFw0yNjExMjgxMzQxMTJaGA8yMTI2MTEwNDEzNDExMlow\n\
        DDEKMAgGA1UEAwwBcjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNJVdMI0+okQ\n\
        3cgvJ1m2HP6/5Atj4c2NRbgBPet9XT04lBrN23oMPFrWNaqxR3BwzC+ub1Eu1IMm\n\
        wrBM5vkHrA+jUzBRMB0GA1UdDgQWBBRxG6Y4hZsCBkvAsOlmfGqExP6vkzAfBgNV\n\
        HSMEGDAWgBRxG6Y4hZsCBkvAsOlmfGqExP6vkzAPBgNVHRMBAf8EBTADAQH/MAoG\n\
        CCqGSM49BAMCA0kAMEYCIQDdmEe1SwOxuukGnUTrnQh/QdVQhYxFREYJBUOvSBrR\n\
        JAIhAOfc8xQ+xj2f8J0ZXyLPPMV7rHHJENrb/utMkqIkgwYs\n\
        -----END CERTIFICATE-----\n";

    fn config(dir: &Path, more: &str) -> Config {
        let text = format!(
            "[[target]]\ntype = \"s3\"\nurl = \"https://127.0.0.1:1/b\"\nroots = \"{0}/roots\"\ncredentials \
             = \"{0}/keys\"\n{more}",
            dir.display()
        );
        Config::parse(&text).unwrap()
    }

    #[test]
    fn addresses_and_secrets_are_read_and_changes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("roots"), ROOT).unwrap();
        let keys = "access_key = \"AK\"\nsecret_key = \"SK\"\nsession_token = \"ST\"\nexpires \
                    = \"2026-11-28T12:00:00Z\"\n";
        fs::write(dir.path().join("keys"), keys).unwrap();
        let gathered = gather(&config(dir.path(), "")).unwrap();
        let remote = &gathered.remotes[0];
        assert_eq!(
            (&*remote.url, &*remote.roots, &remote.addresses[..]),
            ("https://127.0.0.1:1/b", ROOT, &["127.0.0.1".parse().unwrap()][..])
        );
        assert_eq!(remote.keys.as_ref().unwrap().session_token.expose(), "ST");
        assert_eq!(
            gathered.expiries,
            [Expiry { target: "s3 https://127.0.0.1:1/b".into(), at: 1_795_867_200 }]
        );
        assert!(gathered.files.len() == 2 && gathered.files.iter().all(SecretFile::is_same));
        fs::remove_file(dir.path().join("keys")).unwrap();
        assert!(!gathered.files[1].is_same());
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_is() {
        let dir = tempfile::tempdir().unwrap();
        let error = || base::log::chain(&gather(&config(dir.path(), "")).unwrap_err());
        assert!(error().contains("roots"), "{}", error());
        fs::write(dir.path().join("keys"), "access_key = \"AK\"\nsecret_key = \"SK\"\n").unwrap();
        for (roots, reason) in [
            ("PEM", "neither roots nor pins"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "vouches"),
        ] {
            fs::write(dir.path().join("roots"), roots).unwrap();
            assert!(error().contains(reason), "{}", error());
        }
        fs::write(dir.path().join("roots"), ROOT).unwrap();
        for (text, reason) in [
            ("access_key = \"AK\"\nsecret_key = s3cr3t\n", "line 2"),
            ("access_key = \"AK\"\n", "missing"),
            ("access_key = \"AK\"\nsecret_key = \"s3cr3t\"\nexpires = \"soon\"\n", "\"soon\" is no time"),
        ] {
            fs::write(dir.path().join("keys"), text).unwrap();
            assert!(error().contains(reason) && !error().contains("s3cr3t"), "{}", error());
        }
        let ssh = "[[target]]\ntype = \"ssh\"\nurl = \"ssh://u@127.0.0.1/\"\nhost_key = [\"x\"]\nidentity \
                   = \"/no/such/key\"\n";
        let error = gather(&Config::parse(ssh).unwrap()).unwrap_err().to_string();
        assert!(error.contains("afterimage keys"), "{error}");
        fs::write(dir.path().join("id"), "no key").unwrap();
        let error = gather(
            &Config::parse(&ssh.replace("/no/such/key", &dir.path().join("id").display().to_string()))
                .unwrap(),
        );
        assert!(error.unwrap_err().to_string().contains("no private key"));
    }

    #[test]
    fn a_placeholder_is_no_host_key() {
        let check = |key: &str| {
            let text =
                format!("[[target]]\ntype = \"ssh\"\nurl = \"ssh://u@h:2222/d\"\nhost_key = [\"{key}\"]\n");
            check_config(&Config::parse(&text).unwrap()).map_err(|error| error.to_string())
        };
        for bad in
            ["ssh-ed25519 AAAA…", "ssh-ed25519 AAAA...", "ssh-ed25519", "SHA256:abc", "h ssh-rsa x", ""]
        {
            let said = check(bad).unwrap_err();
            assert!(said.contains("`afterimage propagate --port 2222 u@h`"), "{said}");
        }
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUrkqYs5uOvUbVYvnL0SGqbcVPQRvFm0Mdi0tdJVCnU";
        assert_eq!(check(key), Ok(()));
    }

    #[test]
    fn a_host_that_does_not_answer_is_told() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let url: Url = format!("https://127.0.0.1:{port}/").parse().unwrap();
        let addresses = resolve(&url).unwrap();
        assert_eq!(connects(&url, &addresses), Ok(()));
        drop(listener);
        assert!(connects(&url, &addresses).unwrap_err().contains("refused"));
        assert!(connects(&url, &[]).unwrap_err().contains("no address"));
    }
}
