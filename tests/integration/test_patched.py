"""An application of gevent or eventlet, which replaces Python's threads and sockets, is served or refused in words."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.benches import ENGINES, Bench, ask, tcp_bench, unix_bench
from tests.waiting import eventually

HERE = Path(__file__).parent

#: In place of eventlet, which is not maintained any more and is not installed for this.
EVENTLET = """
import select, sys, threading, types
patcher = types.ModuleType("eventlet.patcher")
patcher.already_patched = {"select": True, "thread": True}
sys.modules["eventlet.patcher"] = patcher
del select.epoll, select.poll
"""


@pytest.fixture(params=[unix_bench, tcp_bench], ids=["unix", "tcp"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    with contextlib.closing(request.param(tmp_path)) as made:
        (tmp_path / "gevent_app.py").write_text((HERE / "gevent_app.py").read_text())
        made.engine = ENGINES["solo"]
        yield made


def test_native_serves_an_application_of_gevent_one_request_at_a_time(bench: Bench) -> None:
    worker = bench.start("gevent_app:application", "--ready-timeout", "60")
    body = os.urandom(300_000)
    assert bench.fetch("/echo", body).body == body
    assert bench.fetch("/joined").body == b"[0, 1, 2]"
    assert bench.fetch("/stream").body == b"x" * 1_000_000
    assert bench.fetch("/fail").status == 500
    assert "LookupError: the cupboard is bare" in bench.stderr()
    with bench.connect() as kept:
        assert [ask(kept).body for _ in range(3)] == [str(worker.pid).encode()] * 3
        worker.terminate()
        assert worker.wait(20) == 0


def test_its_greenlets_run_while_nobody_asks(bench: Bench) -> None:
    bench.start("gevent_app:application")
    ticks = bench.directory / "ticks"
    assert bench.fetch().status == 200
    before = ticks.stat().st_size
    eventually(lambda: ticks.stat().st_size > before + 10)


@pytest.mark.parametrize("bench", [unix_bench], indirect=True)
def test_the_slow_log_says_where_its_request_is(bench: Bench) -> None:
    slow = bench.directory / "slow"
    bench.start("gevent_app:application", "--slow-after", "0.05", env={"FCGIMGR_SLOWLOG": str(slow)})
    assert bench.fetch("/slow").body == b"slow"
    assert "GET /slow has taken" in slow.read_text()
    assert "time.sleep(0.3)" in slow.read_text()


@pytest.mark.parametrize(
    "engine", [("--server", "native", "--threads", "2"), ("--server", "flup"), ("--server", "flup", "--threads", "1")]
)
@pytest.mark.parametrize("bench", [unix_bench], indirect=True)
def test_elsewhere_it_is_refused_in_words(bench: Bench, engine: tuple[str, ...]) -> None:
    bench.engine = engine
    assert bench.start("gevent_app:application", "--ready-timeout", "60", ready=False).wait(20) == 1
    assert bench.stderr() == (
        "fcgimgr worker: the application has replaced select, socket and threading by gevent's (monkey.patch_all), and "
        'is served so by server = "native" with threads = 1 and preload = false alone: set these, or give it a server '
        "of its own, by command, in place of wsgi\n"
    )


@pytest.mark.parametrize("bench", [unix_bench], indirect=True)
@pytest.mark.parametrize("server", ["native", "flup"])
def test_one_of_eventlet_is_refused_in_words(bench: Bench, server: str) -> None:
    (bench.directory / "eventlet_app.py").write_text(f"{EVENTLET}from worker_app import application\n")
    bench.engine = ("--server", server)
    assert bench.start("eventlet_app:application", "--ready-timeout", "60", ready=False).wait(20) == 1
    assert "the application has replaced select by eventlet's (monkey_patch)" in bench.stderr()
    assert bench.stderr().count("\n") == 1
