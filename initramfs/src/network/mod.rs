//! What a capture kernel needs to come onto the network as this host is on it: links, addresses and
//! routes of now, drivers of the cards, and their firmware.

mod cards;
mod describe;
mod firmware;

use core::net::IpAddr;
use std::io;
use std::path::Path;

use base::config::{Config, Link};
use base::facts::Remote;
use network::dns;
use network::netlink::{Netlink, Way};

pub use cards::{CardError, Drivers, modules};
pub use describe::{Unclonable, describe};
pub use firmware::{Firmware, FirmwareError, firmware};

/// Name servers of this host; and those behind systemd-resolved, which itself is not there in the
/// capture kernel.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Why the host's network cannot be had in the capture kernel.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The kernel does not tell.
    #[error("asking the kernel about {what}")]
    Kernel {
        /// What.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The addresses of a target's host are not known.
    #[error(
        "{url}: its host has no address that is known now, so there is no way to it that could be cloned"
    )]
    NoAddress {
        /// Which target.
        url: String,
    },
    /// The target is here.
    #[error("{url}: {addr} is an address of this host itself, which is not there after a crash")]
    Local {
        /// Which target.
        url: String,
        /// Which address.
        addr: IpAddr,
    },
    /// There is no way to any address of a target.
    #[error("{url}: there is no route to {addr}")]
    NoRoute {
        /// Which target.
        url: String,
        /// The last address that was tried.
        addr: IpAddr,
        /// Cause.
        source: io::Error,
    },
    /// There is one that cannot be cloned.
    #[error("{url}: the way to {addr} cannot be cloned; name the links as [[network]] instead")]
    Unclonable {
        /// Which target.
        url: String,
        /// Which address.
        addr: IpAddr,
        /// Why.
        source: Unclonable,
    },
    /// Each way can be cloned by itself.
    #[error("the ways to the targets cannot be cloned together; name the links as [[network]] instead")]
    Together(#[source] Unclonable),
}

/// The links that a capture is to have: those of the configuration, or this host's. `remotes` are
/// its targets on the network; without any it has none.
pub fn links(config: &Config, remotes: &[Remote]) -> Result<Vec<Link>, CloneError> {
    match config.network.links() {
        _ if remotes.is_empty() => Ok(Vec::new()),
        Some(links) => Ok(links.to_vec()),
        None => clone(remotes),
    }
}

/// The links by which this host reaches its targets now, each after those that it stands on, with
/// the addresses and routes for that. Of a host with several addresses those count to which there
/// is a way that can be cloned.
pub fn clone(remotes: &[Remote]) -> Result<Vec<Link>, CloneError> {
    let kernel = |what| move |source| CloneError::Kernel { what, source };
    let netlink = Netlink::open().map_err(kernel("its links"))?;
    let interfaces = netlink.interfaces().map_err(kernel("its links"))?;
    let addresses = netlink.addresses().map_err(kernel("its addresses"))?;
    let (mut ways, mut failed): (Vec<Way>, _) = (Vec::new(), None);
    for remote in remotes {
        let mut last = CloneError::NoAddress { url: remote.url.clone() };
        let before = ways.len();
        for &addr in &remote.addresses {
            let url = || remote.url.clone();
            let way = match netlink.way_to(addr) {
                Ok(way) if way.is_local => {
                    last = CloneError::Local { url: url(), addr };
                    continue;
                }
                Ok(way) => way,
                Err(source) => {
                    last = CloneError::NoRoute { url: url(), addr, source };
                    continue;
                }
            };
            match describe(&interfaces, &addresses, core::slice::from_ref(&way), &[]) {
                Ok(_) => ways.push(way),
                Err(source) => last = CloneError::Unclonable { url: url(), addr, source },
            }
        }
        if ways.len() == before {
            log::warn!("{}", base::log::chain(&last));
            failed = Some(last);
        }
    }
    if let (true, Some(failed)) = (ways.is_empty(), failed) {
        return Err(failed);
    }
    let servers =
        name_servers().into_iter().filter_map(|server| Some((server, netlink.way_to(server).ok()?)));
    let servers: Vec<(IpAddr, Way)> = servers.filter(|(_, way)| !way.is_local).collect();
    describe(&interfaces, &addresses, &ways, &servers).map_err(CloneError::Together)
}

fn name_servers() -> Vec<IpAddr> {
    let lists = RESOLV_CONF.iter().map(|path| dns::host_servers(Path::new(path)));
    let far = lists.map(|mut servers| {
        servers.retain(|server| !server.is_loopback());
        servers
    });
    far.into_iter().find(|servers| !servers.is_empty()).unwrap_or_default()
}
