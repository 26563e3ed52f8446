"""docs/measured/bench.svg: seconds beside makedumpfile, and "auto" beside fixed levels."""

from html import escape

from . import dumps
from .document import auto_group, best_fixed, find
from .runs import median, ratio

WIDTH, MARGIN = 960, 24
INK, FAINT, PAPER = "#1f2328", "#59636e", "#ffffff"
OURS, THEIRS, FIXED, BEST = "#0072b2", "#b3b9c0", "#c9ced4", "#7f8790"
# A bar that is longer than this many times the best is cut off.
LONGEST = 2.5
ROW, BAR = 22, 14
LEVELS = (31, 1)
# Of the first panel: label, what the row is.
BARS = [
    (f"makedumpfile {option}, 1 CPU", {"program": dumps.IT, "compression": compression, "cpus": 1, "threads": 0})
    for option, compression in (("-z", "zstd:1"), ("-l", "lzo"), ("-c", "zlib"))
] + [
    (f"afterimage, {cpus} CPU{'s' * (cpus > 1)}", {"program": dumps.US, "compression": "zstd:1", "cpus": cpus})
    for cpus in (1, 2)
]


class Canvas:
    def __init__(self):
        self.parts = []

    def text(self, x, y, text, size=12, fill=INK, anchor="start", weight="normal"):
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{escape(text)}</text>'
        )

    def bar(self, x, y, width, fill):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{BAR}" fill="{fill}"/>')

    def line(self, x, top, bottom):
        self.parts.append(
            f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{FAINT}" stroke-dasharray="2 3" fill="none"/>'
        )

    def svg(self, height):
        body = "\n".join(self.parts)
        return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" \
font-family="sans-serif">
<title>afterimage beside makedumpfile, and auto beside fixed levels</title>
<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6" fill="{PAPER}" stroke="#d1d9e0"/>
{body}
</svg>
"""


def write(store, path):
    """Draws the panels that there are numbers for; without any, no file."""
    canvas, y = Canvas(), MARGIN + 8
    for name, panel in (("1", seconds), ("3", relative)):
        if name in store:
            y = panel(canvas, store[name]["rows"], y)
    if canvas.parts:
        path.write_text(canvas.svg(y - 4))


def seconds(canvas, rows, y):
    """A small multiple for each level, side by side."""
    canvas.text(MARGIN, y, "Seconds until the dump is stable on the disk", 15, weight="bold")
    about = "zstd:1 unless makedumpfile says -l (lzo) or -c (zlib); the vmcore is in the page cache; less is better"
    canvas.text(MARGIN, y + 18, about, fill=FAINT)
    levels = [level for level in LEVELS if find(rows, level=level)]
    column = (WIDTH - 2 * MARGIN) / len(LEVELS)
    top = y + 46
    for index, level in enumerate(levels):
        left, start = MARGIN + index * column, MARGIN + index * column + 156
        found = [(label, key, find(rows, level=level, sink="disk", **key)) for label, key in BARS]
        longest = max((median(row["runs"], "wall") for _, _, row in found if row), default=1)
        canvas.text(left, top, f"Level {level}", 13, weight="bold")
        for number, (label, key, row) in enumerate(found):
            at = top + 10 + number * ROW
            ours = key["program"] == dumps.US
            canvas.text(start - 8, at + 11, label, anchor="end", weight="bold" if ours else "normal")
            if not row:
                canvas.text(start, at + 11, "no numbers", fill=FAINT)
                continue
            value = median(row["runs"], "wall")
            width = value / longest * (column - 156 - 56)
            canvas.bar(start, at, width, OURS if ours else THEIRS)
            canvas.text(start + width + 6, at + 11, f"{value:.2f}", weight="bold" if ours else "normal")
    return top + 10 + len(BARS) * ROW + 34


def relative(canvas, rows, y):
    """A small multiple for each sink and number of workers."""
    canvas.text(MARGIN, y, 'compress = "auto" beside fixed zstd levels', 15, weight="bold")
    about = "seconds by those of the best fixed level; simulated devices, dump level 31; less is better"
    canvas.text(MARGIN, y + 18, about, fill=FAINT)
    rates = sorted({row["key"]["rate"] for row in rows}, reverse=True)
    column = (WIDTH - 2 * MARGIN) / 4
    top = y + 46
    for workers in sorted({row["key"]["workers"] for row in rows}):
        most = 0
        for index, rate in enumerate(rates):
            auto, fixed = auto_group(rows, rate, workers)
            left, start = MARGIN + index * column, MARGIN + index * column + 44
            canvas.text(left, top, f"{rate} MB/s, {workers} CPU{'s' * (workers > 1)}", 13, weight="bold")
            if not auto or not fixed:
                canvas.text(left, top + 21, "no numbers", fill=FAINT)
                continue
            best = best_fixed(fixed)
            bars = [("auto", auto, OURS)]
            bars += [(f"{level}", row, BEST if level == best else FIXED) for level, row in fixed.items()]
            unit = (column - 44 - 60) / LONGEST
            canvas.line(start + unit, top + 6, top + 10 + len(bars) * ROW - 4)
            for number, (label, row, fill) in enumerate(bars):
                at = top + 10 + number * ROW
                value = ratio(row["runs"], fixed[best]["runs"], "seconds")
                weight = "bold" if label == "auto" else "normal"
                canvas.text(start - 8, at + 11, label, anchor="end", weight=weight)
                canvas.bar(start, at, min(value, LONGEST) * unit, fill)
                text = f"{value:.2f}" if value <= LONGEST else f"» {value:.1f}"
                canvas.text(start + min(value, LONGEST) * unit + 6, at + 11, text, weight=weight)
            most = max(most, len(bars))
        top += 10 + most * ROW + 30
    return top
