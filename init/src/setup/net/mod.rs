//! The way to targets on the network: links by netlink, addresses, names, connections.
//!
//! No helper programs: what is in the image is this process. Every wait has a deadline and says what it waits for.

mod bond;
pub mod card;
pub mod dhcp;
pub mod dial;
pub mod dns;
pub mod links;
pub mod netlink;
pub mod retry;
pub mod runtime;
pub mod wait;

use core::cell::OnceCell;
use core::net::IpAddr;
use std::io;
use std::path::Path;

use crate::config::Link;
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

    /// Brings the links up, if that is not done yet. One that fails is told, and another one may lead to the target.
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
            |(link, error): &(String, links::BringUpError)| format!("{link}: {}", crate::log::chain(error));
        let causes: Vec<String> = all.failed.iter().map(cause).collect();
        return Err(if causes.is_empty() { "none has an address".to_owned() } else { causes.join("; ") });
    }
    log::info!("the network is up: {}", all.works.join(", "));
    Ok(Up { dns: all.dns })
}
