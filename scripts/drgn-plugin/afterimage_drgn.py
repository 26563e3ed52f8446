"""Lets drgn find the symbols of a kernel in the dump of it, with nothing downloaded.

`pip install` of this folder is enough: `drgn -c DUMP` then asks the program `afterimage` for a debug file when it has
found no other one. AFTERIMAGE names another program. The file is kept while drgn runs.
"""

import atexit
import logging
import os
import shutil
import subprocess
import tempfile

import drgn

logger = logging.getLogger("drgn.plugins.afterimage")


def _make(dump, directory):
    """Makes the debug file of the kernel in `dump`; returns its path, or None if there is none."""
    path = os.path.join(directory, "vmlinux")
    program = os.environ.get("AFTERIMAGE", "afterimage")
    try:
        made = subprocess.run([program, "debuginfo", dump, "-o", path], capture_output=True, text=True)
    except OSError as error:
        logger.warning("%s cannot be run, so symbols are not made of the dump: %s", program, error)
        return None
    if made.returncode != 0:
        logger.warning("%s", made.stderr.strip() or f"{program} ended with exit code {made.returncode}")
        return None
    for line in made.stdout.splitlines()[1:]:
        logger.warning("%s", line)
    return path


def _find(modules):
    """A finder of debug information: answers for the kernel itself."""
    for module in modules:
        prog = module.prog
        is_kernel = isinstance(module, drgn.MainModule) and prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
        if not is_kernel or not module.wants_debug_file() or not prog.core_dump_path:
            continue
        directory = tempfile.mkdtemp(prefix="afterimage-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        path = _make(os.fsdecode(prog.core_dump_path), directory)
        if path:
            module.try_file(path)
            _name_modules(prog)


def _name_modules(prog):
    """Names the functions of modules, whose symbols the kernel has in its memory."""
    try:
        from drgn.helpers.linux.kallsyms import load_module_kallsyms

        prog.register_symbol_finder("afterimage", load_module_kallsyms(prog), enable_index=-1)
    except (ImportError, LookupError, ValueError, drgn.FaultError) as error:
        logger.warning("functions of modules have no names: %s", error)


def drgn_prog_set(prog):
    """Called by drgn for each program that it opens."""
    # After all other finders: what the distribution has says more.
    prog.register_debug_info_finder("afterimage", _find, enable_index=-1)
