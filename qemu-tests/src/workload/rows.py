"""Rows for the database and the store: the same in each run, and as varied as what people keep in one."""

import datetime
import json
import pathlib
import random
import sys
import uuid

CUSTOMERS, EVENTS, SESSIONS = 200_000, 1_800_000, 900_000
DOCUMENTS = 160 << 20  # bytes of text

SCHEMA = """
create table customers (id int, name text, email text, street text, city text, born date, preferences jsonb);
create table events (id bigint, at timestamptz, customer int, kind text, amount numeric(10,2), address inet, token uuid,
    agent text);
create table documents (id int, path text, part int, body text);
create extension pg_prewarm;
"""
INDEXES = """
alter table customers add primary key (id);
alter table events add primary key (id);
alter table documents add primary key (id);
create index on customers (email);
create index on customers using gin (preferences);
create index on events (customer, at);
create index on events (token);
create index on documents (path);
create index on documents using gin (to_tsvector('english', body)) where id % 4 = 0;
vacuum analyze;
"""
KINDS = ["view", "view", "view", "search", "cart", "login", "logout", "order", "payment", "refund"]
AGENTS = ["Mozilla/5.0 (X11; Linux x86_64; rv:%d.0) Gecko/20100101 Firefox/%d.0",
          "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/%d.0.%d.0 Safari/537.36", "curl/7.%d.%d"]
PLACES = ["usr/share", "usr/include", "usr/lib/python3", "etc", "var/lib/dpkg/info"]

random.seed(1)


def texts():
    """Every text on the system, in one order, in pieces of some KiB."""
    for place in PLACES:
        for path in sorted(pathlib.Path("/", place).rglob("*")):
            if path.is_symlink() or not path.is_file() or path.stat().st_size < 200:
                continue
            try:
                text = path.read_text()
            except (UnicodeDecodeError, OSError):
                continue
            if "\0" not in text:
                for part, at in enumerate(range(0, len(text), 3000)):
                    yield str(path), part, text[at : at + 3000]


def words():
    found = set()
    for _, _, text in texts():
        found.update(word for word in text.split() if word.isalpha() and word.isascii() and 3 < len(word) < 12)
        if len(found) > 30_000:
            return sorted(found)
    return sorted(found)


def escape(text):
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def emit(*fields):
    sys.stdout.write("\t".join(map(str, fields)) + "\n")


def token():
    return uuid.UUID(int=random.getrandbits(128), version=4)


def agent():
    kind = random.choice(AGENTS)
    return kind % (random.randrange(60, 140), random.randrange(1000, 7000))


def preferences(vocabulary):
    return {random.choice(vocabulary): random.choice([True, random.randrange(1000), random.choice(vocabulary)])
            for _ in range(random.randrange(2, 9))}


def customers():
    vocabulary = words()
    pick = lambda: random.choice(vocabulary)
    for number in range(CUSTOMERS):
        first, last = pick().capitalize(), pick().capitalize()
        emit(number, f"{first} {last}", f"{first}.{last}{random.randrange(9999)}@{pick()}.example",
             f"{random.randrange(1, 300)} {pick()} street", pick().capitalize(),
             f"{random.randrange(1930, 2008)}-{random.randrange(1, 13):02}-{random.randrange(1, 29):02}",
             json.dumps(preferences(vocabulary)))


def events():
    clock = 1.7e9
    for number in range(EVENTS):
        clock += random.expovariate(0.5)
        at = datetime.datetime.fromtimestamp(clock, datetime.timezone.utc).isoformat()
        emit(number, at, int(CUSTOMERS * random.random() ** 2), random.choice(KINDS), f"{random.lognormvariate(3, 1.5) % 1e7:.2f}",
             ".".join(str(random.randrange(1, 255)) for _ in range(4)), token(), agent())


def documents():
    size = 0
    for number, (path, part, text) in enumerate(texts()):
        emit(number, path, part, escape(text))
        size += len(text)
        if size > DOCUMENTS:
            return


def sessions():
    """As redis-cli --pipe wants it."""
    vocabulary = words()
    for _ in range(SESSIONS):
        value = json.dumps({"customer": random.randrange(CUSTOMERS), "agent": agent(), "csrf": f"{random.getrandbits(160):040x}",
                            "cart": [{"item": random.choice(vocabulary), "count": random.randrange(1, 9)}
                                     for _ in range(random.randrange(6))], "search": random.choices(vocabulary, k=4)})
        fields = ["SET", f"session:{token()}", value]
        command = f"*{len(fields)}\r\n" + "".join(f"${len(field)}\r\n{field}\r\n" for field in fields)
        sys.stdout.write(command)


what = sys.argv[1]
if what in ("schema", "indexes"):
    print(SCHEMA if what == "schema" else INDEXES)
else:
    {"customers": customers, "events": events, "documents": documents, "sessions": sessions}[what]()
