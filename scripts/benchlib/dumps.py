"""Whole dumps by afterimage and by makedumpfile, each checked before its numbers count."""

import hashlib
import re
import shlex
import subprocess

from .runs import Case, Failed, output

# Compression → the options of makedumpfile.
THEIRS = {"none": [], "lzo": ["-l"], "zlib": ["-c"], "zstd:1": ["-z"]}
# Those of ours that are measured.
OURS = ("zstd:1", "auto", "zlib", "none")
# The name of a tool that makes dumps, and the one it is measured against.
US, IT = "afterimage", "makedumpfile"
# Seconds.
LIMIT = 240
# makedumpfile with threads can take minutes for what takes it seconds without.
THREADS_LIMIT = 60
THREADS_LEVEL = 31


class Dumps:
    """The programs, the input and what is known of it."""

    def __init__(self, runner, source, binary, pipeline, makedumpfile):
        self.runner, self.source = runner, source
        self.binary, self.pipeline, self.makedumpfile = binary, pipeline, makedumpfile
        self.expected = {}

    def cases(self, levels, cpus, repeat):
        """All rows: level by level, so that programs that are compared take turns within minutes."""
        for level in levels:
            # Runs of a second are disturbed by less than those of ten.
            turns = repeat if level != 31 or repeat == 1 else 3 * repeat
            yield [case for number in cpus for case in self.level(level, number, turns)]

    def level(self, level, cpus, turns):
        for compression in OURS:
            yield self.case(level, cpus, US, compression, turns)
        # One process does not get faster by a second CPU, but what the kernel does for it may.
        for compression in THEIRS if cpus == 1 else ("none", "lzo", "zstd:1"):
            yield self.case(level, cpus, IT, compression, turns)
        if cpus > 1 and level == THREADS_LEVEL:
            for compression in ("lzo", "zlib", "zstd:1"):
                yield self.case(level, cpus, IT, compression, turns, threads=cpus)
        for program in (US, IT):
            yield self.case(level, cpus, program, "zstd:1", turns, sink="null")

    def case(self, level, cpus, program, compression, turns, threads=0, sink="disk"):
        key = {
            "level": level, "program": program, "compression": compression, "cpus": cpus, "threads": threads,
            "sink": sink,
        }  # fmt: skip
        return Case(key, lambda first: self.run(key, first), turns)

    def command(self, key):
        source, out, level = str(self.source), str(self.runner.dump), str(key["level"])
        null = key["sink"] == "null"
        if key["program"] == US and null:
            # A sink that drops all bytes, in the same process. `dump` to /dev/null would be refused.
            return [
                self.pipeline, "sink", source, "--rate", "null", "--workers", str(key["cpus"]), "--level", level,
                "--compress", key["compression"],
            ]  # fmt: skip
        if key["program"] == US:
            return [self.binary, "dump", "--level", level, "--compress", key["compression"], source, out]
        threads = ["--num-threads", str(key["threads"])] if key["threads"] else []
        command = [self.makedumpfile, *THEIRS[key["compression"]], "-d", level, *threads]
        # It seeks in its output unless that is standard output, and then it does everything as before.
        return ["sh", "-c", shlex.join([*command, "-F", source]) + " >/dev/null"] if null else [*command, source, out]

    def run(self, key, first):
        """Makes one dump, timed, and checks it."""
        out = self.runner.dump
        self.runner.prepare(self.source)
        command = self.command(key)
        if key["sink"] == "disk":
            command = ["sh", "-c", 'out=$1; shift; "$@" && sync -f "$out"', "sh", out, *command]
        run = self.runner.timed(command, key["cpus"], THREADS_LIMIT if key["threads"] else LIMIT)
        if key["sink"] == "disk":
            run.result = {"size": out.stat().st_size}
            self.ensure_complete(out)
            if first:
                self.ensure_same_pages(out, key["level"])
        return run

    def ensure_complete(self, dump):
        said = output(self.binary, "inspect", str(dump))
        if not re.search(r"^state +complete$", said, re.MULTILINE) or not re.search(r" 0 lost;", said):
            raise Failed("the dump is not complete")

    def ensure_same_pages(self, dump, level):
        """Reads all pages with makedumpfile, from the dump and from the input, and compares them."""
        if level not in self.expected:
            self.expected[level] = self.pages(self.source, level)
        if self.pages(dump, level) != self.expected[level]:
            raise Failed("the dump does not hold the memory it was made from")

    def pages(self, path, level):
        """A digest of the uncompressed dump that makedumpfile makes of a file: the same for the same pages."""
        again = self.runner.work / "dump-again"
        again.unlink(missing_ok=True)
        command = [self.makedumpfile, "-d", str(level), str(path), str(again)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode:
            raise Failed(f"makedumpfile cannot read it: {done.stdout[-200:]!r}")
        with open(again, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        again.unlink()
        return digest
