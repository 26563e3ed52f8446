"""The dump engine by itself (bench-pipeline of qemu-tests): null and throttled sinks, made-up machines."""

import json

from .runs import Case, Failed

# MB/s → the levels of zstd that are compared with "auto". At 5 MB/s a run takes long, and no fast level is best.
FIXED = (-5, -3, -1, 1, 3, 6, 9, 12)
RATES = {2000: FIXED, 200: FIXED, 50: FIXED, 5: (1, 6, 9, 12)}
# What the capture gives the plan at most.
PLAN_MIB = 8
# Seconds: a page pass over a TiB takes its time.
LIMIT = 6 * 3600


class Engine:
    """The program and the input."""

    def __init__(self, runner, source, pipeline):
        self.runner, self.source, self.pipeline = runner, source, pipeline

    def case(self, key, turns, cpus, *words, races=False):
        from_file = words[0] != "synthetic"
        return Case(key, lambda _first: self.run([self.pipeline, *words], cpus, from_file), turns, races)

    def run(self, command, cpus, from_file):
        self.runner.prepare(self.source if from_file else None)
        run = self.runner.timed(command, cpus, LIMIT)
        try:
            run.result = json.loads(self.runner.said)
        except ValueError:
            raise Failed(f"not understood: {self.runner.last_line()}") from None
        return run

    def null(self, levels, cpus, repeat):
        """A dump to a sink that drops all, and what no dump can beat: its compression alone."""
        cases = []
        for level in levels:
            for number in cpus:
                options = ["--level", level, "--workers", number]
                for what, words in (
                    ("sink", [self.source, "--rate", "null", "--compress", "zstd:1"]), ("bare", [self.source])
                ):  # fmt: skip
                    key = {"what": what, "level": level, "workers": number}
                    cases.append(self.case(key, repeat, number, what, *words, *options))
        return cases

    def auto(self, rates, cpus, repeat):
        """`compress = "auto"` among fixed levels on slow and fast sinks: the cases of one sink take turns."""
        for rate in rates:
            for number in cpus:
                cases = []
                for compress in ("auto", *(f"zstd:{level}" for level in RATES[rate])):
                    key = {"rate": rate, "workers": number, "compress": compress}
                    words = ["sink", self.source, "--rate", rate, "--workers", number, "--compress", compress]
                    cases.append(self.case(key, repeat, number, *words, races=True))
                yield cases

    def synthetic(self, sizes, cpus, repeat):
        """Made-up machines: GiB → whether its pages are written, too."""
        cases = []
        for gib, pages in sizes.items():
            key = {"gib": gib, "pages": pages, "workers": cpus}
            options = ["--workers", cpus, "--plan-mib", PLAN_MIB, "--until", "end" if pages else "headers"]
            cases.append(self.case(key, repeat, cpus, "synthetic", gib, *options))
        return cases
