"""Compares a dump with the raw /proc/vmcore of the same crash: each page that was kept is there, and no other.

    formats.py RAW BITMAP READER DUMP

BITMAP holds a bit per page frame that the dump keeps. READER is an implementation that shares nothing with ours: drgn,
volatility3-elf or volatility3-lime; or raw, for memory at its physical address, where what is left out is a hole.
Prints one line of JSON.
"""

import json
import os
import struct
import sys

PAGE = 4096
PIECE = 256
SHOWN = 10


def segments(path):
    """p_type, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz of each program header of an ELF64 file."""
    with open(path, "rb") as file:
        header = file.read(64)
        if header[:4] != b"\x7fELF":
            sys.exit(f"{path} is not an ELF file")
        (offset,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        table = file.read(size * count)
    fields = [struct.unpack_from("<IIQQQQQQ", table, index * size) for index in range(count)]
    return [(kind, *numbers) for kind, _, *numbers, _ in fields]


class Raw:
    """The raw core, read by hand."""

    def __init__(self, path):
        self.file = open(path, "rb")
        loads = [(paddr, paddr + size, offset) for kind, offset, _, paddr, size, _ in segments(path) if kind == 1]
        self.loads = sorted((load for load in loads if load[0] < load[1]), key=lambda load: load[0])

    def pages(self):
        """Runs of whole pages, each of them once."""
        end = 0
        for start, stop, _ in self.loads:
            first, last = max(end, start // PAGE), (stop + PAGE - 1) // PAGE
            if first < last:
                yield first, last
                end = last

    def read(self, pfn, pages):
        """Pages as the product reads them: what no segment covers is zero."""
        start, stop = pfn * PAGE, (pfn + pages) * PAGE
        out = bytearray(stop - start)
        for first, last, offset in self.loads:
            low, high = max(start, first), min(stop, last)
            if low < high:
                out[low - start : high - start] = os.pread(self.file.fileno(), high - low, offset + low - first)
        return bytes(out)


class Drgn:
    def __init__(self, path):
        import drgn

        self.errors = (drgn.FaultError, OSError)
        self.prog = drgn.Program()
        self.prog.set_core_dump(path)

    def read(self, pfn, pages):
        return self.prog.read(pfn * PAGE, pages * PAGE, physical=True)


class Volatility:
    """A layer of volatility3 over the file, chosen by its own stacker."""

    def __init__(self, path, kind):
        from volatility3.framework import contexts, exceptions, interfaces
        from volatility3.framework.layers import elf, lime, physical

        self.errors = (exceptions.InvalidAddressException,)
        context = contexts.Context()
        context.config["file.location"] = "file://" + os.path.abspath(path)
        context.layers.add_layer(physical.FileLayer(context, "file", "file"))
        stacker = {"elf": elf.Elf64Stacker, "lime": lime.LimeStacker}[kind]
        self.layer = stacker.stack(context, "file")
        if not isinstance(self.layer, interfaces.layers.TranslationLayerInterface):
            sys.exit(f"volatility3 does not take {path} for {kind}")

    def read(self, pfn, pages):
        return self.layer.read(pfn * PAGE, pages * PAGE)


class Flat:
    """Memory at its physical address. What is left out is zeros."""

    errors = (EOFError,)

    def __init__(self, path):
        self.file = open(path, "rb")

    def read(self, pfn, pages):
        data = os.pread(self.file.fileno(), pages * PAGE, pfn * PAGE)
        if len(data) < pages * PAGE:
            raise EOFError
        return data


def open_dump(reader, path):
    if reader == "drgn":
        return Drgn(path)
    if reader == "raw":
        return Flat(path)
    return Volatility(path, reader.removeprefix("volatility3-"))


def runs(bits, first, last):
    """Runs of equal bits: first page, last page plus one, whether they are set."""
    is_set = lambda pfn: pfn // 8 < len(bits) and bits[pfn // 8] >> (pfn % 8) & 1 == 1
    start = first
    while start < last:
        kept = is_set(start)
        stop = start + 1
        while stop < last and stop - start < PIECE and is_set(stop) == kept:
            stop += 1
        yield start, stop, kept
        start = stop


class Comparison:
    def __init__(self, raw, dump, holes):
        self.raw, self.dump, self.holes = raw, dump, holes
        self.same = self.absent = self.data_pages = self.runs = 0
        self.wrong = []

    def get(self, pfn, pages):
        try:
            return self.dump.read(pfn, pages)
        except self.dump.errors:
            return None

    def kept(self, start, stop):
        expected = self.raw.read(start, stop - start)
        if self.get(start, stop - start) == expected:
            self.same += stop - start
            zero = bytes(PAGE)
            self.data_pages += sum(expected[at : at + PAGE] != zero for at in range(0, len(expected), PAGE))
        elif stop - start == 1:
            self.wrong.append(f"{start:#x} differs or is unreadable")
        else:
            for pfn in range(start, stop):
                self.kept(pfn, pfn + 1)

    def left_out(self, start, stop):
        for pfn in range(start, stop):
            data = self.get(pfn, 1)
            if data is None or (self.holes and not any(data)):
                self.absent += 1
            else:
                self.wrong.append(f"{pfn:#x} is not left out")


def main(raw_path, bitmap, reader, path):
    raw = Raw(raw_path)
    with open(bitmap, "rb") as file:
        bits = file.read()
    comparison = Comparison(raw, open_dump(reader, path), reader == "raw")
    for first, last in raw.pages():
        for start, stop, kept in runs(bits, first, last):
            comparison.runs += kept
            (comparison.kept if kept else comparison.left_out)(start, stop)
    status = os.stat(path)
    loads = [header for header in segments(path) if header[0] == 1] if reader == "volatility3-elf" else []
    print(
        json.dumps(
            {
                "same": comparison.same,
                "data_pages": comparison.data_pages,
                "runs": comparison.runs,
                "absent": comparison.absent,
                "wrong": len(comparison.wrong),
                "first": comparison.wrong[:SHOWN],
                "bytes": status.st_size,
                "disk": status.st_blocks * 512,
                # A segment with more memory than bytes: volatility3 does not read it, others make up zeros.
                "short_segments": sum(size != memory for _, _, _, _, size, memory in loads),
                "past_end": sum(offset + size > status.st_size for _, offset, _, _, size, _ in loads),
            }
        )
    )


main(*sys.argv[1:])
