"""How long a killed worker is missing: from just before kill(2) to the first sight of its replacement.

Four workers, of which the oldest is killed each time, when it is older than startsecs: so no back-off is owed. The
managers take turns, a kill each. Their children are read from /proc every 0.1 ms, so the figure is up to 0.15 ms too
high. Not without a pause: the kernel would often wake the manager on the processor that we occupy, where it waits for
the end of our time slice. Measured so, on two processors, every other respawn of every manager takes 3 ms more.
"""

import os
import signal
from contextlib import ExitStack
from time import monotonic, sleep

from bench.figure import Figure, Setting, say
from bench.peers import SETTLED, STARTSECS, Fleet, Running, running
from bench.proc import children, wait_until
from bench.programs import PAUSE

WORKERS = 4
OLD_ENOUGH = STARTSECS + 0.3  # seconds
LOOK_EVERY = 0.0001


def measure(setting: Setting) -> list[Figure]:
    figure = Figure("a killed worker is replaced in", "ms", budget=3.0)
    fleet = Fleet(WORKERS, setting.build(PAUSE, "pause"))
    with ExitStack() as stack:
        managers = [
            stack.enter_context(running(peer, setting.place("respawn", peer.name), fleet)) for peer in setting.peers
        ]
        for manager in managers:
            manager.wait_for_children(WORKERS)
        born = {(manager, pid): monotonic() for manager in managers for pid in children(manager.pid)}
        sleep(SETTLED)
        kills = setting.times(40, 8)
        for turn in range(kills):
            if turn % 10 == 0:
                say(f"respawn: kill {turn} of {kills}")
            for manager in managers:
                figure.add(manager.peer.name, kill_one(manager, born) * 1000)
    return [figure]


def kill_one(manager: Running, born: dict[tuple[Running, int], float]) -> float:
    """Kill its oldest worker; seconds until there is another one."""
    before = children(manager.pid)
    oldest = min(before, key=lambda pid: born[manager, pid])
    sleep(max(0.0, born[manager, oldest] + OLD_ENOUGH - monotonic()))
    begun = monotonic()
    os.kill(oldest, signal.SIGKILL)
    seen = wait_until(
        lambda: not children(manager.pid) <= before, 30, LOOK_EVERY, f"a replacement by {manager.peer.name}"
    )
    for pid in children(manager.pid) - before:
        born[manager, pid] = seen
    # Also the dead one must be reaped before the next turn, or it could be taken for a worker.
    wait_until(lambda: oldest not in children(manager.pid), 30, 0.001, f"{oldest} reaped by {manager.peer.name}")
    return seen - begun
