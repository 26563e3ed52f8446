//! Where the kernel has its sockets, whether or not a process has them open: by protocol, and by network
//! namespace where tables are of one.

use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::layouts;
use vmcore::kernel::KernelError;

use super::super::Ground;
use super::super::links::Table;
use super::super::netns::Namespaces;

layouts! {
    HashInfoLayout of "inet_hashinfo" {
        established: "ehash",
        established_mask: "ehash_mask",
    } [
        listening: "lhash2",
        listening_mask: "lhash2_mask",
        // An array in it, of all listening sockets, before 5.19 (cae3873c5b3a).
        listening_array: "listening_hash",
    ]
    UdpTableLayout of "udp_table" {
        hash: "hash",
        mask: "mask",
    }
    NetlinkTableLayout of "netlink_table" {
        hash: "hash",
    }
    HashTableLayout of "rhashtable" {
        table: "tbl",
    }
    BucketsLayout of "bucket_table" {
        size: "size",
        nest: "nest",
        buckets: "buckets",
        future: "future_tbl",
    }
}

/// Tables of netlink, one of each protocol (`MAX_LINKS`, include/uapi/linux/netlink.h).
const NETLINK_TABLES: u64 = 32;
/// Tables that a growing one is moved to, one after the other.
const MAX_FUTURE: usize = 8;
/// Chains of the tables of UNIX sockets (`2 * UNIX_HASH_SIZE` up to 5.17, then `UNIX_HASH_SIZE`).
const UNIX_CHAINS: u64 = 512;

/// A table of sockets.
pub(super) struct Source {
    /// What is in it.
    pub(super) what: &'static str,
    pub(super) table: Table,
    /// Where a socket has the entry.
    pub(super) link: u64,
    /// Whether small structures are among the sockets: TIME-WAIT and requests for a connection.
    pub(super) has_small: bool,
}

/// Where tables are.
pub(super) struct Tables {
    hash_info: Option<(HashInfoLayout, u64)>,
    /// `inet_listen_hashbucket`: its head, and its bytes.
    listening: Option<(u64, u64)>,
    listening_count: u64,
    udp: Option<(UdpTableLayout, u64)>,
    netlink: Option<Netlink>,
    /// `raw_hashinfo.ht`, `ping_table.hash`: where, and how many.
    raw: Option<(u64, u64)>,
    ping: Option<(u64, u64)>,
    symbols: Vec<(&'static str, VirtAddr)>,
    /// In `struct net`: `inet_hashinfo`, `udp_table`, chains of UNIX, packet sockets.
    of_net: [Option<u64>; 4],
    /// `sock_common.skc_node`
    node: Option<u64>,
}

struct Netlink {
    size: u64,
    table: NetlinkTableLayout,
    hash: HashTableLayout,
    buckets: BucketsLayout,
    node: u64,
}

impl Netlink {
    fn ask(known: &dyn Knowledge) -> Option<Self> {
        Some(Self {
            size: known.size_of("netlink_table")?,
            table: NetlinkTableLayout::ask(known).ok()?,
            hash: HashTableLayout::ask(known).ok()?,
            buckets: BucketsLayout::ask(known).ok()?,
            node: known.offset("netlink_sock", "node")?,
        })
    }
}

const SYMBOLS: [&str; 8] = [
    "tcp_hashinfo",
    "udp_table",
    "udplite_table",
    "raw_v4_hashinfo",
    "raw_v6_hashinfo",
    "ping_table",
    "nl_table",
    "unix_socket_table",
];

impl Tables {
    pub(super) fn ask(known: &dyn Knowledge) -> Self {
        let sized = |structure, member| known.offset(structure, member).zip(known.size_of(structure));
        let array =
            |structure, member| known.offset(structure, member).zip(known.elements(structure, member));
        let symbol = |name: &'static str| Some((name, known.symbol(name)?));
        let hash_info = HashInfoLayout::ask(known).ok();
        let udp = UdpTableLayout::ask(known).ok();
        Self {
            hash_info: hash_info.zip(known.size_of("inet_ehash_bucket")),
            listening: sized("inet_listen_hashbucket", "nulls_head"),
            listening_count: known.elements("inet_hashinfo", "listening_hash").unwrap_or(0),
            udp: udp.zip(known.size_of("udp_hslot")),
            netlink: Netlink::ask(known),
            raw: array("raw_hashinfo", "ht"),
            ping: array("ping_table", "hash"),
            symbols: SYMBOLS.into_iter().filter_map(symbol).collect(),
            of_net: ["ipv4.tcp_death_row.hashinfo", "ipv4.udp_table", "unx.table.buckets", "packet.sklist"]
                .map(|path| known.offset("net", path)),
            node: known.offset("sock_common", "skc_node"),
        }
    }

    /// All tables, and what is to be said of those that cannot be found.
    pub(super) fn all(&self, ground: &Ground<'_>, namespaces: &Namespaces) -> Found {
        let mut found = Found::default();
        let Some(node) = self.node else {
            found.note("all sockets without a process", "the kernel's types have no sock_common.skc_node");
            return found;
        };
        let symbol =
            |name: &str| self.symbols.iter().find(|(other, _)| *other == name).map(|(_, address)| *address);
        let (nets, is_whole) = namespaces.all(ground.system);
        if !is_whole {
            found.note(
                "sockets of some network namespaces",
                "the list of namespaces cannot be read to its end",
            );
        }
        let [hash_info, udp, unix, packet] = self.of_net.map(|offset| in_nets(ground, &nets, offset));
        let mut tcp: Vec<VirtAddr> = hash_info.iter().map(|(_, table)| *table).collect();
        tcp.extend(symbol("tcp_hashinfo"));
        found.each("tcp", tcp, |at, found| self.tcp(ground, at, node, found));
        let mut all: Vec<VirtAddr> = udp.iter().map(|(_, table)| *table).collect();
        all.extend([symbol("udp_table"), symbol("udplite_table")].into_iter().flatten());
        found.each("udp", all, |at, found| self.udp(ground, at, node, found));
        let raw = ["raw_v4_hashinfo", "raw_v6_hashinfo"].into_iter().filter_map(symbol).collect();
        found.each("raw", raw, |at, found| array(self.raw, at, ("raw", node), found));
        let ping = symbol("ping_table").into_iter().collect();
        found.each("icmp", ping, |at, found| array(self.ping, at, ("icmp", node), found));
        let mut unix: Vec<VirtAddr> = unix.iter().map(|(_, table)| *table).collect();
        unix.extend(symbol("unix_socket_table"));
        found.each("unix", unix, |at, found| array(Some((0, UNIX_CHAINS)), at, ("unix", node), found));
        let packet = packet.iter().map(|(place, _)| *place).collect();
        found.each("packet", packet, |at, found| array(Some((0, 1)), at, ("packet", node), found));
        let netlink = symbol("nl_table").into_iter().collect();
        found.each("netlink", netlink, |at, found| self.netlink(ground, at, found));
        let loaded = ground.code.modules();
        if loaded.iter().any(|module| module.name == "vsock") {
            found.note("vsock sockets without a process", "symbols of modules are not read");
        }
        found
    }

    fn tcp(&self, ground: &Ground<'_>, at: VirtAddr, link: u64, found: &mut Found) -> Result<(), Unread> {
        let system = ground.system;
        let Some((layout, stride)) = self.hash_info else { return missing("inet_hashinfo") };
        let chains = system.follow(at, layout.established, "inet_hashinfo.ehash")?;
        let mask = system.half(at, layout.established_mask, "inet_hashinfo.ehash_mask")?;
        let count = u64::from(mask).saturating_add(1);
        let table = Table { stride, ..Table::of(chains, count) };
        found.sources.push(Source { what: "tcp", table, link, has_small: true });
        let Some((head, stride)) = self.listening else {
            return missing("inet_listen_hashbucket");
        };
        let (chains, count) = match (layout.listening_array, layout.listening, layout.listening_mask) {
            (Some(array), ..) => (VirtAddr(at.0.wrapping_add(array)), self.listening_count),
            (None, Some(pointer), Some(mask)) => {
                let chains = system.follow(at, pointer, "inet_hashinfo.lhash2")?;
                let mask = system.half(at, mask, "inet_hashinfo.lhash2_mask")?;
                (chains, u64::from(mask).saturating_add(1))
            }
            _ => return missing("inet_hashinfo.lhash2"),
        };
        let table = Table { stride, ..Table::of(VirtAddr(chains.0.wrapping_add(head)), count) };
        found.sources.push(Source { what: "tcp", table, link, has_small: false });
        Ok(())
    }

    fn udp(&self, ground: &Ground<'_>, at: VirtAddr, link: u64, found: &mut Found) -> Result<(), Unread> {
        let system = ground.system;
        let Some((layout, stride)) = self.udp else { return missing("udp_table") };
        let chains = system.follow(at, layout.hash, "udp_table.hash")?;
        let mask = system.half(at, layout.mask, "udp_table.mask")?;
        // The head is the first member of a udp_hslot.
        let table = Table { stride, ..Table::of(chains, u64::from(mask).saturating_add(1)) };
        found.sources.push(Source { what: "udp", table, link, has_small: false });
        Ok(())
    }

    fn netlink(&self, ground: &Ground<'_>, at: VirtAddr, found: &mut Found) -> Result<(), Unread> {
        let system = ground.system;
        let Some(netlink) = &self.netlink else { return missing("netlink_table") };
        let first = system.follow(at, 0, "nl_table")?;
        for number in 0..NETLINK_TABLES {
            let offset = number.saturating_mul(netlink.size).saturating_add(netlink.table.hash);
            let hash = VirtAddr(first.0.wrapping_add(offset));
            let mut next = system.pointer(hash, netlink.hash.table, "rhashtable.tbl")?;
            for _ in 0..MAX_FUTURE {
                let Some(table) = next else { break };
                let size = u64::from(system.half(table, netlink.buckets.size, "bucket_table.size")?);
                if system.half(table, netlink.buckets.nest, "bucket_table.nest")? != 0 {
                    found.note("netlink sockets", "a table in several levels is not read");
                } else {
                    let chains = VirtAddr(table.0.wrapping_add(netlink.buckets.buckets));
                    let table = Table { locks: true, ..Table::of(chains, size) };
                    found.sources.push(Source {
                        what: "netlink",
                        table,
                        link: netlink.node,
                        has_small: false,
                    });
                }
                next = system.pointer(table, netlink.buckets.future, "bucket_table.future_tbl")?;
            }
        }
        Ok(())
    }
}

/// A member of each namespace: where it lies, and what it leads to.
fn in_nets(ground: &Ground<'_>, nets: &[VirtAddr], offset: Option<u64>) -> Vec<(VirtAddr, VirtAddr)> {
    let at = |net: &VirtAddr| {
        let place = net.checked_add(offset?)?;
        let table = ground.system.pointer(place, 0, "a table of sockets").ok().flatten();
        Some((place, table.unwrap_or(VirtAddr(0))))
    };
    nets.iter().filter_map(at).collect()
}

/// Chains that lie in a structure.
fn array(
    layout: Option<(u64, u64)>,
    at: VirtAddr,
    (what, link): (&'static str, u64),
    found: &mut Found,
) -> Result<(), Unread> {
    let Some((offset, count)) = layout else { return missing("table of sockets") };
    let table = Table::of(VirtAddr(at.0.wrapping_add(offset)), count);
    found.sources.push(Source { what, table, link, has_small: false });
    Ok(())
}

/// Why a table cannot be found.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    #[error(transparent)]
    Memory(#[from] KernelError),
    #[error("the kernel's types have no {0}")]
    Missing(&'static str),
}

fn missing(what: &'static str) -> Result<(), Unread> {
    Err(Unread::Missing(what))
}

/// Tables, and what there is to say.
#[derive(Default)]
pub(super) struct Found {
    pub(super) sources: Vec<Source>,
    /// What is missing, and why.
    pub(super) notes: Vec<(&'static str, String)>,
}

impl Found {
    fn note(&mut self, what: &'static str, why: &str) {
        self.notes.push((what, why.to_owned()));
    }

    /// Adds tables, each once; namespaces may share them.
    fn each(
        &mut self,
        what: &'static str,
        mut places: Vec<VirtAddr>,
        mut add: impl FnMut(VirtAddr, &mut Self) -> Result<(), Unread>,
    ) {
        places.retain(|at| at.0 != 0);
        places.sort_unstable();
        places.dedup();
        if places.is_empty() {
            self.note(what, "the kernel has no symbol of a table of them");
        }
        for at in places {
            if let Err(error) = add(at, self) {
                self.notes.push((what, base::log::chain(&error)));
            }
        }
    }
}
