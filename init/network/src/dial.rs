//! Connections to the host of a target: by the addresses that the loader recorded, then by DNS.

use core::net::{IpAddr, SocketAddr};
use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::dns::{self, DnsError};
use base::beat;
use base::config::Url;

/// For one address to answer. Twice as long as it takes the first lost packet to be sent again,
/// twice (RFC 6298).
const ANSWER: Duration = Duration::from_secs(10);
/// Milliseconds for which sent data may stay without any acknowledgement before the kernel gives
/// the connection up.
const UNACKNOWLEDGED: u32 = 60_000;

/// The host of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name, as configured.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Addresses that it had when the image was loaded.
    pub pinned: Vec<IpAddr>,
    /// Name servers to ask where none of those answers.
    pub dns: Vec<IpAddr>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody knows its address.
    #[error("host {host} has no address that is known")]
    NoAddress {
        /// Which host.
        host: String,
        /// What the name servers say.
        source: DnsError,
    },
    /// It does not answer.
    #[error("connecting to {host} at {at}")]
    Connect {
        /// Which host.
        host: String,
        /// The last address that was tried.
        at: SocketAddr,
        /// Cause.
        source: io::Error,
    },
}

impl Peer {
    /// The host of a URL.
    #[must_use]
    pub fn of(url: &Url, pinned: &[IpAddr], dns: &[IpAddr]) -> Self {
        Self { host: url.host.clone(), port: url.port(), pinned: pinned.to_vec(), dns: dns.to_vec() }
    }

    /// Connects to the first address that answers: once; whoever calls tries again. Name servers
    /// are asked when none of the addresses that the loader found answers.
    pub async fn connect(&self) -> Result<TcpStream, DialError> {
        let known = self.addresses_now();
        let failed = match self.connect_to(&known).await {
            Ok(stream) => return Ok(stream),
            Err(failed) => failed,
        };
        if self.is_address() {
            return Err(failed.unwrap_or_else(|| self.no_address(DnsError::NoServer)));
        }
        let found = match dns::lookup(&self.host, &self.dns).await {
            Ok(found) => found,
            Err(error) => return Err(failed.unwrap_or_else(|| self.no_address(error))),
        };
        let new: Vec<IpAddr> = found.into_iter().filter(|addr| !known.contains(addr)).collect();
        match self.connect_to(&new).await {
            Ok(stream) => Ok(stream),
            Err(last) => Err(last
                .or(failed)
                .unwrap_or_else(|| self.no_address(DnsError::NoAddress(self.host.clone())))),
        }
    }

    /// Connects to the first address that answers. Fails with the error of the last address, or with
    /// `None` if the list is empty.
    async fn connect_to(&self, addresses: &[IpAddr]) -> Result<TcpStream, Option<DialError>> {
        let mut last = None;
        for &addr in addresses {
            beat::alive(); // each is waited for in turn
            let at = SocketAddr::new(addr, self.port);
            let connecting = timeout(ANSWER, TcpStream::connect(at)).await;
            match connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    prepare(&stream);
                    return Ok(stream);
                }
                Err(source) => last = Some(DialError::Connect { host: self.host.clone(), at, source }),
            }
        }
        Err(last)
    }

    /// Its addresses, without asking anybody.
    #[must_use]
    pub fn addresses_now(&self) -> Vec<IpAddr> {
        self.host.parse().map_or_else(|_| self.pinned.clone(), |addr| vec![addr])
    }

    /// Its addresses: those that the loader found, then what name servers say now. Not to be called
    /// on a thread that runs futures.
    pub fn resolve_blocking(&self) -> Result<Vec<IpAddr>, DialError> {
        let mut all = self.addresses_now();
        if self.is_address() {
            return Ok(all);
        }
        let asking = async { dns::lookup(&self.host, &self.dns).await };
        let runtime = Builder::new_current_thread().enable_io().enable_time().build();
        let found = runtime.map_err(|source| {
            let server = self.dns.first().copied().unwrap_or(IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED));
            DnsError::Ask { server, source }
        });
        match found.and_then(|runtime| runtime.block_on(asking)) {
            Ok(found) => {
                let new: Vec<IpAddr> = found.into_iter().filter(|addr| !all.contains(addr)).collect();
                all.extend(new);
            }
            Err(error) if all.is_empty() => return Err(self.no_address(error)),
            Err(error) => log::warn!("{}; what is known is used", base::log::chain(&error)),
        }
        Ok(all)
    }

    fn is_address(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }

    fn no_address(&self, source: DnsError) -> DialError {
        DialError::NoAddress { host: self.host.clone(), source }
    }
}

/// Small requests wait for answers, so they are not held back; and a peer that is gone is noticed.
/// Only advice: without, the caller's own limits of time hold.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(stream, sockopt::TcpUserTimeout, &UNACKNOWLEDGED);
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &15);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &15);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn peer(host: &str, port: u16, pinned: &[&str]) -> Peer {
        let pinned = pinned.iter().map(|addr| addr.parse().unwrap()).collect();
        Peer { host: host.to_owned(), port, pinned, dns: Vec::new() }
    }

    #[test]
    fn pinned_addresses_are_tried_in_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let stream = runtime.block_on(peer("dumps.example.com", port, &["127.0.0.2", "127.0.0.1"]).connect());
        assert_eq!(stream.unwrap().peer_addr().unwrap(), listener.local_addr().unwrap());
        let dead = runtime.block_on(peer("dumps.example.com", port, &["127.0.0.2"]).connect());
        assert!(
            matches!(dead, Err(DialError::Connect { .. })),
            "the cause is the connection, not DNS: {dead:?}"
        );
        let unknown = runtime.block_on(peer("dumps.example.com", port, &[]).connect());
        assert!(
            matches!(unknown, Err(DialError::NoAddress { source: DnsError::NoServer, .. })),
            "{unknown:?}"
        );
    }

    #[test]
    fn an_address_needs_no_name_server() {
        let plain = peer("192.0.2.9", 22, &[]);
        assert_eq!(plain.resolve_blocking().unwrap(), plain.addresses_now());
        let pinned = peer("dumps.example.com", 22, &["192.0.2.1"]);
        assert_eq!(pinned.resolve_blocking().unwrap(), pinned.pinned, "without DNS");
        assert!(peer("dumps.example.com", 22, &[]).resolve_blocking().is_err());
    }
}
