//! Targets on the network, and the way to them: links by netlink, addresses, names, connections;
//! SSH, NFS, HTTPS and S3.
//!
//! ## Start here
//! - [`open`]: opens a target of these kinds. [`verify`] tries its certificates and keys on the
//!   host.
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
mod digest;
pub mod dns;
mod http;
pub mod links;
pub mod netlink;
mod nfs;
mod retry;
mod runtime;
mod ssh;
mod wait;

use core::cell::OnceCell;
use core::net::IpAddr;
use std::io;
use std::path::Path;

use base::config::{self, Link, TargetKind};
use base::facts::Remote;
use vmcore::target::{Capture, Target, TargetError};

use links::BroughtUp;
use netlink::Netlink;

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
    match config.kind {
        TargetKind::Nfs => Ok(Box::new(nfs::Nfs::open(config, capture, network)?)),
        TargetKind::Ssh => Ok(Box::new(ssh::Ssh::open(config, capture, network)?)),
        TargetKind::Https | TargetKind::S3 => Ok(Box::new(http::Http::open(config, capture, network)?)),
        kind @ (TargetKind::Filesystem | TargetKind::Raw) => Err(TargetError::not_built(kind)),
    }
}

/// Whether the certificates, keys and tokens that the loader recorded for a target can be used. It
/// is better to know that when the image is loaded than after the crash.
pub fn verify(config: &config::Target, remote: &Remote) -> Result<(), TargetError> {
    match config.kind {
        TargetKind::Https | TargetKind::S3 => http::verify(config, remote),
        _ => Ok(()),
    }
}

/// The error for a target whose configuration names no URL; the parser of the configuration refuses
/// it before.
fn no_url() -> TargetError {
    TargetError::new("no url is given")
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
    pub fn up(&self, heartbeat: &dyn Fn()) -> Result<&Up, NetError> {
        heartbeat();
        let links = match &self.links {
            Some(links) if links.is_empty() => return Err(NetError::NoLinks),
            links => links.as_deref(),
        };
        if self.up.get().is_none() {
            let up = match links {
                None => Ok(Up { dns: dns::host_servers(Path::new("/etc/resolv.conf")) }),
                Some(links) => {
                    let netlink = Netlink::open().map_err(NetError::Netlink)?;
                    outcome(links::bring_up(&netlink, links, heartbeat))
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
