"""Functions on the stack of each process that does not run, as JSON by PID: stacks.py CORE VMLINUX"""

import json
import sys

import drgn
from drgn.helpers.linux import cpu_curr, for_each_online_cpu, for_each_task

core, vmlinux = sys.argv[1:3]
prog = drgn.Program()
prog.set_core_dump(core)
prog.load_debug_info([vmlinux])
running = {cpu_curr(prog, cpu).value_() for cpu in for_each_online_cpu(prog)}
leaders = (task for task in for_each_task(prog) if task.pid == task.tgid and task.value_() not in running)
json.dump(
    {task.pid.value_(): [f.name for f in prog.stack_trace(task) if not f.is_inline and f.name] for task in leaders},
    sys.stdout,
)
