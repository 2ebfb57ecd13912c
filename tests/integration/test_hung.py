"""A reload of a pool whose processes hang, or are busy for long: who waits in its queue is served by the new ones.

Each process of the first generation takes a request that it does not answer, and so no other. What it has in hand when
it has to be killed is lost, and told. What nobody has accepted is not.
"""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fcgimgr.fastcgi.client import fetch
from fcgimgr.fastcgi.records import FastCGIError
from tests.integration.commands import Manager, running
from tests.integration.ports import connect, free_address
from tests.integration.succession import PYTHON
from tests.waiting import eventually

# One connection at a time, kept. The body of a POST comes back behind the number of the generation; at "/peer" with
# where it comes from; "/hang" is answered when the file "free" is there.
PROGRAM = """\
import os, socket, time
generation = os.environ["FCGIMGR_GENERATION"].encode()
listener = socket.socket(fileno=0)
while True:
    connection, peer = listener.accept()
    with connection, connection.makefile("rb") as said:
        while line := said.readline():
            length = 0
            while (field := said.readline()).strip():
                length = int(field[15:]) if field.startswith(b"Content-Length:") else length
            body = generation + said.read(length) + (peer[0].encode() if b"/peer" in line else b"")
            while line.split()[1] == b"/hang" and not os.path.exists("free"):
                time.sleep(0.01)
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (len(body), body))
"""

HANGS = """\
import pathlib, time

def app(environ, start_response):
    pathlib.Path("hangs").touch()
    time.sleep(1000)
"""


def pool(directory: Path, address: str, *keys: str) -> str:
    (directory / "serve.py").write_text(PROGRAM)
    lines = [f'socket = "{address}"', f'command = "{PYTHON} serve.py"', 'directory = "%(here)s"', "startsecs = 0.1"]
    return "\n".join(["[pool.app]", *lines, *keys, ""])


def asked(address: str, path: str, body: bytes = b"") -> socket.socket:
    connection = connect(address)
    connection.settimeout(30)
    connection.sendall(f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    return connection


def all_hang(manager: Manager, address: str) -> list[socket.socket]:
    """A request in the hands of each process, which it will not answer."""
    hung = [asked(address, "/hang") for _ in manager.pids("app")]
    eventually(lambda: queued(manager) == 0)
    return hung


def queued(manager: Manager) -> int | None:
    return manager.status(detail=True).pools[0].sockets[0].queued


def answered(connection: socket.socket, body: bytes) -> tuple[bytes, bytes]:
    """(the generation, the body that came back), when the connection has ended with the answer."""
    with connection, ThreadPoolExecutor(1) as sending, connection.makefile("rb") as said:
        sending.submit(connection.sendall, body)
        head, _, answer = said.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        return answer[:1], answer[1:]


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("freed", [True, False], ids=["busy", "hung"])
def test_who_waits_behind_those_that_hang_is_served_by_the_new_ones(
    freed: bool, transport: str, tmp_path: Path
) -> None:
    address = free_address(transport, tmp_path)
    bodies = [b"", b"x" * 100, b"y" * 1_000_000, b"z"]
    with running(tmp_path, pool(tmp_path, address, "numprocs = 2", "stopwaitsecs = 3")) as manager:
        hung = all_hang(manager, address)
        waiting = [asked(address, "/", body) for body in bodies]
        eventually(lambda: queued(manager) == len(waiting))
        with ThreadPoolExecutor(1) as commands:
            reload = commands.submit(manager, "reload", "app")
            assert [answered(connection, body) for connection, body in zip(waiting, bodies, strict=True)] == [
                (b"2", body) for body in bodies
            ]
            if freed:
                (tmp_path / "free").touch()
            cut = "" if freed else "; 2 connections of generation 1 cut at stopwaitsecs"
            assert reload.result().succeeds() == f"app: reloaded: generation 2 serves{cut}\n"
            assert manager.output().count("with 1 connection in hand pid=") == (0 if freed else 2)
        for connection in hung:
            connection.close()


@pytest.mark.parametrize(("listens", "here"), [("0.0.0.0", "127.0.0.5"), ("*", "::ffff:127.0.0.5")])
def test_who_is_passed_on_does_not_pass_for_one_from_127_0_0_1(listens: str, here: str, tmp_path: Path) -> None:
    port = free_address("tcp", tmp_path).rpartition(":")[2]
    address = f"127.0.0.5:{port}"
    with running(tmp_path, pool(tmp_path, f"{listens}:{port}", "stopwaitsecs = 1")) as manager:
        hung = all_hang(manager, address)
        waiting = asked(address, "/peer")
        eventually(lambda: queued(manager) == 1)
        manager("reload", "app").succeeds()
        assert answered(waiting, b"") == (b"2", here.encode())
        for connection in hung:
            connection.close()


@pytest.mark.parametrize("server", ["native", "flup"])
def test_a_request_that_one_of_our_engines_had_in_hand_is_lost(server: str, tmp_path: Path) -> None:
    """It cannot have been a WebSocket."""
    address = free_address("unix", tmp_path)
    (tmp_path / "hang.py").write_text(HANGS)
    keys = [f'server = "{server}"', "stopwaitsecs = 1", "reload_watch = 0"]
    lines = ["[pool.app]", f'socket = "{address}"', 'wsgi = "hang:app"', 'directory = "%(here)s"', *keys, ""]
    with running(tmp_path, "\n".join(lines)) as manager, ThreadPoolExecutor(1) as clients:
        asks = {"REQUEST_METHOD": "GET", "REQUEST_URI": "/hang", "SERVER_PROTOCOL": "HTTP/1.1"}
        hung = clients.submit(fetch, address, asks)
        eventually((tmp_path / "hangs").exists)
        reload = manager("reload", "app")
        reload.fails(1)
        assert "generation 2 serves, but 1 connection of generation 1 lost: see the log" in reload.out
        assert "with GET /hang in hand" in manager.output()
        with pytest.raises(FastCGIError):
            hung.result()


def test_what_is_lost_with_the_queue_is_said(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    with running(tmp_path, pool(tmp_path, address, "stopwaitsecs = 0.5")) as manager:
        hung = all_hang(manager, address)
        waiting = [asked(address, "/") for _ in range(3)]
        eventually(lambda: queued(manager) == len(waiting))
        manager("stop", "app").succeeds()
        assert "app: 3 connections lost: nobody has accepted them" in manager.output()
        for connection in (*hung, *waiting):
            connection.close()


def test_the_reload_is_over_when_those_that_were_passed_on_have_their_answers(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    body = b"x" * 5_000_000
    with running(tmp_path, pool(tmp_path, address, "stopwaitsecs = 20")) as manager:
        hung = all_hang(manager, address)
        slow = asked(address, "/", body)
        eventually(lambda: queued(manager) == 1)
        old = manager.pids("app")
        manager("reload", "app", "--no-wait").succeeds()
        slow.sendall(body)  # which is answered, and fills the buffers
        (tmp_path / "free").touch()
        eventually(lambda: not set(old) & set(manager.pids("app")))
        assert "app: a reload or canary is under way" in manager("upgrade").fails(1)
        assert "a generation has left" not in manager.output()
        assert answered(slow, b"") == (b"2", body)
        eventually(lambda: "a generation has left" in manager.output())
        assert "lost" not in manager.output()
        for connection in hung:
            connection.close()
