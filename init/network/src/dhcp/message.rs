//! The messages of DHCPv4 (RFC 2131): those that we send, and what those of servers say. Pure.
//!
//! What a server sends is not trusted: what would make no sense as an address or a route is
//! refused.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};

use base::config::{Prefix, Route};

/// Routes, and name servers, of which more are not taken.
const MOST: usize = 32;
/// An Ethernet address, as a client identifier says of itself.
const ETHERNET: u8 = 1;
/// What every network takes (RFC 791): a longest packet up to this is a mistake.
const SMALLEST_MTU: u16 = 576;
/// Bytes before the options, the magic cookie included; and what is in them, or separates options.
const HEADER: usize = 240;
const BOOT_REPLY: u8 = 2;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const PAD: u8 = 0;
const END: u8 = 255;
/// A lease that does not end.
const FOR_EVER: u32 = u32::MAX;

/// Who asks, and in which exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client<'a> {
    pub(super) mac: [u8; 6],
    pub(super) host: Option<&'a str>,
    pub(super) xid: u32,
    /// Seconds since it began to ask.
    pub(super) secs: u16,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Whoever has an address.
    Discover,
    /// The address that a server has offered.
    Request { address: Ipv4Addr, server: Ipv4Addr },
    /// More time with the address that we have.
    Renew { address: Ipv4Addr },
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discover => f.write_str("DHCPDISCOVER"),
            Self::Request { address, server } => write!(f, "DHCPREQUEST of {address} from {server}"),
            Self::Renew { address } => write!(f, "DHCPREQUEST to keep {address}"),
        }
    }
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Offer(Lease),
    Ack(Lease),
    Nak,
}

/// An address for some time, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Prefix,
    /// Routes.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Longest packet.
    pub mtu: Option<u32>,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// For how many seconds.
    pub seconds: u32,
    /// After how many seconds it is to be renewed (T1), and by any server (T2).
    pub renewal: (u32, u32),
}

/// Why a reply is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is for somebody else, or for another exchange.
    #[error("it is not for us")]
    NotOurs,
    /// It is no message of DHCP.
    #[error("it is no reply of DHCP: {0}")]
    Malformed(String),
    /// It offers no address that a host can have.
    #[error("{0} is no address for a host")]
    Address(Ipv4Addr),
    /// It says nothing useful about the network's size.
    #[error("{0} is no subnet mask")]
    Mask(Ipv4Addr),
    /// Something that every offer has.
    #[error("it does not say {0}")]
    Lacks(&'static str),
}

impl Client<'_> {
    /// The bytes of a question.
    pub(super) fn message(&self, ask: Ask) -> Result<Vec<u8>, dhcproto::error::EncodeError> {
        let mut message = Message::default();
        message.set_opcode(Opcode::BootRequest).set_xid(self.xid).set_secs(self.secs).set_chaddr(&self.mac);
        let kind = if ask == Ask::Discover { MessageType::Discover } else { MessageType::Request };
        let identifier = [&[ETHERNET], self.mac.as_slice()].concat();
        match ask {
            // Without an address we only hear what is sent to all.
            Ask::Discover | Ask::Request { .. } => message.set_flags(Flags::default().set_broadcast()),
            Ask::Renew { address } => message.set_ciaddr(address),
        };
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ClientIdentifier(identifier));
        options.insert(DhcpOption::MaxMessageSize(1500));
        if let Some(host) = self.host {
            options.insert(DhcpOption::Hostname(host.to_owned()));
        }
        if let Ask::Request { address, server } = ask {
            options.insert(DhcpOption::RequestedIpAddress(address));
            options.insert(DhcpOption::ServerIdentifier(server));
        }
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::ClasslessStaticRoute,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::InterfaceMtu,
            OptionCode::AddressLeaseTime,
            OptionCode::Renewal,
            OptionCode::Rebinding,
        ]));
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes))?;
        // Relays and servers of old take no message shorter than one of BOOTP (RFC 1542, 2.1).
        bytes.resize(bytes.len().max(300), 0);
        Ok(bytes)
    }

    /// Reads a reply to it.
    pub(super) fn reply(&self, bytes: &[u8]) -> Result<Reply, Refused> {
        let (header, options) = bytes.split_at_checked(HEADER).ok_or(Refused::NotOurs)?;
        if !self.is_to_us(header) {
            return Err(Refused::NotOurs);
        }
        let message = Message::decode(&mut Decoder::new(&without_strangers(header, options)));
        let message = message.map_err(|error| Refused::Malformed(error.to_string()))?;
        match message.opts().msg_type() {
            Some(MessageType::Offer) => lease(&message).map(Reply::Offer),
            Some(MessageType::Ack) => lease(&message).map(Reply::Ack),
            Some(MessageType::Nak) => Ok(Reply::Nak),
            _ => Err(Refused::Lacks("what kind it is of")),
        }
    }

    /// Whether a header is that of a reply to this client, in this exchange: op, hlen, xid, chaddr
    /// and the cookie (RFC 2131, 2).
    fn is_to_us(&self, header: &[u8]) -> bool {
        let at = |from: usize, what: &[u8]| header.get(from..).is_some_and(|rest| rest.starts_with(what));
        at(0, &[BOOT_REPLY])
            && at(2, &[6])
            && at(4, &self.xid.to_be_bytes())
            && at(28, &self.mac)
            && at(236, &COOKIE)
    }
}

/// A reply that has nothing in it but the options that are read, each of a length that it may have.
/// The decoder panics at some others (dhcproto 0.15: option 152 and its neighbours of a wrong
/// length), and a server may send whatever it likes.
fn without_strangers(header: &[u8], options: &[u8]) -> Vec<u8> {
    let mut bytes = header.to_vec();
    if let Some(names) = bytes.get_mut(44..236) {
        names.fill(0); // sname and file
    }
    let mut rest = options;
    while let [code, after @ ..] = rest {
        rest = match (*code, after) {
            (PAD, _) => after,
            (END, _) | (_, []) => break,
            (_, [len, after @ ..]) => {
                let Some((value, after)) = after.split_at_checked((*len).into()) else { break };
                if is_read(*code, value.len()) {
                    bytes.extend([*code, *len]);
                    bytes.extend(value);
                }
                after
            }
        };
    }
    bytes.push(END);
    bytes
}

/// Options that are read, and what lengths they have (RFC 2132, RFC 3442).
fn is_read(code: u8, len: usize) -> bool {
    match OptionCode::from(code) {
        OptionCode::MessageType => len == 1,
        OptionCode::InterfaceMtu => len == 2,
        OptionCode::SubnetMask
        | OptionCode::ServerIdentifier
        | OptionCode::AddressLeaseTime
        | OptionCode::Renewal
        | OptionCode::Rebinding => len == 4,
        OptionCode::Router | OptionCode::DomainNameServer => len > 0 && len.is_multiple_of(4),
        OptionCode::ClasslessStaticRoute => len >= 5,
        _ => false,
    }
}

fn lease(message: &Message) -> Result<Lease, Refused> {
    let options = message.opts();
    let Some(DhcpOption::ServerIdentifier(server)) = options.get(OptionCode::ServerIdentifier) else {
        return Err(Refused::Lacks("which server it comes from"));
    };
    let Some(DhcpOption::SubnetMask(mask)) = options.get(OptionCode::SubnetMask) else {
        return Err(Refused::Lacks("the subnet mask"));
    };
    let len = prefix_length(*mask).ok_or(Refused::Mask(*mask))?;
    let address = message.yiaddr();
    if !is_host(address, len) {
        return Err(Refused::Address(address));
    }
    let seconds = match options.get(OptionCode::AddressLeaseTime) {
        Some(DhcpOption::AddressLeaseTime(seconds)) => *seconds,
        _ => FOR_EVER,
    };
    let dns = match options.get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => servers.as_slice(),
        _ => &[],
    };
    let dns = dns.iter().filter(|server| is_unicast(**server)).take(MOST);
    let mtu = match options.get(OptionCode::InterfaceMtu) {
        Some(DhcpOption::InterfaceMtu(mtu)) if *mtu > SMALLEST_MTU => Some(u32::from(*mtu)),
        _ => None,
    };
    Ok(Lease {
        address: Prefix { addr: address.into(), len },
        routes: routes(message),
        dns: dns.copied().map(IpAddr::V4).collect(),
        mtu,
        server: *server,
        seconds,
        renewal: renewal(message, seconds),
    })
}

/// Classless routes stand for all others (RFC 3442); without them the first router leads
/// everywhere.
fn routes(message: &Message) -> Vec<Route> {
    let via = |router: &Ipv4Addr| is_unicast(*router).then_some(IpAddr::V4(*router));
    if let Some(DhcpOption::ClasslessStaticRoute(routes)) =
        message.opts().get(OptionCode::ClasslessStaticRoute)
        && !routes.is_empty()
    {
        let route = |network: IpAddr, len, router: &Ipv4Addr| {
            let to = super::super::netlink::network_of(network, len);
            match router.is_unspecified() {
                true if len == 0 => None, // all the world on one cable
                true => Some(Route { to, via: None }),
                false => via(router).map(|router| Route { to, via: Some(router) }),
            }
        };
        let all = routes.iter().take(MOST);
        let mut routes: Vec<_> =
            all.filter_map(|(to, router)| route(to.addr().into(), to.prefix_len(), router)).collect();
        routes.sort_by_key(|route| route.via.is_some()); // what is on the link leads to the routers
        return routes;
    }
    let Some(DhcpOption::Router(routers)) = message.opts().get(OptionCode::Router) else { return Vec::new() };
    let router = routers.iter().find_map(via);
    let everywhere = Prefix { addr: Ipv4Addr::UNSPECIFIED.into(), len: 0 };
    router.map(|router| Route { to: everywhere, via: Some(router) }).into_iter().collect()
}

/// T1 and T2: as the server says, if that makes sense, or a half and seven eighths of the time (RFC
/// 2131, 4.4.5).
fn renewal(message: &Message, seconds: u32) -> (u32, u32) {
    let options = message.opts();
    let t1 = match options.get(OptionCode::Renewal) {
        Some(DhcpOption::Renewal(t1)) => Some(*t1),
        _ => None,
    };
    let t2 = match options.get(OptionCode::Rebinding) {
        Some(DhcpOption::Rebinding(t2)) => Some(*t2),
        _ => None,
    };
    let t2 = t2.filter(|t2| *t2 < seconds).unwrap_or_else(|| seconds.saturating_sub(seconds / 8));
    let t1 = t1.filter(|t1| *t1 < t2).unwrap_or_else(|| (seconds / 2).min(t2));
    (t1, t2)
}

/// The number of ones in a mask that has zeros only behind them.
fn prefix_length(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let ones = bits.leading_ones();
    (ones > 0 && ones == bits.count_ones()).then(|| u8::try_from(ones).ok()).flatten()
}

fn is_unicast(addr: Ipv4Addr) -> bool {
    let [first, ..] = addr.octets();
    // 240.0.0.0/4 and what is above is for nobody.
    first != 0 && first < 240 && !addr.is_loopback() && !addr.is_multicast()
}

/// Whether a host can have an address in a network: neither all zeros nor all ones behind the
/// prefix.
fn is_host(addr: Ipv4Addr, len: u8) -> bool {
    let host_bits = u32::MAX.checked_shr(len.into()).unwrap_or(0);
    let host = addr.to_bits() & host_bits;
    is_unicast(addr) && (len >= 31 || (host != 0 && host != host_bits))
}

#[cfg(test)]
mod tests;
