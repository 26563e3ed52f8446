//! Targets on the network, and the way to them: links by netlink, addresses, names, connections;
//! SSH, NFS, HTTPS and S3.
//!
//! ## Start here
//! - [`open`]: opens a target of these kinds, each in a module of its own: `ssh`, `nfs`, and `http`
//!   for HTTPS and S3. [`verify`] tries its certificates and keys on the host.
//! - [`Network`]: the links of a capture, brought up when the first target needs them.
//! - [`links`], [`netlink`], [`card`]: cards, bonds, VLANs, addresses and routes.
//! - [`dhcp`], [`dns`], [`dial`]: addresses of this machine, addresses of others, connections.
//!
//! No helper program is needed: all of it is in this process. Every wait has a deadline and says
//! what it waits for.

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test may overflow: it fails")
)]

mod bond;
pub mod card;
pub mod dhcp;
pub mod dial;
pub mod dns;
mod http;
pub mod links;
pub mod netlink;
mod nfs;
mod pace;
mod retry;
mod runtime;
mod ssh;
mod wait;

use core::cell::OnceCell;
use core::net::IpAddr;
use std::io;
use std::path::Path;
use std::time::Duration;

use base::beat;
use base::config::{self, Link, Place, Size, Url};
use base::facts::Remote;
use vmcore::target::{Capture, Target, TargetError};

use dial::Peer;
use links::BroughtUp;
use netlink::Netlink;
use pace::Pace;

/// The network of a capture, brought up when the first target wants it.
#[derive(Debug, Default)]
pub struct Network {
    /// None for a machine whose network is up already, by others.
    links: Option<Vec<Link>>,
    /// What came of it, or why nothing: it is not waited for again for each target.
    up: OnceCell<Result<Up, String>>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Up {
    /// Name servers.
    pub dns: Vec<IpAddr>,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Neither configuration nor facts name a link.
    #[error("no network is configured, and the loader recorded none")]
    NoLinks,
    /// The kernel has no netlink.
    #[error("asking the kernel about its links")]
    Netlink(#[source] io::Error),
    /// None came up.
    #[error("no link works: {causes}")]
    NoneWorks {
        /// What is wrong with each.
        causes: String,
    },
}

impl From<NetError> for TargetError {
    fn from(error: NetError) -> Self {
        Self::doing("bringing up the network", error)
    }
}

/// Opens a target on the network. Fails for a kind of target that is not on the network.
pub fn open(
    config: &config::Target,
    capture: Capture<'_>,
    network: &Network,
) -> Result<Box<dyn Target>, TargetError> {
    let host = |url, patience| Host::find(config, url, patience, capture, network);
    match &config.place {
        Place::Nfs(nfs) => {
            Ok(Box::new(nfs::Nfs::open(nfs, &host(&nfs.url, (nfs.retry, nfs.min_rate))?, capture)?))
        }
        Place::Ssh(ssh) => {
            Ok(Box::new(ssh::Ssh::open(ssh, &host(&ssh.url, (ssh.retry, ssh.min_rate))?, capture)?))
        }
        Place::Https(web) => {
            Ok(Box::new(http::Http::web(web, &host(&web.url, (web.retry, web.min_rate))?, capture)?))
        }
        Place::S3(store) => {
            Ok(Box::new(http::Http::s3(store, &host(&store.url, (store.retry, store.min_rate))?, capture)?))
        }
        Place::Filesystem(_) | Place::Raw(_) => Err(TargetError::not_built(config.kind())),
    }
}

/// Whether the certificates, keys and tokens that the loader recorded for a target can be used. It
/// is better to know that when the image is loaded than after the crash.
pub fn verify(config: &config::Target, remote: &Remote) -> Result<(), TargetError> {
    match &config.place {
        Place::Https(web) => http::verify(&web.url, &web.known_by, remote),
        Place::S3(store) => http::verify(&store.url, &store.known_by, remote),
        Place::Ssh(_) | Place::Nfs(_) | Place::Filesystem(_) | Place::Raw(_) => Ok(()),
    }
}

/// The host of a target, and by what it is reached: what the opener of each kind begins with.
struct Host<'a> {
    url: &'a Url,
    /// Its addresses: those that the loader recorded, and name servers that know others.
    peer: Peer,
    /// What the loader recorded for the target.
    remote: Option<&'a Remote>,
    /// How long the first answer is waited for.
    wait: Duration,
    /// How long a failure may last before the target is given up.
    retry: Duration,
    /// Bytes per second that it must take on average; 0: any.
    min_rate: u64,
}

impl<'a> Host<'a> {
    /// Brings up the network. The host itself is not asked yet.
    fn find(
        config: &config::Target,
        url: &'a Url,
        (retry, min_rate): (u64, Size),
        capture: Capture<'a>,
        network: &Network,
    ) -> Result<Self, TargetError> {
        let up = network.up()?;
        let remote = capture.remote(config);
        let recorded = remote.map(|remote| remote.addresses.as_slice()).unwrap_or_default();
        let wait = Duration::from_secs(config.wait.max(1));
        let retry = Duration::from_secs(retry.max(1));
        let min_rate = min_rate.0;
        Ok(Self { url, peer: Peer::of(url, recorded, &up.dns), remote, wait, retry, min_rate })
    }

    /// The least pace that is taken, from now on. An outage that is forgiven must not fill a window.
    fn pace(&self) -> Pace {
        Pace::new(self.min_rate, self.retry.saturating_mul(2))
    }

    /// What failed, with the URL before it.
    fn failed<E>(&self, what: &str) -> impl FnOnce(E) -> TargetError
    where
        E: Into<Box<dyn core::error::Error + Send + Sync>>,
    {
        let doing = format!("{}: {what}", self.url);
        move |cause| TargetError::doing(doing, cause)
    }
}

impl Network {
    /// A network of these links.
    #[must_use]
    pub fn of(links: Vec<Link>) -> Self {
        Self { links: Some(links), up: OnceCell::new() }
    }

    /// The network that this machine has: for tests and for the host side.
    #[must_use]
    pub fn host() -> Self {
        Self::default()
    }

    /// Seconds that it may take to bring it up.
    #[must_use]
    pub fn patience(&self) -> u64 {
        let links = self.links.iter().flatten();
        if self.up.get().is_some() { 0 } else { links.map(Link::wait).fold(0, u64::saturating_add) }
    }

    /// Brings the links up, if that is not done yet. One that fails is told, and another one may
    /// lead to the target.
    pub fn up(&self) -> Result<&Up, NetError> {
        beat::alive();
        let links = match &self.links {
            Some(links) if links.is_empty() => return Err(NetError::NoLinks),
            links => links.as_deref(),
        };
        if self.up.get().is_none() {
            let up = match links {
                None => Ok(Up { dns: dns::host_servers(Path::new("/etc/resolv.conf")) }),
                Some(links) => {
                    let netlink = Netlink::open().map_err(NetError::Netlink)?;
                    outcome(links::bring_up(&netlink, links))
                }
            };
            let _ = self.up.set(up); // it is empty
        }
        match self.up.get() {
            Some(Ok(up)) => Ok(up),
            Some(Err(causes)) => Err(NetError::NoneWorks { causes: causes.clone() }),
            None => Err(NetError::NoLinks),
        }
    }
}

fn outcome(all: BroughtUp) -> Result<Up, String> {
    if all.works.is_empty() {
        let cause =
            |(link, error): &(String, links::BringUpError)| format!("{link}: {}", base::log::chain(error));
        let causes: Vec<String> = all.failed.iter().map(cause).collect();
        return Err(if causes.is_empty() { "none has an address".to_owned() } else { causes.join("; ") });
    }
    log::info!("the network is up: {}", all.works.join(", "));
    Ok(Up { dns: all.dns })
}
