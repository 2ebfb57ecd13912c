"""A WebSocket in use goes on until `stopwaitsecs`, whatever is done to the pool meanwhile.

Nobody can end it well from outside, so the time that the pool gives to its processes is what it has. In use is one on
which something is said now and then.
"""

import itertools
import threading
from pathlib import Path
from time import monotonic

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.integration.commands import running
from tests.integration.ports import free_address
from tests.integration.servers import need
from tests.promises.front import front
from tests.promises.programs import PROGRAMS, Socket
from tests.waiting import eventually

STOPWAITSECS = 4
ACTS = {"reload": ("reload", "app"), "restart": ("restart", "app:app_00"), "scale down": ("scale", "app", "-1")}


class Talk:
    """A WebSocket on which something is said every `every` seconds, and said back, until it is closed."""

    def __init__(self, port: int, every: float) -> None:
        self.pid = 0  # of the process that says it back
        self.closed: float | None = None  # when that was noticed, in monotonic seconds
        self._every = every
        self._enough = threading.Event()
        self._websocket = connect(f"ws://127.0.0.1:{port}/socket", open_timeout=20, ping_interval=None, proxy=None)
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def _talk(self) -> None:
        try:
            with self._websocket as websocket:
                for number in itertools.count():
                    websocket.send(f"{number}")
                    pid, echo = str(websocket.recv(timeout=20)).split()
                    assert echo == f"{number}"
                    self.pid = int(pid)
                    if self._enough.wait(self._every):
                        return
        except ConnectionClosed:
            self.closed = monotonic()

    def end(self) -> None:
        self._enough.set()
        self._thread.join(30)


@pytest.mark.parametrize(
    ("socket", "act", "every"),
    [
        ("tcp", "reload", 0.1),
        ("tcp", "reload", 0.9),
        ("unix", "reload", 0.9),
        ("tcp", "restart", 0.9),
        ("unix", "scale down", 0.9),
    ],
)
def test_a_websocket_in_use_lives_until_stopwaitsecs(socket: Socket, act: str, every: float, tmp_path: Path) -> None:
    need("nginx")
    program = PROGRAMS["uvicorn"]
    address = free_address(socket, tmp_path)
    numprocs = 2 if act == "scale down" else 1
    table = program.pool(tmp_path, socket, address, f"stopwaitsecs = {STOPWAITSECS}", numprocs=numprocs)
    talks: list[Talk] = []
    with running(tmp_path, table) as manager, front(tmp_path, program, address) as nginx:
        ending = manager.pids("app")[-1]

        def talks_to_the_one_that_ends() -> bool:
            talks.append(Talk(nginx.port, every))
            return eventually(lambda: talks[-1].pid) == ending

        try:
            for _ in range(3):
                eventually(talks_to_the_one_that_ends)
            begun = monotonic()
            manager(*ACTS[act]).succeeds()
            theirs = [talk for talk in talks if talk.pid == ending]
            eventually(lambda: all(talk.closed for talk in theirs))
            lived = [(talk.closed or 0.0) - begun for talk in theirs]
            assert len(lived) >= 3
            assert min(lived) >= STOPWAITSECS, lived
            assert not any(talk.closed for talk in talks if talk.pid != ending)
        finally:
            for talk in talks:
                talk.end()
