"""Holding a process: really still, really going on, and the retirement it is for, under load."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fcgimgr.linux import procfs
from fcgimgr.linux.draining import Watch
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.holding import hold, is_held, let_go
from fcgimgr.linux.listeners import open_tcp
from fcgimgr.linux.pidfd import PidFd
from tests.waiting import eventually

THREADS = """
import threading
def spin():
    while True: pass
for _ in range(3): threading.Thread(target=spin, daemon=True).start()
print(flush=True)
threading.Event().wait()
"""
LEADERLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
# Dies at once on TERM, and knows nothing of draining.
WORKER = """
import os, socket, time
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.recv(10)
        time.sleep(0.005)
        connection.sendall(b"%d" % os.getpid())
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def run(stack: ExitStack, program: str) -> PidFd:
    """Start it and wait until it has printed a line."""
    process = stack.enter_context(subprocess.Popen([sys.executable, "-S", "-E", "-c", program], stdout=subprocess.PIPE))
    stack.callback(process.kill)
    assert process.stdout
    process.stdout.readline()
    return stack.enter_context(PidFd(process.pid))


def test_every_thread_stands_still_and_goes_on(stack: ExitStack) -> None:
    process = run(stack, THREADS)
    pid = process.pid
    for _ in range(5):
        assert hold(process, patience=5)
        assert is_held(pid)
        states = procfs.thread_states(pid)
        assert states is not None
        assert states == ["T"] * 4
        assert let_go(process)
        assert eventually(lambda: "T" not in (procfs.thread_states(pid) or "T"))
        assert not is_held(pid)


def test_a_process_whose_first_thread_has_ended_is_held_too(stack: ExitStack) -> None:
    process = run(stack, LEADERLESS)
    pid = process.pid
    eventually(lambda: procfs.state(pid) == "Z")
    assert not is_held(pid)
    assert hold(process, patience=5)
    assert let_go(process)


def test_out_of_patience_it_goes_on(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    process = run(stack, THREADS)
    pid = process.pid
    # A thread deep in a disk's driver cannot be had in a test; what its /proc says can.
    monkeypatch.setattr(procfs, "thread_states", lambda _: ["T", "D"])
    assert not hold(process, patience=0.005)
    monkeypatch.undo()
    assert eventually(lambda: "T" not in (procfs.thread_states(pid) or "T"))


def test_the_dead_are_not_held() -> None:
    child = subprocess.Popen(["true"])
    with PidFd(child.pid) as process:
        eventually(lambda: procfs.state(child.pid) == "Z")
        assert not hold(process)
        child.wait()
        assert not hold(process)
        assert not let_go(process)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may signal anybody")
def test_a_stranger_cannot_be_held() -> None:
    with PidFd(2) as process, pytest.raises(LinuxError, match="not permitted"):
        hold(process)


def test_a_signal_sent_while_held_is_met_first(stack: ExitStack) -> None:
    process = run(stack, THREADS)
    pid = process.pid
    assert hold(process, patience=5)
    os.kill(pid, signal.SIGTERM)
    assert is_held(pid)
    let_go(process)
    assert eventually(lambda: procfs.state(pid) == "Z")


def test_retirement_under_load_loses_nothing(stack: ExitStack) -> None:
    """Eight times one of four workers that die on TERM is ended at a moment when it holds no connection."""
    listener = stack.enter_context(open_tcp("127.0.0.1", 0, backlog=4096))
    name = listener.sock.getsockname()
    watch = Watch([name])
    done = threading.Event()
    failures: list[object] = []
    answers: list[int] = []

    def ask() -> None:
        while not done.is_set():
            try:
                with socket.create_connection(name, timeout=10) as client:
                    client.sendall(b"ask")
                    answers.append(int(client.recv(16)))
            except (OSError, ValueError) as error:
                failures.append(error)

    def start() -> subprocess.Popen[bytes]:
        worker = subprocess.Popen([sys.executable, "-S", "-E", "-c", WORKER], stdin=listener.sock)
        stack.callback(worker.wait)
        stack.callback(worker.kill)
        return worker

    def retire(worker: subprocess.Popen[bytes]) -> bool:
        process = stack.enter_context(PidFd(worker.pid))
        if not hold(process, patience=1):
            return False
        found = watch.look([worker.pid], time.monotonic())
        assert found is not None
        if not found[worker.pid]:
            worker.terminate()
        let_go(process)
        return not found[worker.pid]

    workers = [start() for _ in range(4)]
    clients = [threading.Thread(target=ask) for _ in range(3)]
    for thread in clients:
        thread.start()
    try:
        for _ in range(8):
            workers.append(start())
            eventually(lambda: workers[-1].pid in answers or failures)
            eventually(lambda: retire(workers[0]), every=0.003)
            assert workers.pop(0).wait() == -signal.SIGTERM
    finally:
        done.set()
        for thread in clients:
            thread.join()
    assert failures == []
