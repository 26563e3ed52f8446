//! Where a target on the network is: `ssh://user@host:port/path`, `nfs://host/export`, `https://host/prefix/`.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address of a target: no query, no fragment, no password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Url {
    /// What stands before `://`.
    pub scheme: Scheme,
    /// Who we are there.
    pub user: Option<String>,
    /// Host name or address; of an IPv6 address without the brackets.
    pub host: String,
    /// Port, if it is not the usual one.
    pub port: Option<u16>,
    /// Begins with a slash, does not end with one: `/` alone is empty.
    pub path: String,
}

/// How a host is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// SFTP.
    Ssh,
    /// NFS.
    Nfs,
    /// HTTP in the clear.
    Http,
    /// HTTP over TLS.
    Https,
}

/// No address of a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no URL of a target: write it as scheme://user@host:port/path, without . and .. in the path"
)]
pub struct UrlError(String);

const SCHEMES: [(&str, Scheme, u16); 4] = [
    ("ssh", Scheme::Ssh, 22),
    ("nfs", Scheme::Nfs, 2049),
    ("http", Scheme::Http, 80),
    ("https", Scheme::Https, 443),
];

impl Scheme {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        SCHEMES.iter().find(|(_, scheme, _)| *scheme == self).map_or("", |(name, ..)| name)
    }

    fn port(self) -> u16 {
        SCHEMES.iter().find(|(_, scheme, _)| *scheme == self).map_or(0, |&(.., port)| port)
    }
}

impl Url {
    /// The port, given or usual.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or_else(|| self.scheme.port())
    }

    /// Host, and port if it is given, as in an HTTP `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        self.port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        parse(text).ok_or_else(|| UrlError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Url> {
    let (scheme, rest) = text.split_once("://")?;
    let &(_, scheme, _) = SCHEMES.iter().find(|(name, ..)| *name == scheme)?;
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let (user, host_port) = match authority.rsplit_once('@') {
        Some((user, host_port)) => (Some(user), host_port),
        None => (None, authority),
    };
    let (host, port) = match host_port.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<core::net::Ipv6Addr>().ok()?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => host_port.split_once(':').map_or((host_port, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map(str::parse::<u16>).transpose().ok()?;
    let path = path.trim_end_matches('/');
    let plain =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%\"<>\\^`{|}".contains(&byte));
    let clean = !host.is_empty()
        && plain(text)
        && user.is_none_or(|user| !user.is_empty() && !user.contains(':'))
        && port != Some(0)
        && path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
    clean.then(|| Url {
        scheme,
        user: user.map(str::to_owned),
        host: host.to_owned(),
        port,
        path: path.to_owned(),
    })
}

impl TryFrom<String> for Url {
    type Error = UrlError;

    fn try_from(text: String) -> Result<Self, UrlError> {
        text.parse()
    }
}

impl From<Url> for String {
    fn from(url: Url) -> Self {
        url.to_string()
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme.name())?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        write!(f, "{}{}", self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_targets() {
        let url: Url = "ssh://dump@[2001:db8::1]:2222/var/crash/".parse().unwrap();
        assert_eq!((url.user.as_deref(), &*url.host, url.port()), (Some("dump"), "2001:db8::1", 2222));
        assert_eq!((&*url.path, &*url.authority()), ("/var/crash", "[2001:db8::1]:2222"));
        for (text, port) in
            [("https://h", 443), ("nfs://h/export/a", 2049), ("http://10.0.0.1:8080/b/c", 8080)]
        {
            let url: Url = text.parse().unwrap();
            assert_eq!((url.port(), url.to_string()), (port, text.to_owned()));
        }
        for bad in [
            "",
            "h",
            "ftp://h/",
            "https://",
            "https://:1",
            "https://h:0",
            "https://h:x",
            "https://h:99999",
            "ssh://@h",
            "ssh://u:p@h",
            "https://h/a/../b",
            "https://h//a",
            "https://h/?q",
            "https://h/ a",
            "https://[h]/",
            "nfs://h/%2e",
        ] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }
}
