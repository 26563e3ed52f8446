//! The table that a configuration file has for a target: all keys of all kinds, and which kind takes which.

use serde::{Deserialize, Serialize};

use super::{
    Client, Filesystem, Https, KnownBy, Nfs, NfsVersion, Parts, Place, Raw, S3, Security, Share, Ssh, Target,
    TargetKind, Upload, WhenFull,
};
use crate::config::url::Scheme;
use crate::config::{DeviceId, FsType, Size, Url, checked};

/// A target as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    /// What kind of target it is. A key that means nothing for its kind is refused.
    #[serde(rename = "type")]
    pub(super) kind: TargetKind,
    /// file system, raw: the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) device: Option<DeviceId>,
    /// ssh, nfs, https, s3: where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<Url>,
    /// Seconds to wait for the device to appear, or for a host to answer.
    #[serde(default = "default_wait", deserialize_with = "checked::duration")]
    pub(super) wait: u64,
    /// What is saved where the whole plan does not fit.
    #[serde(default)]
    pub(super) when_full: WhenFull,
    /// Key file that opens the LUKS device under the target. Read on the host when the image is
    /// loaded, never in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key_file: Option<String>,
    /// file system, nfs: directory on it, absolute; made if missing. Not given: `/var/crash`.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    /// file system: on btrfs the subvolume in which the directory is, by its path, absolute. Not given: what
    /// the host has mounted.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub(super) subvolume: Option<String>,
    /// file system: its type; read from the superblock if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) fstype: Option<FsType>,
    /// file system: how many complete dumps are kept; the oldest go when a new one is safe. Not
    /// given: all.
    #[serde(default, deserialize_with = "checked::keep", skip_serializing_if = "Option::is_none")]
    pub(super) keep: Option<u32>,
    /// file system: free space that a dump leaves to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reserve: Option<Size>,
    /// raw: what a capture may write over, besides a prepared and empty device: `uncollected` allows
    /// a capture that was not copied off yet, `UUID=...` allows the content with that UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) overwrite: Option<Vec<String>>,
    /// ssh, nfs, https, s3: seconds without progress after which the target is given up, however often
    /// it was tried again.
    #[serde(default, deserialize_with = "checked::seconds", skip_serializing_if = "Option::is_none")]
    pub(super) retry: Option<u64>,
    /// ssh, nfs, https, s3: bytes per second that the host must take on average; 0: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) min_rate: Option<Size>,
    /// ssh: public keys of the host, one of which it must have: `ssh-ed25519 AAAA…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) host_key: Option<Vec<String>>,
    /// ssh: file of the private key, made by `afterimage keys`. Read when the image is loaded.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub(super) identity: Option<String>,
    /// nfs: version of the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<NfsVersion>,
    /// nfs: security flavour; only `sys` needs no helper programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) security: Option<Security>,
    /// https, s3: file of certificates (PEM) that vouch for the host. Read when the image is loaded.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub(super) roots: Option<String>,
    /// https, s3: SHA-256 of public keys (SPKI) of the host, one of which it must have: `sha256/BASE64`.
    #[serde(default, deserialize_with = "checked::pins", skip_serializing_if = "Option::is_none")]
    pub(super) pin: Option<Vec<String>>,
    /// https: file of a bearer token. Read when the image is loaded.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub(super) token_file: Option<String>,
    /// https: file of the certificate chain (PEM) that we show. Read when the image is loaded.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub(super) client_cert: Option<String>,
    /// https: file of its private key (PEM). Read when the image is loaded.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub(super) client_key: Option<String>,
    /// https: whether the dump is sent as one stream, which cannot be resumed, or in parts, each of which
    /// can be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) upload: Option<UploadWord>,
    /// https, s3: least size of a part; it grows with the dump.
    #[serde(default, deserialize_with = "checked::part_size", skip_serializing_if = "Option::is_none")]
    pub(super) part_size: Option<Size>,
    /// https, s3: parts of an object at most; the next object takes what comes behind.
    #[serde(default, deserialize_with = "checked::parts", skip_serializing_if = "Option::is_none")]
    pub(super) max_parts: Option<u32>,
    /// s3: region in signatures. Not given: `us-east-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) region: Option<String>,
    /// s3: file of the keys: TOML with `access_key`, `secret_key`, and for short-lived ones
    /// `session_token` and `expires`. Read when the image is loaded, and again by `load --refresh`.
    #[serde(default, deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub(super) credentials: Option<String>,
}

/// `upload` of a web server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum UploadWord {
    Parts,
    Stream,
}

const WAIT: u64 = 30;
const RETRY: u64 = 120;
/// A tenth of what a line of 5 Mbit/s takes.
const MIN_RATE: Size = Size(64 << 10);
const FILESYSTEM_PATH: &str = "/var/crash";
const NFS_PATH: &str = "/";
const REGION: &str = "us-east-1";
fn default_wait() -> u64 {
    WAIT
}

impl TryFrom<Table> for Target {
    type Error = String;

    /// Takes from the table what its kind needs. A key that is left means nothing for it.
    fn try_from(mut table: Table) -> Result<Self, String> {
        let place = match table.kind {
            TargetKind::Filesystem => Place::Filesystem(table.filesystem()?),
            TargetKind::Raw => Place::Raw(table.raw()?),
            TargetKind::Ssh => Place::Ssh(table.ssh()?),
            TargetKind::Nfs => Place::Nfs(table.nfs()?),
            TargetKind::Https => Place::Https(table.https()?),
            TargetKind::S3 => Place::S3(table.s3()?),
        };
        if let Some(key) = table.left() {
            return Err(format!("{key} means nothing for a target of the type {}", table.kind));
        }
        Ok(Self { wait: table.wait, when_full: table.when_full, place })
    }
}

impl Table {
    fn filesystem(&mut self) -> Result<Filesystem, String> {
        Ok(Filesystem {
            device: self.device()?,
            key_file: self.key_file.take(),
            path: self.path.take().unwrap_or_else(|| FILESYSTEM_PATH.to_owned()),
            subvolume: self.subvolume()?,
            fstype: self.fstype.take(),
            share: self.share(),
        })
    }

    fn subvolume(&mut self) -> Result<Option<String>, String> {
        let subvolume = self.subvolume.take();
        let other = self.fstype.filter(|fstype| *fstype != FsType::Btrfs);
        if let (Some(subvolume), Some(other)) = (&subvolume, other) {
            return Err(format!(
                "subvolume = {subvolume:?} means nothing on {}: btrfs has them",
                other.name()
            ));
        }
        // It becomes a mount option, which a comma ends.
        if subvolume.as_ref().is_some_and(|name| name.contains(',')) {
            return Err("subvolume: a comma in its name cannot be given to the kernel".to_owned());
        }
        Ok(subvolume)
    }

    fn raw(&mut self) -> Result<Raw, String> {
        Ok(Raw {
            device: self.device()?,
            key_file: self.key_file.take(),
            overwrite: self.overwrite.take().unwrap_or_default(),
        })
    }

    fn ssh(&mut self) -> Result<Ssh, String> {
        let url = self.url(&[Scheme::Ssh])?;
        if url.user.is_none() {
            return Err(format!("{url}: write the user, too: ssh://user@host/path"));
        }
        // A host must be told from others that take its place: it gets all that was in memory.
        let host_key = self.host_key.take().filter(|keys| !keys.is_empty());
        let host_key = host_key.ok_or("host_key is missing: without it nobody knows who takes the dump")?;
        Ok(Ssh {
            url,
            retry: self.retry(),
            min_rate: self.min_rate(),
            host_key,
            identity: self.identity.take(),
        })
    }

    fn nfs(&mut self) -> Result<Nfs, String> {
        let url = self.url_without_user(&[Scheme::Nfs])?;
        if url.path.is_empty() {
            return Err(format!("{url}: write the path that is exported, too"));
        }
        Ok(Nfs {
            url,
            retry: self.retry(),
            min_rate: self.min_rate(),
            path: self.path.take().unwrap_or_else(|| NFS_PATH.to_owned()),
            version: self.version.take().unwrap_or_default(),
            security: self.security.take().unwrap_or_default(),
            share: self.share(),
        })
    }

    fn https(&mut self) -> Result<Https, String> {
        let url = self.url_without_user(&[Scheme::Https])?;
        let known_by = self.known_by();
        ensure_known(&known_by)?;
        let client = match (self.client_cert.take(), self.client_key.take()) {
            (Some(cert), Some(key)) => Some(Client { cert, key }),
            (None, None) => None,
            _ => return Err("client_cert and client_key go together".to_owned()),
        };
        let has_parts = self.part_size.is_some() || self.max_parts.is_some();
        let upload = match self.upload.take() {
            Some(UploadWord::Stream) if has_parts => {
                return Err("part_size and max_parts mean nothing for one stream".to_owned());
            }
            Some(UploadWord::Stream) => Upload::Stream,
            Some(UploadWord::Parts) | None => Upload::Parts(self.parts()),
        };
        let min_rate = self.min_rate();
        Ok(Https {
            url,
            retry: self.retry(),
            min_rate,
            known_by,
            token_file: self.token_file.take(),
            client,
            upload,
        })
    }

    fn s3(&mut self) -> Result<S3, String> {
        let url = self.url_without_user(&[Scheme::Https, Scheme::Http])?;
        let known_by = self.known_by();
        if url.scheme == Scheme::Https {
            ensure_known(&known_by)?;
        } else if !known_by.is_empty() {
            return Err(format!("{url}: roots and pin mean nothing without TLS: write https://"));
        }
        let credentials = self.credentials.take().ok_or("credentials is missing")?;
        if url.path.is_empty() {
            return Err(format!("{url}: write the bucket, too"));
        }
        let region = self.region.take().unwrap_or_else(|| REGION.to_owned());
        let min_rate = self.min_rate();
        Ok(S3 { url, retry: self.retry(), min_rate, known_by, region, credentials, parts: self.parts() })
    }

    fn device(&mut self) -> Result<DeviceId, String> {
        self.device.take().ok_or_else(|| "device is missing".to_owned())
    }

    fn share(&mut self) -> Share {
        Share { keep: self.keep.take(), reserve: self.reserve.take().unwrap_or_default() }
    }

    fn retry(&mut self) -> u64 {
        self.retry.take().unwrap_or(RETRY)
    }

    fn min_rate(&mut self) -> Size {
        self.min_rate.take().unwrap_or(MIN_RATE)
    }

    fn known_by(&mut self) -> KnownBy {
        KnownBy { roots: self.roots.take(), pin: self.pin.take().unwrap_or_default() }
    }

    fn parts(&mut self) -> Parts {
        Parts {
            min_size: self.part_size.take().unwrap_or(Parts::MIN_SIZE),
            max_count: self.max_parts.take().unwrap_or(Parts::MAX_COUNT),
        }
    }

    fn url(&mut self, schemes: &[Scheme]) -> Result<Url, String> {
        let url = self.url.take().ok_or("url is missing")?;
        if schemes.contains(&url.scheme) {
            return Ok(url);
        }
        let scheme = schemes.first().map_or("", |scheme| scheme.name());
        Err(format!("{url}: the url of a target of the type {} begins with {scheme}://", self.kind))
    }

    fn url_without_user(&mut self, schemes: &[Scheme]) -> Result<Url, String> {
        let url = self.url(schemes)?;
        if url.user.is_some() {
            return Err(format!("{url}: a user means nothing there"));
        }
        Ok(url)
    }

    /// A key that nobody has taken.
    fn left(&self) -> Option<String> {
        let keys = toml::Table::try_from(self).unwrap_or_default();
        keys.into_iter().map(|(key, _)| key).find(|key| !COMMON.contains(&key.as_str()))
    }

    /// A table without a key of any kind.
    fn of(target: &Target) -> Self {
        Self {
            kind: target.kind(),
            wait: target.wait,
            when_full: target.when_full,
            device: None,
            url: None,
            key_file: None,
            path: None,
            subvolume: None,
            fstype: None,
            keep: None,
            reserve: None,
            overwrite: None,
            retry: None,
            min_rate: None,
            host_key: None,
            identity: None,
            version: None,
            security: None,
            roots: None,
            pin: None,
            token_file: None,
            client_cert: None,
            client_key: None,
            upload: None,
            part_size: None,
            max_parts: None,
            region: None,
            credentials: None,
        }
    }
}

/// The keys that all kinds have.
const COMMON: [&str; 3] = ["type", "wait", "when_full"];

/// A host must be told from others that take its place: it gets all that was in memory.
fn ensure_known(by: &KnownBy) -> Result<(), String> {
    if by.is_empty() {
        return Err("roots or pin is missing: without them nobody knows who takes the dump".to_owned());
    }
    Ok(())
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

impl From<Target> for Table {
    fn from(target: Target) -> Self {
        let table = Self::of(&target);
        match target.place {
            Place::Filesystem(it) => Self {
                device: Some(it.device),
                key_file: it.key_file,
                path: Some(it.path),
                subvolume: it.subvolume,
                fstype: it.fstype,
                ..table.with_share(it.share)
            },
            Place::Raw(it) => Self {
                device: Some(it.device),
                key_file: it.key_file,
                overwrite: some(it.overwrite),
                ..table
            },
            Place::Ssh(it) => Self {
                host_key: some(it.host_key),
                identity: it.identity,
                ..table.with_host(it.url, it.retry, it.min_rate)
            },
            Place::Nfs(it) => Self {
                path: Some(it.path),
                version: Some(it.version),
                security: Some(it.security),
                ..table.with_host(it.url, it.retry, it.min_rate).with_share(it.share)
            },
            Place::Https(it) => {
                let (client_cert, client_key) = it.client.map(|client| (client.cert, client.key)).unzip();
                let table = table.with_host(it.url, it.retry, it.min_rate).with_known_by(it.known_by);
                let table = Self { token_file: it.token_file, client_cert, client_key, ..table };
                match it.upload {
                    Upload::Parts(parts) => table.with_parts(parts),
                    Upload::Stream => Self { upload: Some(UploadWord::Stream), ..table },
                }
            }
            Place::S3(it) => Self {
                region: Some(it.region),
                credentials: Some(it.credentials),
                ..table
                    .with_host(it.url, it.retry, it.min_rate)
                    .with_known_by(it.known_by)
                    .with_parts(it.parts)
            },
        }
    }
}

impl Table {
    fn with_share(self, share: Share) -> Self {
        Self { keep: share.keep, reserve: Some(share.reserve).filter(|size| size.0 > 0), ..self }
    }

    fn with_host(self, url: Url, retry: u64, min_rate: Size) -> Self {
        Self { url: Some(url), retry: Some(retry), min_rate: Some(min_rate), ..self }
    }

    fn with_known_by(self, by: KnownBy) -> Self {
        Self { roots: by.roots, pin: some(by.pin), ..self }
    }

    fn with_parts(self, parts: Parts) -> Self {
        Self { part_size: Some(parts.min_size), max_parts: Some(parts.max_count), ..self }
    }
}
