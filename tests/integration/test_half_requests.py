"""A request whose parameters have not all come holds no thread, and no worker back from its end."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

import fcgimgr
from fcgimgr.fastcgi.records import RecordType, begin_request, encode_record
from tests.integration.benches import FLUP_HOME, Bench, announce, ask_rest, unix_bench

HALVES = {
    "half a header": begin_request(1)[:5],
    "its beginning": begin_request(1, keep_connection=True),
    "half its parameters": announce("/pid")[:-20],
}
ENGINES = {"solo": ("native", "1"), "native": ("native", "2"), "flup": ("flup", "1"), "flup, threads": ("flup", "2")}


@pytest.fixture(params=ENGINES)
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    with contextlib.closing(unix_bench(tmp_path)) as made:
        (tmp_path / "worker.py").write_text(Path(__file__).with_name("impatient_worker.py").read_text())
        made.engine = ENGINES[request.param]
        yield made


def start(bench: Bench, **patience: float) -> subprocess.Popen[bytes]:
    settings = (f"{name}={seconds}" for name, seconds in patience.items())
    worker = bench.launch(
        [sys.executable, "worker.py", *bench.engine, "worker_app", *settings],
        env={"PYTHONPATH": os.pathsep.join((str(Path(fcgimgr.__file__).parents[1]), FLUP_HOME))},
    )
    bench.wait_until_ready()
    return worker


def test_others_are_served_meanwhile_and_it_is_when_the_rest_comes(bench: Bench) -> None:
    worker = start(bench, HEAD_PATIENCE=60)
    whole = announce("/pid") + encode_record(RecordType.STDIN, 1)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(bench.connect()) for _ in range(10)]
        for place, connection in enumerate(slow):
            connection.sendall(whole[: len(whole) - 1 - 2 * place])
            assert bench.fetch().status == 200
        for place, connection in enumerate(slow):
            connection.sendall(whole[len(whole) - 1 - 2 * place :])
            assert ask_rest(connection).body == str(worker.pid).encode()


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_it_does_not_hold_a_stop_up_for_longer_than_its_grace(bench: Bench, half: bytes) -> None:
    worker = start(bench, HEAD_PATIENCE=60, FIRST_BYTE_GRACE=0.2)
    with bench.connect() as connection:
        connection.sendall(half)
        assert bench.fetch().status == 200
        begun = monotonic()
        worker.terminate()
        assert worker.wait(20) == 0
        assert monotonic() - begun < 10
        assert connection.recv(1) == b""
    assert "connection closed before its request had come" in bench.stderr()


def test_the_rest_of_it_that_comes_in_time_is_served_by_a_worker_that_stops(bench: Bench) -> None:
    worker = start(bench, HEAD_PATIENCE=60, FIRST_BYTE_GRACE=20)
    whole = announce("/pid") + encode_record(RecordType.STDIN, 1)
    with bench.connect() as connection:
        connection.sendall(whole[:-20])
        assert bench.fetch().status == 200
        worker.terminate()
        connection.sendall(whole[-20:])
        assert ask_rest(connection).body == str(worker.pid).encode()
    assert worker.wait(20) == 0


def test_who_sends_something_all_the_time_has_no_longer_for_it(bench: Bench) -> None:
    start(bench, HEAD_PATIENCE=0.5)
    with bench.connect() as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(begin_request(1, keep_connection=True))
        begun = monotonic()
        while monotonic() - begun < 20:
            connection.sendall(begin_request(2)[:8] + bytes(8))
            assert bench.fetch().status == 200
        raise AssertionError("it goes on for ever")
