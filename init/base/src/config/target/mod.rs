//! `[[target]]`: where a dump may go, and how much of the place is its own.
//!
//! What the file says about a target is one flat table (`table`). It becomes one of the kinds below
//! once, when it is parsed: a target that lacks a key, or has one of another kind, is refused there
//! with its line, and nobody has to ask again.

mod table;

use core::fmt;

use serde::{Deserialize, Serialize};

use super::{DeviceId, FsType, Size, Url};

/// `[[target]]`: a place for dumps, and what is the same for all kinds of places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "table::Table", into = "table::Table")]
pub struct Target {
    /// Seconds to wait for the device to appear, or for a host to answer.
    pub wait: u64,
    /// What is saved where the whole plan does not fit.
    pub when_full: WhenFull,
    /// Where it is.
    pub place: Place,
}

/// Where a target is, a variant for each `type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory in a file system.
    Filesystem(Filesystem),
    /// A partition, disk or volume without a file system, prepared by `afterimage prepare`.
    Raw(Raw),
    /// A directory on a host that is reached by SFTP.
    Ssh(Ssh),
    /// A directory that an NFS server exports.
    Nfs(Nfs),
    /// A web server that takes PUT.
    Https(Https),
    /// A bucket of an object store that speaks S3.
    S3(S3),
}

/// A directory in a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// The device that holds it.
    pub device: DeviceId,
    /// Key file that opens the LUKS device under it. Read on the host when the image is loaded,
    /// never in the image.
    pub key_file: Option<String>,
    /// The directory, absolute; made if missing.
    pub path: String,
    /// btrfs: the subvolume in which the directory is, by its path; not given: what the host has mounted.
    pub subvolume: Option<String>,
    /// Type of the file system; read from the superblock if not given.
    pub fstype: Option<FsType>,
    /// How much of it is for dumps.
    pub share: Share,
}

/// A device without a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// The device.
    pub device: DeviceId,
    /// Key file that opens the LUKS device under it. Read on the host when the image is loaded,
    /// never in the image.
    pub key_file: Option<String>,
    /// What a capture may write over, besides a prepared and empty device: `uncollected` allows a
    /// capture that was not copied off yet, `UUID=...` allows the content with that UUID.
    pub overwrite: Vec<String>,
}

/// A directory on a host that is reached by SFTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssh {
    /// The directory, with host and user.
    pub url: Url,
    /// Seconds without progress after which the target is given up, however often it was tried again.
    pub retry: u64,
    /// Bytes per second that it must take on average, over twice `retry`; 0: any.
    pub min_rate: Size,
    /// Public keys of the host, one of which it must have: `ssh-ed25519 AAAA…`. Never empty.
    pub host_key: Vec<String>,
    /// File of the private key, made by `afterimage keys`; the loader's own place if not given.
    /// Read when the image is loaded.
    pub identity: Option<String>,
}

/// A directory that an NFS server exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nfs {
    /// Host and exported path, without a user.
    pub url: Url,
    /// Seconds without progress after which the target is given up.
    pub retry: u64,
    /// Bytes per second that it must take on average, over twice `retry`; 0: any.
    pub min_rate: Size,
    /// Directory below the exported path, absolute; made if missing.
    pub path: String,
    /// Version of the protocol.
    pub version: NfsVersion,
    /// Security flavour; only `sys` needs no helper programs.
    pub security: Security,
    /// How much of it is for dumps.
    pub share: Share,
}

/// A web server that takes PUT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Https {
    /// The directory, by `https`, without a user.
    pub url: Url,
    /// Seconds without progress after which the target is given up.
    pub retry: u64,
    /// Bytes per second that it must take on average, over twice `retry`; 0: any.
    pub min_rate: Size,
    /// By what the host is known; not empty.
    pub known_by: KnownBy,
    /// File of a bearer token. Read when the image is loaded.
    pub token_file: Option<String>,
    /// What we show.
    pub client: Option<Client>,
    /// How the dump is sent.
    pub upload: Upload,
}

/// A bucket of an object store that speaks S3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3 {
    /// Host, bucket and prefix, by `https` or `http`, without a user.
    pub url: Url,
    /// Seconds without progress after which the target is given up.
    pub retry: u64,
    /// Bytes per second that it must take on average, over twice `retry`; 0: any.
    pub min_rate: Size,
    /// By what the host is known: not empty with `https`, empty with `http`.
    pub known_by: KnownBy,
    /// Region in signatures.
    pub region: String,
    /// File of the keys: TOML with `access_key`, `secret_key`, and for short-lived ones
    /// `session_token` and `expires`. Read when the image is loaded, and again by `load --refresh`.
    pub credentials: String,
    /// How objects are cut.
    pub parts: Parts,
}

/// How much of a directory is for dumps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// How many complete dumps are kept; the oldest go when a new one is safe. `None`: all.
    pub keep: Option<u32>,
    /// Free space that a dump leaves to others.
    pub reserve: Size,
}

/// By what a host with TLS is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownBy {
    /// File of certificates (PEM) that vouch for it. Read when the image is loaded.
    pub roots: Option<String>,
    /// SHA-256 of public keys (SPKI), one of which it must have: `sha256/BASE64`.
    pub pin: Vec<String>,
}

impl Parts {
    /// Of S3: the least part but the last.
    pub const MIN_SIZE: Size = Size(5 << 20);
    /// Of S3: the most parts of an object.
    pub const MAX_COUNT: u32 = 10_000;
}

impl Default for Parts {
    fn default() -> Self {
        Self { min_size: Self::MIN_SIZE, max_count: Self::MAX_COUNT }
    }
}

impl KnownBy {
    /// Whether nothing vouches for the host.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roots.is_none() && self.pin.is_empty()
    }
}

/// A certificate that we show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// File of the certificate chain (PEM). Read when the image is loaded.
    pub cert: String,
    /// File of its private key (PEM). Read when the image is loaded.
    pub key: String,
}

/// How a dump goes to a web server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    /// In parts, numbered from 1, each of which is sent again if need be.
    Parts(Parts),
    /// In one piece, which cannot be resumed.
    Stream,
}

/// How a dump is cut into parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Least size of a part; it grows with the dump.
    pub min_size: Size,
    /// Parts of an object at most; the next object takes what comes behind.
    pub max_count: u32,
}

/// `type` of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// A directory in a file system.
    Filesystem,
    /// A partition, disk or volume without a file system, prepared by `afterimage prepare`.
    Raw,
    /// A directory on a host that is reached by SFTP.
    Ssh,
    /// A directory that an NFS server exports.
    Nfs,
    /// A web server that takes PUT.
    Https,
    /// A bucket of an object store that speaks S3.
    S3,
}

/// Version of NFS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NfsVersion {
    /// 3, without locks.
    #[serde(rename = "3")]
    V3,
    /// 4.1
    #[serde(rename = "4.1")]
    V4_1,
    /// 4.2
    #[default]
    #[serde(rename = "4.2")]
    V4_2,
}

/// Security flavour of NFS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Security {
    /// User and group numbers, believed.
    #[default]
    Sys,
}

/// What becomes of a target that is too small for the dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// A dump of level 31 if that fits; otherwise the log and the notes.
    #[default]
    Stricter,
    /// As much of the dump as fits, marked INCOMPLETE: what readers need first comes first.
    Part,
    /// The log and the notes.
    Log,
    /// Nothing: the next target has to hold it.
    Nothing,
}

impl Target {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> TargetKind {
        match self.place {
            Place::Filesystem(_) => TargetKind::Filesystem,
            Place::Raw(_) => TargetKind::Raw,
            Place::Ssh(_) => TargetKind::Ssh,
            Place::Nfs(_) => TargetKind::Nfs,
            Place::Https(_) => TargetKind::Https,
            Place::S3(_) => TargetKind::S3,
        }
    }

    /// The device of a target that is reached by none of the networks.
    #[must_use]
    pub fn device(&self) -> Option<&DeviceId> {
        match &self.place {
            Place::Filesystem(Filesystem { device, .. }) | Place::Raw(Raw { device, .. }) => Some(device),
            Place::Ssh(_) | Place::Nfs(_) | Place::Https(_) | Place::S3(_) => None,
        }
    }

    /// The key file of a LUKS device under it.
    #[must_use]
    pub fn key_file(&self) -> Option<&str> {
        match &self.place {
            Place::Filesystem(Filesystem { key_file, .. }) | Place::Raw(Raw { key_file, .. }) => {
                key_file.as_deref()
            }
            Place::Ssh(_) | Place::Nfs(_) | Place::Https(_) | Place::S3(_) => None,
        }
    }

    /// The URL of a target on the network.
    #[must_use]
    pub fn url(&self) -> Option<&Url> {
        match &self.place {
            Place::Filesystem(_) | Place::Raw(_) => None,
            Place::Ssh(Ssh { url, .. })
            | Place::Nfs(Nfs { url, .. })
            | Place::Https(Https { url, .. })
            | Place::S3(S3 { url, .. }) => Some(url),
        }
    }

    /// How much of a directory is for dumps; of other places, all.
    #[must_use]
    pub fn share(&self) -> Share {
        match &self.place {
            Place::Filesystem(Filesystem { share, .. }) | Place::Nfs(Nfs { share, .. }) => *share,
            Place::Raw(_) | Place::Ssh(_) | Place::Https(_) | Place::S3(_) => Share::default(),
        }
    }

    /// Refuses to wait for an NFS server longer than a capture may go without progress.
    pub(super) fn check_patience(&self, stall_timeout: u64) -> Result<(), String> {
        let Place::Nfs(nfs) = &self.place else { return Ok(()) };
        let longest = nfs.longest_call();
        if longest <= stall_timeout {
            return Ok(());
        }
        Err(format!(
            "with retry = {} a call may wait {longest} s for the NFS server, and stall_timeout = \
             {stall_timeout} ends the capture before",
            nfs.retry
        ))
    }
}

impl Nfs {
    /// Seconds that one call may wait for a server that is gone, in the kernel, where nothing tells
    /// that the capture goes on: a host that lost its power is noticed in the second round only
    /// (net/sunrpc/clnt.c, `rpc_check_timeout`).
    fn longest_call(&self) -> u64 {
        self.retry.max(20).saturating_add(10).saturating_mul(2)
    }
}

impl TargetKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [Self::Filesystem, Self::Raw, Self::Ssh, Self::Nfs, Self::Https, Self::S3];

    /// The text by which `afterimage build` sees in an init that it was built with this kind of
    /// target.
    #[must_use]
    pub const fn mark(self) -> &'static str {
        match self {
            Self::Filesystem => "afterimage-target:filesystem;",
            Self::Raw => "afterimage-target:raw;",
            Self::Ssh => "afterimage-target:ssh;",
            Self::Nfs => "afterimage-target:nfs;",
            Self::Https => "afterimage-target:https;",
            Self::S3 => "afterimage-target:s3;",
        }
    }

    /// Whether it is reached over the network.
    #[must_use]
    pub fn is_remote(self) -> bool {
        !matches!(self, Self::Filesystem | Self::Raw)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Filesystem(Filesystem { device, path, .. }) => write!(f, "{device}:{path}"),
            Place::Raw(Raw { device, .. }) => write!(f, "raw {device}"),
            Place::S3(S3 { url, .. }) => write!(f, "s3 {url}"),
            Place::Ssh(Ssh { url, .. }) | Place::Nfs(Nfs { url, .. }) | Place::Https(Https { url, .. }) => {
                url.fmt(f)
            }
        }
    }
}

impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filesystem => "filesystem",
            Self::Raw => "raw",
            Self::Ssh => "ssh",
            Self::Nfs => "nfs",
            Self::Https => "https",
            Self::S3 => "s3",
        })
    }
}

impl TryFrom<String> for Security {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "sys" => Ok(Self::Sys),
            _ if text.starts_with("krb5") => Err(format!(
                "{text}: Kerberos needs rpc.gssd and a key cache, which the capture kernel does not have: \
                 use sys"
            )),
            _ => Err(format!("{text:?} is no security flavour: there is \"sys\"")),
        }
    }
}

impl From<Security> for String {
    fn from(Security::Sys: Security) -> Self {
        "sys".to_owned()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn nfs_is_waited_for_no_longer_than_a_capture_may_go_without_progress() {
        let parse = |retry: u64, stall: u64, kind: &str| {
            let host = if kind == "ssh" { "u@h" } else { "h" };
            let text = format!(
                "[capture]\nstall_timeout = {stall}\n[[target]]\ntype = \"{kind}\"\nurl \
                 = \"{kind}://{host}/d\"\nretry = {retry}\n\
                 {}",
                if kind == "ssh" { "host_key = [\"ssh-ed25519 AAAA\"]\nidentity = \"/k\"\n" } else { "" }
            );
            crate::config::Config::parse(&text).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(parse(140, 300, "nfs"), Ok(()));
        let refused = parse(141, 300, "nfs").unwrap_err();
        assert!(refused.contains("retry = 141") && refused.contains("302 s"), "{refused}");
        assert!(parse(1, 59, "nfs").is_err() && parse(1, 60, "nfs").is_ok(), "the kernel's least");
        assert_eq!(parse(141, 300, "ssh"), Ok(()), "it tells that it waits");
    }
}
