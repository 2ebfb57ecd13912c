"""A gate before accept(): who is behind it takes no new connection, finishes what it has, and hears of its end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fcgimgr.linux import procfs, ptrace
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.gate import Gates
from fcgimgr.linux.listeners import Listener, open_tcp
from fcgimgr.linux.processes import Death, reap
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(not ptrace.AVAILABLE, reason="system calls can be seen on x86-64 only")

# Answers each connection, when a second word has come, with the number of its threads.
WORKER = """
import os, socket, threading, sys
listener = socket.socket(fileno=0)
def serve(connection):
    with connection:
        while connection.recv(10) != b"go": pass
        connection.sendall(b"%d" % threading.active_count())
while True:
    connection, _ = listener.accept()
    serve(connection)
"""
THREADED = WORKER.replace("    serve(connection)\n", "    threading.Thread(target=serve, args=(connection,)).start()\n")
POLLING = """
import select, socket
listener = socket.socket(fileno=0)
refused = 0
while True:
    select.select([listener], [], [])
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        if not refused: print("refused", flush=True)
        refused = 1
        continue
    with connection:
        connection.recv(10)
        connection.sendall(b"%d" % refused)
"""
GRACEFUL = """
import signal, socket
listener = socket.socket(fileno=0)
class Told(BaseException): pass
def told(*_): raise Told
signal.signal(signal.SIGTERM, told)
try:
    while True:
        listener.accept()
except Told:
    raise SystemExit(7)
"""


class Scene:
    """A listener with one worker on it, and the gates."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.listener: Listener = stack.enter_context(open_tcp("127.0.0.1", 0, backlog=16))
        self.gates = Gates()
        self.deaths: list[Death] = []

    def start(self, program: str, *, blocking: bool = True) -> int:
        self.listener.set_blocking(blocking)
        words = [sys.executable, "-S", "-E", "-c", program]
        worker = self._stack.enter_context(
            subprocess.Popen(words, stdin=self.listener.sock, stdout=subprocess.PIPE, bufsize=0)
        )
        assert worker.stdout
        os.set_blocking(worker.stdout.fileno(), False)
        self._stdout = worker.stdout
        self._stack.callback(worker.kill)
        return worker.pid

    def said(self) -> bytes | None:
        """What the last one started has printed since this was asked last."""
        return self._stdout.read()

    def close(self, pid: int) -> None:
        """Close the gate, and let nobody through who was on the way."""
        gate = self.gates.close(pid, {self.listener.inode}, blocking=os.get_blocking(self.listener.fileno()))
        assert gate.hold(patience=5)
        gate.resume()

    def connect(self) -> socket.socket:
        client = self._stack.enter_context(socket.create_connection(self.listener.sock.getsockname(), timeout=10))
        client.setblocking(False)
        return client

    def hear(self) -> bool:
        """Take in what the kernel has to tell."""
        for death in reap(self.gates.stopped):
            if not self.gates.ended(death.pid):
                self.deaths.append(death)
        return True

    def until(self, true: Callable[[], object]) -> None:
        eventually(lambda: self.hear() and true(), every=0.0005)

    def answer(self, client: socket.socket) -> bytes:
        heard: list[bytes] = []

        def has_answered() -> bool:
            try:
                heard.append(client.recv(16))
            except BlockingIOError:
                return False
            return True

        self.until(has_answered)
        return heard[0]

    def waits_before_accept(self, pid: int) -> bool:
        """Whether its first thread is stopped by us at accept."""
        return procfs.state(pid) == "t" and {number for number, _ in procfs.system_calls(pid) or ()} <= ptrace.ACCEPTING

    def is_in_accept(self, pid: int) -> bool:
        return any(number in ptrace.ACCEPTING for number, _ in procfs.system_calls(pid) or ())


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack)


def test_what_is_in_hand_is_finished_and_nothing_new_is_taken(scene: Scene) -> None:
    pid = scene.start(WORKER)
    first = scene.connect()
    eventually(lambda: procfs.sockets(pid) and len(procfs.sockets(pid) or ()) > 1)
    second = scene.connect()
    scene.close(pid)
    first.sendall(b"go")
    second.sendall(b"go")
    assert scene.answer(first) == b"1"
    scene.until(lambda: scene.waits_before_accept(pid))
    assert len(procfs.sockets(pid) or ()) == 1
    scene.gates.open(pid)
    assert scene.answer(second) == b"1"
    scene.until(lambda: scene.gates.of(pid) is None)


def test_the_threads_it_has_and_makes_go_on_behind_a_closed_gate(scene: Scene) -> None:
    pid = scene.start(THREADED)
    first, second = scene.connect(), scene.connect()
    eventually(lambda: procfs.threads(pid) == 3)
    scene.close(pid)
    late = scene.connect()
    late.sendall(b"go")
    first.sendall(b"go")
    second.sendall(b"go")
    assert scene.answer(first)
    assert scene.answer(second)
    scene.until(lambda: scene.waits_before_accept(pid) and procfs.threads(pid) == 1)
    scene.gates.open(pid)
    assert scene.answer(late) == b"2"


def test_one_that_polls_hears_that_nobody_waits(scene: Scene) -> None:
    pid = scene.start(POLLING, blocking=False)
    eventually(lambda: {number for number, _ in procfs.system_calls(pid) or ()} & {23, 270})  # select, pselect6
    scene.close(pid)
    client = scene.connect()
    client.sendall(b"go")
    scene.until(lambda: scene.said() == b"refused\n")
    scene.gates.open(pid)
    assert scene.answer(client) == b"1"


def test_one_that_waits_there_hears_of_its_end(scene: Scene) -> None:
    pid = scene.start(GRACEFUL)
    eventually(lambda: scene.is_in_accept(pid))
    scene.close(pid)
    scene.until(lambda: scene.waits_before_accept(pid))
    gate = scene.gates.of(pid)
    assert gate is not None
    assert gate.hold(patience=5)
    os.kill(pid, signal.SIGTERM)
    gate.resume(ending=True)
    scene.until(lambda: scene.deaths)
    assert [(death.pid, death.code) for death in scene.deaths] == [(pid, 7)]
    assert scene.gates.of(pid) is None


def test_one_that_dies_of_the_signal_takes_nothing_with_it(scene: Scene) -> None:
    pid = scene.start(THREADED)
    eventually(lambda: scene.is_in_accept(pid))
    scene.close(pid)
    gate = scene.gates.of(pid)
    assert gate is not None
    assert gate.hold(patience=5)
    assert gate.hold(patience=5), "twice is as good as once"
    client = scene.connect()
    client.sendall(b"go")
    os.kill(pid, signal.SIGTERM)
    gate.resume(ending=True)
    scene.until(lambda: scene.deaths)
    assert [(death.pid, death.signal) for death in scene.deaths] == [(pid, signal.SIGTERM)]
    scene.start(WORKER)
    assert scene.answer(client) == b"1"


def test_a_process_killed_behind_its_gate_is_gone(scene: Scene) -> None:
    pid = scene.start(THREADED)
    eventually(lambda: scene.is_in_accept(pid))
    scene.close(pid)
    os.kill(pid, signal.SIGKILL)
    scene.until(lambda: scene.deaths)
    assert [(death.pid, death.signal) for death in scene.deaths] == [(pid, signal.SIGKILL)]
    scene.gates.open(pid)
    assert scene.gates.of(pid) is None


def test_all_can_be_opened_at_once(scene: Scene) -> None:
    pids = [scene.start(THREADED) for _ in range(3)]
    for pid in pids:
        eventually(lambda pid=pid: scene.is_in_accept(pid))  # type: ignore[misc]
        scene.close(pid)
    scene.gates.open_all_at_once()
    for pid in pids:
        assert scene.gates.of(pid) is None
        assert "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text()


def test_one_that_somebody_else_traces_is_left_alone(scene: Scene) -> None:
    pid = scene.start(WORKER)
    eventually(lambda: scene.is_in_accept(pid))
    with subprocess.Popen(["strace", "-qq", "-o", "/dev/null", "-p", str(pid)]) as strace:
        try:
            eventually(lambda: f"TracerPid:\t{strace.pid}\n" in Path(f"/proc/{pid}/status").read_text())
            with pytest.raises(LinuxError, match="cannot be kept from accepting: Operation not permitted"):
                scene.close(pid)
            assert scene.gates.of(pid) is None
        finally:
            strace.terminate()
    client = scene.connect()
    client.sendall(b"go")
    assert scene.answer(client) == b"1"


def test_it_serves_again_when_its_tracer_is_killed(scene: Scene) -> None:
    pid = scene.start(WORKER)
    eventually(lambda: scene.is_in_accept(pid))
    tracer = os.fork()
    if tracer == 0:
        try:
            gates = Gates()
            gates.close(pid, {scene.listener.inode}, blocking=True)
            while True:
                gates.stopped(pid)
        finally:
            os._exit(1)
    eventually(lambda: scene.waits_before_accept(pid))
    os.kill(tracer, signal.SIGKILL)
    os.waitpid(tracer, 0)
    client = scene.connect()
    client.sendall(b"go")
    assert scene.answer(client) == b"1"
