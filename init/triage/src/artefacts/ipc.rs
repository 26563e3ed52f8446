//! `ipc.jsonl`: shared memory, semaphores and message queues: of System V and of POSIX.

use std::collections::BTreeSet;

use ::processes::names;
use ::processes::xarray;
use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::{Missing, required};
use symbols::{layouts, list};

use super::timeline::Moment;
use super::{Artefact, Ground, Row, Rows, Stop};

/// Objects of a kind in a namespace that are believed (`IPCMNI_EXTEND` is 16 Mi; nobody has so many).
const MAX: usize = 100_000;
/// Queues of POSIX in a namespace.
const MAX_QUEUES: usize = 10_000;

layouts! {
    TaskLayout of "task_struct" {
        proxy: "nsproxy",
    }
    ProxyLayout of "nsproxy" {
        ipc: "ipc_ns",
    }
    NamespaceLayout of "ipc_namespace" {
        all: "ids",
        number: "ns.inum",
    } [
        queues: "mq_mnt",
    ]
    PermLayout of "kern_ipc_perm" {
        key: "key",
        id: "id",
        uid: "uid",
        gid: "gid",
        creator: "cuid",
        creator_group: "cgid",
        mode: "mode",
    }
    SharedLayout of "shmid_kernel" {
        perm: "shm_perm",
        size: "shm_segsz",
        attached: "shm_nattch",
        attach_time: "shm_atim",
        detach_time: "shm_dtim",
        change_time: "shm_ctim",
        creator: "shm_cprid",
        last: "shm_lprid",
    }
    SemaphoreLayout of "sem_array" {
        perm: "sem_perm",
        count: "sem_nsems",
        change_time: "sem_ctime",
    }
    QueueLayout of "msg_queue" {
        perm: "q_perm",
        bytes: "q_cbytes",
        messages: "q_qnum",
        limit: "q_qbytes",
        send_time: "q_stime",
        receive_time: "q_rtime",
        change_time: "q_ctime",
        sender: "q_lspid",
        receiver: "q_lrpid",
    }
    PosixLayout of "mqueue_inode_info" {
        inode: "vfs_inode",
        messages: "attr.mq_curmsgs",
        limit: "attr.mq_maxmsg",
        size: "attr.mq_msgsize",
    }
    MountLayout of "vfsmount" {
        superblock: "mnt_sb",
    }
    SuperLayout of "super_block" {
        inodes: "s_inodes",
    }
    InodeLayout of "inode" {
        in_superblock: "i_sb_list",
        mode: "i_mode",
        number: "i_ino",
        names: "i_dentry",
        uid: "i_uid",
        gid: "i_gid",
    }
    DentryLayout of "dentry" {
        alias: "d_u.d_alias" | "d_alias",
    }
}

/// What queues of POSIX need.
struct Posix {
    queue: PosixLayout,
    mount: MountLayout,
    superblock: SuperLayout,
    inode: InodeLayout,
    dentry: DentryLayout,
}

pub(super) struct Layout {
    task: TaskLayout,
    proxy: ProxyLayout,
    namespace: NamespaceLayout,
    perm: PermLayout,
    /// Bytes of a `struct ipc_ids`, and where it has its IDR's tree.
    size: u64,
    root: u64,
    kinds: (SemaphoreLayout, QueueLayout, SharedLayout),
    posix: Result<Posix, Missing>,
    first: Option<VirtAddr>,
}

/// Times of an object: key, place, and what kind of time it is.
type Times = [(&'static str, u64, &'static str)];

impl Artefact for Layout {
    const NAME: &'static str = "ipc";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let posix = || {
            Ok(Posix {
                queue: PosixLayout::ask(known)?,
                mount: MountLayout::ask(known)?,
                superblock: SuperLayout::ask(known)?,
                inode: InodeLayout::ask(known)?,
                dentry: DentryLayout::ask(known)?,
            })
        };
        let size = known.size_of("ipc_ids").ok_or(Missing { structure: "ipc_ids", member: "size" })?;
        Ok(Self {
            task: TaskLayout::ask(known)?,
            proxy: ProxyLayout::ask(known)?,
            namespace: NamespaceLayout::ask(known)?,
            perm: PermLayout::ask(known)?,
            size,
            root: required(known, "ipc_ids", &["ipcs_idr.idr_rt.xa_head"])?,
            kinds: (SemaphoreLayout::ask(known)?, QueueLayout::ask(known)?, SharedLayout::ask(known)?),
            posix: posix(),
            first: known.symbol("init_ipc_ns"),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let system = ground.system;
        let of_task = |task: VirtAddr| {
            let proxy = system.pointer(task, self.task.proxy, "task_struct.nsproxy").ok()??;
            system.pointer(proxy, self.proxy.ipc, "nsproxy.ipc_ns").ok()?
        };
        // Tasks whose namespaces cannot be read are told by the artefact of namespaces.
        let threads = ground.processes.all.iter().flat_map(|process| &process.threads);
        let tasks = threads.filter_map(|thread| of_task(thread.address));
        let namespaces: BTreeSet<VirtAddr> = self.first.into_iter().chain(tasks).collect();
        for namespace in namespaces {
            self.namespace(ground, namespace, rows)?;
        }
        Ok(())
    }
}

impl Layout {
    fn namespace(&self, ground: &Ground<'_>, at: VirtAddr, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let system = ground.system;
        let number = system.half(at, self.namespace.number, "ipc_namespace.ns.inum").unwrap_or(0);
        // IPC_SEM_IDS, IPC_MSG_IDS, IPC_SHM_IDS (include/linux/ipc_namespace.h)
        for (index, name) in (0_u64..).zip(["semaphores", "message queue", "shared memory"]) {
            let offset = self.namespace.all.saturating_add(self.size.saturating_mul(index));
            let found = at.checked_add(offset).map(|ids| xarray::pointers(system, ids, self.root, MAX));
            let (found, lost) = match found {
                Some(Ok(found)) => found,
                Some(Err(error)) => {
                    rows.miss(name, &base::log::chain(&error))?;
                    continue;
                }
                None => continue,
            };
            for (_, perm) in found {
                let mut row = Row::at(perm);
                row.set("linux.ipc.type", name);
                row.set("linux.namespace.ipc", number);
                self.who(ground, perm, &mut row);
                match index {
                    0 => self.semaphores(ground, perm, &mut row),
                    1 => self.queue(ground, perm, &mut row),
                    _ => self.shared(ground, perm, &mut row),
                }
                rows.add(&row)?;
            }
            if lost > 0 {
                rows.miss(name, &format!("{lost} parts of their table cannot be read"))?;
            }
        }
        self.posix(ground, at, number, rows)
    }

    fn who(&self, ground: &Ground<'_>, at: VirtAddr, row: &mut Row) {
        let (system, perm) = (ground.system, &self.perm);
        let key = system.half(at, perm.key, "kern_ipc_perm.key");
        row.read("linux.ipc.key", key.map(|key| format!("{key:#010x}")));
        row.read("linux.ipc.id", system.half(at, perm.id, "kern_ipc_perm.id"));
        for (name, offset) in [
            ("user.id", perm.uid),
            ("group.id", perm.gid),
            ("linux.ipc.creator.user.id", perm.creator),
            ("linux.ipc.creator.group.id", perm.creator_group),
        ] {
            row.read(name, system.half(at, offset, "kern_ipc_perm").map(|id| id.to_string()));
        }
        let mode = system.short(at, perm.mode, "kern_ipc_perm.mode");
        row.read("linux.ipc.mode", mode.map(|mode| format!("{:04o}", mode & 0o7777)));
    }

    fn semaphores(&self, ground: &Ground<'_>, perm: VirtAddr, row: &mut Row) {
        let layout = &self.kinds.0;
        let at = VirtAddr(perm.0.wrapping_sub(layout.perm));
        row.read("linux.ipc.count", ground.system.half(at, layout.count, "sem_array.sem_nsems"));
        times(ground, at, &[("linux.ipc.changed", layout.change_time, "Change Time")], row);
    }

    fn queue(&self, ground: &Ground<'_>, perm: VirtAddr, row: &mut Row) {
        let (system, layout) = (ground.system, &self.kinds.1);
        let at = VirtAddr(perm.0.wrapping_sub(layout.perm));
        for (key, offset) in [
            ("linux.ipc.bytes", layout.bytes),
            ("linux.ipc.messages", layout.messages),
            ("linux.ipc.max_bytes", layout.limit),
        ] {
            row.read(key, system.word(at, offset, "msg_queue"));
        }
        let pids = [("linux.ipc.sender.pid", layout.sender), ("linux.ipc.receiver.pid", layout.receiver)];
        of_pids(ground, at, &pids, row);
        let all = [
            ("linux.ipc.sent", layout.send_time, "Send Time"),
            ("linux.ipc.received", layout.receive_time, "Receive Time"),
            ("linux.ipc.changed", layout.change_time, "Change Time"),
        ];
        times(ground, at, &all, row);
    }

    fn shared(&self, ground: &Ground<'_>, perm: VirtAddr, row: &mut Row) {
        let (system, layout) = (ground.system, &self.kinds.2);
        let at = VirtAddr(perm.0.wrapping_sub(layout.perm));
        row.read("linux.ipc.bytes", system.word(at, layout.size, "shmid_kernel.shm_segsz"));
        row.read("linux.ipc.attached", system.word(at, layout.attached, "shmid_kernel.shm_nattch"));
        let pids = [("linux.ipc.creator.pid", layout.creator), ("linux.ipc.last.pid", layout.last)];
        of_pids(ground, at, &pids, row);
        let all = [
            ("linux.ipc.attach_time", layout.attach_time, "Attach Time"),
            ("linux.ipc.detach_time", layout.detach_time, "Detach Time"),
            ("linux.ipc.changed", layout.change_time, "Change Time"),
        ];
        times(ground, at, &all, row);
    }

    /// Queues of POSIX are files of a file system that each namespace has.
    fn posix(
        &self,
        ground: &Ground<'_>,
        namespace: VirtAddr,
        number: u32,
        rows: &mut Rows<'_>,
    ) -> Result<(), Stop> {
        let system = ground.system;
        let (layout, mount) = match (&self.posix, self.namespace.queues) {
            (Ok(layout), Some(mount)) => (layout, mount),
            (Err(missing), _) => return rows.miss("message queues of POSIX", missing),
            (_, None) => return rows.miss("message queues of POSIX", &"the kernel has none"),
        };
        let superblock = system.pointer(namespace, mount, "ipc_namespace.mq_mnt").and_then(|mount| {
            let at = |mount| system.follow(mount, layout.mount.superblock, "vfsmount.mnt_sb");
            mount.map(at).transpose()
        });
        let head = match superblock {
            Ok(Some(superblock)) => superblock.checked_add(layout.superblock.inodes),
            Ok(None) => return Ok(()),
            Err(error) => return rows.miss("message queues of POSIX", &base::log::chain(&error)),
        };
        let Some(head) = head else { return Ok(()) };
        let (entries, whole) = list::all(system.kernel, head, MAX_QUEUES);
        for entry in entries {
            let inode = VirtAddr(entry.0.wrapping_sub(layout.inode.in_superblock));
            let mode = system.short(inode, layout.inode.mode, "inode.i_mode");
            // The directory that they are in is no queue.
            if mode.as_ref().is_ok_and(|mode| mode & super::files::TYPE != super::files::REGULAR) {
                continue;
            }
            let mut row = Row::at(inode);
            row.set("linux.ipc.type", "message queue of POSIX");
            row.set("linux.namespace.ipc", number);
            row.read("linux.ipc.mode", mode.map(|mode| format!("{:04o}", mode & 0o7777)));
            let first = system.follow(inode, layout.inode.names, "inode.i_dentry");
            let name = first
                .and_then(|first| names::name(system, VirtAddr(first.0.wrapping_sub(layout.dentry.alias))));
            row.read("linux.ipc.name", name.map(|name| format!("/{}", String::from_utf8_lossy(&name))));
            let number = system.word(inode, layout.inode.number, "inode.i_ino");
            row.read("file.inode", number.map(|number| number.to_string()));
            for (key, offset) in [("user.id", layout.inode.uid), ("group.id", layout.inode.gid)] {
                row.read(key, system.half(inode, offset, "inode").map(|id| id.to_string()));
            }
            let queue = VirtAddr(inode.0.wrapping_sub(layout.queue.inode));
            for (key, offset) in [
                ("linux.ipc.messages", layout.queue.messages),
                ("linux.ipc.max_messages", layout.queue.limit),
                ("linux.ipc.max_message_bytes", layout.queue.size),
            ] {
                row.read(key, system.word(queue, offset, "mqueue_inode_info.attr"));
            }
            rows.add(&row)?;
        }
        if whole {
            Ok(())
        } else {
            rows.miss("message queues of POSIX", &"their list cannot be read to its end")
        }
    }
}

/// The numbers of processes that an object points to; some nobody has touched.
fn of_pids(ground: &Ground<'_>, at: VirtAddr, pids: &[(&'static str, u64)], row: &mut Row) {
    let system = ground.system;
    for &(key, offset) in pids {
        let pid = system.pointer(at, offset, "struct pid").and_then(|pid| {
            let number = system.layout.pid_number;
            pid.zip(number).map(|(pid, number)| system.half(pid, number, "pid.numbers")).transpose()
        });
        match pid {
            Ok(Some(pid)) => row.set(key, pid),
            Ok(None) => {}
            Err(error) => row.error(key, &base::log::chain(&error)),
        }
    }
}

fn times(ground: &Ground<'_>, at: VirtAddr, all: &Times, row: &mut Row) {
    let what = row.get("linux.ipc.type").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let id = row.get("linux.ipc.id").and_then(serde_json::Value::as_u64).unwrap_or(0);
    for &(key, offset, kind) in all {
        match ground.system.word(at, offset, "a time of IPC") {
            // It has not happened yet.
            Ok(0) => {}
            Ok(seconds) => {
                row.put(key, base::time::utc(seconds).ok_or("no clock shows such a time"));
                row.happened(Moment { at: seconds, message: format!("{what} {id}"), kind });
            }
            Err(error) => row.error(key, &base::log::chain(&error)),
        }
    }
}
