"""What drgn says of a kernel, check by check, as JSON: drgn_checks.py CORE VMLINUX

A check that fails has the error as its text: two debug files must fail in the same way.
"""

import json
import pprint
import sys

import drgn
import drgn.helpers.linux as linux
from drgn import cast, offsetof
from drgn.helpers.common import *  # noqa: F403
from drgn.helpers.linux import *  # noqa: F403

core, vmlinux = sys.argv[1:3]
prog = drgn.Program()
prog.set_core_dump(core)
prog.load_debug_info([vmlinux])
drgn.set_default_prog(prog)
NAMES = (
    "struct list_head", "struct page", "struct task_struct", "struct sk_buff", "struct rq", "enum pid_type", "pid_t",
    "struct bpf_insn", "struct tcphdr", "struct file_operations", "struct xarray", "atomic_t", "struct module",
)


def attempt(function, *arguments):
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        return type(error).__name__


def tasks():
    return for_each_task(prog)


def sockets():
    operations = prog["socket_file_ops"].address_of_()
    for task in tasks():
        for number, file in for_each_file(task):
            if file.f_op == operations:
                yield task.pid.value_(), number, cast("struct socket *", file.private_data)


def inet_sockets(heads):
    return sorted((sk_tcpstate(s).name, s.__sk_common.skc_num.value_()) for h in heads for s in sk_nulls_for_each(h))


def table(name, mask):
    info = prog["tcp_hashinfo"]
    return (getattr(info, name)[index] for index in range(getattr(info, mask) + 1))


def super_blocks():
    return list_for_each_entry("struct super_block", prog["super_blocks"].address_of_(), "s_list")


CHECKS = {
    "processes": lambda: [(t.pid.value_(), t.comm.string_(), task_state_to_char(t)) for t in tasks()],
    "process_1": lambda: find_task(prog, 1).comm.string_(),
    "cpus_of_tasks": lambda: [task_cpu(t) for t in tasks()],
    "arguments": lambda: [attempt(linux.cmdline, t) for t in tasks()],
    "environment": lambda: linux.environ(find_task(prog, 1)),
    "files": lambda: (
        [(t.pid.value_(), number, attempt(d_path, f.f_path)) for t in tasks() for number, f in for_each_file(t)]
    ),
    "areas": lambda: [(hex(a.vm_start), hex(a.vm_end)) for a in for_each_vma(find_task(prog, 1).mm)],
    "namespaces": lambda: (
        [(t.pid.value_(), t.nsproxy.pid_ns_for_children.ns.inum.value_()) for t in tasks() if t.nsproxy]
    ),
    "credentials": lambda: (
        [(t.pid.value_(), t.cred.uid.val.value_(), str(t.cred.cap_effective)) for t in tasks()]
    ),
    "fatal_signals": lambda: [(t.pid.value_(), t.pending.signal.sig[0].value_()) for t in tasks()],
    "kernel_stack": lambda: hex(find_task(prog, 1).stack.value_()),
    "thread_data": lambda: kthread_data(find_task(prog, 2)).value_(),
    "printed_task": lambda: str(find_task(prog, 1)[0]),
    "crashed_task": lambda: prog.crashed_thread().object.comm.string_(),
    "stacks": lambda: (
        [[f.name for f in prog.stack_trace(t) if not f.is_inline] for t in tasks() if t != prog.crashed_thread().object]
    ),
    "crashed_stack": lambda: [f.name for f in prog.crashed_thread().stack_trace() if not f.is_inline],
    "cpu_stack": lambda: [f.name for f in prog.stack_trace(cpu_curr(prog, 0)) if not f.is_inline],
    "modules": lambda: [(m.name.string_(), m.refcnt.counter.value_()) for m in for_each_module(prog)],
    "module_addresses": lambda: (
        [sorted(module_address_regions(m)) for m in for_each_module(prog)]
    ),
    "mounts": lambda: (
        [(mount_src(m), mount_dst(m), mount_fstype(m)) for m in for_each_mount(prog["init_task"].nsproxy.mnt_ns)]
    ),
    "path": lambda: path_lookup(prog, "/dev").dentry.d_inode.i_ino.value_(),
    "super_blocks": lambda: [s.s_id.string_() for s in super_blocks()],
    "inodes": lambda: (
        sum(1 for s in super_blocks() for _ in list_for_each_entry("struct inode", s.s_inodes.address_of_(), "i_sb_list"))
    ),
    "disks": lambda: [linux.disk_name(d).decode() for d in for_each_disk(prog)],
    "partitions": lambda: [(part_name(p).decode(), hex(part_devt(p))) for p in for_each_partition(prog)],
    "log": lambda: get_dmesg(prog)[-3000:],
    "log_records": lambda: len(list(get_printk_records(prog))),
    "slab_caches": lambda: [(s.name.string_(), slab_cache_usage(s)) for s in for_each_slab_cache(prog)],
    "slab_objects": lambda: (
        len(list(slab_cache_for_each_allocated_object(find_slab_cache(prog, "dentry"), "struct dentry")))
    ),
    "slab_object": lambda: str(identify_address(prog, find_task(prog, 1).value_())),
    "slab_total": lambda: [slab_cache_objects_per_slab(s) for s in for_each_slab_cache(prog)],
    "code_address": lambda: identify_address(prog, prog.symbol("schedule").address + 4),
    "cpus": lambda: (list(for_each_online_cpu(prog)), list(for_each_possible_cpu(prog))),
    "running": lambda: [cpu_curr(prog, c).comm.string_() for c in for_each_online_cpu(prog)],
    "idle": lambda: [idle_task(prog, c).comm.string_() for c in for_each_online_cpu(prog)],
    "load": lambda: loadavg(prog),
    "uptime": lambda: str(uptime_pretty(prog)),
    "nodes": lambda: list(for_each_online_node(prog)),
    "page_flags": lambda: [decode_page_flags(pfn_to_page(prog, pfn)) for pfn in (0x1000, 0x2000, 0x5000)],
    "physical": lambda: (
        (hex(virt_to_phys(find_task(prog, 1))), hex(follow_phys(prog["init_mm"].address_of_(), find_task(prog, 1).stack)))
    ),
    "pages": lambda: (int(totalram_pages(prog)), int(nr_free_pages(prog))),
    "file_pages": lambda: int(global_node_page_state(prog, prog["NR_FILE_PAGES"])),
    "vmalloc": lambda: [hex(v.va_start) for v in for_each_vmap_area(prog)][:50],
    "devices": lambda: [d.name.string_() for d in for_each_netdev(prog["init_net"])],
    "networks": lambda: [n.ns.inum.value_() for n in for_each_net(prog)],
    "sockets": lambda: [(pid, number, int(s.type), int(s.ops.family)) for pid, number, s in sockets()],
    "listening": lambda: inet_sockets(h.nulls_head for h in table("lhash2", "lhash2_mask")),
    "established": lambda: inet_sockets(h.chain for h in table("ehash", "ehash_mask")),
    "cgroups": lambda: (
        [cgroup_path(c.cgroup).decode() for c in css_for_each_descendant_pre(prog["cgrp_dfl_root"].cgrp.self.address_of_())]
    ),
    "interrupts": lambda: [(number, irq_desc_chip_name(d)) for number, d in for_each_irq_desc(prog)],
    "bpf": lambda: (len(list(bpf_prog_for_each(prog))), len(list(bpf_map_for_each(prog)))),
    "sysfs": lambda: kernfs_path(prog["sysfs_root_kn"]),
    "taints": lambda: tainted(prog),
    "structures": lambda: [str(prog.type(name)) for name in NAMES],
    "offsets": lambda: (
        [offsetof(prog.type("struct task_struct"), m) for m in ("comm", "pid", "mm", "stack", "signal")]
    ),
    "constants": lambda: (
        [prog[c].value_() for c in ("PIDTYPE_PID", "NR_FILE_PAGES", "PG_locked", "N_ONLINE", "TCP_ESTABLISHED")]
    ),
    "release": lambda: [prog["UTS_RELEASE"].string_(), prog["PAGE_SIZE"].value_(), prog["jiffies"].value_()],
    "functions": lambda: str(prog.function("schedule").type_) + str(prog["vfs_read"]),
    "pci": lambda: [pci_name(d) for d in for_each_pci_dev(prog)],
}

said = {}
for name, check in CHECKS.items():
    try:
        said[name] = pprint.pformat(check(), width=150)
    except Exception as error:  # noqa: BLE001
        said[name] = f"EXCEPTION {type(error).__name__}: {error}"[:300]
json.dump(said, sys.stdout)
