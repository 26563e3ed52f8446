"""Declarations of global variables out of DWARF: globals.py [--check] TABLE SERIES=VMLINUX,BOOT_IMAGE..."""

import pathlib
import re
import struct
import subprocess
import sys
from collections import defaultdict

import drgn
from drgn import TypeKind

# An enumerator that stands for a number of things.
# Variables that somebody might look at: not what macros make for tracing, modules and warnings.
USEFUL = re.compile(
    r"(?!__(UNIQUE_ID|ksymtab|kstrtab|param|setup|initcall|tracepoint|TRACE|bpf_trace|event|print_fmt|already_done|warned"
    r"|SCK|tpstrtab|key|func|pfx|once|syscall_meta|p_syscall|se_sys|compound_literal|modver|addressable))"
    r"(?!(event|trace_event|print_fmt|types_|args_|str__|__?warned|descriptor|_rs$|cmdline_param|param_ops_|TRACE_SYSTEM|dev_attr_|security_hook(?!_heads)|lsm_static))\w+"
)
COUNT = re.compile(r"NR_|_NR|MAX|NUM|COUNT|ITEMS|TYPES|ENTRIES|LAST|SIZE")


def qualifiers(of):
    return "".join(
        word + " " for word in ("const", "volatile") if getattr(drgn.Qualifiers, word.upper()) & of.qualifiers
    )


def named(of):
    """The text of a type that is no pointer, array or function."""
    words = {TypeKind.STRUCT: "struct", TypeKind.UNION: "union", TypeKind.ENUM: "enum", TypeKind.CLASS: "struct"}
    if of.kind == TypeKind.VOID:
        return "void"
    if of.kind not in words:
        return of.name
    if of.tag:
        return f"{words[of.kind]} {of.tag}"
    parts = of.enumerators if of.kind == TypeKind.ENUM else of.members
    if not parts:
        raise ValueError("a type without name and members")
    return f"{words[of.kind]} {{ {' '.join((part.name or '_') + ';' for part in parts)} }}"


def declare(of, name, lengths):
    """C's declaration of `name`; lengths of arrays go into `lengths`, and @ stands for each."""
    if of.kind == TypeKind.POINTER:
        inner = of.type
        text = "*" + qualifiers(of) + name
        if inner.kind in (TypeKind.ARRAY, TypeKind.FUNCTION):
            text = f"({text})"
        return declare(inner, text, lengths)
    if of.kind == TypeKind.ARRAY:
        lengths.append(of.length)
        return declare(of.type, name + "[@]", lengths)
    if of.kind == TypeKind.FUNCTION:
        parameters = [declare(parameter.type, "", lengths).strip() for parameter in of.parameters]
        if of.is_variadic:
            parameters.append("...")
        return declare(of.type, f"{name}({', '.join(parameters) or 'void'})", lengths)
    return f"{qualifiers(of)}{named(of)} {name}"


class Kernel:
    def __init__(self, path, image):
        self.program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        module = self.program.extra_module(path, create=True)
        module = module[0] if isinstance(module, tuple) else module
        module.try_file(path, force=True)
        # value → enumerators, number of enumerators → enumerations
        self.enumerators, self.tags = enumerations(image)
        self.variables = {}  # name → (declaration with @ for lengths, lengths)
        for name in self.symbols(path):
            try:
                of = self.program.variable(name).type_
                lengths = []
                text = declare(of, name, lengths)
            except (LookupError, ValueError, drgn.FaultError):
                continue
            self.variables[name] = (text, lengths)
        # The linker makes it of jiffies_64, so DWARF only declares it (include/linux/jiffies.h).
        self.variables["jiffies"] = ("volatile unsigned long jiffies", [])

    @staticmethod
    def symbols(path):
        """Names of objects that one symbol has."""
        lines = subprocess.run(["readelf", "-sW", path], capture_output=True, text=True, check=True).stdout
        count = defaultdict(int)
        for words in map(str.split, lines.splitlines()):
            if len(words) == 8 and words[3] in ("OBJECT", "NOTYPE") and words[6] != "UND":
                count[words[7]] += 1
        return sorted(name for name, times in count.items() if times == 1 and USEFUL.fullmatch(name))


def words(name):
    """The words in a name, and their initials: `maple_type` is `mt` in the names of its tables."""
    parts = set(re.split("_+", name.lower())) - {""}
    return parts | {"".join(part[0] for part in re.split("_+", name.lower()) if part)}


def length(kernels, variable, values):
    """What stands for the length of an array of a variable that is values[series] in each kernel."""
    if len(set(values.values())) == 1:
        (value,) = set(values.values())
        return str(value) if value is not None else ""
    if None in values.values():
        return "?"
    fitting = []
    # Behind what an enumerator counts there is often an empty element.
    for mark, numbers, behind in (("", "enumerators", 0), ("#", "tags", 0), ("", "enumerators", 1)):
        sets = [getattr(kernels[series], numbers)[value - behind] for series, value in values.items()]
        names = [mark + name for name in set.intersection(*sets) if mark or COUNT.search(name)]
        fitting += [name + "+1" * behind for name in names]
    # Two small numbers are soon equal to two others: then a name must speak for it, too.
    kinship = lambda name: len(words(name.strip("#+1")) & words(variable))
    if len(set(values.values())) < 3:
        fitting = [name for name in fitting if kinship(name)]
    return min(fitting, key=lambda name: (-kinship(name), len(name), name), default="?" + "|".join(map(str, sorted(set(values.values())))))


def unpacked(image):
    """The kernel in a boot image: what is behind the first signature of a compressor that leads to an ELF file."""
    bytes_ = pathlib.Path(image).read_bytes()
    for magic, command in ((b"\x02!L\x18", "lz4"), (b"(\xb5/\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"), (b"\x1f\x8b\x08", "gzip")):
        at = bytes_.find(magic)
        while at >= 0:
            # Behind the kernel other bytes follow, about which the programs complain.
            kernel = subprocess.run([command, "-dc"], input=bytes_[at:], capture_output=True, check=False).stdout
            if kernel.startswith(b"\x7fELF"):
                return kernel
            at = bytes_.find(magic, at + 1)
    sys.exit(f"globals: no kernel compressed by lz4, zstd, xz or gzip is in {image}")


def section(kernel, wanted):
    """The bytes of a section of an ELF file."""
    table, size, count, names = struct.unpack_from("<Q", kernel, 40)[0], *struct.unpack_from("<HHH", kernel, 58)
    rows = [struct.unpack_from("<IIQQQQ", kernel, table + size * row) for row in range(count)]
    for name, _, _, _, start, length in rows:
        text = kernel[rows[names][4] + name:]
        if text[:text.index(0)].decode() == wanted:
            return kernel[start:start + length]
    sys.exit(f"globals: the kernel has no section {wanted}")


def enumerations(image):
    """(value → enumerators, number of enumerators → tags) of the enumerations in a kernel's BTF, which is what there
    is when the table is used (include/uapi/linux/btf.h)."""
    blob = section(unpacked(image), ".BTF")
    by_value, by_number = defaultdict(set), defaultdict(set)
    _, _, _, header, types, types_len, strings, _ = struct.unpack_from("<HBBIIIII", blob)

    def text(offset):
        start = header + strings + offset
        return blob[start:blob.index(0, start)].decode()

    at = header + types
    rows = {1: 4, 3: 12, 4: -12, 5: -12, 6: -8, 13: -8, 14: 4, 15: -12, 17: 4, 19: -12}
    while at < header + types + types_len:
        name, info, _ = struct.unpack_from("<III", blob, at)
        kind, elements, at = info >> 24 & 0x1F, info & 0xFFFF, at + 12
        if kind in (6, 19):
            for row in range(elements):
                enumerator, value = struct.unpack_from("<II", blob, at + row * -rows[kind])
                by_value[value].add(text(enumerator))
            if name:
                by_number[elements].add(text(name))
        more = rows.get(kind, 0)
        at += more if more >= 0 else -more * elements
    return by_value, by_number


def lines(kernels):
    """The table, newest kernels first."""
    table = []
    for name in sorted(set().union(*(kernel.variables for kernel in kernels.values()))):
        forms = {}  # declaration → lengths by series
        for series, kernel in kernels.items():
            if name in kernel.variables:
                text, lengths = kernel.variables[name]
                forms.setdefault(text, {})[series] = lengths
        for text, by_series in forms.items():
            parts = text.split("@")
            by_place = [dict(zip(by_series, values)) for values in zip(*by_series.values())]
            filled = parts[0] + "".join(
                length(kernels, name, values) + part for values, part in zip(by_place, parts[1:], strict=True)
            )
            table.append(f"{name}\t{re.sub(' +', ' ', filled).strip()}")
    return table


def main():
    arguments = sys.argv[1:]
    check = arguments[0] == "--check"
    path, *sources = arguments[check:]
    kernels = {}
    for series, file in sorted((s.split("=", 1) for s in sources), key=lambda s: version(s[0]), reverse=True):
        kernels[series] = Kernel(*file.split(","))
        print(f"globals: {series}: {len(kernels[series].variables)} variables", file=sys.stderr)
    table = lines(kernels)
    if not check:
        pathlib.Path(path).write_text("".join(line + "\n" for line in table))
        return
    there = set(pathlib.Path(path).read_text().splitlines())
    missing = [line for line in table if line not in there]
    for line in missing[:20]:
        print("globals: not in the table: " + line, file=sys.stderr)
    if missing:
        sys.exit(f"globals: {len(missing)} of {len(table)} declarations are not in the table: run scripts/globals")


def version(series):
    return [int(number) for number in re.findall(r"\d+", series)]


if __name__ == "__main__":
    main()
