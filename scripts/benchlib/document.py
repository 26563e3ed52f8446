"""docs/measured/bench.md: what is in the store, as tables."""

import statistics
import textwrap

from . import dumps, engine
from .runs import SLOW, median, ratio

# Section → the largest ratio that is good enough.
NULL_BAR, AUTO_BAR, LINEAR_BAR = 1.25, 1.03, 1.1
PEAK_BAR_MIB = 32
TITLES = {
    "1": "Against makedumpfile",
    "1-idle": "Against makedumpfile, a machine without work",
    "2": "Null sink and the limit",
    "3": '`compress = "auto"` against fixed levels',
    "4": "Machines up to 12 TiB",
}
DUMPS_NOTE = """\
- Each clock stops when the dump is stable: seconds include its `sync -f`, on the disk sink. The null sink drops what \
it gets: for afterimage one within `bench-pipeline`, for makedumpfile `-F` to `/dev/null`.
- "zstd:1/it" and "same/it" are the time of afterimage with zstd:1, and with the same compression, by that of this \
program with the same CPUs and sink, the median of the ratios turn by turn: below 1, afterimage is faster. The best \
of makedumpfile is the row of least median. Rows with 1 CPU are bound to it (`taskset`).
- Peak RSS counts mapped pages of the input, which the kernel can take back; the memory of afterimage without them \
stands in the next section.
- Every dump on the disk is complete by `afterimage inspect`. The first of each row was read back by makedumpfile and \
held exactly the pages that it reads in the input.
"""
NULL_NOTE = f"""\
`bench-pipeline sink --rate null` makes the dump, with all reading, filtering and bookkeeping, for a sink that drops \
it; `bare` compresses the same pages in memory already and does nothing else. Their ratio, turn by turn, is to be at \
most {NULL_BAR}. Peak memory is RssAnon + RssShmem.
"""
AUTO_NOTE = f"""\
Seconds of a dump at level 31 to a simulated device that drains at a rate behind a queue of 8 MiB \
(`bench-pipeline sink --rate`). The ratio is that of auto to the fixed level of least median, turn by turn, and is to \
be at most {AUTO_BAR}. A level that took several times the fastest was run once.
"""
SYNTHETIC_NOTE = f"""\
`bench-pipeline synthetic`: memory that is computed when it is read, in which every second page is kept, the worst \
case for bitmaps; level 31, zstd:1, {engine.PLAN_MIB} MiB for the plan, null sink. Peak memory is RssAnon + RssShmem, to be \
at most {PEAK_BAR_MIB} MiB; the time for a GiB is to be that of the smallest machine within {LINEAR_BAR}. Where no \
pages were written the run ended behind headers and bitmaps.
"""


def write(store, path):
    parts = ["# Benchmark\n", "Written by `scripts/bench`, which takes the programs in turns. Numbers are medians; of "
             f"one run where it took more than {SLOW} s. In bold is what misses its aim.\n"]  # fmt: skip
    if any(name in store for name in ("1", "3")):
        parts.append("![The most important numbers as a chart](bench.svg)\n")
    bodies = {"1": against, "1-idle": against, "2": null, "3": auto, "4": synthetic}
    for number, (name, title) in enumerate(((n, t) for n, t in TITLES.items() if n in store), 1):
        section = store[name]
        parts += [f"## {number}. {title}\n", context(section), bodies[name](section)]
    path.write_text(wrapped("\n".join(parts)))


def wrapped(text):
    """The text with its prose wrapped at 100 columns; tables, links and headings stay as they are."""
    def line(one):
        if one.startswith(("|", "#", "!", "    ")) or "](" in one:
            return one
        hanging = "  " if one.startswith("- ") else ""
        return textwrap.fill(one, 100, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)

    return "\n".join(map(line, text.split("\n")))


def context(section):
    foreign = [run["foreign"] for row in section["rows"] for run in row["runs"]]
    lines = [f"- Machine: {section['machine']}."]
    if foreign:
        lines[0] += (
            f" Other work on it took {statistics.median(foreign):.2f} of a CPU in the median run and "
            f"{max(foreign):.2f} in the worst, writeback by the kernel included."
        )
    lines.append(f"- Programs: {section['versions']}.")
    if section["input"]:
        lines.append(f"- Input: {section['input']}")
    return "\n".join(lines) + "\n"


def table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def judged(value, bar, digits=2):
    text = f"{value:.{digits}f}"
    return f"**{text}**" if value > bar else text


def find(rows, **wanted):
    """The row with these in its key, if it has numbers."""
    for row in rows:
        if row["runs"] and not row["failed"] and all(row["key"].get(name) == value for name, value in wanted.items()):
            return row
    return None


def failed(row, width):
    return [len(row["runs"]) + 1, f"failed: {row['failed']}"] + [""] * (width - 2)


def label(key):
    if key["program"] == dumps.US:
        return f"{dumps.US} {key['compression']}"
    processes = f"--num-threads {key['threads']}" if key["threads"] else "1 process"
    return " ".join([dumps.IT, *dumps.THEIRS[key["compression"]]]) + f", {processes}"


def against(section):
    rows = section["rows"]
    text = DUMPS_NOTE
    for level in dict.fromkeys(row["key"]["level"] for row in rows):
        here = [row for row in rows if row["key"]["level"] == level]
        columns = ["program", "CPUs", "sink", "runs", "seconds", "input GiB/s", "zstd:1/it", "same/it",
                   "user+sys s", "peak RSS MiB", "dump MiB"]  # fmt: skip
        text += f"\n### Level {level}\n\n" + table(columns, [against_row(row, here, section) for row in here])
        best = [line for cpus in sorted({row["key"]["cpus"] for row in here}) if (line := best_line(here, cpus))]
        text += "\n" + "\n".join(best) + "\n" if best else ""
    return text


def against_row(row, rows, section):
    key, runs = row["key"], row["runs"]
    head = [label(key), key["cpus"], key["sink"]]
    if row["failed"]:
        return head + failed(row, 8)
    ratios = ["", ""]
    if key["program"] != dumps.US:
        for index, compression in enumerate(("zstd:1", key["compression"])):
            ours = find(rows, program=dumps.US, cpus=key["cpus"], sink=key["sink"], compression=compression)
            ratios[index] = f"{ratio(ours['runs'], runs):.2f}" if ours else ""
    wall = median(runs, "wall")
    size = f"{median(runs, 'size') / 2**20:.1f}" if key["sink"] == "disk" else ""
    return head + [
        len(runs), f"{wall:.2f}", f"{section['input_bytes'] / 2**30 / wall:.2f}", *ratios,
        f"{median(runs, 'cpu'):.2f}", f"{median(runs, 'rss') / 1024:.0f}", size,
    ]  # fmt: skip


def best_line(rows, cpus):
    """Ours against the fastest of theirs that compresses, whatever with."""
    theirs = [
        row for row in rows
        if row["key"]["program"] == dumps.IT and row["key"]["cpus"] == cpus and row["key"]["sink"] == "disk"
        and row["key"]["compression"] != "none" and row["runs"] and not row["failed"]
    ]  # fmt: skip
    if not theirs:
        return None
    best = min(theirs, key=lambda row: median(row["runs"], "wall"))
    shares = []
    for compression in ("zstd:1", "auto"):
        if ours := find(rows, program=dumps.US, cpus=cpus, sink="disk", compression=compression):
            time, size = ratio(ours["runs"], best["runs"]), ratio(ours["runs"], best["runs"], "size")
            shares.append(f"{compression} {judged(time, 1)} of its time and {size:.2f} of its size")
    return (
        f"- {cpus} CPU{'s' * (cpus > 1)}: the best of makedumpfile with compression is `{label(best['key'])}`; "
        f"afterimage takes with {', with '.join(shares)}."
    )


def null(section):
    lines = []
    for row in section["rows"]:
        key, runs = row["key"], row["runs"]
        if key["what"] != "sink":
            continue
        head = [key["level"], key["workers"]]
        bare = find(section["rows"], what="bare", level=key["level"], workers=key["workers"])
        if row["failed"] or not bare:
            lines.append(head + failed(row, 7))
            continue
        lines.append(head + [
            len(runs), f"{median(runs, 'seconds'):.3f}", f"{median(bare['runs'], 'seconds'):.3f}",
            judged(ratio(runs, bare["runs"], "seconds"), NULL_BAR), f"{median(runs, 'cpu_seconds'):.3f}",
            f"{median(bare['runs'], 'cpu_seconds'):.3f}", judged(median(runs, "peak_kib") / 1024, PEAK_BAR_MIB, 1),
        ])  # fmt: skip
    columns = ["level", "workers = CPUs", "runs", "dump s", "bare s", "dump/bare", "dump CPU s", "bare CPU s",
               "dump peak MiB"]  # fmt: skip
    return NULL_NOTE + "\n" + table(columns, lines)


def auto_group(rows, rate, workers):
    """The row of auto, and fixed level → its row, of those that have numbers."""
    fixed = {level: find(rows, rate=rate, workers=workers, compress=f"zstd:{level}") for level in engine.FIXED}
    return find(rows, rate=rate, workers=workers, compress="auto"), {level: row for level, row in fixed.items() if row}


def best_fixed(fixed):
    return min(fixed, key=lambda level: median(fixed[level]["runs"], "seconds"))


def auto(section):
    rows, lines = section["rows"], []
    for rate, workers in dict.fromkeys((row["key"]["rate"], row["key"]["workers"]) for row in rows):
        row, fixed = auto_group(rows, rate, workers)
        if not row or not fixed:
            lines.append([rate, workers, "", "failed"] + [""] * (len(engine.FIXED) + 2))
            continue
        best = best_fixed(fixed)
        seconds = [f"{median(fixed[level]['runs'], 'seconds'):.2f}" if level in fixed else "" for level in engine.FIXED]
        lines.append([
            rate, workers, len(row["runs"]), f"{median(row['runs'], 'seconds'):.2f}", best,
            judged(ratio(row["runs"], fixed[best]["runs"], "seconds"), AUTO_BAR), *seconds,
        ])  # fmt: skip
    columns = ["sink MB/s", "workers = CPUs", "runs", "auto s", "best level", "auto/best"]
    columns += [f"zstd:{level} s" for level in engine.FIXED]
    return AUTO_NOTE + "\n" + table(columns, lines)


def synthetic(section):
    lines, first = [], {}
    for row in section["rows"]:
        key, runs = row["key"], row["runs"]
        head = [key["gib"], key["workers"], "yes" if key["pages"] else "no"]
        if row["failed"]:
            lines.append(head + failed(row, 8))
            continue
        cells = [len(runs)]
        for names in (("filter", "plan", "headers"), ("data",)):
            seconds = statistics.median(phases(run, names) for run in runs)
            if "data" in names and not key["pages"]:
                cells += ["", "", ""]
                continue
            each = seconds / key["gib"]
            cells += [f"{seconds:.2f}", f"{each * 1000:.2f}", judged(each / first.setdefault(names, each), LINEAR_BAR)]
        lines.append(head + cells + [judged(median(runs, "peak_kib") / 1024, PEAK_BAR_MIB, 1)])
    columns = ["GiB", "workers = CPUs", "pages written", "runs", "headers s", "ms/GiB", "by the smallest", "pages s",
               "ms/GiB", "by the smallest", "peak MiB"]  # fmt: skip
    return SYNTHETIC_NOTE + "\n" + table(columns, lines)


def phases(run, names):
    return sum(phase["seconds"] for phase in run["result"]["phases"] if phase["name"] in names)
