"""Lists the ELF notes in the sub-header of a kdump-compressed file, as JSON: [[name, type, size], ...].

    notes.py DUMP

Read by the layout in makedumpfile's IMPLEMENTATION file (header version 4 and later), with no library.
"""

import json
import struct
import sys

with open(sys.argv[1], "rb") as dump:
    header = dump.read(464)
    if header[:8] != b"KDUMP   ":
        sys.exit(f"{sys.argv[1]} is not a kdump file")
    # signature 8, header_version 4, utsname 6*65, padding, timestamp 16, status 4, block_size 4
    (block_size,) = struct.unpack_from("<i", header, 428)
    dump.seek(block_size)
    offset, size = struct.unpack_from("<QQ", dump.read(64), 48)
    dump.seek(offset)
    notes = dump.read(size)

found = []
at = 0
while at + 12 <= len(notes):
    name_size, size, kind = struct.unpack_from("<III", notes, at)
    at += 12
    name = notes[at : at + name_size].rstrip(b"\0").decode("ascii", "replace")
    at += (name_size + 3) // 4 * 4 + (size + 3) // 4 * 4
    found.append([name, kind, size])
print(json.dumps(found))
