"""Asks the web server for one thing after the other, for this many seconds; says for how many."""

import http.client
import os
import random
import sys
import time

random.seed(os.getpid())
end = time.monotonic() + float(sys.argv[1])
static = [os.path.join(directory, name)[len("/usr") :] for directory, _, names in os.walk("/usr/share") for name in names]
connection = http.client.HTTPConnection("127.0.0.1", timeout=120)
requests = failures = 0
while time.monotonic() < end:
    choices = [f"/customer/{random.randrange(20000)}", f"/document/{random.randrange(30000)}",
               "/static" + random.choice(static)]
    connection.request("GET", random.choice(choices), headers={"User-Agent": f"client/{random.randrange(100)}"})
    answer = connection.getresponse()
    answer.read()
    requests += 1
    failures += answer.status >= 500
print(f"{requests} requests, {failures} failures")
sys.exit(failures > 0)
