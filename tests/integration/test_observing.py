"""What an engine tells its observer, and what it does when the observer has had enough."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fcgimgr
from fcgimgr.fastcgi.records import FastCGIError
from tests.integration.benches import Bench, ask, unix_bench

ENGINES = ["flup", "native"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    shutil.copy(Path(__file__).with_name("observed_worker.py"), tmp_path)
    with contextlib.closing(unix_bench(tmp_path)) as made:
        yield made


def start(bench: Bench, engine: str, **environment: str) -> subprocess.Popen[bytes]:
    worker = subprocess.Popen(
        [sys.executable, "observed_worker.py", engine],
        cwd=bench.directory,
        stdin=bench.listener,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(fcgimgr.__file__).parents[1]), **environment},
    )
    bench.workers.append(worker)
    return worker


@pytest.mark.parametrize("engine", ENGINES)
def test_the_observer_hears_of_every_request_how_it_went(bench: Bench, engine: str) -> None:
    worker = start(bench, engine)
    answer = bench.fetch("/pid")
    bench.fetch("/empty")
    bench.fetch("/echo", b"x" * 200_000)
    failed = bench.fetch("/fail")
    with pytest.raises(FastCGIError):
        bench.fetch("/halfway")
    worker.terminate()
    assert worker.wait(20) == 0
    assert worker.stdout is not None
    with worker.stdout:
        told = worker.stdout.read().decode().splitlines()
    assert told == [
        "begin /pid",
        f"end 200 {len(answer.body)}",
        "begin /empty",
        "end 204 0",
        "begin /echo",
        "end 200 200000",
        "begin /fail",
        f"end 500 {len(failed.body)}",
        "begin /halfway",
        "end 200 14",
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_worker_that_has_served_enough_ends_with_0_and_leaves_the_queue_to_others(bench: Bench, engine: str) -> None:
    worker = start(bench, engine, ENOUGH="3")
    with bench.connect() as kept:
        for _ in range(3):
            assert ask(kept).body == str(worker.pid).encode()
        with bench.connect() as waiting:
            assert worker.wait(20) == 0
            another = start(bench, engine)
            assert ask(waiting).body == str(another.pid).encode()
    assert worker.stdout is not None
    assert another.stdout is not None
    another.terminate()
    another.wait(20)
    worker.stdout.close()
    another.stdout.close()
