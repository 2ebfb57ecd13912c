"""An application that has broken its standard error loses the words that it says itself, and nothing else: no thread,
no answer, no process, and not what the worker says of its failures. Over every server of ours, at 1 and 2 threads."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgimgr.fastcgi.records import FastCGIError
from tests.integration.benches import Bench, unix_bench
from tests.waiting import eventually

#: What applications do to it, on purpose or not, while they are imported.
BROKEN = {
    "strict": "sys.stderr = io.TextIOWrapper(sys.stderr.buffer, encoding='utf-8', line_buffering=True)",
    "ascii": "sys.stderr = io.TextIOWrapper(sys.stderr.buffer, encoding='ascii', line_buffering=True)",
    "none": "sys.stderr = None",
    "closed": "sys.stderr.close()",
    "detached": "sys.stderr.detach()",
    "python 2": "sys.stderr = codecs.getwriter('utf-8')(sys.stderr)",
    "twice": "\n".join(["sys.stderr = io.TextIOWrapper(sys.stderr.buffer, encoding='utf-8')"] * 2),
    "raising": "sys.stderr = Raising()",
    "leaving": "sys.stderr = Raising(SystemExit)",
}
APP = """
import codecs, io, os, sys

class Raising:
    def __init__(self, raised=RecursionError):
        self.raised = raised
    def write(self, text):
        raise self.raised
    def flush(self):
        raise self.raised

class Untold(Exception):
    def __str__(self):
        raise KeyboardInterrupt

{broken}

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/boom":
        raise ValueError("no such file: \\udce9t\\udce9.txt")  # as os.listdir() gives a Latin-1 name
    if path == "/untold":
        environ["REQUEST_METHOD"] = Raising()
        environ["REQUEST_URI"] = Untold()
        raise Untold
    if path == "/closes":
        environ["wsgi.errors"].close()
        raise ValueError("closed by a request")
    if path == "/errors":
        environ["wsgi.errors"].write("a word of the application's\\n")
        environ["wsgi.errors"].flush()
    if path == "/fork":
        child = os.fork()
        if child == 0:
            raise ValueError("in a child: \\udce9")
        os.waitpid(child, 0)
    headers = [("Content-Length", "1")] if path == "/long" else []
    start_response("200 OK", headers)
    if path == "/halfway":
        return halfway()
    return [b"ok"]

def halfway():
    yield b"half"
    raise ValueError("the other half: \\udce9")
"""


@pytest.fixture(params=["native-1", "native-2", "flup-1", "flup-2"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    with contextlib.closing(unix_bench(tmp_path)) as made:
        server, _, threads = request.param.partition("-")
        made.engine = ("--server", server, "--threads", threads)
        yield made


def start(bench: Bench, broken: str) -> subprocess.Popen[bytes]:
    (bench.directory / "broken.py").write_text(APP.replace("{broken}", broken))
    return bench.start("broken:application")


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_each_request_is_answered_and_each_failure_told(bench: Bench, broken: str) -> None:
    worker = start(bench, broken)
    for _ in range(3):  # more than there are threads
        assert bench.fetch("/boom").status == 500
        assert bench.fetch("/untold").status == 500
        assert bench.fetch("/long").body == b"o"
        assert bench.fetch("/fork").body == b"ok"
        with pytest.raises(FastCGIError):
            bench.fetch("/halfway")
        assert bench.fetch("/ok").body == b"ok"
    said = bench.stderr()
    assert said.count("ValueError: no such file: \\udce9t\\udce9.txt\n") == 3
    assert said.count("ValueError: in a child: \\udce9\n") == 3
    assert said.count("ValueError: the other half: \\udce9\n") == 3
    assert said.count("a body was longer than its Content-Length") == 3
    assert said.count("Untold: ") == 3
    worker.terminate()
    assert worker.wait(20) == 0


@pytest.mark.parametrize("broken", [BROKEN[name] for name in ("none", "closed", "detached", "python 2", "raising")])
def test_wsgi_errors_can_be_written_to_all_the_same(bench: Bench, broken: str) -> None:
    start(bench, broken)
    assert bench.fetch("/errors").body == b"ok"
    assert "a word of the application's\n" in bench.stderr()


def test_a_request_that_closes_its_wsgi_errors_costs_nobody_else_anything(bench: Bench) -> None:
    start(bench, "")
    for _ in range(3):
        assert bench.fetch("/closes").status == 500
        assert bench.fetch("/ok").body == b"ok"
    assert "ValueError: closed by a request\n" in bench.stderr()


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_an_application_that_cannot_be_imported_ends_its_worker_and_is_told(bench: Bench, broken: str) -> None:
    (bench.directory / "broken.py").write_text(
        APP.replace("{broken}", broken) + "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "raise ValueError('\\udce9')\n"
    )
    assert bench.start("broken:application", ready=False).wait(20) == 1
    assert "cannot load 'broken:application': ValueError: \\udce9\n" in bench.stderr()


def test_a_thread_for_which_the_end_waits_is_named(bench: Bench) -> None:
    ticking = (
        "import threading, pathlib\n"
        "gate = threading.Event()\n"
        "def tick():\n    while not gate.wait(0.1):\n        if pathlib.Path('over').exists(): return\n"
        "threading.Thread(target=tick, name='ticker').start()\n"
    )
    worker = start(bench, ticking)
    worker.terminate()
    eventually(lambda: "threads of the application that are no daemons: ticker (" in bench.stderr())
    assert f"{bench.directory}/broken.py, line " in bench.stderr()
    (bench.directory / "over").touch()
    assert worker.wait(20) == 0


def test_nobody_is_named_where_all_end_when_they_hear_of_the_end(bench: Bench) -> None:
    pool = (
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\npool.submit(int).result()\n"
    )
    worker = start(bench, pool)
    worker.terminate()
    assert worker.wait(20) == 0
    assert bench.stderr() == ""
