//! What the loader found out about targets on the network, and what proves there who we are.

use core::fmt;
use core::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// A target on the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remote {
    /// `url` of the target, as its configuration writes it.
    pub url: String,
    /// Addresses that its host had: the capture needs no DNS.
    pub addresses: Vec<IpAddr>,
    /// Certificates (PEM) that vouch for it.
    pub roots: String,
    /// Certificate chain (PEM) that we show.
    pub client_cert: String,
    /// Private key of that, PEM.
    pub client_key: Secret,
    /// Private key for SSH, as OpenSSH writes it.
    pub identity: Secret,
    /// Bearer token.
    pub token: Secret,
    /// Keys of an object store.
    pub keys: Option<AccessKeys>,
}

/// Keys of an object store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessKeys {
    /// Which keys: no secret.
    pub access_key: String,
    /// What requests are signed with.
    pub secret_key: Secret,
    /// Goes with short-lived keys.
    #[serde(skip_serializing_if = "Secret::is_empty")]
    pub session_token: Secret,
    /// Until when they are good, RFC 3339; empty: for ever.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub expires: String,
}

/// A text that is never shown, and wiped when dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Remote {
    /// Whether anything in it must not be seen by others.
    #[must_use]
    pub fn has_secret(&self) -> bool {
        let secrets = [&self.client_key, &self.identity, &self.token];
        self.keys.is_some() || secrets.iter().any(|secret| !secret.is_empty())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let keys = AccessKeys { secret_key: Secret::new("s3cr3t".into()), ..AccessKeys::default() };
        let remote = Remote { keys: Some(keys), token: Secret::new("t0k3n".into()), ..Remote::default() };
        let shown = format!("{remote:?}");
        assert!(!shown.contains("s3cr3t") && !shown.contains("t0k3n"), "{shown}");
        assert!(remote.has_secret() && !Remote::default().has_secret());
        let text = toml::to_string(&remote).unwrap();
        assert_eq!(toml::from_str::<Remote>(&text).unwrap(), remote);
    }
}
