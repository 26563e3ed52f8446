"""Takes the two bitmaps out of a kdump-compressed file.

    bitmaps.py DUMP BITMAP1 BITMAP2

Writes them to files of their own, a bit per page frame, the lowest of a byte first, cut to the number of page
frames, and prints a line of JSON about the dump. The first bitmap holds the pages that exist, the second those that
are in the dump. Read by the layout in makedumpfile's IMPLEMENTATION file (header version 6), with no library.
"""

import json
import struct
import sys


def cut(bits, count):
    """The bitmap of `count` page frames: what lies behind the last one is padding."""
    bits = bytearray(bits[: (count + 7) // 8])
    if count % 8:
        bits[-1] &= (1 << count % 8) - 1
    return bytes(bits)


def main(path, first, second):
    with open(path, "rb") as dump:
        header = dump.read(464)
        if header[:8] != b"KDUMP   ":
            sys.exit(f"{path} is not a kdump file")
        # signature 8, header_version 4, utsname 6*65, padding, timestamp 16, then 32-bit words
        (version,) = struct.unpack_from("<i", header, 8)
        status, block, sub_header, blocks, max_mapnr = struct.unpack_from("<IiiII", header, 424)
        dump.seek(block)
        sub = dump.read(104)
        (level,) = struct.unpack_from("<i", sub, 8)
        if version >= 6:
            (max_mapnr,) = struct.unpack_from("<Q", sub, 96)
        dump.seek((1 + sub_header) * block)
        bitmaps = dump.read(blocks * block)
    half = len(bitmaps) // 2
    if half * 8 < max_mapnr:
        sys.exit(f"{path}: bitmaps of {half} bytes for {max_mapnr} pages")
    for name, bits in (first, bitmaps[:half]), (second, bitmaps[half:]):
        with open(name, "wb") as out:
            out.write(cut(bits, max_mapnr))
    print(json.dumps({"version": version, "status": status, "level": level, "max_mapnr": max_mapnr}))


main(*sys.argv[1:])
