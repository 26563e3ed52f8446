"""Runs programs one at a time on a machine that is quiet, and times them until what they wrote is stable."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# How much of one CPU others may use on a machine that counts as quiet.
QUIET = 0.15
# Seconds; a program that takes longer is run once.
SLOW = 30
# Times the fastest of those that race.
HOPELESS = 3


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def die(text):
    sys.exit(f"bench: {text}")


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout


class Failed(Exception):
    """The program did not do its work; the text says how."""


@dataclasses.dataclass
class Run:
    """What one run took: as a process, and what it says itself (`result`)."""

    wall: float
    cpu: float
    # KiB; mapped pages of files count.
    rss: int
    # CPUs that others kept busy meanwhile, writeback by the kernel included.
    foreign: float
    result: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Case:
    """One row: what distinguishes it from the others, how it is run and how often at most."""

    key: dict
    # Whether this is the first run → Run; raises Failed.
    run: object
    turns: int
    # Only the fastest of its group matters: one that is hopeless is run once.
    races: bool = False

    def __str__(self):
        return ", ".join(f"{name} {value}" for name, value in self.key.items())


def take_turns(cases):
    """Runs A B A B, not A A B B: what disturbs the machine for a while disturbs all. Returns rows for the store."""
    fastest = None
    rows = [{"key": case.key, "runs": [], "failed": None} for case in cases]
    for turn in range(max((case.turns for case in cases), default=0)):
        for case, row in zip(cases, rows):
            runs = row["runs"]
            # One that fails is not asked again.
            if turn >= case.turns or row["failed"] or (runs and seconds(runs[0]) > SLOW):
                continue
            if case.races and runs and seconds(runs[0]) > HOPELESS * fastest:
                continue
            try:
                run = case.run(turn == 0)
                runs.append(dataclasses.asdict(run))
                fastest = min(seconds(runs[-1]), fastest or SLOW)
                said = f"{seconds(runs[-1]):.2f} s, others {run.foreign:.2f} CPU"
            except Failed as failure:
                row["failed"] = said = str(failure)
            say(f"{case}, run {turn + 1}: {said}")
    return rows


def seconds(run):
    """What a program that tells its own time says, without its preparations; or all of it."""
    return run["result"].get("seconds", run["wall"])


class Runner:
    """Runs commands in a directory of its own, where they may leave files called dump*."""

    def __init__(self, work, patience):
        self.work, self.patience = work, patience
        self.dump = work / "dump"

    def prepare(self, source):
        """Brings the machine into the same state before each run."""
        # With what a run that was cut short left.
        for old in self.work.glob("dump*"):
            old.unlink()
        subprocess.run(["sync", "-f", self.work], check=True)
        if source:
            # The input is in the page cache, whoever reads it first.
            subprocess.run(["cat", source], check=True, stdout=subprocess.DEVNULL)
        if not self.wait_until_quiet():
            say("others keep the machine busy: measuring all the same")

    def wait_until_quiet(self):
        """Whether others leave the machine alone; gives up when the patience is at its end."""
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            before, start = busy(), time.monotonic()
            time.sleep(1)
            if (busy() - before) / (time.monotonic() - start) < QUIET:
                return True
        return False

    def timed(self, command, cpus, limit):
        """Runs a command on `cpus` CPUs, for `limit` seconds at most. What it prints is in `said` afterwards."""
        usage = self.work / "usage"
        # Not by wait4: a child of ours would count the memory of this process as its own.
        whole = [shutil.which("time"), "-o", str(usage), "-f", "%U %S %M"]
        if cpus < os.cpu_count():
            whole += ["taskset", "-c", ",".join(map(str, range(cpus)))]
        whole += map(str, command)
        before, start = busy(), time.monotonic()
        with open(self.work / "said", "w") as said, open(self.work / "errors", "w") as errors:
            child = subprocess.Popen(
                whole, stdin=subprocess.DEVNULL, stdout=said, stderr=errors, start_new_session=True,
                env=os.environ | {"TMPDIR": str(self.work)},
            )  # fmt: skip
            late = threading.Event()

            def kill():
                late.set()
                # The group: the program is a grandchild.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)

            # wait(limit) would look every 50 ms only, too coarse for what takes a second.
            timer = threading.Timer(limit, kill)
            timer.start()
            try:
                status = child.wait()
            except BaseException:
                kill()
                child.wait()
                raise
            finally:
                timer.cancel()
        wall = time.monotonic() - start
        worked = busy() - before
        if late.is_set():
            raise Failed(f"not done after {limit} s")
        if status:
            raise Failed(f"{exit_code(status)}: {self.last_line()}")
        user, system, rss = usage.read_text().split()[-3:]
        cpu = float(user) + float(system)
        return Run(wall, cpu, int(rss), max(0.0, (worked - cpu) / wall))

    @property
    def said(self):
        return (self.work / "said").read_text(errors="replace")

    def last_line(self):
        text = self.said + "\n" + (self.work / "errors").read_text(errors="replace")
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        # Of makedumpfile and of the shell.
        noise = ("Copying", "Excluding", "Checking", "The kernel version", "Aborted", "Command exited")
        errors = [line for line in lines if not line.startswith(noise)]
        return (errors or ["it says nothing"])[-1][:120]


def busy():
    """Seconds that the CPUs have worked so far, time taken by the hypervisor included."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def exit_code(status):
    # `time` and `sh` pass on a death by signal like this.
    return f"killed by signal {status - 128}" if status > 128 else f"exit code {status}"


def median(runs, field):
    """The median of a field of runs, of their `result` where it is there."""
    return statistics.median(run["result"].get(field, run.get(field)) for run in runs)


def ratio(ours, others, field="wall"):
    """The median of ours/theirs, of the same turn: what slowed one slowed the other."""
    value = lambda run: run["result"].get(field, run.get(field))
    return statistics.median(value(a) / value(b) for a, b in zip(ours, others))
