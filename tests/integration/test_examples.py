"""Every example runs as it stands, behind the real nginx, and its answers come from all of its processes."""

import os
import random
import signal
import sqlite3
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.integration.ports import free_address
from tests.integration.running import copy_example, example_manager, running_example
from tests.integration.servers import Answer, Nginx, need, run
from tests.waiting import eventually

on_tcp_and_unix = pytest.mark.parametrize("transport", ["tcp", "unix"])


@on_tcp_and_unix
@pytest.mark.parametrize("example", ["flup", "wsgi"])
def test_a_wsgi_app_on_flup_answers(example: str, transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with running_example(example, tmp_path, address) as manager, Nginx.before(address, tmp_path) as nginx:
        answer = nginx.post("/some%20path?a=1&b=%20", "a question")
        assert (answer.status, answer.says("Hello")) == (200, "from Python")
        assert answer.says("asked") == "POST /some path?a=1&b=%20"
        assert answer.says("posted") == "a question"
        assert answer.says("process").startswith(f"{example}_0")
        assert_all_serve(nginx, "/", manager.pids(example))


@on_tcp_and_unix
def test_ten_requests_at_once_are_answered_by_several_go_processes(transport: str, tmp_path: Path) -> None:
    need("go")
    address = free_address(transport, tmp_path)
    config = copy_example("go", tmp_path, address)
    run(["go", "build"], config.parent)
    with example_manager(config) as manager, Nginx.before(address, tmp_path) as nginx:
        pids = manager.pids("go")
        assert len(pids) == 6

        def answered() -> set[int]:
            answers = at_once(10, lambda: nginx.get("/?pause=200ms"))
            assert [answer.status for answer in answers] == [200] * 10
            return {int(answer.says("pid")) for answer in answers}

        # One that is awake may take all ten before another has woken up.
        assert eventually(lambda: found if len(found := answered()) > 1 else None) <= set(pids)
        assert_all_serve(nginx, "/?pause=20ms", pids)


@on_tcp_and_unix
def test_php_cgi_answers_unchanged(transport: str, tmp_path: Path) -> None:
    need("php-cgi")
    address = free_address(transport, tmp_path)
    config = copy_example("php", tmp_path, address)
    site = f"root {config.parent}; index index.php;"
    with example_manager(config) as manager, Nginx.before(address, tmp_path, snippet="php.conf", server=site) as nginx:
        answer = nginx.post("/?a=1", "a question")
        assert (answer.status, answer.says("Hello")) == (200, "from PHP")
        assert answer.says("asked") == "POST /?a=1"
        assert answer.says("posted") == "a question"
        assert nginx.get("/nothing.php").status == 404
        assert nginx.get("/pool.toml/x.php").status == 404
        assert_all_serve(nginx, "/index.php", manager.pids("php"))


@on_tcp_and_unix
def test_a_c_program_on_libfcgi_answers(transport: str, tmp_path: Path) -> None:
    need("cc", "make")
    address = free_address(transport, tmp_path)
    config = copy_example("c", tmp_path, address)
    run(["make"], config.parent)
    with example_manager(config) as manager, Nginx.before(address, tmp_path) as nginx:
        answer = nginx.get("/path?a=1")
        assert (answer.status, answer.says("Hello")) == (200, "from C")
        assert answer.says("asked") == "GET /path?a=1"
        assert_all_serve(nginx, "/", manager.pids("c"))


@on_tcp_and_unix
def test_a_perl_script_on_fcgi_pm_answers(transport: str, tmp_path: Path) -> None:
    need("perl")
    address = free_address(transport, tmp_path)
    with running_example("perl", tmp_path, address) as manager, Nginx.before(address, tmp_path) as nginx:
        answer = nginx.get("/path?a=1")
        assert (answer.status, answer.says("Hello")) == (200, "from Perl")
        assert answer.says("asked") == "GET /path?a=1"
        assert_all_serve(nginx, "/", manager.pids("perl"))


@on_tcp_and_unix
def test_an_asgi_app_on_uvicorn_answers_behind_proxy_pass(transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with (
        running_example("asgi", tmp_path, address) as manager,
        Nginx.before(address, tmp_path, snippet="asgi.conf") as nginx,
    ):
        answer = nginx.post("/some%20path?a=1", "a question")
        assert (answer.status, answer.says("Hello")) == (200, "from ASGI")
        assert answer.says("asked") == "POST /some path?a=1"
        assert answer.says("posted") == "a question"
        assert answer.says("scheme") == "http"
        assert_all_serve(nginx, "/", manager.pids("asgi"))


# -- the queue --------------------------------------------------------------------------------------------------------

MESSAGES = 200


@pytest.mark.parametrize("seed", [1, 2])
def test_a_queue_consumer_stopped_and_killed_at_random_loses_no_message(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    config = queue_with(tmp_path, work_seconds="0.02", messages=MESSAGES)
    with example_manager(config) as manager:
        for finished in sorted(chance.sample(range(MESSAGES - 20), 15)):
            # The pace of looking is what makes the moment of the blow a random one within the work.
            wait_until_done(config, finished, every=chance.random() / 50)
            blow = chance.choice(["stop", "kill", "restart"])
            if blow == "restart":
                assert manager.restart("consumer:*").ok
                continue
            for pid in chance.sample(pids := manager.pids("consumer"), k=min(len(pids), chance.randint(1, 2))):
                end(pid, signal.SIGTERM if blow == "stop" else signal.SIGKILL)
        eventually(lambda: count(config, "done = 0") == 0, within=60)
    assert count(config, "done = 1") == MESSAGES


def test_a_queue_consumer_told_to_stop_finishes_the_message_in_hand(tmp_path: Path) -> None:
    config = queue_with(tmp_path, work_seconds="0.5", messages=10)
    with example_manager(config) as manager:
        eventually(lambda: count(config, "taken_by IS NOT NULL") == 2)
        manager.stop()
        assert "worked on message 1\n" in manager.output()
    assert count(config, "taken_by IS NOT NULL AND done = 0") == 0
    assert 2 <= count(config, "done = 1") < 10


def queue_with(directory: Path, *, work_seconds: str, messages: int) -> Path:
    """The queue example with messages in it; its pool.toml."""
    config = copy_example("queue", directory)
    text = config.read_text()
    assert 'WORK_SECONDS = "0.5"' in text
    config.write_text(text.replace('WORK_SECONDS = "0.5"', f'WORK_SECONDS = "{work_seconds}"'))
    said = run([sys.executable, "producer.py", "messages.sqlite", str(messages)], config.parent)
    assert said == f"{messages} waiting, 0 in hand, 0 done\n"
    return config


def wait_until_done(config: Path, number: int, every: float) -> None:
    """Wait until so many messages are finished; look every so many seconds."""
    eventually(lambda: count(config, "done > 0") >= number, within=60, every=every)


def count(config: Path, condition: str) -> int:
    """How many messages fulfil an SQL condition."""
    with closing(sqlite3.connect(config.with_name("messages.sqlite"), timeout=30)) as queue:
        (number,) = queue.execute(f"SELECT count(*) FROM messages WHERE {condition}").fetchone()
        assert isinstance(number, int)
        return number


# -- what they have in common -----------------------------------------------------------------------------------------


def at_once(number: int, ask: Callable[[], Answer]) -> list[Answer]:
    """Ask so many times at the same time."""
    with ThreadPoolExecutor(number) as threads:
        return [asked.result() for asked in [threads.submit(ask) for _ in range(number)]]


def assert_all_serve(nginx: Nginx, path: str, pids: list[int]) -> None:
    """Requests, eight at a time, until every process of the pool has answered one."""
    assert pids
    answered: set[int] = set()

    def everyone_has_answered() -> bool:
        answered.update(int(answer.says("pid")) for answer in at_once(8, lambda: nginx.get(path)))
        assert answered == set(pids)
        return True

    eventually(everyone_has_answered)


def end(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone already."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
