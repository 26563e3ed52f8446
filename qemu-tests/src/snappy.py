"""Compresses the pages of a raw dump with Google's libsnappy, as a makedumpfile built with snappy would: Debian's is not.

    snappy.py RAW_DUMP OUT

Prints the number of pages that became smaller, as JSON.
"""

import ctypes
import struct
import sys

FLAG = 4
DESC = "<QIIQ"


def main(source, out):
    lib = ctypes.CDLL("libsnappy.so.1")  # crash needs it too
    lib.snappy_max_compressed_length.restype = ctypes.c_size_t
    lib.snappy_max_compressed_length.argtypes = [ctypes.c_size_t]
    with open(source, "rb") as file:
        dump = file.read()
    block, sub_header, bitmaps = struct.unpack_from("<III", dump, 428)
    room = lib.snappy_max_compressed_length(block)
    buffer = ctypes.create_string_buffer(room)

    def pack(page):
        length = ctypes.c_size_t(room)
        if lib.snappy_compress(page, ctypes.c_size_t(block), buffer, ctypes.byref(length)):
            sys.exit("snappy_compress failed")
        return buffer.raw[: length.value]

    table = (1 + sub_header + bitmaps) * block
    kept = sum(byte.bit_count() for byte in dump[table - bitmaps // 2 * block : table])
    descs = [struct.unpack_from(DESC, dump, table + 24 * index) for index in range(kept)]
    at = table + 24 * kept
    placed, data = {}, []
    packed_pages = 0
    for offset, size, flags, _ in descs:
        if flags or size != block:
            sys.exit(f"{source} is not raw")
        if offset not in placed:
            page = dump[offset : offset + block]
            packed = pack(page)
            smaller = len(packed) < block
            packed_pages += smaller
            data.append(packed if smaller else page)
            placed[offset] = struct.pack(DESC, at, len(data[-1]), FLAG if smaller else 0, 0)
            at += len(data[-1])
    header = bytearray(dump[:table])
    header[424:428] = struct.pack("<I", FLAG)
    with open(out, "wb") as file:
        file.write(header)
        file.writelines(placed[offset] for offset, *_ in descs)
        file.writelines(data)
    print(packed_pages)


main(sys.argv[1], sys.argv[2])
