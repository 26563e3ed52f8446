"""Opens a dump with the symbols of its kernel in drgn and prints what it says about the system, as JSON.

    symbols.py VMLINUX DUMP
"""

import json
import sys

import drgn
from drgn.helpers.linux.pid import for_each_task

prog = drgn.Program()
prog.set_core_dump(sys.argv[2])
prog.load_debug_info([sys.argv[1]])
name = prog["init_uts_ns"].name
crashed = prog.crashed_thread()
print(
    json.dumps(
        {
            "release": name.release.string_().decode(),
            "host": name.nodename.string_().decode(),
            "tasks": sorted({task.comm.string_().decode() for task in for_each_task(prog)}),
            "crashed": crashed.object.comm.string_().decode(),
            "trace": [frame.name for frame in crashed.stack_trace()],
        }
    )
)
