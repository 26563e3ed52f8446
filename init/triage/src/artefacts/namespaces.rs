//! `namespaces.jsonl`: the namespaces that tasks are in, and their control groups, with who is in each.

use std::collections::BTreeMap;

use ::processes::system::System;
use ::processes::tasks::Task;
use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;
use vmcore::kernel::KernelError;

use super::groups::{Groups, Totals, container};
use super::{Artefact, Ground, Row, Rows, Stop};

/// Processes of one namespace that a row lists.
const PIDS: usize = 1000;
/// Levels of process namespaces (`MAX_PID_NS_LEVEL`).
const LEVELS: u32 = 32;
/// Kinds that `struct nsproxy` has: the name in /proc/PID/ns, the member, and the structure.
const KINDS: [(&str, &str, &str); 6] = [
    ("mnt", "mnt_ns", "mnt_namespace"),
    ("uts", "uts_ns", "uts_namespace"),
    ("ipc", "ipc_ns", "ipc_namespace"),
    ("net", "net_ns", "net"),
    ("cgroup", "cgroup_ns", "cgroup_namespace"),
    ("time", "time_ns", "time_namespace"),
];

layouts! {
    TaskLayout of "task_struct" {
        proxy: "nsproxy",
        cred: "cred",
    } [
        pid: "thread_pid",
    ]
    CredLayout of "cred" {
        user: "user_ns",
    }
    PidLayout of "pid" {
        level: "level",
        numbers: "numbers",
    }
    UserLayout of "user_namespace" {
        parent: "parent",
        owner: "owner",
    }
}

/// A kind of namespace.
struct Kind {
    name: &'static str,
    /// The member of `struct nsproxy`, of those that are there.
    member: Option<u64>,
    /// Its number, and the user namespace that it belongs to.
    number: u64,
    user: Option<u64>,
}

impl Kind {
    fn ask(known: &dyn Knowledge, name: &'static str, member: Option<u64>, structure: &str) -> Option<Self> {
        // It is called ns_common or ns, and has been a member of all of them.
        let number = known.offset(structure, "ns")?.checked_add(known.offset("ns_common", "inum")?)?;
        Some(Self { name, member, number, user: known.offset(structure, "user_ns") })
    }
}

/// Where a task has its namespaces.
pub(super) struct Namespaces {
    task: TaskLayout,
    cred: CredLayout,
    kinds: Vec<Kind>,
    user: Option<Kind>,
    /// Process namespaces, `struct pid`, bytes of a `struct upid`, and its member `ns`.
    pid: Option<(Kind, PidLayout, u64, u64)>,
}

impl Namespaces {
    pub(super) fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let kind = |&(name, member, structure): &(&'static str, &str, &str)| {
            Kind::ask(known, name, Some(known.offset("nsproxy", member)?), structure)
        };
        let pid = || {
            let kind = Kind::ask(known, "pid", None, "pid_namespace")?;
            let (size, inner) = (known.size_of("upid")?, known.offset("upid", "ns")?);
            Some((kind, PidLayout::ask(known).ok()?, size, inner))
        };
        Ok(Self {
            task: TaskLayout::ask(known)?,
            cred: CredLayout::ask(known)?,
            kinds: KINDS.iter().filter_map(kind).collect(),
            user: Kind::ask(known, "user", None, "user_namespace"),
            pid: pid(),
        })
    }

    /// Calls `each` with the kinds and the addresses of a task's namespaces. One that is about to end
    /// has none.
    fn each<'k>(
        &'k self,
        system: &System<'_>,
        task: VirtAddr,
        each: &mut dyn FnMut(&'k Kind, Result<VirtAddr, KernelError>),
    ) {
        match system.pointer(task, self.task.proxy, "task_struct.nsproxy") {
            Ok(Some(proxy)) => {
                for kind in &self.kinds {
                    let Some(member) = kind.member else { continue };
                    each(kind, system.follow(proxy, member, "a namespace of nsproxy"));
                }
            }
            Ok(None) => {}
            Err(error) => {
                if let Some(kind) = self.kinds.first() {
                    each(kind, Err(error));
                }
            }
        }
        if let Some(kind) = &self.user {
            let cred = system.follow(task, self.task.cred, "task_struct.cred");
            each(kind, cred.and_then(|cred| system.follow(cred, self.cred.user, "cred.user_ns")));
        }
        if let (Some((kind, layout, size, inner)), Some(pid)) = (&self.pid, self.task.pid) {
            match system.pointer(task, pid, "task_struct.thread_pid") {
                Ok(Some(pid)) => {
                    let level = system.half(pid, layout.level, "pid.level").map(|level| level.min(LEVELS));
                    each(
                        kind,
                        level.and_then(|level| {
                            let number = u64::from(level).saturating_mul(*size);
                            let at = layout.numbers.saturating_add(number).saturating_add(*inner);
                            system.follow(pid, at, "pid.numbers.ns")
                        }),
                    );
                }
                Ok(None) => {}
                Err(error) => each(kind, Err(error)),
            }
        }
    }

    /// The names and numbers of a task's namespaces, as far as they can be read.
    pub(super) fn of(&self, system: &System<'_>, task: VirtAddr) -> Vec<(&'static str, u32)> {
        let mut all = Vec::new();
        self.each(system, task, &mut |kind, at| {
            let number = at.and_then(|at| system.half(at, kind.number, "ns_common.inum"));
            all.extend(number.ok().map(|number| (kind.name, number)));
        });
        all
    }
}

/// Who is in something.
#[derive(Default)]
struct Members {
    pids: Vec<u32>,
    processes: u64,
    threads: u64,
    /// The process that was added last.
    last: Option<u32>,
}

impl Members {
    /// Threads may be elsewhere than the process that they are of.
    fn add(&mut self, thread: &Task) {
        self.threads = self.threads.saturating_add(1);
        if self.last == Some(thread.tgid) {
            return;
        }
        self.last = Some(thread.tgid);
        self.processes = self.processes.saturating_add(1);
        if self.pids.len() < PIDS {
            self.pids.push(thread.tgid);
        }
    }

    fn tell(self, row: &mut Row) {
        row.set("linux.processes", self.processes);
        row.set("linux.tasks", self.threads);
        row.set("linux.pids", self.pids);
    }
}

pub(super) struct Layout {
    namespaces: Namespaces,
    user: Option<UserLayout>,
    groups: Option<Groups>,
    totals: Option<Totals>,
}

impl Artefact for Layout {
    const NAME: &'static str = "namespaces";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let (user, groups) = (UserLayout::ask(known).ok(), Groups::ask(known));
        Ok(Self { namespaces: Namespaces::ask(known)?, user, groups, totals: Totals::ask(known) })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let system = ground.system;
        let (mut found, mut kinds) = (BTreeMap::<_, Members>::new(), BTreeMap::new());
        let mut groups = BTreeMap::<VirtAddr, Members>::new();
        let mut faults = Vec::new();
        for task in ground.processes.all.iter().flat_map(|process| &process.threads) {
            rows.in_time()?;
            self.namespaces.each(system, task.address, &mut |kind, at| match at {
                Ok(at) => {
                    kinds.insert(kind.name, kind);
                    found.entry((kind.name, at)).or_default().add(task);
                }
                Err(error) => faults.push((task.address, task.pid, base::log::chain(&error))),
            });
            match self.groups.as_ref().map(|groups| groups.of(system, task.address)) {
                Some(Ok(group)) => groups.entry(group).or_default().add(task),
                Some(Err(error)) => faults.push((task.address, task.pid, base::log::chain(&error))),
                None => {}
            }
        }
        for ((name, at), members) in found {
            if let Some(kind) = kinds.get(name) {
                rows.add(&self.row(ground, kind, at, members))?;
            }
        }
        for (at, members) in groups {
            let mut row = Row::at(at);
            let path = self.groups.as_ref().map(|groups| groups.path(system, at));
            let path = path.unwrap_or_else(|| Ok(String::new()));
            if let Some(id) = path.as_ref().ok().and_then(|path| container(path)) {
                row.set("container.id", id);
            }
            row.read("linux.cgroup", path);
            members.tell(&mut row);
            rows.add(&row)?;
        }
        if let Some(totals) = &self.totals {
            rows.add(&totals.row(system))?;
        }
        for (at, pid, why) in faults {
            let mut row = Row::at(at);
            row.set("process.pid", pid);
            row.error("namespaces", &why);
            rows.add(&row)?;
        }
        if self.groups.is_none() {
            rows.miss("control groups", &"the kernel's types do not have them")?;
        }
        Ok(())
    }
}

impl Layout {
    fn row(&self, ground: &Ground<'_>, kind: &Kind, at: VirtAddr, members: Members) -> Row {
        let system = ground.system;
        let mut row = Row::at(at);
        row.set("linux.namespace.type", kind.name);
        row.read("linux.namespace.number", system.half(at, kind.number, "ns_common.inum"));
        if let (Some(offset), Some(user)) = (kind.user, &self.namespaces.user) {
            let number = system.follow(at, offset, "a user namespace");
            let number = number.and_then(|at| system.half(at, user.number, "ns_common.inum"));
            row.read("linux.namespace.user", number);
        }
        if let Some(layout) = self.user.filter(|_| kind.name == "user") {
            let owner = system.half(at, layout.owner, "user_namespace.owner");
            row.read("user.id", owner.map(|id| id.to_string()));
            // The first one has none above it.
            match system.pointer(at, layout.parent, "user_namespace.parent") {
                Ok(Some(parent)) => {
                    let number = system.half(parent, kind.number, "ns_common.inum");
                    row.read("linux.namespace.parent", number);
                }
                Ok(None) => {}
                Err(error) => row.error("linux.namespace.parent", &base::log::chain(&error)),
            }
        }
        members.tell(&mut row);
        row
    }
}
