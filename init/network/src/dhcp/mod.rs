//! DHCPv4 (RFC 2131) by a UDP socket that is bound to one link: an address when there is none yet,
//! and more time with it later.
//!
//! Replies are asked for by broadcast; a server that sends them to the new address all the same is
//! not heard.

mod message;

use core::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::ffi::OsString;
use std::io;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use nix::unistd::gethostname;

use crate::retry::{random, random_part};
use base::beat;

use message::{Ask, Client, Reply};
pub use message::{Lease, Refused};

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// Longest datagram that is read: we say that we take 1500 bytes.
const MAX_REPLY: usize = 2048;
/// Pauses before a question is repeated, seconds, each give or take one (RFC 2131, 4.1); not up to
/// 64 as there, since a link has 60.
const PAUSES: [u64; 4] = [4, 8, 16, 16];
/// How often a server that has offered an address is asked for it before another offer is looked
/// for.
const REQUESTS: usize = 3;
/// How long a read of the socket waits, so that PID 1 hears of it.
const TICK: Duration = Duration::from_millis(500);
/// Between attempts to renew a lease at least (RFC 2131, 4.4.5).
const RENEW_PAUSE: u64 = 60;

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    /// The link is no Ethernet.
    #[error("the link has no MAC address")]
    NoMac,
    /// The socket.
    #[error("{what} on {interface}")]
    Socket {
        /// What was being done.
        what: &'static str,
        /// On which link.
        interface: String,
        /// Cause.
        source: io::Error,
    },
    /// There were replies, and none that could be used.
    #[error("a reply was refused")]
    Refused(#[source] Refused),
}

/// A conversation with the servers of a link.
struct Talk<'a> {
    socket: UdpSocket,
    interface: &'a str,
    client: Client<'a>,
    since: Instant,
    until: Instant,
    /// Whether the capture waits for it.
    is_waited_for: bool,
    refused: Option<Refused>,
}

/// Gets an address for a link; `None` if `limit` is over without one.
pub(super) fn acquire(interface: &str, mac: [u8; 6], limit: Duration) -> Result<Option<Lease>, DhcpError> {
    let host = host_name();
    let now = Instant::now();
    let mut talk = Talk {
        socket: open(interface)?,
        interface,
        client: Client { mac, host: host.as_deref(), xid: 0, secs: 0 },
        since: now,
        until: now.checked_add(limit).unwrap_or(now),
        is_waited_for: true,
        refused: None,
    };
    let all = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
    while Instant::now() < talk.until {
        talk.client.xid = transaction();
        let Some(Reply::Offer(offer)) =
            talk.ask(Ask::Discover, all, usize::MAX, &|reply| matches!(reply, Reply::Offer(_)))
        else {
            break;
        };
        log::info!("{interface}: {} offers {}", offer.server, offer.address);
        let IpAddr::V4(address) = offer.address.addr else { continue };
        let request = Ask::Request { address, server: offer.server };
        match talk.ask(request, all, REQUESTS, &|reply| !matches!(reply, Reply::Offer(_))) {
            Some(Reply::Ack(lease)) => return Ok(Some(lease)),
            Some(_) => {
                log::warn!("{interface}: {} has taken its offer back", offer.server);
                thread::sleep(Duration::from_secs(1)); // two servers that disagree are not asked in a loop
            }
            None => log::warn!("{interface}: {} has not confirmed its offer", offer.server),
        }
    }
    talk.refused.map_or(Ok(None), |why| Err(DhcpError::Refused(why)))
}

/// The lease in bytes that claim to be a server's offer or confirmation; `None` if they are not.
#[must_use]
pub fn lease_in(bytes: &[u8], mac: [u8; 6], xid: u32) -> Option<Lease> {
    match (Client { mac, host: None, xid, secs: 0 }).reply(bytes) {
        Ok(Reply::Offer(lease) | Reply::Ack(lease)) => Some(lease),
        _ => None,
    }
}

impl Talk<'_> {
    /// Asks up to `times` until a reply is what is wanted.
    fn ask(
        &mut self,
        ask: Ask,
        to: SocketAddrV4,
        times: usize,
        is_wanted: &dyn Fn(&Reply) -> bool,
    ) -> Option<Reply> {
        let last = PAUSES.iter().rev().take(1).cycle();
        for pause in PAUSES.iter().chain(last).take(times) {
            let now = Instant::now();
            if now >= self.until {
                return None;
            }
            self.client.secs = u16::try_from(self.since.elapsed().as_secs()).unwrap_or(u16::MAX);
            match self.client.message(ask) {
                // A link that is just coming up takes nothing yet.
                Ok(bytes) => match self.socket.send_to(&bytes, to) {
                    Ok(_) => log::debug!("{}: {ask} sent to {to}", self.interface),
                    Err(error) => log::warn!("{}: sending {ask} to {to}: {error}", self.interface),
                },
                Err(error) => log::warn!("{}: {ask}: {error}", self.interface),
            }
            let random = random_part(Duration::from_secs(2));
            let pause = Duration::from_secs(pause.saturating_sub(1)).saturating_add(random);
            let until = now.checked_add(pause).unwrap_or(now).min(self.until);
            if let Some(reply) = self.listen(until, is_wanted) {
                return Some(reply);
            }
        }
        None
    }

    fn listen(&mut self, until: Instant, is_wanted: &dyn Fn(&Reply) -> bool) -> Option<Reply> {
        let mut buffer = [0; MAX_REPLY];
        loop {
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            if self.is_waited_for {
                beat::alive();
            }
            let _ = self.socket.set_read_timeout(Some(left.min(TICK)));
            let received = match self.socket.recv_from(&mut buffer) {
                Ok((len, _)) => buffer.get(..len).unwrap_or_default(),
                Err(error) => {
                    if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
                        thread::sleep(TICK.min(left)); // the link is down: that is no reason to spin
                    }
                    continue;
                }
            };
            match self.client.reply(received) {
                Ok(reply) if is_wanted(&reply) => return Some(reply),
                Ok(_) | Err(Refused::NotOurs) => (),
                Err(why) => self.refused = Some(why),
            }
        }
    }
}

fn transaction() -> u32 {
    let [a, b, c, d, ..] = random().to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The host's name, where the capture kernel has been given one.
fn host_name() -> Option<String> {
    let name = gethostname().ok()?.into_string().ok()?;
    (!name.is_empty() && !name.starts_with('(')).then_some(name)
}

fn open(interface: &str) -> Result<UdpSocket, DhcpError> {
    let failed = |what: &'static str| {
        let interface = interface.to_owned();
        move |errno: nix::Error| DhcpError::Socket { what, interface, source: errno.into() }
    };
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(failed("opening a socket"))?;
    setsockopt(&socket, sockopt::ReuseAddr, &true).map_err(failed("sharing the port"))?;
    setsockopt(&socket, sockopt::Broadcast, &true).map_err(failed("allowing broadcasts"))?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(interface))
        .map_err(failed("binding a socket"))?;
    let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT));
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &any).map_err(failed("binding port 68"))?;
    Ok(UdpSocket::from(socket))
}

/// Renews a lease in a thread of its own for as long as the capture goes on. The address stays
/// whatever the server says: without it the capture would be lost for certain.
pub(super) fn keep(interface: &str, mac: [u8; 6], lease: &Lease) {
    if lease.seconds == u32::MAX {
        return;
    }
    let (interface, lease) = (interface.to_owned(), lease.clone());
    let body = move || {
        if let Err(error) = renew_for_ever(&interface, mac, lease) {
            log::warn!("the lease is not renewed: {}", base::log::chain(&error));
        }
    };
    if let Err(error) = thread::Builder::new().name("lease".to_owned()).spawn(body) {
        log::warn!("no thread to renew the lease: {error}");
    }
}

fn renew_for_ever(interface: &str, mac: [u8; 6], mut lease: Lease) -> Result<(), DhcpError> {
    let IpAddr::V4(address) = lease.address.addr else { return Ok(()) };
    let mut begun = Instant::now();
    let mut pause = Duration::from_secs(lease.renewal.0.into());
    loop {
        thread::sleep(pause.max(Duration::from_secs(1)));
        let held = begun.elapsed().as_secs();
        if held >= u64::from(lease.seconds) {
            log::warn!("{interface}: the lease of {address} is over, and was not renewed; the address stays");
            return Ok(());
        }
        let is_late = held >= u64::from(lease.renewal.1);
        let server = if is_late { Ipv4Addr::BROADCAST } else { lease.server };
        let host = host_name();
        let now = Instant::now();
        let mut talk = Talk {
            socket: open(interface)?,
            interface,
            client: Client { mac, host: host.as_deref(), xid: transaction(), secs: 0 },
            since: now,
            until: now.checked_add(Duration::from_secs(5)).unwrap_or(now),
            is_waited_for: false, // that a lease goes on says nothing about the capture
            refused: None,
        };
        let to = SocketAddrV4::new(server, SERVER_PORT);
        match talk.ask(Ask::Renew { address }, to, 1, &|reply| !matches!(reply, Reply::Offer(_))) {
            Some(Reply::Ack(new)) if new.address.addr == lease.address.addr => {
                log::info!("{interface}: {} may be kept for another {} s", new.address, new.seconds);
                (lease, begun) = (new, now);
                pause = Duration::from_secs(lease.renewal.0.into());
            }
            Some(_) => {
                log::warn!("{interface}: {server} wants {address} back; it stays until the capture is over");
                return Ok(());
            }
            None => {
                let next = if is_late { lease.seconds } else { lease.renewal.1 };
                let left = u64::from(next).saturating_sub(begun.elapsed().as_secs());
                pause = Duration::from_secs((left / 2).max(RENEW_PAUSE.min(left)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_not_there_is_an_error_at_once() {
        let error = acquire("no-such-link", [2; 6], Duration::from_secs(5)).unwrap_err();
        assert!(error.to_string().contains("no-such-link"), "{error}");
    }

    #[test]
    fn transactions_differ() {
        assert_ne!(transaction(), transaction());
    }
}
