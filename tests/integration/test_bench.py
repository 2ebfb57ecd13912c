"""The bench ends with 1 when a server could not be measured, and keeps the figures of the others; and it leaves nothing
behind."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.servers import CHECKOUT
from tests.waiting import eventually

# The program as it is, but for the servers: one that is measured, and one that will not start.
PROGRAM = """\
import sys
import bench.__main__ as program
from bench import reload

def measure_one(setting, figures, server, transport, run, reloads):
    if server.title == servers[0].title:
        raise RuntimeError("it will not start")
    for figure in figures.all():
        figure.add(f"{server.title}, {transport}", 0)

servers = reload.find_servers(lambda: None)[0][:2]
reload.shutil.which = lambda program: program  # neither nginx nor wrk is run
reload.find_servers = lambda go: (servers, [])
reload.measure_one = measure_one
sys.argv[1:] = ["reload", "--quick"]
sys.exit(program.main())
"""


def test_a_server_that_cannot_be_measured_is_a_failure() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "could not be measured: " in done.stderr
    assert "it will not start" in done.stderr
    assert done.stdout


# As above, with two servers of which one answers nothing, although it runs.
SILENT = """\
import sys
import bench.__main__ as program
from bench import wsgi
from bench.front import Counted

class Running:
    def __init__(self, setting, server, transport):
        self.requests = 0 if server.title == "fcgimgr, flup" else 1000

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def ask(self, task, quick):
        return Counted(self.requests, 0, 1.0, 0.0, 0.0)

    def memory(self):
        return 1e6

wsgi.shutil.which = lambda program: program
wsgi.Running = Running
sys.argv[1:] = ["wsgi", "--quick", "--only", "fcgimgr"]
sys.exit(program.main())
"""


def test_a_server_that_answers_nothing_is_a_failure_and_no_figure() -> None:
    done = subprocess.run([sys.executable, "-c", SILENT], cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "could not be measured: wsgi: run 1, hello, TCP: fcgimgr, flup gave no answer" in done.stderr
    (table,) = (text for text in done.stdout.split("\n\n") if "hello" in text and "1/s" in text)
    assert "fcgimgr, native" in table
    assert "fcgimgr, flup" not in table


# A manager that heeds no TERM, and its worker, which is stopped.
ENDLESS = """\
import os
import sys
import bench.__main__ as program
from bench.peers import Process, start
from pathlib import Path

MANAGER = "trap '' TERM; sh -c 'echo $$ >worker; kill -STOP $$' & echo $$ >manager; while true; do wait; done"

def measure(setting):
    here = Path(os.environ["HERE"])
    process = Process("endless", here, *start(["sh", "-c", MANAGER], here))
    try:
        while True:
            process.lives()
    finally:
        process.end()

program.FIGURES["idle"] = measure
sys.argv[1:] = ["idle"]
sys.exit(program.main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_bench_ends_all_that_it_has_started(tmp_path: Path, number: signal.Signals) -> None:
    bench = subprocess.Popen([sys.executable, "-c", ENDLESS], cwd=CHECKOUT, env={"HERE": str(tmp_path)})
    try:
        pids = [int(eventually(lambda name=name: read(tmp_path / name), within=30)) for name in ("manager", "worker")]
        bench.send_signal(number)
        assert bench.wait(20) == 128 + number
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    finally:
        bench.kill()
        bench.wait()


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
