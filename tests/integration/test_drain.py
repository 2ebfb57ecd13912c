"""Out of the load balancer's sight first: while a manager drains it serves, and only `probe ready` says no."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.integration.commands import Manager, configuration, running
from tests.integration.ports import connect, free_address
from tests.integration.scenes import ANSWER, ask
from tests.waiting import eventually

PYTHON = f"{sys.executable} -S -E"
TRANSPORTS = ["tcp", "unix"]

# One connection at a time, kept until the client closes it. "hold" is answered when the test writes into let-go.
KEEPING = """\
import socket
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    with connection:
        while asked := connection.recv(100):
            if asked == b"hold":
                with open("let-go") as line:
                    line.readline()
            connection.sendall(b"done")
"""


def answering(directory: Path, address: str, *, manager: str = "", numprocs: int = 2) -> Manager:
    """A manager whose pool answers every connection at once."""
    (directory / "answer.py").write_text(ANSWER)
    return running(directory, f"{manager}\n{table(address, 'answer.py', numprocs)}")


@pytest.fixture(params=TRANSPORTS)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return free_address(request.param, tmp_path)


@pytest.fixture
def keeping(address: str, tmp_path: Path) -> Iterator[Manager]:
    """A manager whose pool is one process with KEEPING."""
    (tmp_path / "keeping.py").write_text(KEEPING)
    os.mkfifo(tmp_path / "let-go")
    with running(tmp_path, table(address, "keeping.py", 1)) as manager:
        yield manager


def table(address: str, script: str, numprocs: int) -> str:
    return f"""\
[pool.app]
socket = "{address}"
command = "{PYTHON} {script}"
directory = "%(here)s"
numprocs = {numprocs}
startsecs = 0
"""


def state(manager: Manager) -> str:
    return manager.status().manager.state


@contextmanager
def light_load(address: str) -> Iterator[list[float]]:
    """One client that asks again and again; when each answer came (seconds, monotonic). It ends when it is refused."""
    answered: list[float] = []
    stop = threading.Event()

    def ask_on() -> None:
        while not stop.wait(0.01):
            try:
                ask(address)
            except (OSError, ValueError):
                return
            answered.append(time.monotonic())

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        yield answered
    finally:
        stop.set()
        thread.join()


def let_go(directory: Path) -> None:
    (directory / "let-go").write_text("now\n")


# -- drain_delay ------------------------------------------------------------------------------------------------------


def test_after_term_it_serves_on_for_drain_delay_and_is_not_ready(address: str, tmp_path: Path) -> None:
    with answering(tmp_path, address, manager="drain_delay = 2") as manager:
        manager("probe", "ready").succeeds()
        with light_load(address) as answered:
            eventually(lambda: len(answered) > 5)
            began = time.monotonic()
            os.kill(manager.pid, signal.SIGTERM)
            eventually(lambda: state(manager) == "DRAINING")
            unready = manager("probe", "ready")
            assert (unready.code, unready.out) == (1, "the manager is DRAINING: SIGTERM\n")
            manager("probe", "live").succeeds()
            assert "is stopping" in manager("stop", "app").fails(1)
            assert "cannot be taken back" in manager("drain", "--undo").fails(1)
            assert manager.wait() == 0
            ended = time.monotonic()
        assert 2 <= ended - began < 6
        served = [moment for moment in answered if moment > began]
        assert served[-1] - began > 1.8, "new requests are served to the end of the delay"
        assert max(later - earlier for earlier, later in pairwise(served)) < 1


def test_a_second_term_cuts_the_delay_short(tmp_path: Path) -> None:
    with answering(tmp_path, free_address("unix", tmp_path), manager="drain_delay = 1000") as manager:
        os.kill(manager.pid, signal.SIGTERM)
        eventually(lambda: state(manager) == "DRAINING")
        # On leaving, the manager is sent another TERM and must end with 0 and leave nothing behind.
    assert "drain_delay is cut short" in manager.output()
    assert "killing what is left" not in manager.output()


@pytest.mark.parametrize("command", [["shutdown"], ["shutdown", "--now"]])
def test_the_command_shutdown_does_not_delay(command: list[str], tmp_path: Path) -> None:
    with answering(tmp_path, free_address("unix", tmp_path), manager="drain_delay = 1000") as manager:
        os.kill(manager.pid, signal.SIGTERM)
        eventually(lambda: state(manager) == "DRAINING")
        assert manager(*command).succeeds() == "shut down\n"


def test_who_is_told_to_stop_before_it_is_up_stops_at_once(tmp_path: Path) -> None:
    text = 'drain_delay = 1000\n[program.late]\ncommand = "sleep 1000"\nstartsecs = 1000\n'
    with running(tmp_path, text, ready=False) as manager:
        assert state(manager) == "STARTING"
    assert "drain_delay" not in manager.output()


def test_drain_delay_can_be_changed_while_it_runs(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    with answering(tmp_path, address, manager="drain_delay = 1000") as manager:
        configuration(tmp_path, table(address, "answer.py", 2))
        assert "restart" not in manager("update").succeeds()


# -- the command ------------------------------------------------------------------------------------------------------


def test_drain_makes_it_unready_and_is_taken_back(address: str, tmp_path: Path) -> None:
    with answering(tmp_path, address) as manager:
        assert manager("drain", "--no-wait").succeeds() == "draining\n"
        assert manager("drain").succeeds() == "draining; no connection is in use\n"
        assert manager("probe", "ready").code == 1
        assert state(manager) == "DRAINING"
        assert ask(address)["pid"] in manager.pids("app")
        manager("restart", "app:app_00").succeeds()  # everything else goes on
        assert manager("drain", "--undo").succeeds() == "not draining\n"
        assert manager("drain", "--undo").succeeds() == "not draining\n"
        manager("probe", "ready").succeeds()
        assert state(manager) == "RUNNING"


def test_drain_waits_for_who_is_being_served_and_who_waits_in_the_queue(
    address: str, keeping: Manager, tmp_path: Path
) -> None:
    with connect(address) as served, connect(address) as queued:
        served.sendall(b"hold")
        queued.sendall(b"hello")
        eventually(lambda: keeping.pool("app").sockets and app_queue(keeping) == 1)
        late = keeping("drain", "--timeout", "0.3")
        assert late.code == 1
        assert late.out == "draining; after 0.3 s still app: connections: 1 in use, 1 in the queue\n"
        with waiting(keeping) as drain:
            let_go(tmp_path)
            assert served.recv(10) == b"done"
            served.close()
            assert queued.recv(10) == b"done"
            assert drain.is_alive(), "the last connection is still in the process's hands"
            queued.close()
    assert keeping("drain").succeeds() == "draining; no connection is in use\n"


def test_a_kept_connection_without_a_request_does_not_hold_it_up(address: str, keeping: Manager) -> None:
    with connect(address) as kept:
        kept.sendall(b"hello")
        assert kept.recv(10) == b"done"
        assert keeping("drain").succeeds() == "draining; no connection is in use\n"


def test_who_waits_is_told_when_the_drain_is_taken_back(address: str, keeping: Manager, tmp_path: Path) -> None:
    with connect(address) as served:
        served.sendall(b"hold")
        with waiting(keeping) as drain:
            eventually(lambda: state(keeping) == "DRAINING")
            keeping("drain", "--undo").succeeds()
            drain.join()
            assert drain.done.code == 1
            assert "taken back" in drain.done.err
        let_go(tmp_path)


def test_a_shutdown_ends_the_wait_well(address: str, keeping: Manager, tmp_path: Path) -> None:
    with connect(address) as served:
        served.sendall(b"hold")
        with waiting(keeping) as drain:
            eventually(lambda: state(keeping) == "DRAINING")
            os.kill(keeping.pid, signal.SIGTERM)
            eventually(lambda: state(keeping) == "STOPPING")
            let_go(tmp_path)
            assert served.recv(10) == b"done"
            served.shutdown(socket.SHUT_WR)
            drain.join()
            assert drain.done.succeeds() == "draining; no connection is in use\n"


def test_drain_waits_for_drain_delay_and_term_does_not_wait_again(tmp_path: Path) -> None:
    with answering(tmp_path, free_address("unix", tmp_path), manager="drain_delay = 1.5") as manager:
        began = time.monotonic()
        assert "drain_delay" in manager("drain", "--timeout", "0.1").out
        manager("drain").succeeds()
        assert time.monotonic() - began > 1.4
    assert "the shutdown begins in" not in manager.output()


class Waiting(threading.Thread):
    """`fcgimgr drain`, under way."""

    def __init__(self, manager: Manager) -> None:
        super().__init__()
        self._manager = manager

    def run(self) -> None:
        self.done = self._manager("drain")


@contextmanager
def waiting(manager: Manager) -> Iterator[Waiting]:
    drain = Waiting(manager)
    drain.start()
    try:
        yield drain
    finally:
        drain.join(30)
    assert not drain.is_alive()


def app_queue(manager: Manager) -> int | None:
    (app,) = manager.status(detail=True).pools
    return app.sockets[0].queued
