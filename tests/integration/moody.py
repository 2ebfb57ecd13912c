"""A FastCGI server of one request at a time that answers as its mood is, and holds clients until it is told to let go.

Its mood is in the file `mood-GENERATION`: "error" (status 500), "garbage" or "hang"; without the file it is well. A
request other than a ping waits until there is a file `let-go` (for all), or `let-go-PID` with the number of requests
that this process may answer.
"""

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from fcgimgr.fastcgi.client import fetch
from fcgimgr.fastcgi.records import FastCGIError

PROGRAM = """\
import os, signal, socket, struct, time

def record(kind, content):
    return struct.pack("!BBHHBB", 1, kind, 1, len(content), 0, 0) + content

def read(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""

def answer(connection):
    global answered
    received = b""
    while not received.endswith(record(5, b"")):
        more = connection.recv(65536)
        if not more:
            return
        received += more
    mood = read("mood-" + generation)
    if mood == "hang":
        signal.pause()
    if mood == "garbage":
        connection.sendall(b"HTTP/1.1 200 OK")
        return
    if b"FCGIMGR_PING" not in received:
        while not os.path.exists("let-go") and answered >= int(read(f"let-go-{os.getpid()}") or 0):
            time.sleep(0.002)
        answered += 1
    status = b"500 Broken" if mood == "error" else b"200 OK"
    text = b"Status: " + status + b"\\r\\n\\r\\n" + generation.encode()
    connection.sendall(record(6, text) + record(6, b"") + record(3, bytes(8)))

answered = 0
generation = os.environ["FCGIMGR_GENERATION"]
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    with connection:
        try:
            answer(connection)
        except OSError:
            pass
"""


def moody(directory: Path, address: str, *keys: str) -> str:
    """A pool.toml of a pool `app` of these, which are ready when they answer pings."""
    (directory / "moody.py").write_text(PROGRAM)
    lines = ["[pool.app]", f'socket = "{address}"', 'command = "python -S -E moody.py"', 'directory = "%(here)s"']
    return "\n".join([*lines, 'ready = "ping"', *keys, ""])


class Clients:
    """Clients that each wait for one answer."""

    def __init__(self, address: str, pool: ThreadPoolExecutor) -> None:
        self._address = address
        self._pool = pool
        self._asked: list[Future[str]] = []

    def ask(self, times: int) -> None:
        """Have so many more."""
        self._asked += [self._pool.submit(self._one) for _ in range(times)]

    def _one(self) -> str:
        return fetch(self._address, {"SCRIPT_FILENAME": "/", "REQUEST_METHOD": "GET"}, timeout=60).body.decode()

    def answers(self) -> list[str]:
        """The generation that answered each. FastCGIError: one was not answered."""
        return [future.result() for future in self._asked]


@contextmanager
def clients(address: str, at_once: int = 32) -> Iterator[Clients]:
    with ThreadPoolExecutor(at_once) as pool:
        yield Clients(address, pool)


@contextmanager
def busy(address: str, at_once: int) -> Iterator[list[str]]:
    """So many clients, each of which asks again as soon as it is answered; what answered so far."""
    answered: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                answered.append(fetch(address, {"SCRIPT_FILENAME": "/"}, timeout=60).body.decode())
            except FastCGIError as error:
                answered.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        over.set()
        for thread in threads:
            thread.join()


def queue_of(port: int) -> int:
    """Connections that wait at a TCP port of 127.0.0.1, whoever listens there."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    here = f"{socket.inet_aton('127.0.0.1')[::-1].hex().upper()}:{port:04X}"
    return sum(int(row[4].split(":")[1], 16) for row in rows if row[1] == here and row[3] == "0A")


def let_go(directory: Path, pid: int | None = None, requests: int = 0) -> None:
    """Let all requests be answered, or so many by one process."""
    path = directory / ("let-go" if pid is None else f"let-go-{pid}")
    temporary = path.with_suffix(".new")
    temporary.write_text(str(requests))
    os.rename(temporary, path)
