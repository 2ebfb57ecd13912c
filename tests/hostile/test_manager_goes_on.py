"""Whatever a worker does to be looked at for ever, or heard all the time: the manager does its work for others."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fcgimgr.linux import procfs, ptrace
from fcgimgr.manager.logs.reading import MOST_SLOW
from tests import older_kernel
from tests.hostile.stage import ATTACKS_KNOWN, Attack, Stage, staged
from tests.integration.succession import next_one
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(not ptrace.AVAILABLE, reason="system calls can be seen on x86-64 only")

# On a quiet machine both take some milliseconds (python -m tests.hostile); one that hangs does not end at all.
SOON = 2.0

HANGS = [attack for attack in ATTACKS_KNOWN if attack.name in ("exec that waits", "page, polled", "page, sent")]
BUSY = [attack for attack in ATTACKS_KNOWN if attack.name in ("vfork", "descriptors", "notify flood")]


def names(attack: Attack) -> str:
    return attack.name


@pytest.mark.parametrize("attack", HANGS, ids=names)
def test_a_look_that_does_not_end_keeps_nobody_waiting(attack: Attack) -> None:
    with staged(attack) as stage:
        eventually(lambda: stage.ping() and "a look at it does not end" in stage.manager.output())
        assert stage.ping() < SOON
        assert stage.respawn() < SOON
        assert stage.manager.output().count("a look at it does not end") == 1


def test_one_that_executes_while_it_is_looked_at_keeps_nobody_waiting() -> None:
    (attack,) = (attack for attack in ATTACKS_KNOWN if attack.name == "exec race")
    with staged(attack) as stage:
        eventually(lambda: "evil:evil_00: STOPPING" in stage.manager.output())
        for _ in range(10):
            assert stage.ping() < SOON
            assert stage.respawn() < SOON


@pytest.mark.parametrize("attack", BUSY, ids=names)
def test_one_that_is_much_work_to_look_at_or_hear_takes_little_of_the_managers_time(attack: Attack) -> None:
    with staged(attack) as stage:
        if attack.name != "notify flood":
            eventually(lambda: "evil_00: STOPPING" in stage.manager.output())
        begun, used = time.monotonic(), stage.cpu()
        while time.monotonic() < begun + 1.5:
            assert stage.ping() < SOON
            time.sleep(0.02)
        assert (stage.cpu() - used) / (time.monotonic() - begun) < 0.12


def test_what_is_sent_along_with_a_notification_makes_nobody_wait() -> None:
    (attack,) = (attack for attack in ATTACKS_KNOWN if attack.name == "lingering rights")
    with staged(attack) as stage:
        eventually(lambda: stage.manager.pool("evil").processes[0].reason)
        for _ in range(10):
            assert stage.ping() < SOON
        assert stage.respawn() < SOON


@pytest.mark.skipif(not older_kernel.AVAILABLE, reason="system calls have other numbers here")
def test_what_is_sent_along_with_an_answer_makes_nobody_wait() -> None:
    (attack,) = (attack for attack in ATTACKS_KNOWN if attack.name == "lingering answers")
    with staged(attack) as stage:
        eventually(lambda: "a descriptor went with it" in stage.manager.output())
        for _ in range(10):
            assert stage.ping() < SOON
        assert stage.respawn() < SOON


def test_a_worker_that_cannot_be_looked_at_is_ended_when_its_time_is_over() -> None:
    (attack,) = (attack for attack in ATTACKS_KNOWN if attack.name == "exec that waits")
    with staged(attack) as stage:
        pid = stage.evil()[0]
        eventually(lambda: f"as it had not stopped pid={pid}" in stage.manager.output())
        eventually(lambda: not os.path.exists(f"/proc/{pid}"))


def test_what_a_worker_leaves_that_shows_nothing_of_its_memory_keeps_nobody_waiting() -> None:
    (attack,) = (attack for attack in ATTACKS_KNOWN if attack.name == "memory, locked")
    with staged(attack) as stage:
        eventually(lambda: "evil:evil_00: EXITED" in stage.manager.output())
        assert stage.ping() < SOON
        assert stage.respawn() < SOON
        eventually(lambda: "a look at it does not end" in stage.manager.output())
        assert stage.ping() < SOON
        # Whose it is cannot be seen; and no end of the manager waits for it.
        os.kill(stage.manager.pid, signal.SIGTERM)
        stage.manager.wait(10)


def printed(keys: str = "") -> Attack:
    (attack,) = (attack for attack in ATTACKS_KNOWN if attack.name == "page, printed")
    return replace(attack, keys=f"{attack.keys}\n{keys}")


def have_them_print(stage: Stage) -> list[int]:
    """Have all of them print what does not come, behind a line that can be read; their pids."""
    pids = stage.evil()
    os.kill(stage.manager.pid, signal.SIGSTOP)
    try:
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
            eventually(lambda pid=pid: (1, 1) in (procfs.system_calls(pid) or ()))
    finally:
        os.kill(stage.manager.pid, signal.SIGCONT)
    return pids


def test_one_that_prints_what_cannot_be_read_keeps_nobody_waiting_and_loses_no_line() -> None:
    """It has the lock of its pipe until the page comes; SIGKILL does not change that."""
    with staged(printed()) as stage:
        [pid] = have_them_print(stage)
        eventually(lambda: "its output cannot be read" in stage.manager.output())
        for _ in range(5):
            assert stage.ping() < SOON
            assert stage.respawn() < SOON
        assert stage.fuse is not None
        stage.fuse.end()
        eventually(lambda: {"evil:evil_00| before", "evil:evil_00| after"} <= set(stage.manager.output().splitlines()))
        assert stage.evil() == [pid]
        os.kill(pid, signal.SIGKILL)
        # Its successor has no such memory any more, and does not stay.
        eventually(lambda: stage.manager.output().count("evil:evil_00: spawned") > 1)
        assert stage.manager.output().count("its output cannot be read") == 1


def test_many_of_them_take_their_own_users_output_with_them_and_no_others() -> None:
    with staged(printed("numprocs = 12")) as stage:
        have_them_print(stage)
        eventually(lambda: "no other output of this user" in stage.manager.output())
        assert stage.ping() < SOON
        assert readers(stage) <= MOST_SLOW + 2
        assert stage.respawn() < SOON


def test_no_stop_and_no_end_of_the_manager_waits_for_such_a_pipe() -> None:
    with staged(printed()) as stage:
        [pid] = have_them_print(stage)
        eventually(lambda: "its output cannot be read" in stage.manager.output())
        assert not stage.manager.halt("evil").ok
        assert stage.manager.start("evil").ok
        os.kill(stage.manager.pid, signal.SIGTERM)
        assert stage.manager.wait() == 1
        assert f"left behind: pid {pid} (state " in stage.manager.output()


def test_such_a_pipe_is_taken_over_by_no_manager_that_waits_for_it() -> None:
    with staged(printed()) as stage:
        have_them_print(stage)
        eventually(lambda: "its output cannot be read" in stage.manager.output())
        pids = stage.manager.pids("good")
        stage.manager.kill()
        assert stage.fuse is not None
        with next_one(stage.manager) as second:
            assert second.pids("good") == pids
            assert "its stdout cannot be read on: a write to it does not end" in second.output()
            stage.fuse.end()


def readers(stage: Stage) -> int:
    children = Path(f"/proc/{stage.manager.pid}/task/{stage.manager.pid}/children").read_text().split()
    return sum(Path(f"/proc/{child}/comm").read_text() == "fcgimgr-reader\n" for child in children)
