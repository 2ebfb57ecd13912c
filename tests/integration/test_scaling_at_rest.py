"""The number of processes is changed of what does not run, or not all of it: said as it is, and nothing gets lost."""

import subprocess
from pathlib import Path

import pytest

from tests.integration.commands import Manager, configuration, fcgimgr, running, words
from tests.integration.ports import free_address
from tests.integration.scenes import are_gone, managing, scene
from tests.waiting import eventually

# Both run at first. What becomes of the second is told by files beside the configuration.
SECOND = """\
case $FCGIMGR_PROCESS in
    *_01) while test ! -e ended; do sleep 0.01; done; exit 3 ;;
    *) exec sleep 1000 ;;
esac
"""

OF_STATE = {
    "STOPPED": "",
    "EXITED": "autorestart = false\n",
    "BACKOFF": "startretries = -1\nbackoff_initial = 600\nbackoff_max = 600\n",
    "FATAL": "startretries = 0\n",
}


def tables(directory: Path, kind: str, state: str, *, numprocs: int = 2, more: str = "") -> str:
    (directory / "second.sh").write_text(SECOND)
    socket = f'socket = "{directory / "s"}"\nready = "startsecs"\n' if kind == "pool" else ""
    # In its second life it ends before it counts as started.
    keys = f'command = "/bin/sh second.sh"\ndirectory = "%(here)s"\nnumprocs = {numprocs}\nstartsecs = 0.2\n'
    return f"[{kind}.app]\n{socket}{keys}{OF_STATE[state]}{more}"


def bring_to_rest(manager: Manager, directory: Path, state: str) -> None:
    """Let the second of two processes come into this state."""
    if state == "STOPPED":
        manager("stop", "app:app_01").succeeds()
    else:
        (directory / "ended").touch()
    eventually(lambda: manager.pool("app").processes[1].state == state)


@pytest.mark.parametrize("kind", ["pool", "program"])
@pytest.mark.parametrize("state", OF_STATE)
def test_the_last_process_goes_in_whatever_state_it_is(state: str, kind: str, tmp_path: Path) -> None:
    with running(tmp_path, tables(tmp_path, kind, state)) as manager:
        bring_to_rest(manager, tmp_path, state)
        said = "stopped" if state == "BACKOFF" else "not running"
        assert manager("scale", "app", "1").succeeds() == f"app:app_01: {said}\n"
        assert [process.state for process in manager.pool("app").processes] == ["RUNNING"]


@pytest.mark.parametrize("state", OF_STATE)
def test_so_it_is_with_an_update_and_nothing_else_in_it_is_done_twice(state: str, tmp_path: Path) -> None:
    added = '\n[program.added]\ncommand = "sleep 1002"\nstartsecs = 0\n'
    with running(tmp_path, tables(tmp_path, "program", state)) as manager:
        bring_to_rest(manager, tmp_path, state)
        configuration(tmp_path, tables(tmp_path, "program", state, numprocs=1, more=added))
        assert manager("update").succeeds() == "app: updated: numprocs changed: scale\nadded: added\n"
        eventually(lambda: manager.pids("added"))
        once = manager.pids("added")
        assert manager("update").succeeds() == "no pool or program has changed\n"
        assert manager.pids("added") == once


def test_more_processes_of_what_is_stopped_come_with_its_start(tmp_path: Path) -> None:
    with running(tmp_path, '[program.app]\ncommand = "sleep 1000"\nstartsecs = 0\n') as manager:
        manager("stop", "app").succeeds()
        said = manager("scale", "app", "3").succeeds()
        assert said == "app: scaled: 3 processes as soon as it is started; it is STOPPED\n"
        assert manager("scale", "app", "3").succeeds() == "app: 3 processes already\n"
        manager("start", "app").succeeds()
        assert len(manager.pids("app")) == 3


def test_more_processes_of_what_is_fatal_are_not_started_and_the_reason_is_said(tmp_path: Path) -> None:
    app = f'[pool.app]\nsocket = "{free_address("tcp", tmp_path)}"\ncommand = "/nowhere/program"\nstartretries = 0\n'
    with running(tmp_path, f'{app}[program.other]\ncommand = "sleep 1000"\nstartsecs = 0\n', ready=False) as manager:
        eventually(lambda: manager.pool("app").state == "FATAL")
        done = manager("scale", "app", "+1")
        said = done.out
        assert done.code == 1
        assert "app:app_01: failed: not started, as app is FATAL: " in said
        assert "/nowhere/program" in said
        assert said.endswith("; mend that, then: fcgimgr start app\n")


def test_tries_that_came_to_nothing_are_counted(tmp_path: Path) -> None:
    bad = '[program.bad]\ncommand = "/nowhere/program"\nstartretries = 3\nbackoff_initial = 0.01\n'
    with running(tmp_path, f'{bad}[program.other]\ncommand = "sleep 1000"\nstartsecs = 0\n', ready=False) as manager:
        eventually(lambda: manager.pool("bad").state == "FATAL")
        assert manager.pool("bad").processes[0].restarts == 3


def test_an_update_goes_on_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    """Who has asked for it hangs up in the midst of it: what was begun must be known to the next one."""
    keys = 'command = "sleep 1000"\nready = "notify"\nready_timeout = 2\nstartretries = 0\n'
    slow = f"[program.slow]\n{keys}numprocs = {{}}\n"
    added = '[program.added]\ncommand = "sleep 1002"\nstartsecs = 0\n'
    config = configuration(tmp_path, slow.format(1) + "autostart = false\n")
    with Manager(config, tmp_path / "fcgimgr.sock", ready=False) as manager:
        manager("start", "--no-wait", "slow").succeeds()
        configuration(tmp_path, slow.format(2) + "autostart = false\n" + added)
        client = subprocess.Popen(words("-c", config, "update"), stderr=subprocess.DEVNULL)
        eventually(lambda: any(pool.name == "added" and pool.state == "RUNNING" for pool in manager.status().pools))
        once = manager.pids("added")
        client.kill()
        client.wait()
        eventually(lambda: "another update" not in fcgimgr("-c", config, "update").err)
        assert manager.pids("added") == once


# -- faults of the manager's own --------------------------------------------------------------------------------------

# Loaded by the manager's Python at its start: a scale breaks the update that it is a part of.
BREAKS = """\
import fcgimgr.manager.commands.waiting as waiting

real = waiting.scale

def scale(daemon, pool, numprocs):
    waiting.scale = real
    {what}

waiting.scale = scale
"""


def breaking(directory: Path, what: str) -> dict[str, str]:
    """The environment of a manager whose next scale does this instead."""
    (directory / "broken").mkdir()
    (directory / "broken" / "sitecustomize.py").write_text(BREAKS.format(what=what))
    return {"PYTHONPATH": str(directory / "broken")}


APP = '[program.app]\ncommand = "sleep 1000"\nstartsecs = 0\nnumprocs = {}\n'
ADDED = '[program.added]\ncommand = "sleep 1002"\nstartsecs = 0\n'


def test_what_an_update_has_done_before_a_fault_broke_it_is_known_and_the_rest_comes_with_the_next(
    tmp_path: Path,
) -> None:
    config = configuration(tmp_path, APP.format(1))
    broken = breaking(tmp_path, 'raise RuntimeError("for the test")')
    with Manager(config, tmp_path / "fcgimgr.sock", environment=broken) as manager:
        configuration(tmp_path, APP.format(2) + ADDED)
        broken_off = manager("update")
        assert broken_off.code == 1
        assert "app: failed: internal error in the manager: RuntimeError('for the test')" in broken_off.out
        eventually(lambda: manager.pids("added"))
        once = manager.pids("added")
        assert manager("update").succeeds() == "app: updated: numprocs changed: scale\n"
        assert len(manager.pids("app")) == 2
        assert manager.pids("added") == once


def test_a_shutdown_ends_within_its_time_also_what_no_pool_knows_of(tmp_path: Path) -> None:
    config = scene(tmp_path, APP.format(1) + ADDED, manager="shutdown_timeout = 1")
    with managing(config, environment=breaking(tmp_path, 'del daemon.pools["added"]; return []')) as manager:
        lost = manager.pids("added")
        manager.scale("app", "2")
        manager.stop()
        assert are_gone(*lost)
