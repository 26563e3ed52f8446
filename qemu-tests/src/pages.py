"""Writes the pages of a dump that begin with one of some words to standard output, one behind the other.

    pages.py DUMP END WORD...

Physical memory below END is looked at; words are 16 hexadecimal digits, as they stand in memory. The dump is read by drgn,
with libkdumpfile where it is no ELF file.
"""

import sys

import drgn

PAGE = 4096
PIECE = 1 << 20


def pieces(prog, start, size):
    """What can be read of the memory, each piece as large as can be."""
    try:
        yield prog.read(start, size, physical=True)
    except (drgn.FaultError, OSError):
        if size > PAGE:
            yield from pieces(prog, start, size // 2)
            yield from pieces(prog, start + size // 2, size // 2)


def main(path, end, words):
    prog = drgn.Program()
    prog.set_core_dump(path)
    wanted = {bytes.fromhex(word) for word in words}
    out = sys.stdout.buffer
    for start in range(0, int(end), PIECE):
        for piece in pieces(prog, start, PIECE):
            for at in range(0, len(piece), PAGE):
                if piece[at : at + 8] in wanted:
                    out.write(piece[at : at + PAGE])
    out.flush()


main(sys.argv[1], sys.argv[2], sys.argv[3:])
