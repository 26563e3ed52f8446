//! Connections to the host of a target: by the addresses that the loader recorded, then by DNS.

use core::net::{IpAddr, SocketAddr};
use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Url;

/// For one address to answer. Twice as long as it takes the first lost packet to be sent again, twice (RFC 6298).
const ANSWER: Duration = Duration::from_secs(10);
/// Milliseconds for which sent data may stay without any acknowledgement before the kernel gives the connection up.
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

    /// Connects to the first address that answers: once; whoever calls tries again.
    pub async fn connect(&self) -> Result<TcpStream, DialError> {
        let mut last = None;
        for &addr in &self.addresses().await {
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
        Err(last.unwrap_or_else(|| DialError::NoAddress { host: self.host.clone() }))
    }

    /// The same without asking anybody.
    #[must_use]
    pub fn addresses_now(&self) -> Vec<IpAddr> {
        self.host.parse().map_or_else(|_| self.pinned.clone(), |addr| vec![addr])
    }

    async fn addresses(&self) -> Vec<IpAddr> {
        match self.host.parse() {
            Ok(addr) => vec![addr],
            Err(_) => self.pinned.clone(),
        }
    }
}

/// Small requests wait for answers, so they are not held back; and a peer that is gone is noticed. Only advice: without, the caller's
/// own limits of time hold.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(stream, sockopt::TcpUserTimeout, &UNACKNOWLEDGED);
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &15);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &15);
}
