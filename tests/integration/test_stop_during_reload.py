"""A pool is stopped and started while a generation before it still finishes: the new processes get the new requests."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fcgimgr.control.client import Client
from fcgimgr.control.messages import NamesParams, Verdict
from tests.integration.ports import connect, free_address
from tests.integration.running import RunningManager
from tests.integration.scenes import are_gone, managing, scene
from tests.integration.succession import PYTHON, reload
from tests.waiting import eventually

# Answers each request with its pid; one that says "hold" when somebody writes into let-go.
HOLD = """
import os, socket, threading
listener = socket.socket(fileno=0)
def serve(connection):
    with connection:
        if connection.recv(100) == b"hold":
            open("holding", "w").close()
            with open("let-go") as line:
                line.readline()
        connection.sendall(b"%d" % os.getpid())
while True:
    threading.Thread(target=serve, args=listener.accept()[:1]).start()
"""


def asked(address: str, word: bytes = b"who") -> socket.socket:
    connection = connect(address)
    connection.settimeout(10)
    connection.sendall(word)
    return connection


def answered_by(address: str) -> int:
    with asked(address) as connection:
        return int(connection.recv(100))


def serving(manager: RunningManager) -> set[int]:
    """The pids of those that are not on their way out."""
    return {
        process.pid
        for process in manager.pool("app").processes
        if process.pid is not None and process.state == "RUNNING"
    }


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_the_new_processes_get_the_new_requests(transport: str, tmp_path: Path) -> None:
    (tmp_path / "hold.py").write_text(HOLD)
    os.mkfifo(tmp_path / "let-go")
    address = free_address(transport, tmp_path)
    keys = f'command = "{PYTHON} hold.py"\ndirectory = "%(here)s"\nnumprocs = 2\nstartsecs = 0.1\nstopwaitsecs = 60'
    with managing(scene(tmp_path, f'[pool.app]\nsocket = "{address}"\n{keys}\n')) as manager:
        first = serving(manager)
        with asked(address, b"hold") as held:
            eventually((tmp_path / "holding").exists)
            assert reload(manager, wait=False).ok
            eventually(lambda: len(second := serving(manager)) == 2 and not second & first)
            second = serving(manager)
            with Client(str(manager.control)) as client:
                assert client.call("stop", NamesParams(names=("app",)), answer=Verdict, patient=True).ok
            assert manager.start("app").ok
            assert are_gone(*second)
            third = serving(manager)
            assert len(third) == 2
            assert {answered_by(address) for _ in range(30)} <= third
            (tmp_path / "let-go").write_text("now\n")
            assert int(held.recv(100)) in first
            eventually(lambda: are_gone(*first))
            assert {answered_by(address) for _ in range(30)} <= third
        # What has come of it is a pool like any other.
        assert reload(manager).ok
        assert manager.halt("app").ok
        with pytest.raises(OSError, match=r"refused|No such file"):
            asked(address)
        assert manager.start("app").ok
        assert {answered_by(address) for _ in range(30)} <= serving(manager)


def test_a_reload_that_waits_for_its_turn_hears_of_the_stop(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    keys = "command = \"sh -c 'trap : TERM; while :; do sleep 0.05; done'\"\nstartsecs = 0\nstopwaitsecs = 2"
    with managing(scene(tmp_path, f'[pool.app]\nsocket = "{address}"\nready = "startsecs"\n{keys}\n')) as manager:
        assert reload(manager, wait=False).ok
        eventually(lambda: "the new generation serves" in manager.output())
        with ThreadPoolExecutor() as others:
            waiting = others.submit(reload, manager)
            eventually(lambda: "the reload waits until the generation before has left" in manager.output())
            assert manager.halt("app").ok
            assert not waiting.result(10).ok
