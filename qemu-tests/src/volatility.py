"""Runs plugins of volatility3 on a dump, as a user does, and prints their rows in words that drgn's side of the
comparison (drgn_lists.py) uses too: a JSON object of lists.

    volatility.py SYMBOLS DUMP CACHE

SYMBOLS is the folder with the symbols. Nothing is asked of the network.
"""

import json
import os
import subprocess
import sys

KINDS = ["pslist", "psaux", "lsof", "sockstat", "mountinfo", "envars", "kmsg", "lsmod"]
VOL = os.path.join(os.path.dirname(sys.executable), "vol")


def run(symbols, dump, cache, kind):
    # What the first run found out about the dump serves the others.
    config = os.path.join(cache, "config.json")
    known = ["-c", config] if os.path.exists(config) else ["--save-config", config]
    command = [VOL, "-q", "--offline", "--cache-path", cache, "-s", symbols, "-r", "json", *known]
    done = subprocess.run([*command, "-f", dump, "linux." + kind], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"volatility3, {kind}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)


# Of an address volatility3 keeps 48 bits.
address = lambda value: f"{value & (1 << 48) - 1:#x}"
absent = lambda value: "-" if value in (None, "N/A", "") else str(value)


def pslist(row):
    ids = [row["UID"], row["GID"], row["EUID"], row["EGID"]]
    return [row["PID"], row["PPID"], row["COMM"], address(row["OFFSET (V)"]), *ids]


def psaux(row):
    return [row["PID"], row["PPID"], row["COMM"], row["ARGS"]]


def lsof(row):
    device = absent(row["Device"])
    return [row["PID"], row["TID"], row["Process"], row["FD"], row["Path"], device, row["Inode"], row["Mode"], row["Size"]]


def sockstat(row):
    ends = [row["Source Addr"], row["Source Port"], row["Destination Addr"], row["Destination Port"]]
    where = [row["NetNS"], row["Process Name"], row["PID"], row["TID"], row["FD"], address(row["Sock Offset"])]
    return [*where, row["Family"], row["Type"], absent(row["Proto"]), *map(absent, ends), absent(row["State"])]


def mountinfo(row):
    where = [row["MNT_NS_ID"], row["MOUNT ID"], row["PARENT_ID"], row["MAJOR:MINOR"]]
    return [*where, row["ROOT"], row["MOUNT_POINT"], row["FSTYPE"], row["MOUNT_SRC"]]


def envars(row):
    return [row["PID"], row["PPID"], row["COMM"], row["KEY"], row["VALUE"]]


def kmsg(row):
    # What belongs to a record beside its text: drgn does not show it.
    if row["line"].startswith((" SUBSYSTEM=", " DEVICE=")):
        return None
    return [row["facility"], row["level"], row["timestamp"], row["line"]]


def lsmod(row):
    return [row["Module Name"], address(row["Offset"]), f"{row['Code Size']:#x}"]


def main(symbols, dump, cache):
    os.makedirs(cache, exist_ok=True)
    lists = {}
    for kind in KINDS:
        rows = run(symbols, dump, cache, kind)
        rows = filter(None, map(globals()[kind], rows))
        lists[kind] = sorted(" ".join(map(str, row)) for row in rows)
    print(json.dumps(lists))


if __name__ == "__main__":
    main(*sys.argv[1:])
