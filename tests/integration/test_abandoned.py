"""What SIGKILL does not end is given up after a while, and said; no command and no shutdown waits for it any longer."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from fcgimgr.linux import procfs
from tests.integration.commands import Manager, configuration, running, words
from tests.integration.scenes import Child, is_alive, kill
from tests.rights import as_root
from tests.silence import silence
from tests.tracing import traced
from tests.waiting import eventually

TRACED_BY_ITS_OWN = """
import ctypes, os, signal, time
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER_ANY
traced = os.getpid()
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    libc.ptrace(0x4206, traced, None, None)  # PTRACE_SEIZE
time.sleep(1000)
"""

ORPHAN = """
import os
if os.fork():
    os._exit(0)
os.setsid()
os.execve("/bin/sleep", ["sleep", "1000"], {})
"""

LEAVES_AN_ORPHAN = """
[program.leaves]
command = ["sh", "-c", "{python} -S orphan.py; exec sleep 1000"]
directory = "%(here)s"
startsecs = 0
stopwaitsecs = 0.1
"""

PROGRAM = """
[program.{name}]
command = "sleep 1000"
numprocs = {numprocs}
startsecs = 0
stopwaitsecs = {stopwaitsecs}
"""

# Its child outlives it in its own process group, and heeds no signal but SIGKILL.
LEAVES = """
[program.leaves]
command = ["sh", "-c", '''
    sh -c 'trap "" TERM; echo $$ > left.new; mv left.new left; while :; do sleep 1000; done' & exec sleep 1000
''']
directory = "%(here)s"
startsecs = 0
stopwaitsecs = 0.1
"""


def test_each_command_ends_and_names_what_is_left_its_state_and_who_traces_it(tmp_path: Path) -> None:
    """Those that are to be followed by another are: they run nothing more."""
    names = ("stop", "restart", "scale", "update")
    tables = [PROGRAM.format(name=name, numprocs=2 if name == "scale" else 1, stopwaitsecs=0.1) for name in names]
    text = "".join(tables) + LEAVES
    config = configuration(tmp_path, text)
    with Manager(config, tmp_path / "fcgimgr.sock") as manager:
        pids = {name: manager.pids(name)[-1] for name in names}
        left = eventually(lambda: int((tmp_path / "left").read_text()))
        with traced(*pids.values(), left) as tracer:
            orders = [("stop", "stop"), ("restart", "restart"), ("scale", "scale", "1"), ("stop", "leaves")]
            configuration(tmp_path, text.replace("[program.update]", "[program.changed]"))
            orders.append(("update",))
            line = [words("-c", config, *order) for order in orders]
            asked = [
                subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for each in line
            ]
            said = [each.communicate(timeout=30)[0] for each in asked]
            assert [each.returncode for each in asked] == [1] * len(asked), said
            for answer, pid in zip(said, (*list(pids.values())[:3], left, pids["update"]), strict=True):
                words_for = f"pid {pid} (state Z, dead, but not to be reaped yet; traced by pid {tracer} (python"
                assert words_for in answer, answer
            assert manager.pids("restart") not in ([], [pids["restart"]])
            assert manager.pids("changed")
            shown = {pool.name: [one.pid for one in pool.abandoned] for pool in manager.status().pools}
            assert shown["stop"] == [pids["stop"]]
            assert shown["leaves"] == [left]
            assert f"could not be killed: stop_00, pid {pids['stop']} (state Z" in manager("status").out
            # It can be started as if nothing had been.
            assert manager.start("stop").ok
        eventually(lambda: not any(pool.abandoned for pool in manager.status().pools))
        assert f"stop:stop_00: what was given up has ended pid={pids['stop']}" in manager.output()


@as_root
def test_so_it_is_with_one_that_sleeps_uninterruptibly(tmp_path: Path) -> None:
    program = PROGRAM.format(name="app", numprocs=1, stopwaitsecs=0.1).replace("sleep 1000", f"cat {tmp_path}/silent/x")
    manager = running(tmp_path, program)
    try:
        with silence(tmp_path / "silent") as waits:
            manager.begin()
            eventually(manager.is_up)
            assert waits.wait(10)
            [pid] = manager.pids("app")
            left = f"pid {pid} (state D, in uninterruptible sleep: a file system that does not answer?)"
            assert left in manager("stop", "app").out
            os.kill(manager.pid, signal.SIGTERM)
            assert manager.wait() == 1
            assert f"left behind: {left}" in manager.output()
    finally:
        manager.end_by_force()


@pytest.mark.parametrize("how", ["timeout", "now", "twice"])
def test_a_shutdown_ends_with_exit_code_1_and_says_what_it_leaves(how: str, tmp_path: Path) -> None:
    timeout = 1 if how == "timeout" else 60
    text = f"shutdown_timeout = {timeout}\n" + PROGRAM.format(name="app", numprocs=1, stopwaitsecs=60)
    manager = running(tmp_path, text)
    manager.begin()
    try:
        eventually(manager.is_up)
        [pid] = manager.pids("app")
        os.kill(pid, signal.SIGSTOP)  # so that it heeds no SIGTERM
        with traced(pid) as tracer:
            done = None
            if how == "twice":
                os.kill(manager.pid, signal.SIGTERM)
                eventually(lambda: "STOPPING" in str(manager.status().manager.state))
                os.kill(manager.pid, signal.SIGTERM)
            else:
                done = manager("shutdown", *(["--now"] if how == "now" else []))
            assert manager.wait() == 1
            assert seconds_between(manager, "stopping: ", "ended code=1") < (1 if how == "timeout" else 0) + 6
            words = f"pid {pid} (state Z, dead, but not to be reaped yet; traced by pid {tracer} (python"
            assert f"left behind: {words}" in manager.output()
            assert done is None or words in done.fails(1)
    finally:
        manager.end_by_force()


def seconds_between(manager: Manager, first: str, last: str) -> float:
    """By the log of the manager itself: how long a command takes to begin says how busy the machine is."""
    lines = manager.output().splitlines()
    begun, ended = (
        next(datetime.fromisoformat(line.split()[0]) for line in lines if word in line) for word in (first, last)
    )
    return (ended - begun).total_seconds()


def test_what_a_process_that_died_has_left_does_not_hold_up_an_upgrade_for_ever(tmp_path: Path) -> None:
    with running(tmp_path, LEAVES) as manager:
        [pid] = manager.pids("leaves")
        left = eventually(lambda: int((tmp_path / "left").read_text()))
        with traced(left):
            kill(pid)
            eventually(lambda: manager.pids("leaves") not in ([], [pid]))
            eventually(lambda: Child(left).stat[0] == "Z")
            assert "what dead processes have left" in manager("upgrade").err
            eventually(lambda: f"still there 5 s after SIGKILL: pid {left}" in manager.output())
            manager("upgrade").succeeds()
        assert not is_alive(left)


def test_it_is_known_to_newer_code_and_to_the_next_manager_as_well(tmp_path: Path) -> None:
    config = configuration(tmp_path, PROGRAM.format(name="app", numprocs=1, stopwaitsecs=0.1))
    manager = Manager(config, tmp_path / "fcgimgr.sock")
    following = Manager(config, tmp_path / "fcgimgr.sock", mark=manager.mark, ready=False)
    manager.begin()
    try:
        eventually(manager.is_up)
        [pid] = manager.pids("app")
        with traced(pid) as tracer:
            assert not manager.halt("app").ok
            shown = manager.status().pools[0].abandoned
            assert [(one.process, one.pid) for one in shown] == [("app_00", pid)]
            manager("upgrade").succeeds()
            eventually(lambda: manager.status().pools[0].abandoned == shown)
            manager.kill()
            following.begin()
            eventually(following.is_up)
            eventually(lambda: following.status().pools[0].abandoned == shown)
            os.kill(following.pid, signal.SIGTERM)
            assert following.wait() == 1
            words = f"pid {pid} (state Z, dead, but not to be reaped yet; traced by pid {tracer} (python"
            assert f"left behind: {words}" in following.output()
    finally:
        manager.end_by_force()


def test_one_that_is_dead_for_its_tracer_alone_does_not_hold_up_the_stop_of_others(tmp_path: Path) -> None:
    """It has come to the manager as an orphan, and bears no mark."""
    (tmp_path / "orphan.py").write_text(ORPHAN)
    text = PROGRAM.format(name="app", numprocs=1, stopwaitsecs=30) + LEAVES_AN_ORPHAN.format(python=sys.executable)
    with running(tmp_path, text) as manager:
        pids = (*manager.pids("leaves"), *manager.pids("app"))
        left = eventually(lambda: next(orphans(manager.pid, but=pids), None)) or 0
        with traced(left):
            kill(left)
            eventually(lambda: Child(left).stat[0] == "Z")
            begun = time.monotonic()
            assert manager.restart("app").ok
            assert time.monotonic() - begun < 10


def orphans(manager: int, but: Sequence[int]) -> Iterator[int]:
    for pid in map(int, Path(f"/proc/{manager}/task/{manager}/children").read_text().split()):
        if pid not in but and procfs.command(pid) == "sleep":
            yield pid


@pytest.mark.parametrize("killasgroup", ["true", "false"])
def test_one_that_dies_while_another_traces_it_is_replaced(killasgroup: str, tmp_path: Path) -> None:
    """Its parent is told nothing of its death, and its tracer lets nobody reap it."""
    program = PROGRAM.format(name="app", numprocs=1, stopwaitsecs=10) + f"killasgroup = {killasgroup}\n"
    with running(tmp_path, program) as manager:
        [pid] = manager.pids("app")
        with traced(pid) as tracer:
            kill(pid)
            eventually(lambda: manager.pids("app") not in ([], [pid]))
            assert f"app:app_00: dead, but pid {tracer} (python" in manager.output()
            assert "app:app_00: killed by SIGKILL after" in manager.output()
            assert [one.pid for one in manager.status().pools[0].abandoned] == [pid]
            pids = manager.pids("app")
        eventually(lambda: not manager.status().pools[0].abandoned)
        assert manager.pids("app") == pids
        assert manager.output().count("killed by SIGKILL") == 1


@as_root
def test_a_worker_cannot_hide_its_death_by_having_itself_traced(tmp_path: Path) -> None:
    """As `nobody`: a process beside it traces it and never waits for it."""
    program = f"""
        [program.app]
        command = ["{sys.executable}", "-S", "-E", "-c", '''{TRACED_BY_ITS_OWN}''']
        user = "nobody"
        directory = "/"
        startsecs = 0
        stopwaitsecs = 0.1
    """
    with running(tmp_path, program) as manager:
        [pid] = manager.pids("app")
        eventually(lambda: procfs.tracer(pid))
        kill(pid)
        eventually(lambda: manager.pids("app") not in ([], [pid]))
        assert "traces it and does not let go of it" in manager.output()
