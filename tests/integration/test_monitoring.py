"""docs/monitoring.md holds: its check for Nagios, its line for a graph, and events as a program of the manager."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.integration.commands import Manager, running
from tests.integration.servers import need
from tests.waiting import eventually

TEXT = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")

SOME = """\
[program.watch]
command = ["sh", "-c", "{python} -m fcgimgr events -n 0 -f --json >events"]
directory = "%(here)s"
startsecs = 0
stopasgroup = true

[program.some]
command = ['/bin/sh', '-c', 'test "$FCGIMGR_PROCESS" = some_00 && exec sleep 1000']
numprocs = 2
startsecs = 0.2
startretries = 0
autostart = false
"""


def script(containing: str) -> str:
    """The example of the guide that has these words in it."""
    (found,) = [block for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) if containing in block]
    return found


def shell(manager: Manager, text: str) -> tuple[int, str]:
    """Run as somebody who has fcgimgr in PATH stands in the directory of the configuration."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", text],
        cwd=manager.config.parent,
        env={**os.environ, "PATH": path, "XDG_RUNTIME_DIR": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def installed(manager: Manager, text: str) -> str:
    """As it is where the guide has fcgimgr and its configuration."""
    return text.replace(
        "/usr/local/bin/fcgimgr -c /etc/fcgimgr/pool.toml", f"{sys.executable} -m fcgimgr -c {manager.config}"
    )


def test_what_the_guide_asks_tells_degraded_from_ready_and_events_are_a_program(tmp_path: Path) -> None:
    with running(tmp_path, SOME.format(python=sys.executable), ready=False) as manager:
        eventually(lambda: manager("probe", "ready").code == 0)
        nagios = installed(manager, script("CRITICAL"))
        cron = installed(manager, script("* * * * *")).removeprefix("* * * * * ").replace("sleep 20", "sleep 0")
        assert shell(manager, f"PATH=/usr/bin:/bin; {cron}") == (0, "")
        assert shell(manager, nagios) == (0, "OK: watch is RUNNING\n")
        events = tmp_path / "events"
        eventually(lambda: manager("signal", "CONT", "watch").code == 0 and events.exists())

        manager("start", "some")
        eventually(lambda: "DEGRADED" in manager("status", "some").out)
        assert manager("probe", "ready").succeeds() == "watch is RUNNING, some is DEGRADED\n"
        assert manager("probe", "ready", "--strict").code == 1
        assert shell(manager, nagios) == (1, "WARNING: some is DEGRADED\n")
        assert "DEGRADED" in shell(manager, f"PATH=/usr/bin:/bin; {cron}")[1]
        manager("stop", "some")
        eventually(lambda: manager("start", "some:some_01").code == 1)
        fatal = {"kind": "process_state", "name": "some:some_01", "to": "FATAL"}
        eventually(lambda: any(fatal.items() <= json.loads(line).items() for line in events.read_text().splitlines()))


def test_the_line_for_a_graph_gives_a_row_for_each_pool(tmp_path: Path) -> None:
    need("jq")
    with running(tmp_path, '[program.a]\ncommand = "sleep 1000"\nstartsecs = 0\n') as manager:
        line = script("jq -r").replace("fcgimgr ", f"fcgimgr -c {manager.config} ")
        assert shell(manager, line) == (0, "a\tRUNNING\t0\t0\t1\n")
