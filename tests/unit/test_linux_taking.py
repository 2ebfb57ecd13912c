"""Whether a process waits for connections to a listener is seen by the system call it waits in."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.sockdiag import established_inodes
from fcgimgr.linux.taking import Sight, _is_accepted, has_connection, sight
from tests.waiting import eventually

WAYS = {
    "accept": "listener.accept()",
    "select": "select.select([listener, other], [], [])",
    "select with a time": "select.select([other, listener], [], [], 1000)",
    "poll": "p = select.poll(); p.register(other); p.register(listener); p.poll()",
    "poll with a time": "p = select.poll(); p.register(listener, select.POLLIN); p.poll(1000000)",
    "epoll": "e = select.epoll(); e.register(other); e.register(listener, select.EPOLLIN); e.poll()",
    "asyncio": "import asyncio; asyncio.run(serve())",
    "a thread": "import threading; threading.Thread(target=listener.accept).start(); time.sleep(1000)",
    "another number": "socket.socket(fileno=os.dup(0)).accept()",
    "the last of many threads": "import threading\n"
    "for _ in range(20): threading.Thread(target=time.sleep, args=(1000,)).start()\n"
    "threading.Thread(target=listener.accept).start(); time.sleep(1000)",
}

NOT_WAYS = {
    "it sleeps": "time.sleep(1000)",
    "it accepts from another": "other.accept()",
    "it selects another": "select.select([other], [], [])",
    "it selects only for writing": "select.select([], [listener], [listener], 1000)",
    "it polls another": "p = select.poll(); p.register(other, select.POLLIN); p.poll()",
    "it waits for nothing in a set": "e = select.epoll(); e.register(other); e.poll()",
    "the set is not waited for": "e = select.epoll(); e.register(listener); time.sleep(1000)",
    "another set is waited for": "e = select.epoll(); e.register(listener); f = select.epoll(); f.poll()",
}

START = """\
import os, select, socket, sys, time
listener = socket.socket(fileno=0)
other = socket.create_server(("127.0.0.1", 0))

async def serve():
    import asyncio
    server = await asyncio.start_server(lambda r, w: None, sock=listener)
    await server.serve_forever()

print("here", flush=True)
"""


@contextmanager
def running(code: str, listener: socket.socket) -> Iterator[int]:
    program = [sys.executable, "-S", "-E", "-c", START + code]
    with subprocess.Popen(program, stdin=listener, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        try:
            yield child.pid
        finally:
            child.kill()


@pytest.fixture(params=["tcp", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path) -> Iterator[socket.socket]:
    if request.param == "tcp":
        sock = socket.create_server(("127.0.0.1", 0))
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "s"))
        sock.listen()
    with sock:
        yield sock


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@pytest.mark.parametrize("way", WAYS)
def test_one_that_waits_for_connections_is_seen(way: str, listener: socket.socket):
    with running(WAYS[way], listener) as pid:
        eventually(lambda: sight(pid, {inode(listener)}) is Sight.TAKES)
        assert sight(pid, {1}) is Sight.NO, "and only with this listener"


@pytest.mark.parametrize("way", NOT_WAYS)
def test_one_that_waits_for_something_else_is_not(way: str, listener: socket.socket):
    with running(NOT_WAYS[way], listener) as pid:
        eventually(lambda: (_state(pid)) == "S")
        for _ in range(20):
            assert sight(pid, {inode(listener)}) is Sight.NO


def test_a_call_that_was_interrupted_is_a_maybe_at_least(listener: socket.socket):
    with running(WAYS["poll with a time"], listener) as pid:
        eventually(lambda: sight(pid, {inode(listener)}) is Sight.TAKES)
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: _state(pid) == "T")
        os.kill(pid, signal.SIGCONT)
        eventually(lambda: sight(pid, {inode(listener)}) >= Sight.MAYBE)


def test_one_that_is_gone_takes_nothing(listener: socket.socket):
    with running("", listener) as pid:
        pass
    assert sight(pid, {inode(listener)}) is Sight.NO
    assert not has_connection(pid, [listener.getsockname()], {inode(listener)})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_what_may_not_be_looked_at_is_unknown(listener: socket.socket):
    with running("listener.accept()", listener) as pid:
        code = f"""
import os
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
print(sight({pid}, {{{inode(listener)}}}).name, has_connection({pid}, [{listener.getsockname()!r}], {{1}}))
"""
        script = f"import sys; sys.path.insert(0, {os.getcwd()!r}); from fcgimgr.linux.taking import *\n{code}"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "UNKNOWN False\n", done.stderr


def test_one_with_a_connection_in_its_hands_is_seen(listener: socket.socket):
    name = listener.getsockname()
    with running("hand, _ = listener.accept(); time.sleep(1000)", listener) as pid:
        assert not has_connection(pid, [name], established_inodes([name]) or ())
        with socket.socket(listener.family) as client:
            client.connect(name)
            eventually(lambda: has_connection(pid, [name], established_inodes([name]) or ()))
            found = established_inodes([name])
            assert found
            assert not has_connection(pid, [name], found, found), "but not with one that does not count"


def test_one_that_has_the_next_in_hand_already_is_seen_too(listener: socket.socket):
    name = listener.getsockname()
    code = "hand, _ = listener.accept(); mine = socket.create_connection(other.getsockname()); time.sleep(1000)"
    with running(code, listener) as pid, socket.socket(listener.family) as client:
        client.connect(name)
        eventually(lambda: has_connection(pid, [name], {1}))
        assert not has_connection(pid, [("127.0.0.1", 1), "/another"], {1}), "a connection of another kind"
        assert not has_connection(pid, [name], {1}, established_inodes([name]) or ())


def test_a_large_set_is_read_on(listener: socket.socket):
    code = "import resource; e = select.epoll(); fds = [os.dup(other.fileno()) for _ in range(500)]\n"
    code += "e.register(listener)\nfor fd in fds: e.register(fd)\ne.poll()"
    with running(code, listener) as pid:
        eventually(lambda: sight(pid, {inode(listener)}) is Sight.TAKES)


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_what_is_no_socket_any_more_is_let_go_of(listener: socket.socket):
    """The number of a connection that was closed may be that of a file by the time it is looked at."""
    with PidFd(os.getpid()) as process, open(os.devnull) as file:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            assert not _is_accepted(process, file.fileno(), [listener.getsockname()], ())
        assert len(os.listdir("/proc/self/fd")) == before
