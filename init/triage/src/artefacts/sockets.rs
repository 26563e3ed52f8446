//! `sockets.jsonl`: sockets that processes have open, of all families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ::processes::tasks::Task;
use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;
use vmcore::kernel::KernelError;

use super::files::{SOCKET, TYPE, Tables};
use super::{Artefact, Ground, Row, Rows, Stop};

/// Address families (include/linux/socket.h).
const UNIX: u16 = 1;
const INET: u16 = 2;
const INET6: u16 = 10;
const NETLINK: u16 = 16;
const PACKET: u16 = 17;
const VSOCK: u16 = 40;
/// Bytes of the name of a UNIX socket (`sun_path`).
const PATH: u64 = 108;

layouts! {
    SocketLayout of "socket" {
        sock: "sk",
    }
    SockLayout of "sock" {
        family: "__sk_common.skc_family",
        state: "__sk_common.skc_state",
        peer_port: "__sk_common.skc_dport",
        port: "__sk_common.skc_num",
        peer: "__sk_common.skc_daddr",
        address: "__sk_common.skc_rcv_saddr",
        protocol: "sk_protocol",
        kind: "sk_type",
        queued: "sk_wmem_queued",
        received: "sk_backlog.rmem_alloc",
    } [
        peer6: "__sk_common.skc_v6_daddr",
        address6: "__sk_common.skc_v6_rcv_saddr",
        drops: "sk_drops",
    ]
    UnixLayout of "unix_sock" {
        address: "addr",
        peer: "peer",
    }
    NameLayout of "unix_address" {
        len: "len",
        name: "name",
    }
}

pub(super) struct Layout {
    tables: Tables,
    socket: SocketLayout,
    sock: SockLayout,
    unix: Option<(UnixLayout, NameLayout)>,
}

impl Artefact for Layout {
    const NAME: &'static str = "sockets";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let unix = || Some((UnixLayout::ask(known).ok()?, NameLayout::ask(known).ok()?));
        Ok(Self {
            tables: Tables::ask(known)?,
            socket: SocketLayout::ask(known)?,
            sock: SockLayout::ask(known)?,
            unix: unix(),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        for process in &ground.processes.all {
            let task = &process.leader;
            // A table that cannot be read is told by the artefact of files.
            let _ = self.tables.each(ground, task, &mut |number, file| {
                rows.in_time()?;
                let is_socket = self.tables.mode(ground, file).is_ok_and(|(_, mode)| mode & TYPE == SOCKET);
                if is_socket { rows.add(&self.row(ground, task, number, file)) } else { Ok(()) }
            })?;
        }
        Ok(())
    }
}

impl Layout {
    fn row(&self, ground: &Ground<'_>, task: &Task, number: u64, file: VirtAddr) -> Row {
        let system = ground.system;
        let follow = |base: VirtAddr, offset: u64, what: &'static str| {
            system.pointer(base, offset, what)?.ok_or(KernelError::Absurd { what, value: 0 })
        };
        let sock = follow(file, self.tables.file.private, "file.private_data")
            .and_then(|socket| follow(socket, self.socket.sock, "socket.sk"));
        let mut row = Row::at(sock.as_ref().copied().unwrap_or(file));
        row.set("process.pid", task.pid);
        row.set("process.name", task.comm.clone());
        row.set("linux.fd", number);
        match sock {
            Ok(sock) => self.sock(ground, sock, &mut row),
            Err(error) => row.error("linux.socket", &base::log::chain(&error)),
        }
        row
    }

    fn sock(&self, ground: &Ground<'_>, sock: VirtAddr, row: &mut Row) {
        let (system, layout) = (ground.system, &self.sock);
        let short = |offset, what| {
            system.bytes(sock, offset, 2, what).map(|bytes| Fields(&bytes).u16(0).unwrap_or(0))
        };
        let family = match short(layout.family, "sock.skc_family") {
            Ok(family) => family,
            Err(error) => return row.error("linux.socket.family", &base::log::chain(&error)),
        };
        row.set("linux.socket.family", family_name(family));
        let kind = short(layout.kind, "sock.sk_type");
        row.read("linux.socket.type", kind.map(kind_name));
        let state = system.bytes(sock, layout.state, 1, "sock.skc_state");
        let state = state.map(|bytes| bytes.first().copied().unwrap_or(0));
        let protocol = short(layout.protocol, "sock.sk_protocol");
        for (key, offset) in
            [("linux.socket.send_queue", layout.queued), ("linux.socket.receive_queue", layout.received)]
        {
            row.read(key, system.half(sock, offset, "sock"));
        }
        if let Some(drops) = layout.drops {
            row.read("linux.socket.drops", system.half(sock, drops, "sock.sk_drops"));
        }
        match family {
            INET | INET6 => {
                let is_tcp = protocol.as_ref().is_ok_and(|protocol| *protocol == 6);
                row.read("linux.socket.state", state.map(|state| state_name(state, is_tcp)));
                row.read("network.transport", protocol.map(transport));
                row.set("network.type", if family == INET6 { "ipv6" } else { "ipv4" });
                let ports = (short(layout.port, "sock.skc_num"), short(layout.peer_port, "sock.skc_dport"));
                let v6 = layout.address6.zip(layout.peer6).filter(|_| family == INET6);
                let (ours, theirs) = v6.unwrap_or((layout.address, layout.peer));
                let address = |offset| address(ground, sock, offset, v6.is_some());
                row.read("source.ip", address(ours));
                row.read("source.port", ports.0);
                // The peer's is in the order of the network.
                match (address(theirs), ports.1) {
                    (Ok(ip), Ok(port)) if port != 0 => {
                        row.set("destination.ip", ip);
                        row.set("destination.port", port.swap_bytes());
                    }
                    (Ok(_), Ok(_)) => {}
                    (Err(error), _) | (_, Err(error)) => {
                        row.error("destination.ip", &base::log::chain(&error));
                    }
                }
            }
            UNIX => {
                row.read("linux.socket.state", state.map(|state| state_name(state, true)));
                self.unix(ground, sock, row);
            }
            _ => row.read("linux.socket.protocol", protocol),
        }
    }

    fn unix(&self, ground: &Ground<'_>, sock: VirtAddr, row: &mut Row) {
        let Some((layout, name)) = &self.unix else { return };
        let system = ground.system;
        let named = |sock: VirtAddr| -> Result<Option<String>, KernelError> {
            let Some(address) = system.pointer(sock, layout.address, "unix_sock.addr")? else {
                return Ok(None);
            };
            let len = u64::from(system.half(address, name.len, "unix_address.len")?);
            // Behind the family, two bytes.
            let path = len.saturating_sub(2).min(PATH);
            let bytes =
                system.bytes(address, name.name.saturating_add(2), to_usize(path), "unix_address.name")?;
            let text = match bytes.split_first() {
                // In a space of its own that is no file system: ss shows it with an @.
                Some((0, rest)) => format!("@{}", String::from_utf8_lossy(rest)),
                _ => String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default())
                    .into_owned(),
            };
            Ok(Some(text).filter(|text| !text.is_empty()))
        };
        match named(sock) {
            Ok(Some(path)) => row.set("file.path", path),
            Ok(None) => {}
            Err(error) => row.error("file.path", &base::log::chain(&error)),
        }
        if let Ok(Some(peer)) = system.pointer(sock, layout.peer, "unix_sock.peer") {
            row.set("linux.socket.peer", format!("{:#x}", peer.0));
            if let Ok(Some(path)) = named(peer) {
                row.set("linux.socket.peer_path", path);
            }
        }
    }
}

fn address(ground: &Ground<'_>, sock: VirtAddr, offset: u64, is_v6: bool) -> Result<String, KernelError> {
    let bytes = ground.system.bytes(sock, offset, if is_v6 { 16 } else { 4 }, "the address of a socket")?;
    let v6: Option<[u8; 16]> = bytes.as_slice().try_into().ok();
    let v4: Option<[u8; 4]> = bytes.as_slice().try_into().ok();
    let ip = v6.map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)));
    let ip = ip.or_else(|| v4.map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes))));
    Ok(ip.map(|ip| ip.to_string()).unwrap_or_default())
}

fn family_name(family: u16) -> String {
    match family {
        UNIX => "unix".to_owned(),
        INET => "inet".to_owned(),
        INET6 => "inet6".to_owned(),
        NETLINK => "netlink".to_owned(),
        PACKET => "packet".to_owned(),
        VSOCK => "vsock".to_owned(),
        other => other.to_string(),
    }
}

/// `enum sock_type`, include/linux/net.h
fn kind_name(kind: u16) -> &'static str {
    match kind {
        1 => "stream",
        2 => "datagram",
        3 => "raw",
        5 => "sequential packets",
        10 => "packet",
        _ => "other",
    }
}

fn transport(protocol: u16) -> String {
    match protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "ipv6-icmp".to_owned(),
        132 => "sctp".to_owned(),
        // IPPROTO_MPTCP
        262 => "mptcp".to_owned(),
        other => other.to_string(),
    }
}

/// include/net/tcp_states.h; others use the same numbers for connected and not.
fn state_name(state: u8, is_stream: bool) -> &'static str {
    match (state, is_stream) {
        (1, _) => "established",
        (2, _) => "syn-sent",
        (3, _) => "syn-received",
        (4, _) => "fin-wait-1",
        (5, _) => "fin-wait-2",
        (6, _) => "time-wait",
        (7, true) => "closed",
        (7, false) => "unconnected",
        (8, _) => "close-wait",
        (9, _) => "last-ack",
        (10, _) => "listening",
        (11, _) => "closing",
        (12, _) => "new-syn-received",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_names() {
        assert_eq!((family_name(2), family_name(99)), ("inet".to_owned(), "99".to_owned()));
        assert_eq!((transport(6), transport(250)), ("tcp".to_owned(), "250".to_owned()));
        assert_eq!((state_name(10, true), state_name(7, false)), ("listening", "unconnected"));
        assert_eq!(kind_name(1), "stream");
    }
}
