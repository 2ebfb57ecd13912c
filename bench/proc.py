"""What the kernel says of a manager and its children, read the same way for every one of them."""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

_PR_SET_TIMERSLACK: Final = 29


class Memory(NamedTuple):
    """Bytes. `pss` counts a page that n processes share as 1/n: what the manager costs where its children share it."""

    rss: int
    pss: int


def precise_sleeps() -> None:
    """Let our own sleeps end within a microsecond of what was asked instead of 50 (PR_SET_TIMERSLACK, prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)


def children(pid: int) -> set[int]:
    """The living and unreaped children of a process; empty when it is gone itself."""
    try:
        # One thread has them all: none of the managers forks from another.
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()))
    except OSError:
        return set()


def descendants(pid: int) -> list[int]:
    """Of a process, each after its parent."""
    found: list[int] = []
    for child in sorted(children(pid)):
        found += [child, *descendants(child)]
    return found


def end_descendants() -> None:
    """Kill all of our own. Stopped first, managers before their workers, so that none starts another one meanwhile."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in descendants(os.getpid()):
            kill_quietly(pid, number)


def wait_until(reached: Callable[[], bool], within: float, every: float, what: str) -> float:
    """Look every `every` seconds; the monotonic time at which it was so. RuntimeError after `within` seconds."""
    deadline = time.monotonic() + within
    while not reached():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {within:g} s")
        if every:
            time.sleep(every)
    return time.monotonic()


def memory(pid: int) -> Memory:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return Memory(*(int(fields[name].split()[0]) * 1024 for name in ("Rss", "Pss")))


def sleeps(pid: int) -> int:
    """How often its threads went to sleep of their own accord since they began: each is a wake-up later."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


def kill_quietly(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # gone already, which is what was wanted
