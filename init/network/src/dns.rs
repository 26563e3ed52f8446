//! Names of hosts: A and AAAA records, asked of all name servers in turn within a bounded time.
//!
//! A stub: no cache, no search list, no DNSSEC. Only answers to what was asked are taken.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::retry::random;

const PORT: u16 = 53;
/// For one server to answer once.
const ANSWER: Duration = Duration::from_secs(2);
/// For a name, whatever happens.
const LOOKUP: Duration = Duration::from_secs(10);
/// How often each server is asked.
const ROUNDS: usize = 2;
/// Servers of which more are not asked.
const MAX_SERVERS: usize = 4;
/// Aliases that are followed.
const MAX_ALIASES: usize = 8;
/// Addresses of which more are not taken.
const MAX_ADDRESSES: usize = 16;
/// A header (RFC 1035, 4.1.1), and the least that an entry behind it takes.
const HEADER: usize = 12;
const SMALLEST_ENTRY: usize = 5;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// There is nobody to ask.
    #[error("no name server is known")]
    NoServer,
    /// It is no name of a host.
    #[error("{0:?} is no name of a host")]
    Name(String),
    /// There is no such host.
    #[error("{0} does not exist, says name server {1}")]
    NoSuchHost(String, IpAddr),
    /// It has no address.
    #[error("{0} has no address")]
    NoAddress(String),
    /// The name server says that it cannot tell.
    #[error("name server {server} answers {code}")]
    Server {
        /// Which.
        server: IpAddr,
        /// Its response code.
        code: &'static str,
    },
    /// It cannot be reached, or its answer is none.
    #[error("asking name server {server}")]
    Ask {
        /// Which.
        server: IpAddr,
        /// Cause.
        source: io::Error,
    },
    /// The time is over.
    #[error("no answer about {host} within {seconds} s from any of {servers} name servers")]
    TimeIsUp {
        /// Which host.
        host: String,
        /// How many were asked.
        servers: usize,
        /// How long.
        seconds: u64,
    },
}

/// What an answer comes down to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Addresses(Vec<IpAddr>),
    Alias(String),
    Nothing,
    NoSuchHost,
    Cut,
}

/// Why a datagram is no answer.
#[derive(Debug)]
enum Bad {
    NotOurs,
    Code(RCODE),
}

/// The addresses of a host, those of IPv4 first.
pub async fn lookup(host: &str, servers: &[IpAddr]) -> Result<Vec<IpAddr>, DnsError> {
    lookup_at(host, &servers.iter().map(|&server| SocketAddr::new(server, PORT)).collect::<Vec<_>>()).await
}

/// The same from servers at ports of their own.
pub async fn lookup_at(host: &str, servers: &[SocketAddr]) -> Result<Vec<IpAddr>, DnsError> {
    let servers = servers.get(..MAX_SERVERS).unwrap_or(servers);
    if servers.is_empty() {
        return Err(DnsError::NoServer);
    }
    let both = async { tokio::join!(follow(host, TYPE::A, servers), follow(host, TYPE::AAAA, servers)) };
    let Ok((v4, v6)) = timeout(LOOKUP, both).await else {
        let (host, servers, seconds) = (host.to_owned(), servers.len(), LOOKUP.as_secs());
        return Err(DnsError::TimeIsUp { host, servers, seconds });
    };
    match (v4, v6) {
        (Ok(mut v4), Ok(v6)) => {
            v4.extend(v6);
            if v4.is_empty() { Err(DnsError::NoAddress(host.to_owned())) } else { Ok(v4) }
        }
        (Ok(some), Err(_)) | (Err(_), Ok(some)) if !some.is_empty() => Ok(some),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

/// Follows aliases where a server does not do so itself.
async fn follow(host: &str, kind: TYPE, servers: &[SocketAddr]) -> Result<Vec<IpAddr>, DnsError> {
    let mut name = host.trim_end_matches('.').to_owned();
    for _ in 0..MAX_ALIASES {
        match ask_all(&name, kind, servers).await? {
            Answer::Addresses(found) => return Ok(found),
            Answer::Alias(other) => name = other,
            _ => return Ok(Vec::new()),
        }
    }
    Ok(Vec::new())
}

async fn ask_all(name: &str, kind: TYPE, servers: &[SocketAddr]) -> Result<Answer, DnsError> {
    let mut last = DnsError::NoServer;
    for _ in 0..ROUNDS {
        for server in servers {
            match ask(name, kind, *server).await {
                Ok(Answer::NoSuchHost) => return Err(DnsError::NoSuchHost(name.to_owned(), server.ip())),
                Ok(answer) => return Ok(answer),
                Err(error @ DnsError::Name(_)) => return Err(error),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

/// A response code, as `dig` prints it (RFC 1035, section 4.1.1).
fn code_text(code: RCODE) -> &'static str {
    match code {
        RCODE::FormatError => "FORMERR",
        RCODE::ServerFailure => "SERVFAIL",
        RCODE::NotImplemented => "NOTIMP",
        RCODE::Refused => "REFUSED",
        _ => "an unusual response code",
    }
}

async fn ask(name: &str, kind: TYPE, server: SocketAddr) -> Result<Answer, DnsError> {
    let [a, b, ..] = random().to_le_bytes();
    let id = u16::from_le_bytes([a, b]);
    let question = question(id, name, kind)?;
    let failed = |source| DnsError::Ask { server: server.ip(), source };
    let code = |code: RCODE| DnsError::Server { server: server.ip(), code: code_text(code) };
    let by_udp = timeout(ANSWER, by_udp(&question, id, name, kind, server));
    match by_udp.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)? {
        Err(Bad::Code(is)) => return Err(code(is)),
        Ok(Answer::Cut) => (),
        Ok(answer) => return Ok(answer),
        Err(Bad::NotOurs) => return Err(failed(io::ErrorKind::InvalidData.into())),
    }
    let by_tcp = timeout(ANSWER, by_tcp(&question, server)).await;
    let bytes = by_tcp.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
    match read(&bytes, id, name, kind) {
        Ok(answer) => Ok(answer),
        Err(Bad::Code(is)) => Err(code(is)),
        Err(Bad::NotOurs) => Err(failed(io::ErrorKind::InvalidData.into())),
    }
}

/// Waits for an answer to this very question: what else arrives may be anybody's.
async fn by_udp(
    question: &[u8],
    id: u16,
    name: &str,
    kind: TYPE,
    server: SocketAddr,
) -> io::Result<Result<Answer, Bad>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = [0; 2048];
    loop {
        let len = socket.recv(&mut buffer).await?;
        match read(buffer.get(..len).unwrap_or_default(), id, name, kind) {
            Err(Bad::NotOurs) => (),
            answer => return Ok(answer),
        }
    }
}

async fn by_tcp(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), question].concat()).await?;
    let len = stream.read_u16().await?;
    let mut bytes = vec![0; len.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn question(id: u16, name: &str, kind: TYPE) -> Result<Vec<u8>, DnsError> {
    let bad = || DnsError::Name(name.to_owned());
    let wanted = Name::new(name).ok().filter(|_| !name.is_empty() && name.is_ascii()).ok_or_else(bad)?;
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(wanted, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec().map_err(|_| bad())
}

fn read(bytes: &[u8], id: u16, name: &str, kind: TYPE) -> Result<Answer, Bad> {
    if !counts_fit(bytes) {
        return Err(Bad::NotOurs);
    }
    let packet = Packet::parse(bytes).map_err(|_| Bad::NotOurs)?;
    let wanted = Name::new(name).map_err(|_| Bad::NotOurs)?;
    let is_ours = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        && matches!(packet.questions.as_slice(), [asked]
            if asked.qname == wanted && asked.qtype == QTYPE::TYPE(kind));
    if !is_ours {
        return Err(Bad::NotOurs);
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Ok(Answer::Cut);
    }
    match packet.rcode() {
        RCODE::NoError => Ok(answer(&packet, &wanted)),
        RCODE::NameError => Ok(Answer::NoSuchHost),
        code => Err(Bad::Code(code)),
    }
}

/// The parser makes room for as many entries as the header claims: there cannot be more than the
/// packet has bytes for.
fn counts_fit(bytes: &[u8]) -> bool {
    let Some((header, rest)) = bytes.split_at_checked(HEADER) else { return false };
    let counts = header.get(4..).unwrap_or_default();
    let counts = counts.chunks_exact(2).filter_map(|pair| Some(u16::from_be_bytes(pair.try_into().ok()?)));
    let all: usize = counts.map(usize::from).sum();
    all.saturating_mul(SMALLEST_ENTRY) <= rest.len()
}

/// Goes from alias to alias as far as the answer leads.
fn answer(packet: &Packet<'_>, wanted: &Name<'_>) -> Answer {
    let mut name = wanted.clone();
    for _ in 0..MAX_ALIASES {
        let about = || packet.answers.iter().filter(|entry| entry.name == name && entry.class == CLASS::IN);
        let addresses = about().filter_map(|entry| match &entry.rdata {
            RData::A(a) => Some(IpAddr::V4(Ipv4Addr::from_bits(a.address))),
            RData::AAAA(a) => Some(IpAddr::V6(Ipv6Addr::from_bits(a.address))),
            _ => None,
        });
        let addresses: Vec<IpAddr> = addresses.take(MAX_ADDRESSES).collect();
        if !addresses.is_empty() {
            return Answer::Addresses(addresses);
        }
        let alias = about().find_map(|entry| match &entry.rdata {
            RData::CNAME(alias) => Some(alias.0.clone()),
            _ => None,
        });
        match alias {
            Some(alias) => name = alias,
            None if name == *wanted => return Answer::Nothing,
            None => return Answer::Alias(name.to_string()),
        }
    }
    Answer::Nothing
}

/// The addresses in bytes that claim to be the answer to a question for a host's addresses; `None`
/// if they are not.
#[must_use]
pub fn addresses_in(bytes: &[u8], id: u16, name: &str, v6: bool) -> Option<Vec<IpAddr>> {
    match read(bytes, id, name, if v6 { TYPE::AAAA } else { TYPE::A }) {
        Ok(Answer::Addresses(found)) => Some(found),
        _ => None,
    }
}

/// Name servers of this host, as `resolv.conf` files list them.
#[must_use]
pub fn host_servers(path: &Path) -> Vec<IpAddr> {
    parse_resolv_conf(&fs::read_to_string(path).unwrap_or_default())
}

/// Reads the `nameserver` lines. Addresses that are only good on one link (`fe80::1%eth0`) are left
/// out.
#[must_use]
pub fn parse_resolv_conf(text: &str) -> Vec<IpAddr> {
    let words = text.lines().map(str::split_ascii_whitespace);
    words
        .filter_map(|mut words| match words.next() {
            Some("nameserver") => words.next()?.parse().ok(),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::{A, CNAME};
    use std::time::Instant;

    fn name(text: &str) -> Name<'_> {
        Name::new(text).unwrap()
    }

    fn alias<'a>(from: &'a str, to: &'a str) -> ResourceRecord<'a> {
        ResourceRecord::new(name(from), CLASS::IN, 60, RData::CNAME(CNAME(name(to))))
    }

    fn address(of: &str, addr: [u8; 4]) -> ResourceRecord<'_> {
        let address = u32::from_be_bytes(addr);
        ResourceRecord::new(name(of), CLASS::IN, 60, RData::A(A { address }))
    }

    fn reply(answers: Vec<ResourceRecord<'_>>) -> Vec<u8> {
        let asked = question(7, "dumps.example.com", TYPE::A).unwrap();
        let mut packet = Packet::parse(&asked).unwrap().into_reply();
        packet.answers = answers;
        packet.build_bytes_vec().unwrap()
    }

    fn parsed(bytes: &[u8]) -> Option<Answer> {
        read(bytes, 7, "dumps.example.com", TYPE::A).ok()
    }

    #[test]
    fn aliases_lead_to_addresses() {
        let chain = reply(vec![
            address("c.example.com", [192, 0, 2, 3]),
            alias("b.example.com", "c.example.com"),
            alias("DUMPS.example.com", "b.example.com"),
            address("evil.example.com", [203, 0, 113, 66]),
        ]);
        assert_eq!(parsed(&chain), Some(Answer::Addresses(vec![[192, 0, 2, 3].into()])));
        let open = reply(vec![alias("dumps.example.com", "b.example.com")]);
        assert_eq!(parsed(&open), Some(Answer::Alias("b.example.com".into())));
        let circle = reply(vec![alias("dumps.example.com", "b.a"), alias("b.a", "dumps.example.com")]);
        assert_eq!(parsed(&circle), Some(Answer::Nothing));
        assert_eq!(parsed(&reply(vec![])), Some(Answer::Nothing));
    }

    #[test]
    fn only_answers_to_the_question_are_taken() {
        let good = reply(vec![address("dumps.example.com", [192, 0, 2, 3])]);
        assert!(parsed(&good).is_some());
        assert!(read(&good, 8, "dumps.example.com", TYPE::A).is_err(), "another number");
        assert!(read(&good, 7, "dumps.example.org", TYPE::A).is_err(), "another name");
        assert!(read(&good, 7, "dumps.example.com", TYPE::AAAA).is_err(), "another type");
        let asked = question(7, "dumps.example.com", TYPE::A).unwrap();
        assert!(parsed(&asked).is_none(), "a question is no answer");
        let mut cut = good.clone();
        cut[2] |= 0x02;
        assert_eq!(parsed(&cut), Some(Answer::Cut));
        let mut refused = good.clone();
        refused[3] |= 5;
        assert!(matches!(read(&refused, 7, "dumps.example.com", TYPE::A), Err(Bad::Code(RCODE::Refused))));
        let mut nobody = good;
        nobody[3] |= 3;
        assert_eq!(parsed(&nobody), Some(Answer::NoSuchHost));
    }

    #[test]
    fn cut_and_flipped_answers_never_panic() {
        let good = reply(vec![alias("dumps.example.com", "b.a"), address("b.a", [192, 0, 2, 3])]);
        for at in 0..good.len() {
            let _ = parsed(&good[..at]);
            for bit in [0x01, 0x80, 0xc0, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                let _ = parsed(&bad);
            }
        }
        let mut lying = good;
        lying[6..12].fill(0xff);
        assert!(!counts_fit(&lying));
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_read_or_refused(rest in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let mut bytes = reply(vec![]);
            bytes[6..8].copy_from_slice(&[0, 3]);
            bytes.extend(&rest);
            if let Some(found) = addresses_in(&bytes, 7, "dumps.example.com", false) {
                proptest::prop_assert!((1..=MAX_ADDRESSES).contains(&found.len()));
            }
        }
    }

    #[test]
    fn no_names_and_no_servers_are_errors() {
        assert!(question(1, "", TYPE::A).is_err());
        assert!(question(1, &"a".repeat(64), TYPE::A).is_err());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(matches!(runtime.block_on(lookup("a.b", &[])), Err(DnsError::NoServer)));
    }

    #[test]
    fn silent_servers_cost_a_bounded_time() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let servers = [silent.local_addr().unwrap(); 4];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let start = Instant::now();
        let error = runtime.block_on(lookup_at("dumps.example.com", &servers)).unwrap_err();
        assert!(matches!(error, DnsError::TimeIsUp { servers: 4, .. }), "{error}");
        assert!(start.elapsed() < LOOKUP + Duration::from_secs(2), "{:?}", start.elapsed());
    }

    #[test]
    fn resolv_conf_names_servers() {
        let text = "# nameserver 1.1.1.1\nsearch example.com\nnameserver \
                    192.0.2.53\nnameserver\t2001:db8::53 \n\
                    nameserver fe80::1%eth0\nnameserver\noptions edns0\n";
        let servers = parse_resolv_conf(text);
        assert_eq!(servers, ["192.0.2.53".parse::<IpAddr>().unwrap(), "2001:db8::53".parse().unwrap()]);
    }
}
