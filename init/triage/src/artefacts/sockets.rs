//! `sockets.jsonl`: sockets of all families: those that processes have open, then all others that the
//! kernel's tables have, such as TIME-WAIT, orphans and connections that nobody has accepted.

mod tables;
mod words;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ::processes::tasks::Task;
use base::addr::{VirtAddr, to_usize};
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;
use vmcore::kernel::KernelError;

use self::tables::Source;
use self::words::{family_name, kind_name, state_name, transport};
use super::files::{SOCKET, TYPE, Tables};
use super::links::Seen;
use super::netns::Namespaces;
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
        net: "__sk_common.skc_net.net",
        socket: "sk_socket",
        uid: "sk_uid",
        flags: "sk_flags" | "__sk_common.skc_flags",
        waiting: "sk_ack_backlog",
        most_waiting: "sk_max_ack_backlog",
    ]
    TcpLayout of "tcp_sock" {
        written: "write_seq",
        acknowledged: "snd_una",
        received: "rcv_nxt",
        copied: "copied_seq",
    }
    NetlinkLayout of "netlink_sock" {
        port: "portid",
    } [
        groups: "groups",
    ]
    PacketLayout of "packet_sock" {
        protocol: "num",
        interface: "ifindex",
    }
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
    tcp: Option<TcpLayout>,
    netlink: Option<NetlinkLayout>,
    packet: Option<PacketLayout>,
    /// From a `struct socket` to its inode.
    to_inode: Option<u64>,
    /// `SOCK_DEAD`: the number of the bit of a socket that no process will have any more.
    dead: Option<u64>,
    /// `inet_timewait_sock.tw_substate`
    substate: Option<u64>,
    namespaces: Result<Namespaces, Missing>,
    all: tables::Tables,
}

impl Artefact for Layout {
    const NAME: &'static str = "sockets";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let unix = || Some((UnixLayout::ask(known).ok()?, NameLayout::ask(known).ok()?));
        let allocated = |member| known.offset("socket_alloc", member);
        Ok(Self {
            tables: Tables::ask(known)?,
            socket: SocketLayout::ask(known)?,
            sock: SockLayout::ask(known)?,
            unix: unix(),
            tcp: TcpLayout::ask(known).ok(),
            netlink: NetlinkLayout::ask(known).ok(),
            packet: PacketLayout::ask(known).ok(),
            to_inode: allocated("vfs_inode").zip(allocated("socket")).map(|(to, from)| to.wrapping_sub(from)),
            dead: known.value("sock_flags", "SOCK_DEAD").filter(|bit| *bit < 64),
            substate: known.offset("inet_timewait_sock", "tw_substate"),
            namespaces: Namespaces::ask(known),
            all: tables::Tables::ask(known),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let mut walk = Walk { layout: self, ground, told: Seen::new(), namespaces: BTreeMap::new() };
        for process in &ground.processes.all {
            let task = &process.leader;
            // A table that cannot be read is told by the artefact of files.
            let _ = self.tables.each(ground, task, &mut |number, file| {
                rows.in_time()?;
                let is_socket = self.tables.mode(ground, file).is_ok_and(|(_, mode)| mode & TYPE == SOCKET);
                if is_socket { rows.add(&walk.of_process(task, number, file)) } else { Ok(()) }
            })?;
        }
        walk.without_process(rows)
    }
}

struct Walk<'a> {
    layout: &'a Layout,
    ground: &'a Ground<'a>,
    /// Sockets that have a row.
    told: Seen,
    /// Numbers of network namespaces.
    namespaces: BTreeMap<VirtAddr, u32>,
}

impl Walk<'_> {
    /// Sockets that hang in the kernel's tables, and that no process has open.
    fn without_process(&mut self, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let (layout, ground) = (self.layout, self.ground);
        let found = match &layout.namespaces {
            Ok(namespaces) => layout.all.all(ground, namespaces),
            Err(missing) => return Err(Stop::Start(missing.to_string())),
        };
        let mut notes = found.notes;
        for source in &found.sources {
            // Tables of one kind may be of several namespaces, and no entry is in two of them.
            let mut seen = Seen::new();
            let fault = source.table.walk(ground.system, rows, &mut seen, &mut |entry, rows| {
                let sock = VirtAddr(entry.0.wrapping_sub(source.link));
                if !self.told.insert(sock) {
                    return Ok(());
                }
                let row = self.of_table(source, sock);
                rows.add(&row)
            })?;
            notes.extend(fault.map(|fault| (source.what, fault)));
        }
        for (what, why) in notes {
            let mut row = Row::default();
            row.error(what, &why);
            rows.add(&row)?;
        }
        Ok(())
    }

    fn of_table(&mut self, source: &Source, sock: VirtAddr) -> Row {
        let mut row = Row::at(sock);
        let system = self.ground.system;
        let state = system.byte(sock, self.layout.sock.state, "sock.skc_state");
        let small = state.ok().filter(|_| source.has_small);
        match small {
            // TCP_TIME_WAIT: struct inet_timewait_sock
            Some(6) => {
                row.set("linux.socket.time_wait", true);
                let substate = self.layout.substate;
                let substate = substate.and_then(|at| system.byte(sock, at, "tw_substate").ok()).unwrap_or(6);
                self.small(sock, substate, &mut row);
            }
            // TCP_NEW_SYN_RECV: struct request_sock
            Some(12) => {
                row.set("linux.socket.request", true);
                self.small(sock, 3, &mut row);
            }
            _ => self.whole(sock, &mut row),
        }
        row
    }

    /// What has the first members of a socket, and no others.
    fn small(&mut self, sock: VirtAddr, state: u8, row: &mut Row) {
        let (system, layout) = (self.ground.system, &self.layout.sock);
        match system.short(sock, layout.family, "sock.skc_family") {
            Ok(family) => {
                row.set("linux.socket.family", family_name(family));
                row.set("linux.socket.type", kind_name(1));
                row.set("linux.socket.state", state_name(state, true));
                row.set("network.transport", "tcp");
                self.layout.ends(self.ground, sock, family, row);
            }
            Err(error) => row.error("linux.socket.family", &base::log::chain(&error)),
        }
        self.namespace(sock, row);
    }

    fn whole(&mut self, sock: VirtAddr, row: &mut Row) {
        self.layout.sock(self.ground, sock, row);
        self.layout.owner(self.ground, sock, row);
        self.namespace(sock, row);
    }

    fn namespace(&mut self, sock: VirtAddr, row: &mut Row) {
        let system = self.ground.system;
        let (Some(offset), Ok(namespaces)) = (self.layout.sock.net, &self.layout.namespaces) else { return };
        let number = system.follow(sock, offset, "sock.skc_net").and_then(|net| {
            if let Some(number) = self.namespaces.get(&net) {
                return Ok(*number);
            }
            let number = namespaces.number(system, net)?;
            self.namespaces.insert(net, number);
            Ok(number)
        });
        row.read("linux.namespace.net", number);
    }

    fn of_process(&mut self, task: &Task, number: u64, file: VirtAddr) -> Row {
        let (system, layout) = (self.ground.system, self.layout);
        let sock = system
            .follow(file, layout.tables.file.private, "file.private_data")
            .and_then(|socket| system.follow(socket, layout.socket.sock, "socket.sk"));
        let mut row = Row::at(sock.as_ref().copied().unwrap_or(file));
        row.set("process.pid", task.pid);
        row.set("process.name", task.comm.clone());
        row.set("linux.fd", number);
        match sock {
            Ok(sock) => {
                self.told.insert(sock);
                self.whole(sock, &mut row);
            }
            Err(error) => row.error("linux.socket", &base::log::chain(&error)),
        }
        row
    }
}

impl Layout {
    fn sock(&self, ground: &Ground<'_>, sock: VirtAddr, row: &mut Row) {
        let (system, layout) = (ground.system, &self.sock);
        let family = match system.short(sock, layout.family, "sock.skc_family") {
            Ok(family) => family,
            Err(error) => return row.error("linux.socket.family", &base::log::chain(&error)),
        };
        row.set("linux.socket.family", family_name(family));
        let kind = system.short(sock, layout.kind, "sock.sk_type");
        row.read("linux.socket.type", kind.map(kind_name));
        let state = system.byte(sock, layout.state, "sock.skc_state");
        let protocol = system.short(sock, layout.protocol, "sock.sk_protocol");
        for (key, offset) in
            [("linux.socket.send_queue", layout.queued), ("linux.socket.receive_queue", layout.received)]
        {
            row.read(key, system.half(sock, offset, "sock"));
        }
        if let Some(drops) = layout.drops {
            row.read("linux.socket.drops", system.half(sock, drops, "sock.sk_drops"));
        }
        let is_listening = state.as_ref().is_ok_and(|state| *state == 10);
        if is_listening {
            for (key, offset) in [
                ("linux.socket.backlog", layout.waiting),
                ("linux.socket.backlog_limit", layout.most_waiting),
            ] {
                if let Some(offset) = offset {
                    row.read(key, system.half(sock, offset, "sock.sk_ack_backlog"));
                }
            }
        }
        match family {
            INET | INET6 => {
                let is_tcp = protocol.as_ref().is_ok_and(|protocol| *protocol == 6);
                if is_tcp && !is_listening {
                    self.tcp(ground, sock, row);
                }
                row.read("linux.socket.state", state.map(|state| state_name(state, is_tcp)));
                row.read("network.transport", protocol.map(transport));
                self.ends(ground, sock, family, row);
            }
            UNIX => {
                row.read("linux.socket.state", state.map(|state| state_name(state, true)));
                self.unix(ground, sock, row);
            }
            _ => {
                row.read("linux.socket.protocol", protocol);
                self.others(ground, sock, family, row);
            }
        }
    }

    /// Addresses and ports of both ends.
    fn ends(&self, ground: &Ground<'_>, sock: VirtAddr, family: u16, row: &mut Row) {
        let (system, layout) = (ground.system, &self.sock);
        row.set("network.type", if family == INET6 { "ipv6" } else { "ipv4" });
        let ours = system.short(sock, layout.port, "sock.skc_num");
        let theirs = system.short(sock, layout.peer_port, "sock.skc_dport");
        let v6 = layout.address6.zip(layout.peer6).filter(|_| family == INET6);
        let (our_ip, their_ip) = v6.unwrap_or((layout.address, layout.peer));
        let address = |offset| address(ground, sock, offset, v6.is_some());
        row.read("source.ip", address(our_ip));
        row.read("source.port", ours);
        // The peer's is in the order of the network.
        match (address(their_ip), theirs) {
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

    /// Bytes on their way, as /proc/net/tcp counts them.
    fn tcp(&self, ground: &Ground<'_>, sock: VirtAddr, row: &mut Row) {
        let Some(layout) = &self.tcp else { return };
        let number = |offset| ground.system.half(sock, offset, "tcp_sock");
        let between = |from, to| Ok(number(to)?.wrapping_sub(number(from)?));
        row.read("linux.socket.unacknowledged", between(layout.acknowledged, layout.written));
        row.read("linux.socket.unread", between(layout.copied, layout.received));
    }

    /// What sockets of netlink and of packets have of their own.
    fn others(&self, ground: &Ground<'_>, sock: VirtAddr, family: u16, row: &mut Row) {
        let system = ground.system;
        match (family, &self.netlink, &self.packet) {
            (NETLINK, Some(layout), _) => {
                row.read("linux.netlink.port", system.half(sock, layout.port, "netlink_sock.portid"));
                let groups = layout.groups.map(|at| system.pointer(sock, at, "netlink_sock.groups"));
                if let Some(Ok(Some(groups))) = groups {
                    row.read("linux.netlink.groups", system.half(groups, 0, "netlink_sock.groups"));
                }
            }
            (PACKET, _, Some(layout)) => {
                let protocol = system.short(sock, layout.protocol, "packet_sock.num").map(u16::swap_bytes);
                row.read("linux.packet.protocol", protocol.map(|protocol| format!("{protocol:#06x}")));
                let interface = system.half(sock, layout.interface, "packet_sock.ifindex");
                row.read("linux.packet.interface", interface);
            }
            _ => {}
        }
    }

    /// Whose it is.
    fn owner(&self, ground: &Ground<'_>, sock: VirtAddr, row: &mut Row) {
        let system = ground.system;
        if let Some(uid) = self.sock.uid {
            row.read("user.id", system.half(sock, uid, "sock.sk_uid").map(|id| id.to_string()));
        }
        let Some(offset) = self.sock.socket else { return };
        match system.pointer(sock, offset, "sock.sk_socket") {
            Ok(Some(socket)) => {
                let Some(distance) = self.to_inode else { return };
                let inode = VirtAddr(socket.0.wrapping_add(distance));
                row.read("linux.socket.inode", system.word(inode, self.tables.inode.number, "inode.i_ino"));
            }
            Ok(None) => {
                let flags = self.sock.flags.and_then(|at| system.word(sock, at, "sock.sk_flags").ok());
                let is_dead = flags.zip(self.dead).is_some_and(|(flags, bit)| flags >> bit & 1 == 1);
                // What waits in the queue of a listening socket has no process yet.
                row.set(if is_dead { "linux.socket.orphan" } else { "linux.socket.not_accepted" }, true);
            }
            Err(error) => row.error("linux.socket.inode", &base::log::chain(&error)),
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
