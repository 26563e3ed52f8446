//! `bpf.jsonl`: BPF programs, maps and links, by the numbers that bpftool shows.

use ::processes::xarray;
use base::addr::VirtAddr;
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;

use super::timeline::Moment;
use super::{Artefact, Ground, Row, Rows, Stop};

/// Programs, maps and links of each kind that are believed.
const MAX: usize = 100_000;
/// `BPF_OBJ_NAME_LEN`, include/uapi/linux/bpf.h
const NAME: usize = 16;

layouts! {
    IdrLayout of "idr" {
        root: "idr_rt.xa_head",
    }
    ProgramLayout of "bpf_prog" {
        kind: "type",
        attach: "expected_attach_type",
        jited: "jited_len",
        more: "aux",
    } [
        tag: "tag",
    ]
    MoreLayout of "bpf_prog_aux" {
        name: "name",
        loaded: "load_time",
        user: "user",
    } [
        function: "attach_func_name",
    ]
    UserLayout of "user_struct" {
        uid: "uid",
    }
    MapLayout of "bpf_map" {
        kind: "map_type",
        key: "key_size",
        value: "value_size",
        entries: "max_entries",
        name: "name",
    }
    LinkLayout of "bpf_link" {
        kind: "type",
        program: "prog",
    } [
        attach: "attach_type",
    ]
}

/// What there is of: a word for it, and where the kernel has all of them.
struct Kind<T> {
    name: &'static str,
    all: Option<VirtAddr>,
    layout: Result<T, Missing>,
}

impl<T> Kind<T> {
    fn ask(known: &dyn Knowledge, name: &'static str, symbol: &str, layout: Result<T, Missing>) -> Self {
        Self { name, all: known.symbol(symbol), layout }
    }
}

pub(super) struct Layout {
    root: IdrLayout,
    programs: Kind<(ProgramLayout, MoreLayout, UserLayout)>,
    maps: Kind<MapLayout>,
    links: Kind<LinkLayout>,
    /// `bpf_prog_aux.id`
    program_id: Option<u64>,
}

impl Artefact for Layout {
    const NAME: &'static str = "bpf";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let programs = || Ok((ProgramLayout::ask(known)?, MoreLayout::ask(known)?, UserLayout::ask(known)?));
        Ok(Self {
            root: IdrLayout::ask(known)?,
            programs: Kind::ask(known, "program", "prog_idr", programs()),
            maps: Kind::ask(known, "map", "map_idr", MapLayout::ask(known)),
            links: Kind::ask(known, "link", "link_idr", LinkLayout::ask(known)),
            program_id: known.offset("bpf_prog_aux", "id"),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        self.each(ground, rows, &self.programs, |layout, at, row| program(ground, layout, at, row))?;
        self.each(ground, rows, &self.maps, |layout, at, row| map(ground, *layout, at, row))?;
        self.each(ground, rows, &self.links, |layout, at, row| self.link(ground, *layout, at, row))
    }
}

impl Layout {
    /// A row for each of a kind; one that says why, where there can be none.
    fn each<T>(
        &self,
        ground: &Ground<'_>,
        rows: &mut Rows<'_>,
        kind: &Kind<T>,
        describe: impl Fn(&T, VirtAddr, &mut Row),
    ) -> Result<(), Stop> {
        let failed = |rows: &mut Rows<'_>, why: &dyn core::fmt::Display| {
            let mut row = Row::default();
            row.set("linux.bpf.kind", kind.name);
            row.error(&format!("the {}s", kind.name), why);
            rows.add(&row)
        };
        let layout = match &kind.layout {
            Ok(layout) => layout,
            Err(missing) => return failed(rows, missing),
        };
        let Some(all) = kind.all else { return failed(rows, &"the kernel has no symbol of their table") };
        let (found, lost) = match xarray::pointers(ground.system, all, self.root.root, MAX) {
            Ok(found) => found,
            Err(error) => return failed(rows, &base::log::chain(&error)),
        };
        for (id, at) in found {
            let mut row = Row::at(at);
            row.set("linux.bpf.kind", kind.name);
            row.set("linux.bpf.id", id);
            describe(layout, at, &mut row);
            rows.add(&row)?;
        }
        if lost > 0 { failed(rows, &format!("{lost} parts of their table cannot be read")) } else { Ok(()) }
    }

    fn link(&self, ground: &Ground<'_>, layout: LinkLayout, at: VirtAddr, row: &mut Row) {
        let system = ground.system;
        row.read(
            "linux.bpf.type",
            system.half(at, layout.kind, "bpf_link.type").map(|kind| named(LINKS, kind)),
        );
        if let Some(attach) = layout.attach {
            let attach = system.half(at, attach, "bpf_link.attach_type");
            row.read("linux.bpf.attach_type", attach.map(|kind| named(ATTACH, kind)));
        }
        let Ok((program, ..)) = &self.programs.layout else { return };
        // Links to structures of functions have no program.
        match (system.pointer(at, layout.program, "bpf_link.prog"), self.program_id) {
            (Ok(Some(at)), Some(id)) => {
                let more = system.follow(at, program.more, "bpf_prog.aux");
                let id = more.and_then(|more| system.half(more, id, "bpf_prog_aux.id"));
                row.read("linux.bpf.program.id", id);
            }
            (Ok(_), _) => {}
            (Err(error), _) => row.error("linux.bpf.program.id", &base::log::chain(&error)),
        }
    }
}

fn program(
    ground: &Ground<'_>,
    (layout, more_layout, user): &(ProgramLayout, MoreLayout, UserLayout),
    at: VirtAddr,
    row: &mut Row,
) {
    let system = ground.system;
    let kind = system.half(at, layout.kind, "bpf_prog.type").map(|kind| named(PROGRAMS, kind));
    let what = kind.as_ref().ok().cloned();
    row.read("linux.bpf.type", kind);
    // The first of them, ingress of a control group, is what those have that were told none.
    let attach = system.half(at, layout.attach, "bpf_prog.expected_attach_type");
    if what.as_deref() == Some("cgroup_skb") || !matches!(attach, Ok(0)) {
        row.read("linux.bpf.attach_type", attach.map(|kind| named(ATTACH, kind)));
    }
    row.read("linux.bpf.jited_bytes", system.half(at, layout.jited, "bpf_prog.jited_len"));
    if let Some(tag) = layout.tag {
        // It is shown byte by byte.
        let word = system.word(at, tag, "bpf_prog.tag").map(u64::swap_bytes);
        row.read("linux.bpf.tag", word.map(|word| format!("{word:016x}")));
    }
    let more = match system.follow(at, layout.more, "bpf_prog.aux") {
        Ok(more) => more,
        Err(error) => return row.error("linux.bpf.name", &base::log::chain(&error)),
    };
    let name = system.bytes(more, more_layout.name, NAME, "bpf_prog_aux.name").map(|bytes| text(&bytes));
    let named = name.as_ref().ok().cloned().unwrap_or_default();
    row.read("linux.bpf.name", name);
    let uid = system.follow(more, more_layout.user, "bpf_prog_aux.user");
    let uid = uid.and_then(|at| system.half(at, user.uid, "user_struct.uid"));
    row.read("user.id", uid.map(|id| id.to_string()));
    if let Some(function) = more_layout.function
        && let Ok(Some(_)) = system.pointer(more, function, "bpf_prog_aux.attach_func_name")
    {
        row.read("linux.bpf.function", crate::mounts::text(system, more, function));
    }
    let loaded = system.word(more, more_layout.loaded, "bpf_prog_aux.load_time");
    let moment = loaded.as_ref().ok().and_then(|loaded| ground.clock.since_boot(*loaded));
    if let Err(error) = loaded {
        row.error("linux.bpf.loaded", &base::log::chain(&error));
    }
    let Some(moment) = moment else { return };
    row.put("linux.bpf.loaded", base::time::utc(moment).ok_or("the clock is damaged"));
    let message = format!("BPF program {named:?} ({}) loaded", what.unwrap_or_default());
    row.happened(Moment { at: moment, message, kind: "Load Time" });
}

fn map(ground: &Ground<'_>, layout: MapLayout, at: VirtAddr, row: &mut Row) {
    let system = ground.system;
    row.read(
        "linux.bpf.type",
        system.half(at, layout.kind, "bpf_map.map_type").map(|kind| named(MAPS, kind)),
    );
    row.read("linux.bpf.name", system.bytes(at, layout.name, NAME, "bpf_map.name").map(|bytes| text(&bytes)));
    for (key, offset) in [
        ("linux.bpf.key_bytes", layout.key),
        ("linux.bpf.value_bytes", layout.value),
        ("linux.bpf.max_entries", layout.entries),
    ] {
        row.read(key, system.half(at, offset, "bpf_map"));
    }
}

fn text(bytes: &[u8]) -> String {
    Fields(bytes).text(0, bytes.len()).unwrap_or_default()
}

/// The name of a number; the number where it is newer than the list.
fn named(names: &str, number: u32) -> String {
    let name = usize::try_from(number).ok().and_then(|number| names.split(' ').nth(number));
    name.map_or_else(|| number.to_string(), str::to_owned)
}

/// `enum bpf_prog_type`, as bpftool calls them; numbers are never given anew (include/uapi/linux/bpf.h).
const PROGRAMS: &str = "unspec socket_filter kprobe sched_cls sched_act tracepoint xdp perf_event cgroup_skb \
    cgroup_sock lwt_in lwt_out lwt_xmit sock_ops sk_skb cgroup_device sk_msg raw_tracepoint \
    cgroup_sock_addr lwt_seg6local lirc_mode2 sk_reuseport flow_dissector cgroup_sysctl \
    raw_tracepoint_writable cgroup_sockopt tracing struct_ops ext lsm sk_lookup syscall netfilter";

/// `enum bpf_map_type`
const MAPS: &str = "unspec hash array prog_array perf_event_array percpu_hash percpu_array stack_trace cgroup_array \
    lru_hash lru_percpu_hash lpm_trie array_of_maps hash_of_maps devmap sockmap cpumap xskmap \
    sockhash cgroup_storage reuseport_sockarray percpu_cgroup_storage queue stack sk_storage \
    devmap_hash struct_ops ringbuf inode_storage task_storage bloom_filter user_ringbuf \
    cgrp_storage arena insn_array rhash";

/// `enum bpf_link_type`
const LINKS: &str = "unspec raw_tracepoint tracing cgroup iter netns xdp perf_event kprobe_multi struct_ops \
    netfilter tcx uprobe_multi netkit sockmap tracing_multi";

/// `enum bpf_attach_type`
const ATTACH: &str = "cgroup_inet_ingress cgroup_inet_egress cgroup_inet_sock_create cgroup_sock_ops \
    sk_skb_stream_parser sk_skb_stream_verdict cgroup_device sk_msg_verdict cgroup_inet4_bind \
    cgroup_inet6_bind cgroup_inet4_connect cgroup_inet6_connect cgroup_inet4_post_bind \
    cgroup_inet6_post_bind cgroup_udp4_sendmsg cgroup_udp6_sendmsg lirc_mode2 flow_dissector \
    cgroup_sysctl cgroup_udp4_recvmsg cgroup_udp6_recvmsg cgroup_getsockopt cgroup_setsockopt \
    trace_raw_tp trace_fentry trace_fexit modify_return lsm_mac trace_iter cgroup_inet4_getpeername \
    cgroup_inet6_getpeername cgroup_inet4_getsockname cgroup_inet6_getsockname xdp_devmap \
    cgroup_inet_sock_release xdp_cpumap sk_lookup xdp sk_skb_verdict sk_reuseport_select \
    sk_reuseport_select_or_migrate perf_event trace_kprobe_multi lsm_cgroup struct_ops netfilter \
    tcx_ingress tcx_egress trace_uprobe_multi cgroup_unix_connect cgroup_unix_sendmsg \
    cgroup_unix_recvmsg cgroup_unix_getpeername cgroup_unix_getsockname netkit_primary netkit_peer \
    trace_kprobe_session trace_uprobe_session trace_fsession trace_fentry_multi trace_fexit_multi \
    trace_fsession_multi";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_names() {
        assert_eq!((named(PROGRAMS, 6), named(PROGRAMS, 200)), ("xdp".to_owned(), "200".to_owned()));
        assert_eq!((named(MAPS, 27), named(LINKS, 7)), ("ringbuf".to_owned(), "perf_event".to_owned()));
        assert_eq!((named(ATTACH, 37), named(ATTACH, 46)), ("xdp".to_owned(), "tcx_ingress".to_owned()));
    }
}
