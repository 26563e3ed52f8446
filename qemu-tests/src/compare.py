"""Compares a dump with the raw /proc/vmcore of the same crash, page by page, and counts markers in it.

    compare.py RAW DUMP [MARKER_PREFIX...]

Prints one line of JSON. Both files are read by drgn, an implementation that shares nothing with ours. All pages of
all PT_LOAD segments are compared; of a page that a segment covers in part, only that part.
"""

import json
import re
import struct
import sys

import drgn

PAGE = 4096
PIECE = 1 << 20
SHOWN = 10


def segments(path):
    """Physical (start, end) of the PT_LOAD segments of an ELF64 file, sorted, overlaps merged."""
    with open(path, "rb") as file:
        header = file.read(64)
        if header[:4] != b"\x7fELF":
            sys.exit(f"{path} is not an ELF file")
        (offset,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        table = file.read(size * count)
    found = []
    for index in range(count):
        kind, _, _, _, physical, stored, _, _ = struct.unpack_from("<IIQQQQQQ", table, index * size)
        if kind == 1 and stored:
            found.append((physical, physical + stored))
    merged = []
    for start, end in sorted(found):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged


def open_core(path):
    prog = drgn.Program()
    prog.set_core_dump(path)
    return prog


def read(prog, start, size):
    """The bytes, or None when any of them cannot be read."""
    try:
        return prog.read(start, size, physical=True)
    except (drgn.FaultError, OSError):
        return None


class Comparison:
    def __init__(self, raw, dump):
        self.raw, self.dump = raw, dump
        self.pages = self.different = self.unreadable = 0
        self.first = []

    def range(self, start, end):
        """Compares [start, end) and returns the dump's bytes of it, unreadable pages as zeros."""
        ours, theirs = read(self.dump, start, end - start), read(self.raw, start, end - start)
        if ours is not None and ours == theirs:
            self.pages += (end + PAGE - 1) // PAGE - start // PAGE
            return ours
        if start // PAGE == (end - 1) // PAGE:
            return self.page(start, ours, theirs, end - start)
        seen = []
        while start < end:
            stop = min(end, (start // PAGE + 1) * PAGE)
            seen.append(self.range(start, stop))
            start = stop
        return b"".join(seen)

    def page(self, start, ours, theirs, size):
        self.pages += 1
        if theirs is None:
            sys.exit(f"{start:#x}: the raw copy itself cannot be read")
        what = "unreadable" if ours is None else "different"
        if ours is None:
            self.unreadable += 1
        else:
            self.different += 1
        if len(self.first) < SHOWN:
            self.first.append({"address": f"{start:#x}", "what": what})
        return bytes(size) if ours is None else ours


def main(raw, dump, prefixes):
    comparison = Comparison(open_core(raw), open_core(dump))
    found = {prefix: set() for prefix in prefixes}
    patterns = {prefix: re.compile(re.escape(prefix.encode()) + rb"(\d{5})") for prefix in prefixes}
    for start, end in segments(raw):
        carry = b""  # a marker may straddle two pieces
        while start < end:
            stop = min(end, (start // PIECE + 1) * PIECE)
            seen = carry + comparison.range(start, stop)
            for prefix, pattern in patterns.items():
                if prefix.encode() in seen:
                    found[prefix].update(pattern.findall(seen))
            carry = seen[-64:]
            start = stop
    print(
        json.dumps(
            {
                "pages": comparison.pages,
                "different": comparison.different,
                "unreadable": comparison.unreadable,
                "first": comparison.first,
                "markers": {prefix: len(indices) for prefix, indices in found.items()},
            }
        )
    )


main(sys.argv[1], sys.argv[2], sys.argv[3:])
