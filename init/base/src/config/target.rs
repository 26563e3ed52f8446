//! `[[target]]`: where a dump may go, and how much of the place is its own.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use super::url::Scheme;
use super::{DeviceId, FsType, Url, checked};

/// `[[target]]`: a directory in a file system, a whole block device, or a place on the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// What kind of target it is. A key that means nothing for its kind is refused.
    #[serde(rename = "type")]
    pub kind: TargetKind,
    /// file system, raw: the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// ssh, nfs, https, s3: where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Url>,
    /// Seconds to wait for the device to appear, or for a host to answer.
    #[serde(default = "default_wait")]
    pub wait: u64,
    /// What is saved where the whole plan does not fit.
    #[serde(default)]
    pub when_full: WhenFull,
    /// Key file that opens the LUKS device under the target. Read on the host when the image is
    /// loaded, never in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// file system, nfs: directory on it, absolute; made if missing. Not given: `/var/crash`.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// file system: its type; read from the superblock if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fstype: Option<FsType>,
    /// file system: how many complete dumps are kept; the oldest go when a new one is safe. Not
    /// given: all.
    #[serde(default, deserialize_with = "checked::keep", skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// file system: free space that a dump leaves to others.
    #[serde(default, skip_serializing_if = "Size::is_zero")]
    pub reserve: Size,
    /// raw: what a capture may write over, besides a prepared and empty device: `uncollected` allows
    /// a capture that was not copied off yet, `UUID=...` allows the content with that UUID.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overwrite: Vec<String>,
    /// ssh, nfs, https, s3: seconds without progress after which the target is given up, however often
    /// it was tried again.
    #[serde(default, deserialize_with = "checked::seconds", skip_serializing_if = "Option::is_none")]
    pub retry: Option<u64>,
    /// ssh: public keys of the host, one of which it must have: `ssh-ed25519 AAAA…`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_key: Vec<String>,
    /// ssh: file of the private key, made by `afterimage keys`. Read when the image is loaded.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// nfs: version of the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<NfsVersion>,
    /// nfs: security flavour; only `sys` needs no helper programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<Security>,
    /// https, s3: file of certificates (PEM) that vouch for the host. Read when the image is loaded.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub roots: Option<String>,
    /// https, s3: SHA-256 of public keys (SPKI) of the host, one of which it must have: `sha256/BASE64`.
    #[serde(default, deserialize_with = "checked::pins", skip_serializing_if = "Vec::is_empty")]
    pub pin: Vec<String>,
    /// https: file of a bearer token. Read when the image is loaded.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
    /// https: file of the certificate chain (PEM) that we show. Read when the image is loaded.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<String>,
    /// https: file of its private key (PEM). Read when the image is loaded.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub client_key: Option<String>,
    /// https: whether the dump is sent as one stream, which cannot be resumed, or in parts, each of which
    /// can be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Upload>,
    /// https, s3: least size of a part; it grows with the dump.
    #[serde(default, deserialize_with = "checked::part_size", skip_serializing_if = "Option::is_none")]
    pub part_size: Option<Size>,
    /// https, s3: parts of an object at most; the next object takes what comes behind.
    #[serde(default, deserialize_with = "checked::parts", skip_serializing_if = "Option::is_none")]
    pub max_parts: Option<u32>,
    /// s3: region in signatures. Not given: `us-east-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// s3: file of the keys: TOML with `access_key`, `secret_key`, and for short-lived ones
    /// `session_token` and `expires`. Read when the image is loaded, and again by `load --refresh`.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
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

/// How a dump goes to a web server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Upload {
    /// In parts, numbered from 1, each of which is sent again if need be.
    #[default]
    Parts,
    /// In one piece.
    Stream,
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

/// A number of bytes: `500M`, `2G`, or a bare number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

/// No number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no size: write bytes as a string, with K, M, G or T for powers of 1024, such as \"500M\"")]
pub struct SizeError(String);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

fn default_wait() -> u64 {
    30
}

impl Target {
    /// Directory on a file system.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or(if self.kind == TargetKind::Nfs { "/" } else { "/var/crash" })
    }

    /// Seconds without progress after which a target on the network is given up.
    #[must_use]
    pub fn retry(&self) -> u64 {
        self.retry.unwrap_or(120)
    }

    /// Seconds that one call may wait for an NFS server that is gone, in the kernel, where nothing
    /// tells that the capture goes on: a host that lost its power is noticed in the second round
    /// only (net/sunrpc/clnt.c, `rpc_check_timeout`).
    fn longest_call(&self) -> u64 {
        self.retry().max(20).saturating_add(10).saturating_mul(2)
    }

    /// Refuses to wait for a server longer than a capture may go without progress.
    pub(super) fn check_patience(&self, stall_timeout: u64) -> Result<(), String> {
        let longest = self.longest_call();
        if self.kind != TargetKind::Nfs || longest <= stall_timeout {
            return Ok(());
        }
        Err(format!(
            "with retry = {} a call may wait {longest} s for the NFS server, and stall_timeout = {stall_timeout} ends the capture before",
            self.retry()
        ))
    }

    /// Refuses keys that mean nothing for this kind of target, and what is missing, each by its
    /// name.
    pub(super) fn check(&self) -> Result<(), String> {
        let block = [TargetKind::Filesystem, TargetKind::Raw];
        let http = [TargetKind::Https, TargetKind::S3];
        let directory = [TargetKind::Filesystem, TargetKind::Nfs];
        let (filesystem, raw, ssh) = ([TargetKind::Filesystem], [TargetKind::Raw], [TargetKind::Ssh]);
        let (nfs, https, s3) = ([TargetKind::Nfs], [TargetKind::Https], [TargetKind::S3]);
        let network = [TargetKind::Ssh, TargetKind::Nfs, TargetKind::Https, TargetKind::S3];
        let keys: &[(&str, bool, &[TargetKind])] = &[
            ("device", self.device.is_some(), &block),
            ("key_file", self.key_file.is_some(), &block),
            ("path", self.path.is_some(), &directory),
            ("fstype", self.fstype.is_some(), &filesystem),
            ("keep", self.keep.is_some(), &directory),
            ("reserve", !self.reserve.is_zero(), &directory),
            ("overwrite", !self.overwrite.is_empty(), &raw),
            ("url", self.url.is_some(), &network),
            ("retry", self.retry.is_some(), &network),
            ("host_key", !self.host_key.is_empty(), &ssh),
            ("identity", self.identity.is_some(), &ssh),
            ("version", self.version.is_some(), &nfs),
            ("security", self.security.is_some(), &nfs),
            ("roots", self.roots.is_some(), &http),
            ("pin", !self.pin.is_empty(), &http),
            ("token_file", self.token_file.is_some(), &https),
            ("client_cert", self.client_cert.is_some(), &https),
            ("client_key", self.client_key.is_some(), &https),
            ("upload", self.upload.is_some(), &https),
            ("part_size", self.part_size.is_some(), &http),
            ("max_parts", self.max_parts.is_some(), &http),
            ("region", self.region.is_some(), &s3),
            ("credentials", self.credentials.is_some(), &s3),
        ];
        if let Some((key, ..)) = keys.iter().find(|(_, given, kinds)| *given && !kinds.contains(&self.kind)) {
            return Err(format!("{key} means nothing for a {} target", self.kind));
        }
        if block.contains(&self.kind) {
            return self.device.as_ref().map(drop).ok_or_else(|| "device is missing".to_owned());
        }
        self.check_remote()
    }

    /// A host must be told from others that take its place: it gets all that was in memory.
    fn check_remote(&self) -> Result<(), String> {
        let Some(url) = &self.url else { return Err("url is missing".to_owned()) };
        let schemes: &[Scheme] = match self.kind {
            TargetKind::Ssh => &[Scheme::Ssh],
            TargetKind::Nfs => &[Scheme::Nfs],
            TargetKind::Https => &[Scheme::Https],
            TargetKind::S3 => &[Scheme::Https, Scheme::Http],
            TargetKind::Filesystem | TargetKind::Raw => &[],
        };
        if !schemes.contains(&url.scheme) {
            return Err(format!(
                "{url}: a {} target begins with {}://",
                self.kind,
                schemes.first().map_or("", |it| it.name())
            ));
        }
        let has_user = url.user.is_some();
        match self.kind {
            TargetKind::Ssh if !has_user => Err(format!("{url}: write the user, too: ssh://user@host/path")),
            TargetKind::Ssh if self.host_key.is_empty() => {
                Err("host_key is missing: without it nobody knows who takes the dump".to_owned())
            }
            TargetKind::Nfs | TargetKind::Https | TargetKind::S3 if has_user => {
                Err(format!("{url}: a user means nothing there"))
            }
            TargetKind::Nfs if url.path.is_empty() => {
                Err(format!("{url}: write the path that is exported, too"))
            }
            TargetKind::Https | TargetKind::S3
                if url.scheme == Scheme::Https && self.roots.is_none() && self.pin.is_empty() =>
            {
                Err("roots or pin is missing: without them nobody knows who takes the dump".to_owned())
            }
            TargetKind::Https if self.client_cert.is_some() != self.client_key.is_some() => {
                Err("client_cert and client_key go together".to_owned())
            }
            TargetKind::S3
                if url.scheme == Scheme::Http && (self.roots.is_some() || !self.pin.is_empty()) =>
            {
                Err(format!("{url}: roots and pin mean nothing without TLS: write https://"))
            }
            TargetKind::Https
                if self.upload == Some(Upload::Stream)
                    && (self.part_size.is_some() || self.max_parts.is_some()) =>
            {
                Err("part_size and max_parts mean nothing for one stream".to_owned())
            }
            TargetKind::S3 if self.credentials.is_none() => Err("credentials is missing".to_owned()),
            TargetKind::S3 if url.path.is_empty() => Err(format!("{url}: write the bucket, too")),
            _ => Ok(()),
        }
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
        let device = self.device.as_ref().map(DeviceId::to_string).unwrap_or_default();
        match (self.kind, &self.url) {
            (TargetKind::Filesystem, _) => write!(f, "{device}:{}", self.path()),
            (TargetKind::Raw, _) => write!(f, "raw {device}"),
            (TargetKind::S3, Some(url)) => write!(f, "s3 {url}"),
            (_, Some(url)) => url.fmt(f),
            (kind, None) => kind.fmt(f),
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
                "{text}: Kerberos needs rpc.gssd and a key cache, which the capture kernel does not have: use sys"
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

impl Size {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference to it")]
    fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let unit = UNITS.iter().find(|(letter, _)| text.ends_with(*letter));
        let (digits, shift) =
            unit.map_or((text, 0), |&(letter, shift)| (text.strip_suffix(letter).unwrap_or(text), shift));
        let number = digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let bytes = number.and_then(|number| number.checked_mul(1_u64.checked_shl(shift)?));
        bytes.map(Self).ok_or_else(|| SizeError(text.to_owned()))
    }
}

impl TryFrom<String> for Size {
    type Error = SizeError;

    fn try_from(text: String) -> Result<Self, SizeError> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |&&(_, shift): &&(char, u32)| self.0 > 0 && self.0.trailing_zeros() >= shift;
        match UNITS.iter().find(fits) {
            Some((letter, shift)) => write!(f, "{}{letter}", self.0.checked_shr(*shift).unwrap_or(0)),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nfs_is_waited_for_no_longer_than_a_capture_may_go_without_progress() {
        let parse = |retry: u64, stall: u64, kind: &str| {
            let host = if kind == "ssh" { "u@h" } else { "h" };
            let text = format!(
                "[capture]\nstall_timeout = {stall}\n[[target]]\ntype = \"{kind}\"\nurl = \"{kind}://{host}/d\"\nretry = {retry}\n\
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

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("512", 512), ("500M", 500 << 20), ("2G", 2 << 30), ("3T", 3 << 40)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
            assert_eq!(Size(bytes).to_string(), text);
        }
        for bad in ["", "M", "-1", "1 G", "1g", "MM", "99999999999T", "1MM", "+1"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
