"""Compares the core file of a process with the same process in the kernel's memory, as drgn sees it, and prints JSON.

    gcore.py VMLINUX DUMP PID CORE

The mappings must be the same. Each page that access_remote_vm finds must be in the core and the same; each page of
the core that it does not find must be in the page cache of its file, of the vDSO, or of zeros. The threads' user
registers are those that the kernel's stacks have.
"""

import json
import struct
import sys

import drgn
from drgn.helpers.linux.fs import d_path
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import access_remote_vm, for_each_vma, page_to_phys
from drgn.helpers.linux.pid import find_task
from drgn.helpers.linux.xarray import xa_load

PAGE = 4096
vmlinux, dump, pid, core = sys.argv[1:]
prog = drgn.Program()
prog.set_core_dump(dump)
prog.load_debug_info([vmlinux])
task = find_task(prog, int(pid))

data = open(core, "rb").read()
phoff, = struct.unpack_from("<Q", data, 32)
phnum, = struct.unpack_from("<H", data, 56)
loads, statuses, files, auxv, psargs = [], {}, {}, b"", None
for index in range(phnum):
    kind, flags, offset, vaddr, _, filesz, memsz, _ = struct.unpack_from("<IIQQQQQQ", data, phoff + index * 56)
    if kind == 1:
        loads.append((vaddr, memsz, offset, filesz))
    elif kind == 4:
        at, end = offset, offset + filesz
        while at < end:
            namesz, descsz, what = struct.unpack_from("<III", data, at)
            name = data[at + 12 : at + 12 + namesz].rstrip(b"\0")
            at += 12 + (namesz + 3) // 4 * 4
            desc = data[at : at + descsz]
            at += (descsz + 3) // 4 * 4
            if (name, what) == (b"CORE", 1):
                statuses[struct.unpack_from("<i", desc, 32)[0]] = struct.unpack_from("<27Q", desc, 112)
            elif (name, what) == (b"CORE", 6):
                auxv = desc
            elif (name, what) == (b"CORE", 3):
                psargs = desc[56:136].rstrip(b"\0").decode()
            elif (name, what) == (b"CORE", 0x46494C45):
                count, _ = struct.unpack_from("<QQ", desc)
                names = desc[16 + 24 * count :].split(b"\0")
                for i in range(count):
                    start, stop, ofs = struct.unpack_from("<QQQ", desc, 16 + 24 * i)
                    files[start] = (stop, ofs, names[i].decode())


def of_core(address):
    for vaddr, memsz, offset, filesz in loads:
        if vaddr <= address < vaddr + memsz:
            ahead = address - vaddr
            return data[offset + ahead : offset + ahead + PAGE] if ahead < filesz else bytes(PAGE)
    return None


def cached(vma, pages):
    """A page of the page cache."""
    index = vma.vm_pgoff.value_() + pages
    entry = xa_load(vma.vm_file.f_mapping.i_pages.address_of_(), index)
    if not entry:
        return bytes(PAGE)  # a hole of a tmpfs
    try:
        first = drgn.cast("struct folio *", entry).index.value_()
    except LookupError:
        first = drgn.cast("struct page *", entry).index.value_()
    page = drgn.cast("struct page *", entry) + (index - first)
    return prog.read(page_to_phys(page).value_(), PAGE, True)


same = cache = kernel = zeros = absent = 0
wrong, mapped_files = [], {}
for vma in for_each_vma(task.mm):
    start, end = vma.vm_start.value_(), vma.vm_end.value_()
    if vma.vm_file:
        mapped_files[start] = (end, vma.vm_pgoff.value_(), d_path(vma.vm_file.f_path).decode())
    for address in range(start, end, PAGE):
        here = of_core(address)
        try:
            there = access_remote_vm(task.mm, address, PAGE)
        except drgn.FaultError:
            there = None
        if there is not None and here == there:
            same += 1
        elif there is not None and not vma.vm_flags.value_() & 0x4400:
            wrong.append(hex(address))
        elif here is None:
            absent += 1
        elif vma.vm_file:
            if here == cached(vma, (address - start) // PAGE):
                cache += 1
            else:
                wrong.append(hex(address))
        elif not any(here):
            zeros += 1
        else:
            kernel += 1
covered = sum(memsz for _, memsz, _, _ in loads) // PAGE

registers = {}
for thread in list_for_each_entry("struct task_struct", task.signal.thread_head.address_of_(), "thread_node"):
    size = prog.type("struct pt_regs").size
    for padding in (0, 16):
        top = thread.stack.value_() + 16384 - padding
        regs = drgn.Object(prog, "struct pt_regs", address=top - size)
        if regs.cs.value_() & 0xFFFF == 0x33:
            break
    found = statuses.get(thread.pid.value_())
    expected = (regs.ip.value_(), regs.sp.value_(), thread.thread.fsbase.value_())
    registers[thread.pid.value_()] = found is not None and (found[16], found[19], found[21]) == expected
# drgn does not say that a file is deleted.
names = {start: (end, page, name.removesuffix(" (deleted)")) for start, (end, page, name) in files.items()}
differences = [
    [hex(start), str(names.get(start)), str(mapped_files.get(start))]
    for start in names.keys() | mapped_files.keys()
    if names.get(start) != mapped_files.get(start)
]
print(
    json.dumps(
        {
            "same": same,
            "cache": cache,
            "kernel": kernel,
            "zeros": zeros,
            "absent": absent,
            "covered": covered,
            "wrong": wrong[:8],
            "files": differences[:8],
            "registers": registers,
            "first": next(iter(statuses)),
            "auxv": auxv != b"" and auxv in bytes(task.mm.saved_auxv.to_bytes_()),
            "psargs": psargs,
        }
    )
)
