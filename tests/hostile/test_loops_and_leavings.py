"""A process that wants to be replaced as soon as it is there, and one that leaves daemons behind, cost nobody else."""

import os
import re
import sys
from pathlib import Path

from tests.integration.commands import lines_of
from tests.integration.scenes import kill, managing, scene
from tests.waiting import eventually

PYTHON = f"{sys.executable} -S -E"

RECYCLE = """
import os, signal, socket
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    for word in (b"READY=1", b"X_RECYCLE=please", b"X_RECYCLE=pretty please"):
        notify.sendto(word, os.environ["NOTIFY_SOCKET"])
signal.pause()
"""


def test_who_asks_to_be_recycled_at_each_start_is_bounded_as_one_that_crashes(tmp_path: Path) -> None:
    (tmp_path / "recycle.py").write_text(RECYCLE)
    table = f"""
    [program.app]
    command = "{PYTHON} {tmp_path}/recycle.py"
    ready = "notify"
    """
    with managing(scene(tmp_path, table), ready=False) as manager:
        eventually(lambda: "not recycled yet: please" in manager.output(), within=20)
        (pid,) = manager.pids("app")
        spawned = len(re.findall("app:app_00: spawned", manager.output()))
        assert 10 <= spawned <= 20  # core/crashes.py: ten at once, one more a second
        assert manager.pool("app").state == "RUNNING"
        assert manager.pids("app") == [pid]


# Leaves a daemon that counts into its log, and dies when the FIFO says so.
LEAVE = """
import os, sys, time
place = sys.argv[1]
if os.fork() == 0:
    os.setsid()
    number = str(os.getpid())
    for count in range(1_000_000):
        os.write(1, b"." * 4000 + b"\\n")
        with open(os.path.join(place, "count-" + number), "a") as file:
            file.write("x")
        time.sleep(0.005)
open(os.path.join(place, "die"), "rb").read()
"""
LEAVINGS = 7


def test_the_daemons_of_processes_that_died_never_wait_for_their_log(tmp_path: Path) -> None:
    """Each fills its pipe, of 64 KB, in 16 lines."""
    (tmp_path / "leave.py").write_text(LEAVE)
    os.mkfifo(tmp_path / "die")
    table = f"""
    [program.app]
    command = "{PYTHON} {tmp_path}/leave.py {tmp_path}"
    startsecs = 0
    backoff_initial = 0.01
    backoff_max = 0.01
    startretries = -1
    killasgroup = false
    stdout_logfile = "{tmp_path}/app.log"
    """

    def counts() -> dict[str, int]:
        return {path.name: path.stat().st_size for path in tmp_path.glob("count-*")}

    with managing(scene(tmp_path, table), ready=False) as manager:
        for number in range(LEAVINGS):
            eventually(lambda number=number: len(counts()) == number + 1)
            if number < LEAVINGS - 1:
                (tmp_path / "die").write_text("die")
        before = counts()
        eventually(lambda: all(count > before[name] + 40 for name, count in counts().items()), within=20)
        told = [line for line in manager.output().splitlines() if "has outlived its process, again and again" in line]
        assert len(told) == 1
        assert lines_of(tmp_path / "app.log")
        kill(*(int(name.removeprefix("count-")) for name in counts()))
