"""Compares structures, unions and enumerations of two debug files of one kernel: layouts.py THEIRS OURS

Names come from the strings of our file. A type is the same if its size is, and each member's name, offset, bits and
type. Prints JSON: how many types were compared, the names of those that differ in layout, of these the names that the
kernel has several types of, so that each reader may take another one, and enumerations that differ in a value, but
for names of several.
"""

import json
import re
import subprocess
import sys

import drgn

KEYWORDS = {drgn.TypeKind.STRUCT: "struct ", drgn.TypeKind.UNION: "union ", drgn.TypeKind.ENUM: "enum "}


def program(path):
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    module = prog.extra_module(path, create=True)
    module = module[0] if isinstance(module, tuple) else module
    module.try_file(path, force=True)
    return prog


def size(of):
    try:
        return drgn.sizeof(of)
    except TypeError:
        return None


def name(of):
    """What a member is, as far as its layout goes."""
    length = 1
    while of.kind == drgn.TypeKind.ARRAY:
        # pahole before 1.25 makes one dimension of several.
        length *= of.length or 0
        of = of.type
        if of.kind != drgn.TypeKind.ARRAY:
            return f"{name(of)}[{length}]"
    if of.kind == drgn.TypeKind.POINTER:
        return "*"
    if of.kind in KEYWORDS:
        return KEYWORDS[of.kind] + (of.tag or str(layout(of)))
    return f"{of.type_name()} {size(of)}"


def layout(of):
    if of.kind == drgn.TypeKind.ENUM:
        return [(e.name, e.value) for e in of.enumerators or ()]
    rows = [(m.name, m.bit_offset, m.bit_field_size, name(m.type)) for m in of.members or ()]
    return [size(of), rows]


def several(path, names):
    """Of these names, those that are the name of more than one type that is not only declared."""
    entries = subprocess.run(["readelf", "-wi", "-W", path], capture_output=True, text=True, check=True).stdout
    tags = {"struct": "structure_type", "union": "union_type", "enum": "enumeration_type"}
    count = dict.fromkeys(names, 0)
    for entry in entries.split("Abbrev Number: ")[1:]:
        if "DW_AT_declaration" not in entry:
            for name in names:
                keyword, tag = name.split()
                if f"DW_TAG_{tags[keyword]})" in entry and re.search(rf": {tag}$", entry, re.MULTILINE):
                    count[name] += 1
    return [name for name, times in count.items() if times > 1]


def main():
    theirs, ours = map(program, sys.argv[1:3])
    raw = subprocess.run(["readelf", "-p", ".debug_str", sys.argv[2]], capture_output=True, text=True, check=True).stdout
    names = sorted(set(re.findall(r"\]\s+([A-Za-z_]\w*)$", raw, re.MULTILINE)))
    compared, differ, values = 0, [], []
    for tag in names:
        for keyword in KEYWORDS.values():
            try:
                mine, their = ours.type(keyword + tag), theirs.type(keyword + tag)
            except (LookupError, SyntaxError):
                continue
            if size(mine) is None or size(their) is None:
                continue
            compared += 1
            if layout(mine) != layout(their):
                (values if keyword == "enum " and size(mine) == size(their) else differ).append(keyword + tag)
    several_of = several(sys.argv[2], differ + values) if differ or values else []
    ambiguous = [name for name in differ if name in several_of]
    values = [name for name in values if name not in several_of]
    json.dump({"compared": compared, "differ": differ, "ambiguous": ambiguous, "values": values}, sys.stdout)


main()
