"""Pages out of the database and the store, by processes that remember what they have served."""

import http.server
import json
import os
import random
import socketserver
import threading

import psycopg2
import redis

WORKERS = 3
SOCKET = "/run/app.sock"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class Page(http.server.BaseHTTPRequestHandler):
    def address_string(self):
        return "nginx"

    def do_GET(self):
        kind, _, number = self.path.strip("/").partition("/")
        body = self.server.remembered.get(self.path)
        if body is None:
            body = self.server.remembered[self.path] = self.page(kind, int(number))
        session = self.server.store.randomkey()
        self.server.store.append(session, json.dumps({"seen": self.path}))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def page(self, kind, number):
        with self.server.lock, self.server.database.cursor() as cursor:
            if kind == "customer":
                cursor.execute("select * from customers natural left join (select customer as id, at, kind, amount, agent "
                               "from events where customer = %s) e where id = %s", (number, number))
            else:
                cursor.execute("select path, part, body from documents where id between %s and %s", (number, number + 5))
            rows = "".join("<tr>" + "".join(f"<td>{field}</td>" for field in row) + "</tr>\n" for row in cursor)
        return f"<html><head><title>{self.path}</title></head><body><table>{rows}</table></body></html>".encode()


server = Server(SOCKET, Page)
os.chmod(SOCKET, 0o666)
for _ in range(WORKERS - 1):
    if os.fork() == 0:
        break
server.lock = threading.Lock()
server.database = psycopg2.connect(dbname="postgres", user="postgres")
server.store = redis.Redis()
# What it remembers at the start, as a service does that has run for a while.
keys = [server.store.randomkey() for _ in range(4000)]
server.remembered = {key.decode(): value for key, value in zip(keys, server.store.mget(keys))}
server.index = [dict(json.JSONDecoder().raw_decode(value.decode())[0], at=random.random())
                for value in server.remembered.values()]
server.serve_forever()
