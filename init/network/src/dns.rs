//! Names of hosts: A and AAAA records, asked of all name servers in turn within a bounded time.
//!
//! A stub: no cache, no search list, no DNSSEC. Only answers to what was asked are taken.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
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
        /// Its response code, in words.
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
    Code(ResponseCode),
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
    let both =
        async { tokio::join!(follow(host, RecordType::A, servers), follow(host, RecordType::AAAA, servers)) };
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
async fn follow(host: &str, kind: RecordType, servers: &[SocketAddr]) -> Result<Vec<IpAddr>, DnsError> {
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

async fn ask_all(name: &str, kind: RecordType, servers: &[SocketAddr]) -> Result<Answer, DnsError> {
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

async fn ask(name: &str, kind: RecordType, server: SocketAddr) -> Result<Answer, DnsError> {
    let [a, b, ..] = random().to_le_bytes();
    let id = u16::from_le_bytes([a, b]);
    let question = question(id, name, kind)?;
    let failed = |source| DnsError::Ask { server: server.ip(), source };
    let code = |code: ResponseCode| DnsError::Server { server: server.ip(), code: code.to_str() };
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
    kind: RecordType,
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

fn question(id: u16, name: &str, kind: RecordType) -> Result<Vec<u8>, DnsError> {
    let bad = || DnsError::Name(name.to_owned());
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(host_name(name).ok_or_else(bad)?, kind));
    message.to_vec().map_err(|_| bad())
}

/// A name from the root on, as it stands in messages.
fn host_name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok().filter(|_| !text.is_empty())?;
    name.set_fqdn(true);
    Some(name)
}

fn read(bytes: &[u8], id: u16, name: &str, kind: RecordType) -> Result<Answer, Bad> {
    let message = Message::from_vec(bytes).map_err(|_| Bad::NotOurs)?;
    let wanted = host_name(name).ok_or(Bad::NotOurs)?;
    let is_ours = message.metadata.id == id
        && message.metadata.message_type == MessageType::Response
        && matches!(message.queries.as_slice(), [asked]
            if asked.name == wanted && asked.query_type == kind);
    if !is_ours {
        return Err(Bad::NotOurs);
    }
    if message.metadata.truncation {
        return Ok(Answer::Cut);
    }
    match message.metadata.response_code {
        ResponseCode::NoError => Ok(answer(&message, &wanted)),
        ResponseCode::NXDomain => Ok(Answer::NoSuchHost),
        code => Err(Bad::Code(code)),
    }
}

/// Goes from alias to alias as far as the answer leads.
fn answer(message: &Message, wanted: &Name) -> Answer {
    let mut name = wanted.clone();
    for _ in 0..MAX_ALIASES {
        let about =
            || message.answers.iter().filter(|entry| entry.name == name && entry.dns_class == DNSClass::IN);
        let addresses = about().filter_map(|entry| match &entry.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        });
        let addresses: Vec<IpAddr> = addresses.take(MAX_ADDRESSES).collect();
        if !addresses.is_empty() {
            return Answer::Addresses(addresses);
        }
        let alias = about().find_map(|entry| match &entry.data {
            RData::CNAME(alias) => Some(alias.0.clone()),
            _ => None,
        });
        match alias {
            Some(alias) => name = alias,
            None if name == *wanted => return Answer::Nothing,
            None => return Answer::Alias(name.to_string().trim_end_matches('.').to_owned()),
        }
    }
    Answer::Nothing
}

/// The addresses in bytes that claim to be the answer to a question for a host's addresses; `None`
/// if they are not.
#[must_use]
pub fn addresses_in(bytes: &[u8], id: u16, name: &str, v6: bool) -> Option<Vec<IpAddr>> {
    match read(bytes, id, name, if v6 { RecordType::AAAA } else { RecordType::A }) {
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
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME};
    use std::time::Instant;

    fn name(text: &str) -> Name {
        host_name(text).unwrap()
    }

    fn alias(from: &str, to: &str) -> Record {
        Record::from_rdata(name(from), 60, RData::CNAME(CNAME(name(to))))
    }

    fn address(of: &str, addr: [u8; 4]) -> Record {
        Record::from_rdata(name(of), 60, RData::A(A(addr.into())))
    }

    fn reply(answers: Vec<Record>) -> Vec<u8> {
        let asked = question(7, "dumps.example.com", RecordType::A).unwrap();
        let mut message = Message::from_vec(&asked).unwrap();
        message.metadata.message_type = MessageType::Response;
        message.add_answers(answers);
        message.to_vec().unwrap()
    }

    fn parsed(bytes: &[u8]) -> Option<Answer> {
        read(bytes, 7, "dumps.example.com", RecordType::A).ok()
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
        assert!(read(&good, 8, "dumps.example.com", RecordType::A).is_err(), "another number");
        assert!(read(&good, 7, "dumps.example.org", RecordType::A).is_err(), "another name");
        assert!(read(&good, 7, "dumps.example.com", RecordType::AAAA).is_err(), "another type");
        let asked = question(7, "dumps.example.com", RecordType::A).unwrap();
        assert!(parsed(&asked).is_none(), "a question is no answer");
        let mut cut = good.clone();
        cut[2] |= 0x02;
        assert_eq!(parsed(&cut), Some(Answer::Cut));
        let mut refused = good.clone();
        refused[3] |= 5;
        assert!(matches!(
            read(&refused, 7, "dumps.example.com", RecordType::A),
            Err(Bad::Code(ResponseCode::Refused))
        ));
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
        assert_eq!(parsed(&lying), None);
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
        assert!(question(1, "", RecordType::A).is_err());
        assert!(question(1, &"a".repeat(64), RecordType::A).is_err());
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
