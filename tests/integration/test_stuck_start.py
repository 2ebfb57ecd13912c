"""A process that does not come to its program holds up nobody else: the manager answers, starts and stops as always."""

from pathlib import Path

import pytest

from fcgimgr.control.messages import NamesParams
from tests.integration.running import RunningManager
from tests.integration.scenes import is_alive, kill, managing, scene
from tests.stuck import stuck
from tests.waiting import eventually

# `nice` only a process itself can set: it is forked, and the rest of its start happens in it.
TABLES = """
[program.slow]
command = "{program}"
nice = 0
startsecs = 0
autostart = false
stopwaitsecs = 60

[program.other]
command = "sleep 1000"
startsecs = 0
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.write_text("#!/bin/sh\nexec sleep 1000\n")
    path.chmod(0o755)
    return path


def state(manager: RunningManager) -> str:
    return manager.pool("slow").processes[0].state


def begin(manager: RunningManager) -> int:
    """Start it without waiting until it is up; its pid."""
    manager.command("start", NamesParams(names=("slow",), wait=False))
    return eventually(lambda: manager.pool("slow").processes[0].pid) or 0


def test_it_is_running_when_it_has_come_to_its_program_and_others_do_not_wait(tmp_path: Path, program: Path) -> None:
    with managing(scene(tmp_path, TABLES.format(program=program)), ready=False) as manager:
        with stuck(str(program)):
            pid = begin(manager)
            [other] = eventually(lambda: manager.pids("other"))
            kill(other)
            eventually(lambda: manager.pids("other") not in ([], [other]))
            assert state(manager) == "STARTING"
        eventually(lambda: state(manager) == "RUNNING")
        assert manager.pids("slow") == [pid]


def test_it_can_be_stopped(tmp_path: Path, program: Path) -> None:
    with managing(scene(tmp_path, TABLES.format(program=program)), ready=False) as manager, stuck(str(program)):
        pid = begin(manager)
        assert manager.halt("slow").ok
        assert not is_alive(pid)
        assert state(manager) == "STOPPED"


def test_one_that_is_killed_on_the_way_is_tried_again(tmp_path: Path, program: Path) -> None:
    with managing(scene(tmp_path, TABLES.format(program=program)), ready=False) as manager:
        with stuck(str(program)):
            pid = begin(manager)
            kill(pid)
            eventually(lambda: manager.pool("slow").processes[0].pid not in (None, pid))
        eventually(lambda: state(manager) == "RUNNING")
