"""A comparison of reloads ends with 1 when a server could not be measured, and keeps the figures of the others."""

import subprocess
import sys

from tests.integration.servers import CHECKOUT

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
