"""Prints with drgn what volatility.py prints with volatility3, in the same words: a JSON object of lists.

    drgn_lists.py VMLINUX DUMP
"""

import json
import socket
import stat
import sys

import drgn
from drgn import cast
from drgn.helpers.linux.fs import d_path, dentry_path, for_each_file, for_each_mount, mount_dst, mount_fstype, mount_src
from drgn.helpers.linux.mm import cmdline, environ
from drgn.helpers.linux.module import for_each_module
from drgn.helpers.linux.net import SOCKET_I
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.printk import get_printk_records

LEVELS = ["emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"]
FACILITIES = "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp".split()
TCP_STATES = {1: "ESTABLISHED", 7: "CLOSE", 10: "LISTEN"}
SOCKET_STATES = ["FREE", "UNCONNECTED", "CONNECTING", "CONNECTED", "DISCONNECTING"]

prog = drgn.Program()
prog.set_core_dump(sys.argv[2])
prog.load_debug_info([sys.argv[1]])

address = lambda value: f"{int(value) & (1 << 48) - 1:#x}"
text = lambda bytes: bytes.decode("utf8", "replace")
tasks = list(for_each_task(prog))
# volatility3 does not list the idle tasks.
tasks = [task for task in tasks if task.pid]
processes = [task for task in tasks if task.pid == task.tgid]


def comm(task):
    return text(task.comm.string_())


def parent(task):
    return int(task.real_parent.tgid)


def pslist():
    for task in processes:
        cred = task.cred
        ids = [int(cred.member_(name).val) for name in ("uid", "gid", "euid", "egid")]
        yield [int(task.tgid), parent(task), comm(task), address(task), *ids]


def psaux():
    for task in processes:
        arguments = " ".join(map(text, cmdline(task))) if task.mm else f"[{comm(task)}]"
        yield [int(task.pid), parent(task), comm(task), arguments]


def files():
    for task in tasks:
        for fd, file in for_each_file(task):
            yield task, fd, file


def device(number):
    number = int(number)
    return f"{number >> 20}:{number & (1 << 20) - 1}"


def path(file):
    mode = int(file.f_inode.i_mode)
    kind, inode = stat.S_IFMT(mode), int(file.f_inode.i_ino)
    filesystem = file.f_path.mnt.mnt_sb.s_type.name.string_()
    if filesystem == b"sockfs":
        return f"socket:[{inode}]"
    if filesystem == b"pipefs":
        return f"pipe:[{inode}]"
    return text(d_path(file.f_path))


def lsof():
    for task, fd, file in files():
        inode = file.f_inode
        where = [int(task.tgid), int(task.pid), comm(task), fd, path(file), device(inode.i_sb.s_dev)]
        yield [*where, int(inode.i_ino), stat.filemode(int(inode.i_mode)), int(inode.i_size)]


def ends(sock, family):
    """Source and destination of a socket: address and port of each."""
    common = sock.__sk_common
    if family == "AF_UNIX":
        unix = cast("struct unix_sock *", sock)
        name = lambda unix: text(unix.addr.name[0].sun_path.string_()) or "-" if unix.addr else "-"
        inode = lambda sock: int(sock.sk_socket.file.f_inode.i_ino)
        peer = unix.peer
        other = [name(cast("struct unix_sock *", peer)), inode(peer)] if peer else ["-", "-"]
        return [name(unix), inode(sock), *other]
    inet = cast("struct inet_sock *", sock)
    number = socket.AF_INET if family == "AF_INET" else socket.AF_INET6
    if number == socket.AF_INET:
        here, there = common.skc_rcv_saddr, common.skc_daddr
    else:
        here, there = inet.pinet6.saddr, common.skc_v6_daddr
    show = lambda value: socket.inet_ntop(number, value.to_bytes_())
    return [show(here), socket.htons(int(inet.inet_sport)), show(there), socket.htons(int(common.skc_dport))]


def sockstat():
    for task, fd, file in files():
        if file.f_op != prog["socket_file_ops"].address_of_():
            continue
        of = SOCKET_I(file.f_inode)
        sock = of.sk
        number = int(sock.__sk_common.skc_family)
        family = {1: "AF_UNIX", 2: "AF_INET", 10: "AF_INET6"}[number]
        kind = {1: "STREAM", 2: "DGRAM"}[int(sock.sk_type)]
        protocol = {6: "TCP", 17: "UDP"}[int(sock.sk_protocol)] if family != "AF_UNIX" else "-"
        state = TCP_STATES[int(sock.__sk_common.skc_state)] if kind == "STREAM" else SOCKET_STATES[int(of.state)]
        where = [int(task.nsproxy.net_ns.ns.inum), comm(task), int(task.tgid), int(task.pid), fd, address(sock)]
        yield [*where, family, kind, protocol, *ends(sock, family), state]


def mountinfo():
    seen = set()
    for task in processes:
        namespace = task.nsproxy.mnt_ns
        for mount in for_each_mount(namespace):
            if int(mount.mnt_id) in seen:
                continue
            seen.add(int(mount.mnt_id))
            ids = [int(namespace.ns.inum), int(mount.mnt_id), int(mount.mnt_parent.mnt_id)]
            where = [device(mount.mnt.mnt_sb.s_dev), text(dentry_path(mount.mnt.mnt_root)) or "/"]
            yield [*ids, *where, text(mount_dst(mount)), text(mount_fstype(mount)), text(mount_src(mount))]


def envars():
    for task in processes:
        for variable in (environ(task) or []) if task.mm else []:
            key, _, value = text(variable).partition("=")
            yield [int(task.pid), parent(task), comm(task), key, value]


def lines(record):
    when = f"{record.timestamp // 10**9}.{record.timestamp % 10**9 // 1000:06}"
    for line in text(record.text).splitlines():
        yield [FACILITIES[record.facility], LEVELS[record.level], when, line]


def kmsg():
    for record in get_printk_records(prog):
        yield from lines(record)


def kmsg_newest():
    return lines(get_printk_records(prog)[-1])


def lsmod():
    for module in for_each_module(prog):
        try:
            parts = ["MOD_TEXT", "MOD_DATA", "MOD_RODATA", "MOD_RO_AFTER_INIT"]
            size = sum(int(module.mem[prog[part]].size) for part in parts)
        except AttributeError:
            size = int(module.core_layout.size)
        yield [text(module.name.string_()), address(module), f"{size:#x}"]


def main():
    kinds = [pslist, psaux, lsof, sockstat, mountinfo, envars, kmsg, kmsg_newest, lsmod]
    print(json.dumps({kind.__name__: sorted(" ".join(map(str, row)) for row in kind()) for kind in kinds}))


main()
