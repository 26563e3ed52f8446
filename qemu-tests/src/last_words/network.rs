//! Whether triage finds the sockets, the network and the logins that the system showed before its end.

use super::Triage;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The name of a UNIX socket that is no file.
pub const ABSTRACT: &str = "last words";
/// Files of /proc/net that are taken down.
pub const FILES: [&str; 13] = [
    "tcp",
    "tcp6",
    "udp",
    "udp6",
    "raw",
    "raw6",
    "unix",
    "netlink",
    "packet",
    "arp",
    "route",
    "ipv6_route",
    "if_inet6",
];
/// What production makes of its network, with a card: lines for `ip -batch`.
pub const LINKS: [&str; 9] = [
    "address add 10.0.2.15/24 dev eth0",
    "address add 2001:db8::15/64 dev eth0 nodad",
    "link set eth0 up",
    "route add default via 10.0.2.2 metric 7",
    "route add blackhole 192.0.2.0/24",
    "route add 2001:db8:1::/48 via 2001:db8::1 dev eth0",
    "neighbour add 10.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
    "neighbour add 2001:db8::77 lladdr 02:00:00:00:00:78 dev eth0 nud permanent",
    "link add link eth0 name eth0.7 type vlan id 7",
];
/// Where the records of logins are.
pub const UTMP: &str = "/run/utmp";
/// A session as logind writes it down.
pub const SESSION: (&str, &str) = (
    "/run/systemd/sessions/7",
    "# This is private data. Do not parse.\nUID=1000\nUSER=alice\nACTIVE=1\nSTATE=active\nTTY=pts/0\nLEADER=812\n\
     REMOTE=1\nREMOTE_HOST=192.0.2.7\nREALTIME=1764537600123456\n",
);

/// A login.
#[derive(Clone, Debug)]
pub struct Login {
    kind: u16,
    pid: u32,
    line: &'static str,
    user: &'static str,
    host: &'static str,
    seconds: u32,
    ip: [u8; 4],
}

impl Login {
    /// Those that are written down.
    #[must_use]
    pub fn all() -> [Self; 2] {
        let seconds = 1_764_537_600;
        [
            Self { kind: 2, pid: 0, line: "~", user: "reboot", host: "6.1", seconds, ip: [0; 4] },
            Self {
                kind: 7,
                pid: 812,
                line: "pts/0",
                user: "alice",
                host: "192.0.2.7",
                seconds: seconds.saturating_add(60),
                ip: [192, 0, 2, 7],
            },
        ]
    }

    /// As `struct utmp` (utmp(5)).
    #[must_use]
    pub fn record(&self) -> Vec<u8> {
        let mut record = Vec::new();
        let mut put = |at: usize, bytes: &[u8]| {
            record.resize(at, 0);
            record.extend_from_slice(bytes);
        };
        put(0, &self.kind.to_le_bytes());
        put(4, &self.pid.to_le_bytes());
        put(8, self.line.as_bytes());
        put(44, self.user.as_bytes());
        put(76, self.host.as_bytes());
        put(340, &self.seconds.to_le_bytes());
        put(348, &self.ip);
        put(384, &[]);
        record
    }
}

type Set = BTreeSet<String>;

fn text(row: &Value, path: &str) -> String {
    match row.pointer(path) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => String::new(),
    }
}

fn number(row: &Value, path: &str) -> u64 {
    row.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

fn is(row: &Value, path: &str, wanted: &str) -> bool {
    row.pointer(path).and_then(Value::as_str) == Some(wanted)
}

impl Triage<'_> {
    /// Compares the rows with what the snapshot says.
    pub fn ensure_network(&self, snapshot: &str) -> Result<()> {
        let sockets = self.rows("sockets")?;
        let network = self.rows("network")?;
        for row in sockets.iter().chain(&network) {
            ensure!(row.pointer("/errors").is_none(), "a row has errors: {row}");
        }
        for (of, theirs, ours) in [
            ("tcp", theirs(snapshot, &["tcp", "tcp6"], tcp), ours(&sockets, our_tcp)),
            ("udp", theirs(snapshot, &["udp", "udp6"], udp), ours(&sockets, |row| our_udp(row, "udp"))),
            ("raw", theirs(snapshot, &["raw", "raw6"], udp), ours(&sockets, |row| our_udp(row, "icmp"))),
            ("unix", theirs(snapshot, &["unix"], unix), ours(&sockets, our_unix)),
            ("netlink", theirs(snapshot, &["netlink"], netlink), ours(&sockets, our_netlink)),
            ("packet", theirs(snapshot, &["packet"], packet), ours(&sockets, our_packet)),
            ("arp", theirs(snapshot, &["arp"], arp), ours(&network, our_arp)),
            ("neighbour", theirs(snapshot, &["ip-neighbour"], neighbour), ours(&network, our_neighbour)),
            ("route", theirs(snapshot, &["route"], route), ours(&network, our_route)),
            ("route of IPv6", theirs(snapshot, &["ipv6_route"], route6), ours(&network, our_route6)),
            ("link", theirs(snapshot, &["ip-link"], link), ours(&network, our_link)),
            ("address", theirs(snapshot, &["ip-address"], address), ours(&network, our_address)),
            ("address of IPv6", theirs(snapshot, &["if_inet6"], address6), ours(&network, our_address6)),
        ] {
            let lacks: Vec<_> = theirs.difference(&ours).collect();
            let more: Vec<_> = ours.difference(&theirs).collect();
            ensure!(lacks.is_empty() && more.is_empty(), "{of}: rows lack {lacks:#?} and have {more:#?}");
            ensure!(!theirs.is_empty(), "the system showed no {of}");
            eprintln!("{of}: {} are as the system showed them", theirs.len());
        }
        let namespaces: Set = sockets.iter().map(|row| text(row, "/linux/namespace/net")).collect();
        ensure!(namespaces.len() == 2, "sockets are of the namespaces {namespaces:?}");
        let states: Set = sockets.iter().map(|row| text(row, "/linux/socket/state")).collect();
        for state in ["established", "time-wait", "fin-wait-1", "fin-wait-2", "close-wait", "listening"] {
            ensure!(states.contains(state), "no socket is in state {state}: {states:?}");
        }
        for mark in ["orphan", "time_wait", "not_accepted", "request"] {
            let is_marked = |row: &Value| row.pointer(&format!("/linux/socket/{mark}")) == Some(&true.into());
            ensure!(sockets.iter().any(is_marked), "no socket is marked as {mark}");
        }
        self.ensure_logins(snapshot)
    }

    fn ensure_logins(&self, snapshot: &str) -> Result<()> {
        let rows = self.rows("logins")?;
        let of =
            |kind: &str| rows.iter().filter(|row| is(row, "/linux/login/kind", kind)).collect::<Vec<_>>();
        let records = of("utmp");
        ensure!(records.len() == Login::all().len(), "{records:?}");
        for (row, login) in records.iter().zip(Login::all()) {
            ensure!(is(row, "/user/name", login.user) && is(row, "/linux/login/line", login.line), "{row}");
            ensure!(number(row, "/process/pid") == u64::from(login.pid), "{row}");
            ensure!(is(row, "/source/domain", login.host) && is(row, "/file/path", UTMP), "{row}");
            let ip = Ipv4Addr::from(login.ip);
            ensure!(ip.is_unspecified() || is(row, "/source/ip", &ip.to_string()), "{row}");
        }
        let sessions = of("session");
        let [session] = sessions.as_slice() else { anyhow::bail!("{sessions:?}") };
        ensure!(is(session, "/linux/login/session", "7") && is(session, "/user/name", "alice"), "{session}");
        ensure!(is(session, "/linux/login/time", "2025-11-30T21:20:00Z"), "{session}");
        let logon = self.rows("timeline")?;
        let logon = logon.iter().filter(|row| is(row, "/timestamp_desc", "Logon Time"));
        ensure!(logon.count() == 2, "the timeline has other logins");
        // tty_nr, tpgid and session of the first process (proc(5)).
        let (_, stat) = lines(snapshot, "stat").next().context("no stat")?;
        let stat = stat.rsplit(") ").next().unwrap_or_default();
        let words: Vec<&str> = stat.split(' ').collect();
        let [_, _, _, session, tty, front, ..] = words.as_slice() else { anyhow::bail!("{stat:?}") };
        // ttyS0 is 4:64.
        ensure!(*tty == "1088", "the first process has terminal {tty}");
        let terminals = of("terminal");
        let [terminal] = terminals.as_slice() else { anyhow::bail!("{terminals:?}") };
        let word = |path| text(terminal, &format!("/linux/{path}"));
        ensure!(word("login/line") == "ttyS0" && word("terminal/processes").contains('1'), "{terminal}");
        ensure!(word("terminal/session_leader") == *session, "{terminal}");
        ensure!(word("terminal/foreground_group") == *front, "{terminal}");
        Ok(())
    }
}

/// Namespaces, and what a file says of them.
fn lines<'a>(snapshot: &'a str, file: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let start = format!("net/{file}\t");
    snapshot.lines().filter_map(move |line| line.strip_prefix(&start)?.split_once('\t'))
}

fn theirs(snapshot: &str, files: &[&str], read: impl Fn(&[&str]) -> Option<String>) -> Set {
    let lines = files.iter().flat_map(|file| lines(snapshot, file));
    let said = |(namespace, line): (&str, &str)| {
        Some(format!("{namespace}: {}", read(&line.split_whitespace().collect::<Vec<_>>())?))
    };
    lines.filter_map(said).collect()
}

fn ours(rows: &[Value], read: impl Fn(&Value) -> Option<String>) -> Set {
    let said = |row| Some(format!("{}: {}", number(row, "/linux/namespace/net"), read(row)?));
    rows.iter().filter_map(said).collect()
}

/// An address of IPv4 or IPv6, words of 32 bits in the order of the machine.
fn ip(hex: &str) -> Option<String> {
    let words: Option<Vec<[u8; 4]>> = hex
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok().map(u32::to_le_bytes))
        .collect();
    match words?.as_slice() {
        [word] => Some(Ipv4Addr::from(*word).to_string()),
        words => Some(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?).to_string()),
    }
}

fn end(word: &str) -> Option<String> {
    let (address, port) = word.split_once(':')?;
    Some(format!("{} {}", ip(address)?, u16::from_str_radix(port, 16).ok()?))
}

fn our_ends(row: &Value) -> String {
    let is_v6 = is(row, "/network/type", "ipv6");
    let mut peer = format!("{} {}", text(row, "/destination/ip"), number(row, "/destination/port"));
    if row.pointer("/destination").is_none() {
        (if is_v6 { ":: 0" } else { "0.0.0.0 0" }).clone_into(&mut peer);
    }
    format!("{} {}, {peer}", text(row, "/source/ip"), number(row, "/source/port"))
}

/// `TCP_ESTABLISHED` and so on.
const STATES: [&str; 12] = [
    "none",
    "established",
    "syn-sent",
    "syn-received",
    "fin-wait-1",
    "fin-wait-2",
    "time-wait",
    "closed",
    "close-wait",
    "last-ack",
    "listening",
    "closing",
];

/// Bytes of a queue. A long one grows and shrinks after it was looked at: its peer asks for more room
/// from time to time.
fn amount(bytes: u64) -> String {
    if bytes < 4096 { bytes.to_string() } else { "many".to_owned() }
}

fn tcp(words: &[&str]) -> Option<String> {
    let [_, local, remote, state, queues, _, _, _, _, inode, ..] = words else { return None };
    let state = STATES.get(usize::from_str_radix(state, 16).ok()?)?;
    let (sent, received) = queues.split_once(':')?;
    let [sent, received] = [sent, received].map(|hex| u64::from_str_radix(hex, 16).map(amount));
    let (sent, received) = (sent.ok()?, received.ok()?);
    Some(format!("{}, {}: {state}, {sent}, {received}, inode {inode}", end(local)?, end(remote)?))
}

fn our_tcp(row: &Value) -> Option<String> {
    is(row, "/network/transport", "tcp").then_some(())?;
    let of = |name: &str| number(row, &format!("/linux/socket/{name}"));
    let received = if is(row, "/linux/socket/state", "listening") { of("backlog") } else { of("unread") };
    let state = text(row, "/linux/socket/state");
    let (sent, received) = (amount(of("unacknowledged")), amount(received));
    Some(format!("{}: {state}, {sent}, {received}, inode {}", our_ends(row), of("inode")))
}

fn udp(words: &[&str]) -> Option<String> {
    let [_, local, remote, _, _, _, _, _, _, inode, ..] = words else { return None };
    Some(format!("{}, {}, inode {inode}", end(local)?, end(remote)?))
}

fn our_udp(row: &Value, transport: &str) -> Option<String> {
    is(row, "/network/transport", transport).then_some(())?;
    Some(format!("{}, inode {}", our_ends(row), number(row, "/linux/socket/inode")))
}

fn unix(words: &[&str]) -> Option<String> {
    let [_, _, _, _, kind, _, inode, path @ ..] = words else { return None };
    (*kind != "Type").then(|| format!("{inode} {}", path.join(" ")))
}

fn our_unix(row: &Value) -> Option<String> {
    is(row, "/linux/socket/family", "unix").then_some(())?;
    Some(format!("{} {}", number(row, "/linux/socket/inode"), text(row, "/file/path")))
}

fn netlink(words: &[&str]) -> Option<String> {
    let [_, protocol, port, groups, _, _, _, _, _, inode] = words else { return None };
    let groups = u32::from_str_radix(groups, 16).ok()?;
    Some(format!("protocol {protocol}, port {port}, groups {groups}, inode {inode}"))
}

fn our_netlink(row: &Value) -> Option<String> {
    is(row, "/linux/socket/family", "netlink").then_some(())?;
    let of = |path: &str| number(row, &format!("/linux/{path}"));
    let (protocol, port, groups) = (of("socket/protocol"), of("netlink/port"), of("netlink/groups"));
    Some(format!("protocol {protocol}, port {port}, groups {groups}, inode {}", of("socket/inode")))
}

fn packet(words: &[&str]) -> Option<String> {
    let [_, _, _, protocol, interface, _, _, _, inode] = words else { return None };
    (*interface != "Iface").then(|| format!("0x{protocol}, {interface}, inode {inode}"))
}

fn our_packet(row: &Value) -> Option<String> {
    is(row, "/linux/socket/family", "packet").then_some(())?;
    let (protocol, interface) = (text(row, "/linux/packet/protocol"), number(row, "/linux/packet/interface"));
    Some(format!("{protocol}, {interface}, inode {}", number(row, "/linux/socket/inode")))
}

fn our_mac(row: &Value, path: &str) -> String {
    text(row, path).to_lowercase().replace('-', ":")
}

fn interface(row: &Value) -> String {
    text(row, "/linux/interface/name")
}

fn kind(row: &Value, kind: &str, version: &str) -> Option<()> {
    (is(row, "/linux/network/kind", kind) && is(row, "/network/type", version)).then_some(())
}

fn arp(words: &[&str]) -> Option<String> {
    let [ip, _, _, mac, _, device] = words else { return None };
    Some(format!("{ip} {mac} {device}"))
}

fn our_arp(row: &Value) -> Option<String> {
    kind(row, "neighbour", "ipv4")?;
    // /proc does not show those that need none.
    (!is(row, "/linux/neighbour/state", "noarp")).then_some(())?;
    let mac = our_mac(row, "/destination/mac");
    Some(format!("{} {mac} {}", text(row, "/destination/ip"), interface(row)))
}

fn neighbour(words: &[&str]) -> Option<String> {
    let [ip, _, device, _, mac, _] = words else { return None };
    Some(format!("{ip} {mac} {device}"))
}

fn our_neighbour(row: &Value) -> Option<String> {
    is(row, "/linux/neighbour/state", "permanent").then_some(())?;
    let mac = our_mac(row, "/destination/mac");
    Some(format!("{} {mac} {}", text(row, "/destination/ip"), interface(row)))
}

fn route(words: &[&str]) -> Option<String> {
    let [device, destination, gateway, _, _, _, metric, mask, ..] = words else { return None };
    let len = u32::from_str_radix(mask, 16).ok()?.count_ones();
    Some(format!("{device}: {}/{len} by {} at {metric}", ip(destination)?, ip(gateway)?))
}

fn our_route(row: &Value) -> Option<String> {
    kind(row, "route", "ipv4")?;
    (number(row, "/linux/route/table") == 254).then_some(())?;
    let of = |name: &str| text(row, &format!("/linux/route/{name}"));
    let gateway = Some(of("gateway")).filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
    // What leads nowhere.
    let device = Some(interface(row)).filter(|name| !name.is_empty()).unwrap_or_else(|| "*".to_owned());
    Some(format!("{device}: {} by {gateway} at {}", of("destination"), of("metric")))
}

/// An address of IPv6, byte for byte.
fn plain_ip(hex: &str) -> Option<Ipv6Addr> {
    u128::from_str_radix(hex, 16).ok().map(Ipv6Addr::from)
}

fn route6(words: &[&str]) -> Option<String> {
    let [destination, len, _, _, gateway, metric, _, _, _, device] = words else { return None };
    let number = |hex: &str| u32::from_str_radix(hex, 16).ok();
    let (len, metric) = (number(len)?, number(metric)?);
    // The mark at the end of each table.
    (metric != u32::MAX).then_some(())?;
    Some(format!("{device}: {}/{len} by {} at {metric}", plain_ip(destination)?, plain_ip(gateway)?))
}

fn our_route6(row: &Value) -> Option<String> {
    kind(row, "route", "ipv6")?;
    let of = |name: &str| text(row, &format!("/linux/route/{name}"));
    let gateway = Some(of("gateway")).filter(|ip| !ip.is_empty()).unwrap_or_else(|| "::".to_owned());
    Some(format!("{}: {} by {gateway} at {}", interface(row), of("destination"), of("metric")))
}

/// The word behind another.
fn after<'a>(words: &[&'a str], wanted: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == wanted)?;
    words.get(at.saturating_add(1)).copied()
}

fn link(words: &[&str]) -> Option<String> {
    let [index, name, ..] = words else { return None };
    // NAME@PARENT
    let name = name.trim_end_matches(':').split('@').next()?;
    let kind = words.iter().position(|word| word.starts_with("link/"))?;
    let mac = words.get(kind.saturating_add(1))?;
    let (mtu, master) = (after(words, "mtu")?, after(words, "master").unwrap_or_default());
    Some(format!("{index} {name} {mtu} {mac} {master}"))
}

fn our_link(row: &Value) -> Option<String> {
    is(row, "/linux/network/kind", "interface").then_some(())?;
    let of = |name: &str| text(row, &format!("/linux/interface/{name}"));
    let mac = our_mac(row, "/host/mac");
    Some(format!("{}: {} {} {mac} {}", of("index"), of("name"), of("mtu"), of("master")))
}

fn address(words: &[&str]) -> Option<String> {
    Some(format!("{} {} {}", words.get(1)?, after(words, "inet")?, after(words, "scope")?))
}

fn our_address(row: &Value) -> Option<String> {
    kind(row, "address", "ipv4")?;
    let of = |name: &str| text(row, &format!("/linux/ip/{name}"));
    Some(format!("{} {}/{} {}", interface(row), text(row, "/host/ip"), of("prefix"), of("scope")))
}

fn address6(words: &[&str]) -> Option<String> {
    let [ip, _, len, scope, _, device] = words else { return None };
    let len = u32::from_str_radix(len, 16).ok()?;
    Some(format!("{device} {}/{len} 0x{scope}", plain_ip(ip)?))
}

fn our_address6(row: &Value) -> Option<String> {
    kind(row, "address", "ipv6")?;
    let of = |name: &str| text(row, &format!("/linux/ip/{name}"));
    Some(format!("{} {}/{} {}", interface(row), text(row, "/host/ip"), of("prefix"), of("scope")))
}
