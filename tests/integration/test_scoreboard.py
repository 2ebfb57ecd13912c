"""`status` knows which requests the workers of a wsgi pool have in hand; also after an upgrade, or under a manager
that has taken them over."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from fcgimgr.control.messages import ProcessStatus
from fcgimgr.fastcgi.client import Response, fetch
from tests.integration.benches import parameters
from tests.integration.ports import free_address
from tests.integration.running import RunningManager
from tests.integration.scenes import kill, managing, scene
from tests.integration.succession import killed, next_one
from tests.integration.test_adoption import edit_state
from tests.integration.test_upgrade import upgrade
from tests.waiting import eventually

servers = pytest.mark.parametrize("server", ["flup", "native"])


class Pool:
    """A wsgi pool `app`, asked over the wire."""

    def __init__(self, directory: Path, *keys: str, transport: str = "unix") -> None:
        self.directory = directory
        self.address = free_address(transport, directory)
        shutil.copy(Path(__file__).with_name("worker_app.py"), directory)
        lines = [
            f'socket = "{self.address}"', 'wsgi = "worker_app:application"', 'directory = "%(here)s"',
            'ready = "notify"', *keys,
        ]  # fmt: skip
        self.config = scene(directory, "[pool.app]\n" + "\n".join(lines) + "\n")
        self._clients = ThreadPoolExecutor(8)

    def ask(self, path: str, **params: str) -> Future[Response]:
        return self._clients.submit(fetch, self.address, parameters(path, **params), b"", timeout=30)

    def hold(self, uri: str) -> Future[Response]:
        """A request that is in hand until `release`."""
        count = len(self.held())
        request = self.ask("/hold", REQUEST_URI=uri)
        eventually(lambda: len(self.held()) == count + 1)
        return request

    def held(self) -> list[Path]:
        return list(self.directory.glob("held-*"))

    def release(self) -> None:
        for fifo in self.held():  # each worker opens its own soon; one that is dead never will
            os.close(eventually(partial(os.open, fifo, os.O_WRONLY | os.O_NONBLOCK)))

    @contextmanager
    def holding(self, *uris: str) -> Iterator[list[Future[Response]]]:
        requests = [self.hold(uri) for uri in uris]
        try:
            yield requests
        finally:
            self.release()
            for request in requests:
                assert request.result().status == 200


def process(manager: RunningManager, index: int = 0) -> ProcessStatus:
    return manager.status(detail=True).pools[0].processes[index]


def in_hand(manager: RunningManager) -> list[tuple[str, str]]:
    return [(request.method, request.uri) for request in process(manager).current]


@servers
def test_status_tells_of_every_request_in_hand_and_counts_those_that_are_over(server: str, tmp_path: Path) -> None:
    pool = Pool(tmp_path, "threads = 4", f'server = "{server}"')
    with managing(pool.config) as manager:
        fresh = process(manager)
        assert (fresh.requests, fresh.in_hand, fresh.last_duration, fresh.current) == (0, 0, None, ())
        with pool.holding("/first?x=1", "/second"):
            busy = process(manager)
            assert [(request.method, request.uri) for request in busy.current] == [
                ("GET", "/first?x=1"), ("GET", "/second")
            ]  # fmt: skip
            assert busy.in_hand == 2
            assert busy.current[0].seconds >= busy.current[1].seconds >= 0
            assert busy.requests == 0
        eventually(lambda: process(manager).requests == 2)
        idle = process(manager)
        assert (idle.in_hand, idle.current) == (0, ())
        assert idle.last_duration is not None
        assert idle.last_duration > 0


def test_a_person_sees_them_with_v(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    command = [sys.executable, "-m", "fcgimgr", "-c", str(pool.config), "status"]
    with managing(pool.config), pool.holding("/evil\x1b[2J\r\nx" + "u" * 1000):
        plain, verbose = (
            subprocess.run([*command, *more], capture_output=True, text=True, timeout=30).stdout
            for more in ([], ["-v"])
        )
        assert "evil" not in plain
        (line,) = (line for line in verbose.splitlines() if "evil" in line)
        assert "GET /evil\\x1b[2J\\x0d\\x0axuuu" in line
        assert len(line) < 550


def test_an_upgrade_keeps_the_counts_and_the_requests_in_hand(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    with managing(pool.config) as manager:
        assert pool.ask("/pid").result().status == 200
        eventually(lambda: process(manager).requests == 1)
        with pool.holding("/long"):
            for _ in range(2):
                upgrade(manager).succeeds()
                assert in_hand(manager) == [("GET", "/long")]
                assert process(manager).requests == 1
        eventually(lambda: process(manager).requests == 2)


@pytest.mark.parametrize("passed", ["stdin", "systemd"])
def test_the_manager_after_a_killed_one_finds_the_board_again(passed: str, tmp_path: Path) -> None:
    pool = Pool(tmp_path, f'socket_pass = "{passed}"')
    with killed(pool.config) as first:
        assert pool.ask("/pid").result().status == 200
        eventually(lambda: process(first).requests == 1)
        with pool.holding("/long"):
            first.kill()
            with next_one(first) as second:
                assert in_hand(second) == [("GET", "/long")]
                assert process(second).requests == 1
                pool.release()
                eventually(lambda: process(second).requests == 2)


def test_a_board_that_is_not_found_again_is_unknown_and_not_zero(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    with killed(pool.config) as first:
        assert pool.ask("/pid").result().status == 200
        first.kill()
        edit_state(pool.config, lambda record: record.pop("board", None))
        with next_one(first) as second:
            found = process(second)
            assert (found.requests, found.in_hand, found.last_duration) == (None, None, None)


def test_the_log_tells_what_a_process_had_in_hand_when_it_died(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    with managing(pool.config) as manager:
        request = pool.hold("/deadly?x")
        kill(manager.pids("app")[0])
        assert request.exception() is not None
        eventually(lambda: "GET /deadly?x in hand for" in manager.output())
        for fifo in pool.held():
            fifo.unlink()
        eventually(lambda: process(manager).requests == 0)  # of a new process, with a board of its own


def test_neither_the_application_nor_its_children_get_the_board(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    with managing(pool.config):
        report = pool.ask("/report").result().body.decode()
        assert "FCGIMGR_SCOREBOARD" not in report
        assert '"inheritable": []' in report
