"""What processes hold: connections in known states, held by real processes; and handshakes stopped half-way."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fcgimgr.linux import procfs
from fcgimgr.linux.draining import Connection, Watch, handshakes
from fcgimgr.linux.idle import EXPECTED
from fcgimgr.linux.listeners import Listener, open_tcp, open_unix
from tests.unit.handshakes import let_hear, needs_filter, shy_client
from tests.waiting import eventually

# Workers, each on the listener that is its fd 0. A request is one line, "ok" is the answer; "slow" is answered when a
# line comes on stdin's place, the pipe 3; "busy" by half, and then it computes; "much" by 8 MB.
BLOCKING = """
import os, socket, threading, time
listener = socket.socket(fileno=0)
def serve(connection):
    while True:
        request = connection.recv(100)
        if not request:
            return connection.close()
        if request == b"slow": os.read(3, 1)
        if request == b"busy":
            time.sleep(0.03)
            connection.sendall(b"o")
            while True: pass
        connection.sendall(b"k" * 8_000_000 if request == b"much" else b"ok")
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
"""
POLLING = """
import os, select, socket, time
listener = socket.socket(fileno=0)
poll = select.epoll()
poll.register(0, select.EPOLLIN)
connections = {}
while True:
    for fd, _ in poll.poll():
        if fd == 0:
            connection, _ = listener.accept()
            connections[connection.fileno()] = connection
            poll.register(connection.fileno(), select.EPOLLIN)
            continue
        request = connections[fd].recv(100)
        if not request:
            poll.unregister(fd)
            connections.pop(fd).close()
            continue
        if request == b"slow": os.read(3, 1)
        if request == b"much":
            time.sleep(0.03)
            connections[fd].setblocking(False)
            connections[fd].send(b"k" * 8_000_000)  # and the rest when the client has read this
        else:
            connections[fd].sendall(b"ok")
"""

FAMILIES = ["ipv4", "ipv6", "both", "unix"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture(params=FAMILIES)
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    with open_on(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def tcp() -> Iterator[Listener]:
    with open_tcp("127.0.0.1", 0, backlog=64) as opened:
        yield opened


def open_on(family: str, directory: Path) -> Listener:
    if family == "unix":
        return open_unix(str(directory / "s"), backlog=64)
    return open_tcp({"ipv4": "127.0.0.1", "ipv6": "::1", "both": "*"}[family], 0, backlog=64)


class Worker:
    """A process on a listener, and a watch over it."""

    def __init__(self, stack: ExitStack, listener: Listener, program: str) -> None:
        self.listener = listener
        self.watch = Watch([listener.sock.getsockname()], quiet=EXPECTED)
        wake, self._wake = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", f"import os; os.dup2({wake}, 3)\n{program}"],
            stdin=listener.sock,
            pass_fds=[wake],
        )
        os.close(wake)
        self.pid = self.process.pid
        self._stack = stack
        stack.callback(os.close, self._wake)
        stack.callback(self.process.wait)
        stack.callback(self.process.kill)

    def connect(self) -> socket.socket:
        """A connection that this worker has accepted."""
        client = self._stack.enter_context(socket.socket(self.listener.sock.family))
        name = self.listener.sock.getsockname()
        client.settimeout(10)
        client.connect(name if not isinstance(name, tuple) or name[0] != "::" else ("::ffff:127.0.0.1", name[1]))
        before = len(self.held())
        eventually(lambda: len(self.held()) > before or self.held())
        return client

    def held(self, later: float = 0.0) -> list[Connection]:
        """later: seconds from now at which to look, as far as the watch knows."""
        found = self.watch.look([self.pid], time.monotonic() + later)
        assert found is not None
        held = found[self.pid]
        assert held is not None
        return held

    def idle(self, later: float = 0.0) -> list[bool | None]:
        return [connection.idle for connection in self.held(later)]

    def wake(self) -> None:
        os.write(self._wake, b"x")


def ask(client: socket.socket, request: bytes = b"fast") -> bytes:
    client.sendall(request)
    return client.recv(2)


@pytest.mark.parametrize("program", [BLOCKING, POLLING], ids=["blocking", "polling"])
def test_a_worker_at_rest_holds_nothing(listener: Listener, program: str, stack: ExitStack) -> None:
    worker = Worker(stack, listener, program)
    client = worker.connect()
    assert len(worker.held()) == 1
    client.close()
    assert eventually(lambda: not worker.held())


def test_a_connection_just_accepted_is_in_use(listener: Listener, stack: ExitStack) -> None:
    worker = Worker(stack, listener, BLOCKING)
    worker.connect()
    eventually(lambda: worker.idle() == [False])  # on a Unix socket only once it reads there
    if listener.sock.family != socket.AF_UNIX:
        assert eventually(lambda: worker.idle() == [True], within=5), "its request does not come any more"
    else:
        assert eventually(lambda: worker.idle(later=EXPECTED) == [True])


def test_what_a_held_process_seems_to_wait_for_must_have_been_seen_before(listener: Listener, stack: ExitStack) -> None:
    """It may have been stopped at the end of the call that read the request."""
    worker = Worker(stack, listener, BLOCKING)
    client = worker.connect()
    assert ask(client) == b"ok"
    fresh = Watch([listener.sock.getsockname()], quiet=EXPECTED)

    def idle(*, held: bool) -> list[bool | None]:
        found = fresh.look([worker.pid], time.monotonic() + EXPECTED, held=held)
        return [connection.idle for connection in (found or {})[worker.pid] or ()]

    assert idle(held=False)  # seen from now on
    assert eventually(lambda: idle(held=False) == [True])
    assert idle(held=True) == [True]
    client.sendall(b"slow")
    eventually(lambda: waits_in_its_request(worker))
    assert idle(held=True)[0] is not True
    worker.wake()
    assert client.recv(2) == b"ok"
    eventually(lambda: worker.idle(later=EXPECTED) == [True])


def test_a_request_in_a_blocking_worker_is_in_use_until_answered(listener: Listener, stack: ExitStack) -> None:
    worker = Worker(stack, listener, BLOCKING)
    client = worker.connect()
    assert ask(client) == b"ok"
    assert eventually(lambda: worker.idle(later=EXPECTED) == [True])
    client.sendall(b"slow")
    eventually(lambda: waits_in_its_request(worker))
    assert worker.idle(later=EXPECTED)[0] is not True
    worker.wake()
    assert client.recv(2) == b"ok"
    assert eventually(lambda: worker.idle(later=EXPECTED) == [True])


def test_back_to_back_requests_are_never_called_idle(tcp: Listener, stack: ExitStack) -> None:
    """The next request comes in the tick the last answer went out: the times say nothing, and the rest must."""
    for program in (BLOCKING, POLLING):
        worker = Worker(stack, tcp, program)
        client = worker.connect()
        for requests in (1, 2, 3, 10):
            for _ in range(requests):
                assert ask(client) == b"ok"
            client.sendall(b"slow")
            eventually(lambda worker=worker: waits_in_its_request(worker))
            deadline = time.monotonic() + 0.15  # beyond the delayed acknowledgements, which come after 40 ms
            while time.monotonic() < deadline:
                assert worker.idle(later=EXPECTED)[0] is not True
            worker.wake()
            assert client.recv(2) == b"ok"
        client.close()
        worker.process.kill()
        worker.process.wait()


def test_a_polling_worker_on_tcp_is_idle_after_a_few_requests(tcp: Listener, stack: ExitStack) -> None:
    worker = Worker(stack, tcp, POLLING)
    client = worker.connect()
    for _ in range(10):
        assert ask(client) == b"ok"
    assert eventually(lambda: worker.idle() == [True])
    assert worker.held()[0].silent is not None


def test_a_polling_worker_on_a_unix_socket_is_unknown(tmp_path: Path, stack: ExitStack) -> None:
    with open_on("unix", tmp_path) as listener:
        worker = Worker(stack, listener, POLLING)
        client = worker.connect()
        assert ask(client) == b"ok"
        assert worker.idle(later=EXPECTED) == [None]
        assert worker.held()[0].silent is None


def test_an_unread_request_is_in_use(listener: Listener, stack: ExitStack) -> None:
    worker = Worker(stack, listener, BLOCKING)
    client = worker.connect()
    ask(client)
    eventually(lambda: worker.idle(later=EXPECTED) == [True])
    worker.process.send_signal(signal.SIGSTOP)
    eventually(lambda: procfs.state(worker.pid) == "T")
    # A thread is called stopped a moment before it has left the processor, and only then can its call be read.
    eventually(lambda: worker.idle(later=EXPECTED) == [True])
    client.sendall(b"fast")
    assert worker.idle(later=EXPECTED) == [False]
    worker.process.send_signal(signal.SIGCONT)
    assert client.recv(2) == b"ok"


def test_an_answer_the_client_is_slow_to_take_is_in_use(listener: Listener, stack: ExitStack) -> None:
    worker = Worker(stack, listener, BLOCKING)
    client = worker.connect()
    client.sendall(b"much")
    client.recv(1)
    eventually(lambda: any(number in (1, 44, 64, 206) for number, _ in procfs.system_calls(worker.pid) or ()))
    assert worker.idle(later=EXPECTED)[0] is not True
    left = 8_000_000 - 1
    while left:
        left -= len(client.recv(1 << 20))
    assert eventually(lambda: worker.idle(later=EXPECTED) == [True])


def test_an_answer_that_waits_for_a_slow_client_is_in_use(tcp: Listener, stack: ExitStack) -> None:
    worker = Worker(stack, tcp, POLLING)
    client = worker.connect()
    client.sendall(b"much")
    client.recv(1)
    assert worker.idle() == [False]


def test_a_worker_that_computes_after_half_an_answer_is_in_use(listener: Listener, stack: ExitStack) -> None:
    worker = Worker(stack, listener, BLOCKING)
    client = worker.connect()
    client.sendall(b"busy")
    assert client.recv(1) == b"o"
    unknown = None if listener.sock.family == socket.AF_UNIX else False
    assert worker.idle(later=EXPECTED) == [unknown]
    worker.process.send_signal(signal.SIGSTOP)
    eventually(lambda: procfs.state(worker.pid) == "T")
    assert worker.idle(later=EXPECTED) == [unknown], "a stopped thread shows that it was in no system call"


def test_a_client_that_has_gone_leaves_an_idle_connection(tcp: Listener, stack: ExitStack) -> None:
    worker = Worker(stack, tcp, BLOCKING)
    client = worker.connect()
    ask(client)
    eventually(lambda: worker.idle() == [True])
    worker.process.send_signal(signal.SIGSTOP)
    eventually(lambda: procfs.state(worker.pid) == "T")
    client.close()
    assert worker.idle() == [True]


def test_each_process_answers_for_its_own(listener: Listener, stack: ExitStack) -> None:
    one = Worker(stack, listener, BLOCKING)
    client = one.connect()
    two = Worker(stack, listener, BLOCKING)
    ask(client)
    found = one.watch.look([one.pid, two.pid, 2**22 - 1], time.monotonic())
    assert found is not None
    assert [None if held is None else len(held) for held in found.values()] == [1, 0, None]


def test_a_file_and_a_database_connection_do_not_count(tcp: Listener, stack: ExitStack) -> None:
    database = stack.enter_context(open_tcp("127.0.0.1", 0, backlog=8))
    client = stack.enter_context(socket.create_connection(database.sock.getsockname()))
    connection = stack.enter_context(database.sock.accept()[0])
    assert Watch([tcp.sock.getsockname()]).look([os.getpid()], 0.0) == {os.getpid(): []}
    found = Watch([database.sock.getsockname()]).look([os.getpid()], 0.0)
    assert found is not None
    held = found[os.getpid()]
    assert held is not None
    assert [one.inode for one in held] == [os.fstat(connection.fileno()).st_ino]
    assert client


def test_all_is_unknown_where_netlink_is_barred(tcp: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    # What systemd's RestrictAddressFamilies does to a socket(2) call.
    class Socket(socket.socket):
        def __init__(self, family: int = -1, *rest: int, **more: int) -> None:
            if family == socket.AF_NETLINK:
                raise OSError(97, os.strerror(97))
            super().__init__(family, *rest, **more)

    monkeypatch.setattr(socket, "socket", Socket)
    assert Watch([tcp.sock.getsockname()]).look([os.getpid()], 0.0) is None
    assert handshakes([tcp.sock.getsockname()]) is None


# --- handshakes


@pytest.fixture(params=[pytest.param(family, marks=needs_filter) for family in ("ipv4", "ipv6", "both")])
def half_open(
    request: pytest.FixtureRequest, tmp_path: Path, stack: ExitStack
) -> tuple[Listener, Callable[[], socket.socket]]:
    opened = stack.enter_context(open_on(request.param, tmp_path))
    name = opened.sock.getsockname()
    host = "127.0.0.1" if name[0] == "::" else name[0]
    return opened, lambda: shy_client(stack, (host, name[1]))


def test_a_handshake_under_way_is_seen_until_it_is_done(
    half_open: tuple[Listener, Callable[[], socket.socket]],
) -> None:
    listener, shy = half_open
    names = [listener.sock.getsockname()]
    assert handshakes(names) == set()
    client = shy()
    first = handshakes(names)
    assert first is not None
    assert [handshake.port for handshake in first] == [client.getsockname()[1]]
    shy()
    both = handshakes(names)
    assert both is not None
    assert first < both
    assert len(both) == 2, "those that began later can be told from those that were waited for"
    let_hear(client)
    assert eventually(lambda: not first & (handshakes(names) or set())), "the SYN-ACK comes again within 1 s"


@needs_filter
def test_handshakes_of_another_address_are_not_waited_for(tcp: Listener, stack: ExitStack) -> None:
    port = tcp.sock.getsockname()[1]
    other = stack.enter_context(open_tcp("127.0.0.2", port, backlog=8))
    shy_client(stack, ("127.0.0.2", port))
    assert handshakes([tcp.sock.getsockname()]) == set()
    assert len(handshakes([tcp.sock.getsockname(), other.sock.getsockname()]) or ()) == 1


def test_unix_sockets_have_no_handshakes(tmp_path: Path) -> None:
    with open_on("unix", tmp_path) as listener:
        assert handshakes([listener.sock.getsockname()]) == set()


def waits_in_its_request(worker: Worker) -> bool:
    """A thread reads the pipe that is its fd 3."""
    return (0, 3) in (procfs.system_calls(worker.pid) or ()) or (63, 3) in (procfs.system_calls(worker.pid) or ())
