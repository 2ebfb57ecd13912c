"""An answer in hand on a connection that its client keeps is never cut, and no request is executed twice.

Each client sends POSTs with a number of its own through an nginx that keeps its connections to the pool. The programs
write down each number as they begin with it, and give the answer in two pieces with a pause between them.
"""

import http.client
import itertools
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Self

import pytest

from tests.integration.backends import built
from tests.integration.commands import running
from tests.integration.ports import connect, free_address
from tests.integration.servers import Nginx, need
from tests.waiting import eventually

PYTHON = f"{sys.executable} -S -E"

GO = """\
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"os"
	"time"
)

func answer(w http.ResponseWriter, r *http.Request) {
	log, _ := os.OpenFile("begun", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0644)
	fmt.Fprintln(log, r.URL.RawQuery)
	log.Close()
	io.Copy(io.Discard, r.Body)
	fmt.Fprintf(w, "the answer ")
	w.(http.Flusher).Flush()
	time.Sleep(5 * time.Millisecond)
	fmt.Fprintf(w, "to %s\\n", r.URL.RawQuery)
}

func main() {
	handler := http.HandlerFunc(answer)
	if os.Args[1] == "fastcgi" {
		fcgi.Serve(nil, handler)
	}
	listener, _ := net.FileListener(os.NewFile(0, "listener"))
	http.Serve(listener, handler)
}
"""

# HTTP on one thread. "/ws": speaks another protocol, an echo. "/slow": answers when a line comes into the FIFO.
ASYNCIO = """\
import asyncio, os, signal, socket, sys

busy = 0
ending = False

async def serve(reader, writer):
    global busy
    try:
        while True:
            head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode()
            busy += 1
            path = head.split()[1]
            for line in head.lower().splitlines():
                if line.startswith("content-length:"):
                    await reader.readexactly(int(line.split(":")[1]))
            if path == "/ws":
                writer.write(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: echo\\r\\n\\r\\n")
                while said := await reader.read(100):
                    writer.write(said)
                return
            query = path.partition("?")[2]
            with open("begun", "a") as log:
                log.write(query + "\\n")
            if path == "/slow":
                await asyncio.get_running_loop().run_in_executor(None, lambda: open("go").read())
            text = f"to {query}\\n"
            writer.write(f"HTTP/1.1 200 OK\\r\\nContent-Length: {11 + len(text)}\\r\\n\\r\\nthe answer ".encode())
            await asyncio.sleep(0.005)
            writer.write(text.encode())
            busy -= 1
            if ending:
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()

async def main():
    global ending
    listener = socket.socket(fileno=0)
    listener.setblocking(False)
    server = await asyncio.start_server(serve, sock=listener)
    if sys.argv[1:] == ["drains"]:
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
        await told.wait()
        print("told", flush=True)
        server.close()
        ending = True
        while busy:
            await asyncio.sleep(0.005)
    else:
        await server.serve_forever()

asyncio.run(main())
"""

# Takes connections on one thread, and for a while after the signal too, whom it does not answer.
DEAF = """\
import select, signal, socket, time
listener = socket.socket(fileno=0)
listener.setblocking(False)
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(time.monotonic()))
while not told or time.monotonic() < told[0] + 0.3:
    if select.select([listener], [], [], 0.01)[0]:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        if not told:
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
"""

NGINX = """\
upstream pool {{ server {address}; keepalive 16; }}
server {{
    listen 127.0.0.1:{port};
    location / {{ {location} }}
}}
"""
PROXY = 'proxy_pass http://pool; proxy_http_version 1.1; proxy_set_header Connection "";'
FASTCGI = (
    "fastcgi_pass pool; fastcgi_keep_conn on; fastcgi_param REQUEST_METHOD $request_method; "
    "fastcgi_param QUERY_STRING $query_string; fastcgi_param CONTENT_LENGTH $content_length; "
    "fastcgi_param REQUEST_URI $request_uri; fastcgi_param SERVER_PROTOCOL $server_protocol;"
)

transports = pytest.mark.parametrize("transport", ["tcp", "unix"])


def go(directory: Path) -> str:
    need("go")
    return str(built("go", GO))


def asyncio(directory: Path) -> str:
    (directory / "serve.py").write_text(ASYNCIO)
    return f"{PYTHON} serve.py"


PROGRAMS: dict[str, tuple[Callable[[Path], str], str, str]] = {
    "go-http": (go, "http", PROXY),
    "go-fastcgi": (go, "fastcgi", FASTCGI),
    "asyncio": (asyncio, "", PROXY),
    "asyncio-drains": (asyncio, "drains", PROXY),
}


def pool(directory: Path, command: str, address: str, *keys: str, numprocs: int = 2) -> str:
    lines = [
        "[pool.app]", f'socket = "{address}"', 'directory = "%(here)s"', f'command = "{command}"',
        f"numprocs = {numprocs}", "startsecs = 0.3", *keys,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def front(directory: Path, address: str, location: str) -> Nginx:
    return Nginx.below(directory, NGINX, address=address, location=location)


class Posts:
    """Clients that send a POST, each with a number of its own, as soon as the last one is answered."""

    def __init__(self, port: int, clients: int = 6) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._port = port
        self._numbers = itertools.count()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._post_on, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)

    def goes_on(self, count: int = 60) -> None:
        """Wait for so many more answers."""
        before = self.answered + len(self.failures)
        eventually(lambda: self.answered + len(self.failures) >= before + count, within=30)

    def _post_on(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self._ended.is_set():
            number = next(self._numbers)
            try:
                connection.request("POST", f"/?{number}", b"x=y")
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200 or text != b"the answer to %d\n" % number:
                    self.failures.append(f"{number}: {answer.status} {text!r}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{number}: {error!r}")
                connection.close()
            self.answered += 1
        connection.close()


def begun_twice(directory: Path) -> list[str]:
    counted = Counter((directory / "begun").read_text().split())
    return [number for number, times in counted.items() if times > 1]


@transports
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_answer_is_cut_and_no_request_executed_twice(program: str, transport: str, tmp_path: Path) -> None:
    make, argument, location = PROGRAMS[program]
    address = free_address(transport, tmp_path)
    keys = ['drain = "self"'] if argument == "drains" else []
    if transport == "unix":
        keys.append('socket_mode = "0666"')
    table = pool(tmp_path, f"{make(tmp_path)} {argument}", address, "stopwaitsecs = 60", *keys)
    with (
        running(tmp_path, table) as manager,
        front(tmp_path, address, location) as nginx,
        Posts(nginx.port) as posts,
    ):
        begun = monotonic()
        for operation in ("reload app", "restart app:app_00"):
            manager(*operation.split()).succeeds()
            eventually(lambda: "STOPPING" not in manager("status").out, within=30)
        posts.goes_on()
        assert monotonic() - begun < 50, "one was let go at its deadline, not at a good moment"
    assert posts.failures == []
    assert begun_twice(tmp_path) == []


@contextmanager
def asking(address: str, path: str) -> Iterator[socket.socket]:
    with connect(address, timeout=20) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        yield client


@transports
@pytest.mark.parametrize("how", ["watch", "self"])
def test_a_connection_in_another_protocol_lives_until_stopwaitsecs(how: str, transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    table = pool(tmp_path, f"{asyncio(tmp_path)}", address, "stopwaitsecs = 3", f'drain = "{how}"', numprocs=1)
    with running(tmp_path, table) as manager, asking(address, "/ws") as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 101 ")
        begun = monotonic()
        manager("reload", "--no-wait", "app").succeeds()
        while True:
            try:
                client.sendall(b"hello")
                if not client.recv(100):
                    break
            except ConnectionError:
                break
            threading.Event().wait(0.05)
        assert 3 < monotonic() - begun < 8
        eventually(lambda: "a generation has left" in manager.output())


@transports
def test_one_that_accepts_after_the_signal_takes_no_connection_with_it(transport: str, tmp_path: Path) -> None:
    """A single thread that waits for everything at once, as an event loop."""
    address = free_address(transport, tmp_path)
    (tmp_path / "serve.py").write_text(DEAF)
    failures: list[Exception] = []
    ended = threading.Event()

    def ask_on() -> None:
        while not ended.is_set():
            try:
                with asking(address, "/") as client:
                    assert client.recv(1000).endswith(b"ok")
            except (OSError, AssertionError) as error:
                failures.append(error)

    with running(tmp_path, pool(tmp_path, f"{PYTHON} serve.py", address, numprocs=3)) as manager:
        clients = [threading.Thread(target=ask_on) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            manager("restart", "app:app_00").succeeds()
            manager("scale", "app", "2").succeeds()
        finally:
            ended.set()
            for client in clients:
                client.join(30)
    assert failures == []


@transports
def test_one_that_drains_itself_is_told_while_it_has_a_request_in_hand(transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    os.mkfifo(tmp_path / "go")
    keys = ['drain = "self"', "stopwaitsecs = 4", 'stdout_logfile = "%(here)s/out"']
    table = pool(tmp_path, f"{asyncio(tmp_path)} drains", address, *keys, numprocs=1)
    with running(tmp_path, table) as manager, asking(address, "/slow") as client:
        eventually(lambda: (tmp_path / "begun").exists())
        manager("reload", "--no-wait", "app").succeeds()
        eventually(lambda: "told" in (tmp_path / "out").read_text(), within=20)
        (tmp_path / "go").write_text("now\n")
        text = b""
        while more := client.recv(1000):
            text += more
        assert text.endswith(b"the answer to \n")
        eventually(lambda: "a generation has left" in manager.output())
