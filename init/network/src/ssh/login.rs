//! From a host's address to a session of SFTP: TCP, SSH with the keys that were agreed on, the
//! subsystem.
//!
//! Whoever has not one of the pinned keys gets nothing from us, and there are no passwords. Memory
//! is bounded: russh takes at most ten packets beyond what it is writing, and no more than the
//! server's window allows.

use std::borrow::Cow;
use std::future::Future;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Disconnect, Preferred, cipher, client, compression};
use tokio::time::timeout;

use super::error::SshError;
use super::session::Session;
use crate::dial::Peer;
use base::config::Url;
use base::facts::Secret;

/// Bytes that a server may send before we have taken them: answers are small.
const WINDOW: u32 = 256 << 10;
/// Messages of it that wait for us.
const MESSAGES: usize = 32;
/// How often the server is asked whether it is still there, and after how many questions without an
/// answer it is not.
const KEEPALIVE: (Duration, usize) = (Duration::from_secs(10), 3);
/// When a server that reads nothing is given up, whatever else waits for it.
const INACTIVE: Duration = Duration::from_mins(1);

/// All that it takes to log in, as often as need be. Not to be shown: it has the key.
pub(super) struct Login {
    peer: Peer,
    user: String,
    pins: Vec<PublicKey>,
    key: Arc<PrivateKey>,
    config: Arc<client::Config>,
    /// For the handshake.
    patience: Duration,
}

impl Login {
    pub(super) fn new(
        url: &Url,
        peer: Peer,
        host_keys: &[String],
        identity: Option<&Secret>,
        patience: Duration,
    ) -> Result<Self, SshError> {
        let identity = identity.filter(|secret| !secret.is_empty()).ok_or(SshError::NoIdentity)?;
        let key = PrivateKey::from_openssh(identity.expose().trim()).map_err(SshError::Identity)?;
        let parse = |line: &String| {
            PublicKey::from_openssh(line.trim())
                .map_err(|source| SshError::Pin { line: line.clone(), source })
        };
        let pins = host_keys.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let config = Arc::new(config(&pins));
        let user = url.user.clone().unwrap_or_default();
        Ok(Self { peer, user, pins, key: Arc::new(key), config, patience })
    }

    /// Connects, once.
    pub(super) async fn connect(&self) -> Result<Session, SshError> {
        let stream = self.peer.connect().await?;
        let socket = stream.as_fd().try_clone_to_owned().map_err(SshError::Lost)?;
        let socket = Socket(socket);
        let host = Host { pins: self.pins.clone() };
        let mut handle =
            self.within("the handshake", client::connect_stream(self.config.clone(), stream, host)).await?;
        self.within("logging in", self.log_in(&mut handle)).await?;
        let open = async {
            let channel = handle.channel_open_session().await?;
            channel.request_subsystem(true, "sftp").await?;
            Ok(channel.into_stream())
        };
        let stream = self.within("starting SFTP", open).await?;
        self.within("beginning SFTP", Session::begin(stream, Link { handle, _socket: socket })).await
    }

    async fn log_in(&self, handle: &mut client::Handle<Host>) -> Result<(), SshError> {
        let hash = match self.key.algorithm() {
            Algorithm::Rsa { .. } => {
                handle.best_supported_rsa_hash().await?.flatten().or(Some(HashAlg::Sha512))
            }
            _ => None,
        };
        let key = PrivateKeyWithHashAlg::new(self.key.clone(), hash);
        let answer = handle.authenticate_publickey(self.user.clone(), key).await?;
        if answer.success() {
            return Ok(());
        }
        let fingerprint = self.key.fingerprint(HashAlg::Sha256).to_string();
        Err(SshError::LogIn { user: self.user.clone(), fingerprint })
    }

    async fn within<T>(
        &self,
        what: &'static str,
        doing: impl Future<Output = Result<T, SshError>>,
    ) -> Result<T, SshError> {
        let late = |_| SshError::Silent { what, seconds: self.patience.as_secs() };
        timeout(self.patience, doing).await.map_err(late)?
    }
}

/// What keeps a session alive. Dropped, the socket is shut down, so that nothing goes on waiting
/// for a server that reads nothing.
pub(super) struct Link {
    handle: client::Handle<Host>,
    _socket: Socket,
}

impl Link {
    /// Says good-bye.
    pub(super) async fn end(self) {
        let _ = self.handle.disconnect(Disconnect::ByApplication, "", "").await; // it may be gone already
        let _ = self.handle.await;
    }
}

struct Socket(OwnedFd);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both); // it may be closed already
    }
}

/// Knows the host by its keys.
pub(super) struct Host {
    pins: Vec<PublicKey>,
}

impl client::Handler for Host {
    type Error = SshError;

    async fn check_server_key(&mut self, offered: &PublicKeyOrCertificate) -> Result<bool, SshError> {
        let offered = offered.public_key();
        if self.pins.iter().any(|pin| pin.key_data() == offered.key_data()) {
            return Ok(true);
        }
        let show = |key: &PublicKey| format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256));
        let pinned: Vec<_> = self.pins.iter().map(show).collect();
        Err(SshError::HostKey { offered: show(&offered), pinned: pinned.join(", ") })
    }
}

fn config(pins: &[PublicKey]) -> client::Config {
    client::Config {
        window_size: WINDOW,
        channel_buffer_size: MESSAGES,
        keepalive_interval: Some(KEEPALIVE.0),
        keepalive_max: KEEPALIVE.1,
        inactivity_timeout: Some(INACTIVE),
        preferred: Preferred {
            key: Cow::Owned(host_key_algorithms(pins)),
            cipher: Cow::Borrowed(ciphers()),
            compression: Cow::Borrowed(&[compression::NONE]), // the dump is compressed
            ..Preferred::DEFAULT
        },
        ..client::Config::default()
    }
}

/// The kinds of the pinned keys first: a server has several. The others, so that one that has none
/// of them is refused by name.
fn host_key_algorithms(pins: &[PublicKey]) -> Vec<Algorithm> {
    let known = Preferred::DEFAULT.key;
    let known = known.iter().filter(|algorithm| **algorithm != Algorithm::Rsa { hash: None }); // SHA-1
    let is_pinned = |algorithm: &&Algorithm| {
        pins.iter().any(|pin| match (pin.algorithm(), algorithm) {
            (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
            (pinned, algorithm) => pinned == **algorithm,
        })
    };
    let (pinned, others): (Vec<_>, Vec<_>) = known.partition(is_pinned);
    pinned.into_iter().chain(others).cloned().collect()
}

/// With instructions for AES, AES-GCM takes about half the time of ChaCha20 (ring's assembler for
/// both); without, many times it.
fn ciphers() -> &'static [cipher::Name] {
    const AES: &[cipher::Name] =
        &[cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305, cipher::AES_256_CTR];
    const CHACHA: &[cipher::Name] =
        &[cipher::CHACHA20_POLY1305, cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::AES_256_CTR];
    if has_aes() { AES } else { CHACHA }
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ host";

    #[test]
    fn the_kinds_of_pinned_keys_come_first_and_sha1_never() {
        let pin = PublicKey::from_openssh(ED25519).unwrap();
        let order = host_key_algorithms(&[pin]);
        assert_eq!(order.first(), Some(&Algorithm::Ed25519));
        assert!(order.len() > 4 && !order.contains(&Algorithm::Rsa { hash: None }), "{order:?}");
    }

    #[test]
    fn keys_that_are_none_are_named_and_secrets_are_not() {
        let url: Url = "ssh://u@127.0.0.1/x".parse().unwrap();
        let login = |pin: &str, identity: &str| {
            let secret = Secret::new(identity.to_owned());
            let peer = Peer::of(&url, &[], &[]);
            Login::new(&url, peer, &[pin.to_owned()], Some(&secret), Duration::from_secs(1)).err().unwrap()
        };
        assert!(matches!(login(ED25519, ""), SshError::NoIdentity));
        let error = login(ED25519, "-----BEGIN OPENSSH PRIVATE KEY-----\ns3cr3t\n");
        assert!(matches!(error, SshError::Identity(_)) && error.is_final());
        assert!(!base::log::chain(&error).contains("s3cr3t"));
    }
}
