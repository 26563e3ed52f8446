//! Routes: the tries of IPv4 (net/ipv4/fib_trie.c) and the trees of IPv6 (include/net/ip6_fib.h).

use std::net::{Ipv4Addr, Ipv6Addr};

use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;
use vmcore::kernel::KernelError;

use super::super::links::{Seen, Table, chain, hlist};
use super::super::{Ground, Row, Rows, Stop};
use super::interfaces::scope_name;
use super::{Devices, Namespace, ipv4, ipv6, text};

/// Tables of a namespace (`FIB_TABLE_HASHSZ`): with rules, and without.
const TABLES: [u64; 2] = [256, 2];
/// Nodes of one trie or tree that are believed.
const MAX_NODES: usize = 1 << 20;
/// A node of a trie has at most so many children, as a power of two.
const MAX_BITS: u8 = 20;
/// `RTN_RTINFO`: the node has routes.
const HAS_ROUTES: u16 = 4;

layouts! {
    TableLayout of "fib_table" {
        list: "tb_hlist",
        id: "tb_id",
        data: "tb_data",
    }
    NodeLayout of "key_vector" {
        key: "key",
        bits: "bits",
        leaf: "leaf",
        children: "tnode",
    }
    AliasLayout of "fib_alias" {
        list: "fa_list",
        info: "fa_info",
        kind: "fa_type",
        suffix: "fa_slen",
        table: "tb_id",
    }
    InfoLayout of "fib_info" {
        protocol: "fib_protocol",
        scope: "fib_scope",
        source: "fib_prefsrc",
        metric: "fib_priority",
        hops: "fib_nhs",
        hop: "fib_nh",
    } [
        object: "nh",
    ]
    HopLayout of "fib_nh_common" {
        device: "nhc_dev",
        family: "nhc_gw_family",
        gateway: "nhc_gw",
    }
    Table6Layout of "fib6_table" {
        list: "tb6_hlist",
        id: "tb6_id",
        root: "tb6_root",
    }
    Node6Layout of "fib6_node" {
        left: "left",
        right: "right",
        leaf: "leaf",
        flags: "fn_flags",
    } [
        subtree: "subtree",
    ]
    Info6Layout of "fib6_info" {
        next: "fib6_next",
        destination: "fib6_dst.addr",
        len: "fib6_dst.plen",
        metric: "fib6_metric",
        kind: "fib6_type",
        protocol: "fib6_protocol",
        hop: "fib6_nh",
    } [
        object: "nh",
    ]
}

struct V4 {
    table: TableLayout,
    node: NodeLayout,
    alias: AliasLayout,
    info: InfoLayout,
    /// `trie.kv`
    root: u64,
    /// `net.ipv4.fib_table_hash`
    tables: u64,
    count: u64,
    /// Bytes of a `fib_nh`.
    hop_size: u64,
}

struct V6 {
    table: Table6Layout,
    node: Node6Layout,
    info: Info6Layout,
    /// `net.ipv6.fib_table_hash`
    tables: u64,
    count: u64,
    /// `net.ipv6.fib6_null_entry`
    none: Option<u64>,
}

pub(super) struct Layout {
    v4: Result<V4, Missing>,
    v6: Result<V6, Missing>,
    hop: Result<HopLayout, Missing>,
    /// `nexthop.id`, `nexthop.is_group`, `nexthop.nh_info`, `nh_info.fib_nhc`
    object: Option<[u64; 4]>,
}

fn member(known: &dyn Knowledge, structure: &'static str, member: &'static str) -> Result<u64, Missing> {
    known.offset(structure, member).ok_or(Missing { structure, member })
}

fn tables(known: &dyn Knowledge, rules: &str) -> u64 {
    let [with, without] = TABLES;
    if known.offset("net", rules).is_some() { with } else { without }
}

impl Layout {
    pub(super) fn ask(known: &dyn Knowledge) -> Self {
        let v4 = || {
            Ok(V4 {
                table: TableLayout::ask(known)?,
                node: NodeLayout::ask(known)?,
                alias: AliasLayout::ask(known)?,
                info: InfoLayout::ask(known)?,
                root: member(known, "trie", "kv")?,
                tables: member(known, "net", "ipv4.fib_table_hash")?,
                count: tables(known, "ipv4.rules_ops"),
                hop_size: known.size_of("fib_nh").unwrap_or(0),
            })
        };
        let v6 = || {
            Ok(V6 {
                table: Table6Layout::ask(known)?,
                node: Node6Layout::ask(known)?,
                info: Info6Layout::ask(known)?,
                tables: member(known, "net", "ipv6.fib_table_hash")?,
                // One without rules, and the heads behind it are not read.
                count: if known.offset("net", "ipv6.fib6_rules_ops").is_some() { TABLES[0] } else { 1 },
                none: known.offset("net", "ipv6.fib6_null_entry"),
            })
        };
        let object = [
            known.offset("nexthop", "id"),
            known.offset("nexthop", "is_group"),
            known.offset("nexthop", "nh_info"),
            known.offset("nh_info", "fib_nhc"),
        ];
        let object = match object {
            [Some(id), Some(is_group), Some(info), Some(hop)] => Some([id, is_group, info, hop]),
            _ => None,
        };
        Self { v4: v4(), v6: v6(), hop: HopLayout::ask(known), object }
    }

    pub(super) fn walk(
        &self,
        ground: &Ground<'_>,
        at: Namespace,
        devices: &Devices,
        rows: &mut Rows<'_>,
    ) -> Result<(), Stop> {
        let walk = Walk { layout: self, ground, at, devices };
        for version in [
            self.v4.as_ref().map(|v4| (v4.tables, v4.count, v4.table.list, false)),
            self.v6.as_ref().map(|v6| (v6.tables, v6.count, v6.table.list, true)),
        ] {
            let (offset, count, list, is_v6) = match version {
                Ok(found) => found,
                Err(missing) => {
                    rows.add(&at.failed("route", missing))?;
                    continue;
                }
            };
            let first = match ground.system.follow(at.net, offset, "net.fib_table_hash") {
                Ok(first) => first,
                Err(error) => {
                    rows.add(&at.failed("route", &base::log::chain(&error)))?;
                    continue;
                }
            };
            // Two tables may be one trie.
            let (mut seen, mut nodes) = (Seen::new(), Seen::new());
            let heads = Table::of(first, count);
            let fault = heads.walk(ground.system, rows, &mut seen, &mut |entry, rows| {
                let table = VirtAddr(entry.0.wrapping_sub(list));
                let fault = if is_v6 {
                    walk.table6(table, &mut nodes, rows)?
                } else {
                    walk.table4(table, &mut nodes, rows)?
                };
                fault.map_or(Ok(()), |fault| rows.add(&at.failed("route", &fault)))
            })?;
            if let Some(fault) = fault {
                rows.add(&at.failed("route", &fault))?;
            }
        }
        Ok(())
    }
}

struct Walk<'a> {
    layout: &'a Layout,
    ground: &'a Ground<'a>,
    at: Namespace,
    devices: &'a Devices,
}

/// What ended a walk early.
type Fault = Option<String>;

impl Walk<'_> {
    fn table4(&self, table: VirtAddr, seen: &mut Seen, rows: &mut Rows<'_>) -> Result<Fault, Stop> {
        let Ok(v4) = &self.layout.v4 else { return Ok(None) };
        let system = self.ground.system;
        let said = |error: KernelError| base::log::chain(&error);
        let trie = match system.follow(table, v4.table.data, "fib_table.tb_data") {
            Ok(trie) => VirtAddr(trie.0.wrapping_add(v4.root)),
            Err(error) => return Ok(Some(said(error))),
        };
        // The root is no node: it has one child, whatever its bits say.
        let mut waiting = Vec::new();
        let mut fault = None;
        match system.pointer(trie, v4.node.children, "key_vector.tnode") {
            Ok(child) => waiting.extend(child),
            Err(error) => return Ok(Some(said(error))),
        }
        while let Some(node) = waiting.pop() {
            rows.in_time()?;
            if seen.len() >= MAX_NODES || !seen.insert(node) {
                continue;
            }
            let bits = match system.byte(node, v4.node.bits, "key_vector.bits") {
                Ok(bits) => bits,
                Err(error) => {
                    fault = Some(said(error));
                    continue;
                }
            };
            if bits > MAX_BITS {
                fault = Some(format!("a node of a trie has {bits} bits"));
            } else if bits == 0 {
                fault = self.leaf4(v4, node, rows)?.or(fault);
            } else {
                fault = self.children(v4, node, bits, &mut waiting).or(fault);
            }
        }
        Ok(fault)
    }

    /// Children of a node, in pieces of a page.
    fn children(&self, v4: &V4, node: VirtAddr, bits: u8, waiting: &mut Vec<VirtAddr>) -> Fault {
        let count = 1_u64.wrapping_shl(bits.into());
        let (mut number, mut fault) = (0, None);
        while number < count {
            let piece = count.saturating_sub(number).min(128);
            let offset = v4.node.children.saturating_add(number.saturating_mul(8));
            let read = self.ground.system.bytes(node, offset, to_usize(piece.saturating_mul(8)), "tnode");
            match read {
                Ok(bytes) => {
                    let child = |word| Some(VirtAddr(Fields(word).u64(0)?)).filter(|at| at.0 >> 56 == 0xff);
                    waiting.extend(bytes.chunks_exact(8).filter_map(child));
                }
                Err(error) => return Some(base::log::chain(&error)),
            }
            if waiting.len() > MAX_NODES {
                waiting.truncate(MAX_NODES);
                fault = Some(format!("a trie has more than {MAX_NODES} nodes"));
                break;
            }
            number = number.saturating_add(piece);
        }
        fault
    }

    fn leaf4(&self, v4: &V4, node: VirtAddr, rows: &mut Rows<'_>) -> Result<Fault, Stop> {
        let system = self.ground.system;
        let key = match system.half(node, v4.node.key, "key_vector.key") {
            Ok(key) => key,
            Err(error) => return Ok(Some(base::log::chain(&error))),
        };
        let head = VirtAddr(node.0.wrapping_add(v4.node.leaf));
        let (aliases, fault) = hlist(system, head, &mut Seen::new());
        for entry in aliases {
            let alias = VirtAddr(entry.0.wrapping_sub(v4.alias.list));
            let mut row = self.at.row("route", alias);
            row.set("network.type", "ipv4");
            match system.byte(alias, v4.alias.suffix, "fib_alias.fa_slen") {
                Ok(suffix) => row.set("linux.route.destination", network(key, suffix)),
                Err(error) => row.error("linux.route.destination", &base::log::chain(&error)),
            }
            row.read("linux.route.table", system.half(alias, v4.alias.table, "fib_alias.tb_id"));
            let kind = system.byte(alias, v4.alias.kind, "fib_alias.fa_type");
            row.read("linux.route.type", kind.map(kind_name));
            match system.follow(alias, v4.alias.info, "fib_alias.fa_info") {
                Ok(info) => self.info4(v4, info, &mut row),
                Err(error) => row.error("linux.route", &base::log::chain(&error)),
            }
            rows.add(&row)?;
        }
        Ok(fault)
    }

    fn info4(&self, v4: &V4, info: VirtAddr, row: &mut Row) {
        let (system, layout) = (self.ground.system, &v4.info);
        row.read("linux.route.protocol", system.byte(info, layout.protocol, "fib_info.fib_protocol"));
        let scope = system.byte(info, layout.scope, "fib_info.fib_scope");
        row.read("linux.route.scope", scope.map(scope_name));
        row.read("linux.route.metric", system.half(info, layout.metric, "fib_info.fib_priority"));
        match ipv4(system, info, layout.source) {
            Ok(source) if source.is_unspecified() => {}
            source => row.read("linux.route.source", text(source)),
        }
        if self.object(info, layout.object, row) {
            return;
        }
        let hops = system.half(info, layout.hops, "fib_info.fib_nhs");
        let first = VirtAddr(info.0.wrapping_add(layout.hop));
        if hops.as_ref().is_ok_and(|hops| *hops > 0) {
            self.hop(first, row);
        }
        if let Ok(hops) = hops
            && hops > 1
        {
            row.set("linux.route.hops", hops);
            let second = VirtAddr(first.0.wrapping_add(v4.hop_size));
            let mut other = Row::at(second);
            self.hop(second, &mut other);
            row.set("linux.route.second_hop", serde_json::to_value(other).unwrap_or_default());
        }
    }

    /// A next hop that is an object of its own (5.3); whether the route has one.
    fn object(&self, info: VirtAddr, at: Option<u64>, row: &mut Row) -> bool {
        let system = self.ground.system;
        let object = at.and_then(|at| system.pointer(info, at, "fib_info.nh").ok()?);
        let (Some(object), Some([id, is_group, inner, hop])) = (object, self.layout.object) else {
            return false;
        };
        row.read("linux.route.nexthop", system.half(object, id, "nexthop.id"));
        match system.byte(object, is_group, "nexthop.is_group") {
            Ok(0) => match system.follow(object, inner, "nexthop.nh_info") {
                Ok(inner) => self.hop(VirtAddr(inner.0.wrapping_add(hop)), row),
                Err(error) => row.error("linux.route.nexthop", &base::log::chain(&error)),
            },
            Ok(_) => row.set("linux.route.group", true),
            Err(error) => row.error("linux.route.nexthop", &base::log::chain(&error)),
        }
        true
    }

    fn hop(&self, hop: VirtAddr, row: &mut Row) {
        let system = self.ground.system;
        let layout = match &self.layout.hop {
            Ok(layout) => layout,
            Err(missing) => return row.error("linux.route.gateway", missing),
        };
        self.devices.name(system.pointer(hop, layout.device, "fib_nh_common.nhc_dev"), row);
        match system.byte(hop, layout.family, "fib_nh_common.nhc_gw_family") {
            // AF_INET, AF_INET6
            Ok(2) => row.read("linux.route.gateway", text(ipv4(system, hop, layout.gateway))),
            Ok(10) => row.read("linux.route.gateway", text(ipv6(system, hop, layout.gateway))),
            Ok(_) => {}
            Err(error) => row.error("linux.route.gateway", &base::log::chain(&error)),
        }
    }

    fn table6(&self, table: VirtAddr, seen: &mut Seen, rows: &mut Rows<'_>) -> Result<Fault, Stop> {
        let Ok(v6) = &self.layout.v6 else { return Ok(None) };
        let system = self.ground.system;
        let id = system.half(table, v6.table.id, "fib6_table.tb6_id").ok();
        let none = v6.none.and_then(|at| system.pointer(self.at.net, at, "net.ipv6.fib6_null_entry").ok()?);
        let mut waiting = vec![VirtAddr(table.0.wrapping_add(v6.table.root))];
        let (mut fault, mut routes) = (None, Seen::new());
        while let Some(node) = waiting.pop() {
            rows.in_time()?;
            if seen.len() >= MAX_NODES || !seen.insert(node) {
                continue;
            }
            for at in [Some(v6.node.right), Some(v6.node.left), v6.node.subtree].into_iter().flatten() {
                match system.pointer(node, at, "fib6_node") {
                    Ok(child) => waiting.extend(child),
                    Err(error) => fault = Some(base::log::chain(&error)),
                }
            }
            // Others have the routes of a node below.
            let flags = system.short(node, v6.node.flags, "fib6_node.fn_flags").unwrap_or(0);
            if flags & HAS_ROUTES == 0 {
                continue;
            }
            let first = system.word(node, v6.node.leaf, "fib6_node.leaf").unwrap_or(0);
            let (infos, why) = chain(system, first, v6.info.next, &mut routes);
            fault = fault.or(why);
            for info in infos.into_iter().filter(|info| Some(*info) != none) {
                rows.add(&self.info6(v6, info, id))?;
            }
        }
        Ok(fault)
    }

    fn info6(&self, v6: &V6, info: VirtAddr, table: Option<u32>) -> Row {
        let (system, layout) = (self.ground.system, &v6.info);
        let mut row = self.at.row("route", info);
        row.set("network.type", "ipv6");
        let destination = ipv6(system, info, layout.destination);
        let destination = destination
            .and_then(|ip: Ipv6Addr| Ok(format!("{ip}/{}", system.half(info, layout.len, "rt6key.plen")?)));
        row.read("linux.route.destination", destination);
        if let Some(table) = table {
            row.set("linux.route.table", table);
        }
        let kind = system.byte(info, layout.kind, "fib6_info.fib6_type");
        row.read("linux.route.type", kind.map(kind_name));
        row.read("linux.route.protocol", system.byte(info, layout.protocol, "fib6_info.fib6_protocol"));
        row.read("linux.route.metric", system.half(info, layout.metric, "fib6_info.fib6_metric"));
        if !self.object(info, layout.object, &mut row) {
            self.hop(VirtAddr(info.0.wrapping_add(layout.hop)), &mut row);
        }
        row
    }
}

/// A network of IPv4: the key in the order of the machine, and how many bits behind are of no account.
fn network(key: u32, suffix: u8) -> String {
    let len = 32_u8.saturating_sub(suffix);
    let mask = u32::MAX.checked_shl(suffix.into()).unwrap_or(0);
    format!("{}/{len}", Ipv4Addr::from(key & mask))
}

/// `RTN_*`, include/uapi/linux/rtnetlink.h
fn kind_name(kind: u8) -> String {
    let names = [
        "unspecified",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
        "throw",
        "nat",
    ];
    names.get(usize::from(kind)).map_or_else(|| kind.to_string(), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_their_length() {
        assert_eq!(network(0x0a00_02ff, 8), "10.0.2.0/24");
        assert_eq!(network(0, 32), "0.0.0.0/0");
        assert_eq!(network(0x7f00_0001, 0), "127.0.0.1/32");
        assert_eq!((kind_name(2), kind_name(77)), ("local".to_owned(), "77".to_owned()));
    }
}
