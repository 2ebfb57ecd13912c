"""Whatever a worker does to be looked at for ever, or heard all the time: the manager does its work for others."""

import os
import time

import pytest

from fcgimgr.linux import ptrace
from tests import older_kernel
from tests.hostile.stage import ATTACKS_KNOWN, Attack, staged
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
