"""An application of gevent or eventlet, which replaces Python's threads and sockets, is served or refused in words."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgimgr.fastcgi.client import fetch
from fcgimgr.fastcgi.records import RecordType, encode_record, encode_stream
from tests.integration.benches import ENGINES, Bench, announce, ask, ask_rest, parameters, tcp_bench, unix_bench
from tests.integration.scenes import managing, scene
from tests.waiting import eventually

HERE = Path(__file__).parent

#: In place of eventlet, which is not maintained any more and is not installed for this.
EVENTLET = """
import select, sys, threading, types
patcher = types.ModuleType("eventlet.patcher")
patcher.already_patched = {"select": True, "thread": True, "time": True}
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


def test_its_greenlets_run_while_a_body_is_waited_for(bench: Bench) -> None:
    bench.start("gevent_app:application")
    ticks = bench.directory / "ticks"
    half = encode_stream(RecordType.STDIN, 1, bytes(50_000))
    with bench.connect() as connection:
        connection.sendall(announce("/echo", CONTENT_LENGTH="100000") + half)
        eventually((bench.directory / "reading").exists)
        before = ticks.stat().st_size
        eventually(lambda: ticks.stat().st_size > before + 10)
        connection.sendall(half + encode_record(RecordType.STDIN, 1))
        assert ask_rest(connection).body == bytes(100_000)


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
    assert "the application has replaced select and threading by eventlet's (monkey_patch)" in bench.stderr()
    assert bench.stderr().count("\n") == 1


#: What PySocks and ddtrace put in the place of one thing each. This socket is as strict as that of PySocks.
HARMLESS = {
    "a proxy's sockets": """
import socket

class ProxiedSocket(socket.socket):
    def __init__(self, family=socket.AF_INET, type=socket.SOCK_STREAM, proto=0, *args, **kwargs):
        if type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            raise ValueError(f"Socket type must be stream or datagram, not {type!r}")
        super().__init__(family, type, proto, *args, **kwargs)

    def sendto(self, *args):
        self.bind(("", 0))

socket.socket = ProxiedSocket
""",
    "a profiler's locks": """
import threading

class ProfiledLock:
    def __init__(self):
        self.lock = allocate()

    def __getattr__(self, name):
        return getattr(self.lock, name)

    def __enter__(self):
        return self.lock.__enter__()

    def __exit__(self, *exception):
        self.lock.__exit__(*exception)

allocate, threading.Lock = threading.Lock, ProfiledLock
""",
    "a select that counts": """
import select
theirs = select.select
select.select = lambda *args: theirs(*args)
""",
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bench", [unix_bench], indirect=True)
@pytest.mark.parametrize("idiom", HARMLESS.values(), ids=HARMLESS)
def test_an_application_that_replaces_single_things_is_served_as_any_other(
    bench: Bench, engine: str, idiom: str
) -> None:
    (bench.directory / "harmless.py").write_text(f"{idiom}from worker_app import application\n")
    bench.engine = ENGINES[engine]
    log = bench.directory / "log"
    worker = bench.start("harmless:application", "--max-requests", "1+0", env={"FCGIMGR_ACCESS_LOG": str(log)})
    assert bench.fetch().body == str(worker.pid).encode()
    assert bench.told() == b"X_RECYCLE=1 requests served (max_requests)"
    worker.terminate()
    assert worker.wait(20) == 0
    assert log.read_text().count("\n") == 1


@pytest.mark.parametrize("idiom", HARMLESS.values(), ids=HARMLESS)
def test_so_it_is_with_preload(tmp_path: Path, idiom: str) -> None:
    (tmp_path / "harmless.py").write_text(f"{idiom}from worker_app import application\n")
    (tmp_path / "worker_app.py").write_text((HERE / "worker_app.py").read_text())
    table = """
        [pool.app]
        socket    = "unix:%(here)s/app.sock"
        directory = "%(here)s"
        wsgi      = "harmless:application"
        preload   = true
        numprocs  = 2
    """
    with managing(scene(tmp_path, table)) as manager:
        eventually(manager.all_running, within=30)
        assert fetch(f"unix:{tmp_path}/app.sock", parameters("/pid"), b"", timeout=20).status == 200
