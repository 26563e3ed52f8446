"""What drgn says of a module with its debug file, as JSON: modules.py CORE VMLINUX FOLDER MODULE FUNCTION STRUCT"""

import json
import pathlib
import sys

import drgn

core, vmlinux, folder, name, function, structure = sys.argv[1:]
prog = drgn.Program()
prog.set_core_dump(core)
prog.load_debug_info([vmlinux, *map(str, pathlib.Path(folder).iterdir())])
module = next(module for module in prog.modules() if module.name == name)
symbol = prog.symbol(function)
json.dump(
    {
        "file": pathlib.Path(module.debug_file_path or "").name,
        "loaded": sorted(module.name for module in prog.modules() if module.debug_file_path),
        "symbol": prog.symbol(symbol.address + 1).name,
        "is_in_module": any(start <= symbol.address < end for start, end in module.address_ranges),
        "is_function": prog.function(function).address_ == symbol.address,
        "function": str(prog.function(function).type_),
        "members": [member.name for member in prog.type(f"struct {structure}").members],
        # What only the kernel's file has whole.
        "resolved": drgn.sizeof(prog.type("struct virtio_device").member("dev").type) > 100,
    },
    sys.stdout,
)
