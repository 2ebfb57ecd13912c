"""A gate before accept(): who is behind it takes no new connection, finishes what it has, and hears of its end."""

import ctypes
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
from fcgimgr.linux.gate import AT_ONCE, Gates
from fcgimgr.linux.listeners import Listener, open_tcp
from fcgimgr.linux.parting import hang_up
from fcgimgr.linux.pidfd import PidFd
from fcgimgr.linux.processes import Death, reap
from fcgimgr.linux.transfers import transfer
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
BUSY = """
import socket
listener = socket.socket(fileno=0)
while True:
    try:
        listener.accept()
    except BlockingIOError:
        continue
"""
# Its first thread ends, and another serves on.
HEADLESS = (
    WORKER.replace("while True:\n    connection, _", "def serve_all():\n  while True:\n    connection, _")
    + """
import ctypes
threading.Thread(target=serve_all).start()
ctypes.CDLL(None).pthread_exit(None)
"""
)
# A thread that is not the first executes another program, when a connection comes.
EXECUTING = """
import os, socket, sys, threading
listener = socket.socket(fileno=0)
def execute():
    listener.accept()
    os.execv(sys.executable, [sys.executable, "-S", "-E", "-c", sys.argv[1]])
thread = threading.Thread(target=execute)
thread.start()
thread.join()
"""
# Makes threads all the time.
MAKING = """
import threading
print("makes", flush=True)
while True:
    threading.Thread(target=int).start()
"""


class Scene:
    """A listener with one worker on it, and the gates."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.listener: Listener = stack.enter_context(open_tcp("127.0.0.1", 0, backlog=16))
        self.gates = Gates()
        self.deaths: list[Death] = []

    def start(self, program: str, *arguments: str, blocking: bool = True) -> int:
        self.listener.set_blocking(blocking)
        words: list[str] = [sys.executable, "-S", "-E", "-c", program, *arguments]
        worker = self._stack.enter_context(
            subprocess.Popen(words, stdin=self.listener.fileno(), stdout=subprocess.PIPE, bufsize=0)
        )
        assert worker.stdout
        os.set_blocking(worker.stdout.fileno(), False)
        self._stdout = worker.stdout
        self._stack.callback(self._end, worker)
        return worker.pid

    def _end(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill it, and take in its threads that were traced: before that nobody hears of its end.

        Not by Popen.kill, which asks waitpid(2) first, and takes the stop of a traced process for its end.
        """
        if worker.pid not in {death.pid for death in self.deaths}:
            os.kill(worker.pid, signal.SIGKILL)
            self.until(lambda: worker.pid in {death.pid for death in self.deaths})

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
        self.gates.go_on()
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


def status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


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


def test_one_that_is_always_busy_keeps_nobody_from_being_heard(scene: Scene) -> None:
    pids = [scene.start(BUSY, blocking=False) for _ in range(3)]
    dying = scene.start(BUSY, blocking=False)
    for pid in (*pids, dying):
        eventually(lambda pid=pid: procfs.socket_inodes(pid))  # type: ignore[misc]
        scene.close(pid)
    os.kill(dying, signal.SIGKILL)
    for _ in range(20):
        stops = 0

        def stopped(thread: int) -> None:
            nonlocal stops
            stops += 1
            assert stops <= AT_ONCE + len(pids) + 1, "nobody else is heard"
            scene.gates.stopped(thread)

        for death in reap(stopped):
            assert death.pid == dying
            assert not scene.gates.ended(dying)
            scene.deaths.append(death)
        scene.gates.go_on()
    scene.until(lambda: scene.deaths)


def test_the_gate_closes_on_one_that_makes_threads_all_the_time(scene: Scene) -> None:
    pid = scene.start(MAKING)
    eventually(lambda: scene.said() == b"makes\n")
    for _ in range(30):
        scene.gates.close(pid, set(), blocking=True)
        scene.hear()
        scene.gates.open(pid)
        scene.until(lambda: scene.gates.of(pid) is None and "TracerPid:\t0\n" in status(pid))


def test_one_whose_first_thread_has_ended_is_held_like_others(scene: Scene) -> None:
    pid = scene.start(HEADLESS)
    eventually(lambda: procfs.state(pid) == "Z")
    scene.close(pid)
    gate = scene.gates.of(pid)
    assert gate is not None
    assert gate.hold(patience=5)
    gate.resume()
    os.kill(pid, signal.SIGKILL)
    scene.until(lambda: scene.deaths)
    assert scene.gates.of(pid) is None


def test_the_program_that_a_thread_executes_is_behind_the_gate_too(scene: Scene) -> None:
    pid = scene.start(EXECUTING, WORKER)
    eventually(lambda: scene.is_in_accept(pid))
    gate = scene.gates.close(pid, set(), blocking=True)
    scene.until(lambda: scene.is_in_accept(pid))
    scene.connect()
    scene.until(lambda: procfs.threads(pid) == 1 and scene.is_in_accept(pid))
    assert gate.hold(patience=5)
    gate.resume()
    scene.gates.open(pid)
    scene.until(lambda: "TracerPid:\t0\n" in status(pid))
    assert gate.is_open


def test_a_gate_that_is_being_opened_can_be_closed_again(scene: Scene) -> None:
    pid = scene.start(WORKER)
    eventually(lambda: scene.is_in_accept(pid))
    scene.close(pid)
    scene.until(lambda: scene.waits_before_accept(pid))
    scene.gates.open(pid)
    eventually(lambda: scene.is_in_accept(pid))
    gate = scene.gates.close(pid, {scene.listener.inode}, blocking=True)
    scene.gates.open(pid)
    assert scene.gates.of(pid) is None
    scene.close(pid)
    assert scene.gates.of(pid) is not None
    scene.until(lambda: scene.waits_before_accept(pid))
    assert gate.hold(patience=5) or gate.is_open
    scene.gates.open(pid)
    client = scene.connect()
    client.sendall(b"go")
    assert scene.answer(client) == b"1"


def test_one_that_goes_back_to_accept_hears_of_its_end_when_it_comes(scene: Scene) -> None:
    pid = scene.start(GRACEFUL)
    eventually(lambda: scene.is_in_accept(pid))
    scene.close(pid)
    scene.until(lambda: scene.waits_before_accept(pid))
    gate = scene.gates.of(pid)
    assert gate is not None
    gate.resume(ending=True)  # the signal is not there yet: it is sent away, and comes again
    scene.until(lambda: scene.waits_before_accept(pid))
    os.kill(pid, signal.SIGTERM)

    def has_ended() -> bool:
        gate.resume(ending=True)
        return bool(scene.deaths)

    scene.until(has_ended)
    assert [(death.pid, death.code) for death in scene.deaths] == [(pid, 7)]


def test_who_is_let_in_serves_those_that_wait(scene: Scene) -> None:
    pid = scene.start(WORKER)
    eventually(lambda: scene.is_in_accept(pid))
    scene.close(pid)
    scene.until(lambda: scene.waits_before_accept(pid))
    client = scene.connect()
    client.sendall(b"go")
    gate = scene.gates.of(pid)
    assert gate is not None
    gate.let_in()
    assert scene.answer(client) == b"1"
    assert scene.gates.of(pid) is gate


def test_a_signal_is_not_lost_when_the_gate_opens(scene: Scene) -> None:
    pid = scene.start(GRACEFUL)
    eventually(lambda: scene.is_in_accept(pid))
    gates = Gates()
    gates.close(pid, {scene.listener.inode}, blocking=True)
    scene.until(lambda: scene.is_in_accept(pid))  # let go, as nobody's
    gates = Gates()
    gates.close(pid, set(), blocking=True)
    os.kill(pid, signal.SIGTERM)
    scene.until(lambda: scene.deaths)
    assert [(death.pid, death.code) for death in scene.deaths] == [(pid, 7)]


def test_what_a_thread_has_written_over_is_not_looked_for_where_it_cannot_be() -> None:
    beyond = (ctypes.c_uint64 * 2)(2**64 - 4096, 16)
    moved = transfer(os.getpid(), ptrace.Call(20, (1, ctypes.addressof(beyond), 1, 0)))
    assert moved is not None
    assert (moved.read(0, 16), moved.read_all()) == (b"", None)


def test_what_is_no_socket_is_not_hung_up_on_and_not_kept() -> None:
    with open(os.devnull, "rb") as null, PidFd(os.getpid()) as process:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(LinuxError, match="is no socket"):
            hang_up(process, null.fileno(), [])
        assert os.listdir("/proc/self/fd") == before


def test_one_can_be_opened_at_once(scene: Scene) -> None:
    pids = [scene.start(THREADED) for _ in range(3)]
    for pid in pids:
        eventually(lambda pid=pid: scene.is_in_accept(pid))  # type: ignore[misc]
        scene.close(pid)
    for pid in pids:
        scene.gates.open_at_once(pid)
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
                gates.go_on()
        finally:
            os._exit(1)
    eventually(lambda: scene.waits_before_accept(pid))
    os.kill(tracer, signal.SIGKILL)
    os.waitpid(tracer, 0)
    client = scene.connect()
    client.sendall(b"go")
    assert scene.answer(client) == b"1"
