"""A worker that executes another program and never gets done with it: who reads certain files of it waits for ever."""

import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from tests.hostile.stage import ATTACKS_KNOWN, Stage, staged
from tests.integration.scenes import NOBODY
from tests.integration.succession import next_one
from tests.waiting import eventually

# On a quiet machine an answer takes some milliseconds; one that waits for such a process does not come at all.
SOON = 2.0

ITSELF, CHILD = (attack for attack in ATTACKS_KNOWN if attack.closed)


def executing(stage: Stage) -> int:
    """The pid of the one that does, when it is at it."""
    told = eventually(lambda: re.search(r"executes (\d+)", stage.manager.output()))
    pid = int(told[1])
    eventually(lambda: keeps_waiting(pid))
    return pid


def keeps_waiting(pid: int) -> bool:
    """Whether who asks for its environment gets no answer."""
    try:
        subprocess.run(["cat", f"/proc/{pid}/environ"], stdout=subprocess.DEVNULL, timeout=0.2)
    except subprocess.TimeoutExpired:
        return True
    return False


def is_well(stage: Stage) -> None:
    for _ in range(2):
        assert stage.ping() < SOON
    assert stage.respawn() < SOON


def test_no_stop_of_it_keeps_anybody_waiting() -> None:
    with staged(ITSELF) as stage:
        pid = executing(stage)
        assert stage.ping() < SOON
        begun = time.monotonic()
        (shown,) = stage.manager.status(detail=True).pools[0].processes
        assert (shown.pid, shown.busy) == (pid, None), "unknown"
        assert time.monotonic() - begun < SOON + 1
        is_well(stage)
        with ThreadPoolExecutor() as commands:
            stop = commands.submit(stage.manager.halt, "evil")
            for said in ("evil_00: STOPPING", "as it had not stopped", "given up: still there 5 s after SIGKILL"):
                eventually(lambda said=said: said in stage.manager.output())
                is_well(stage)
            assert not stop.result().ok


def test_what_a_worker_has_left_keeps_nobody_waiting_that_does_so() -> None:
    with staged(CHILD) as stage:
        executing(stage)
        eventually(lambda: "evil_00: EXITED" in stage.manager.output())
        is_well(stage)
        eventually(lambda: "a look at it does not end" in stage.manager.output())
        is_well(stage)


def test_no_next_manager_waits_for_it() -> None:
    """It may be a worker that it takes over, or anybody on this machine."""
    with staged(ITSELF) as stage:
        pid = executing(stage)
        assert stage.fuse is not None
        program = str(stage.fuse.file.parent.parent / "exec_that_closes")
        stranger = subprocess.Popen(
            [program, str(stage.fuse.file), "itself"], user=NOBODY, group=NOBODY, extra_groups=[]
        )
        try:
            eventually(lambda: keeps_waiting(stranger.pid))
            before = stage.manager.pids("good")
            stage.manager.kill()
            following = next_one(stage.manager, ready=False)
            begun = time.monotonic()
            following.begin()
            try:
                eventually(following.is_up)
                assert time.monotonic() - begun < SOON + 3
                eventually(lambda: following.pids("good") == before)
                os.kill(before[0], signal.SIGKILL)
                eventually(lambda: len(set(following.pids("good")) - set(before)) == 1)
                assert Stage(following).ping() < SOON
                assert (
                    f"ending processes of an earlier manager that its state does not tell of: pid {pid}"
                    not in following.output()
                )
            finally:
                stage.fuse.end()
                following.end_by_force()
        finally:
            stage.fuse.end()
            stranger.kill()
            stranger.wait()
