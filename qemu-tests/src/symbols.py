"""Opens a dump with the symbols of its kernel in drgn and prints what it says about the system, as JSON.

    symbols.py VMLINUX DUMP COMM

COMM names a process that sleeps. A dump of a kernel that did not panic has no crashed one.
"""

import json
import sys

import drgn
from drgn.helpers.linux.pid import for_each_task

prog = drgn.Program()
prog.set_core_dump(sys.argv[2])
prog.load_debug_info([sys.argv[1]])
name = prog["init_uts_ns"].name


def trace(stack):
    return [frame.name for frame in stack]


try:
    crashed = prog.crashed_thread()
except Exception:  # drgn says so with whatever it first stumbles over
    crashed = None
tasks = list(for_each_task(prog))
sleeper = next((task for task in tasks if task.comm.string_() == sys.argv[3].encode()), None)
print(
    json.dumps(
        {
            "release": name.release.string_().decode(),
            "host": name.nodename.string_().decode(),
            "tasks": sorted({task.comm.string_().decode() for task in tasks}),
            "crashed": crashed and crashed.object.comm.string_().decode(),
            "trace": trace(crashed.stack_trace()) if crashed else [],
            "asleep": trace(prog.stack_trace(sleeper)) if sleeper else [],
        }
    )
)
