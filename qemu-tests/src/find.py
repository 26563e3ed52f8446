"""Finds pages by their content in an ELF core.

    find.py CORE PREFIX...

Prints JSON: {PREFIX: [page frame, ...]}, those of the pages in which the prefix begins. Read without a library.
"""

import json
import mmap
import re
import struct
import sys

PAGE = 4096


def main(path, prefixes):
    pattern = re.compile(b"|".join(re.escape(prefix.encode()) for prefix in prefixes))
    found = {prefix: set() for prefix in prefixes}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as core:
        if core[:4] != b"\x7fELF":
            sys.exit(f"{path} is not an ELF file")
        (table,) = struct.unpack_from("<Q", core, 32)
        size, count = struct.unpack_from("<HH", core, 54)
        segments = [struct.unpack_from("<IIQQQQQQ", core, table + index * size) for index in range(count)]
        for kind, _, offset, _, physical, stored, _, _ in segments:
            if kind == 1:
                for match in pattern.finditer(core, offset, min(offset + stored, len(core))):
                    found[match.group().decode()].add((match.start() - offset + physical) // PAGE)
    print(json.dumps({prefix: sorted(pages) for prefix, pages in found.items()}))


main(sys.argv[1], sys.argv[2:])
