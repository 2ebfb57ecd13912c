"""Processes that SIGKILL has not ended: nobody waits for them, and nobody forgets them.

The kernel keeps a process that is in uninterruptible sleep (a file system that does not answer), and the end of one
that another traces is shown to that one alone (ptrace(2)). Neither runs code of its own any more. So what waited for
such a process goes on, and is told which one is left, its state, and who traces it. `status` shows it for as long as it
is there, and a manager that ends before it says so with its exit code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from fcgimgr.core.process import ABANDONED_AFTER
from fcgimgr.linux import procfs

if TYPE_CHECKING:
    from fcgimgr.manager.journal import Journal

_STATES: Final = {
    "D": "in uninterruptible sleep: a file system that does not answer?",
    "T": "stopped",
    "t": "stopped by its tracer",
    "X": "dead",
    "Z": "dead, but not to be reaped yet",
}


class Left(msgspec.Struct, frozen=True):
    """One that is left. `process`: of which it is, as app:app_00; `leader`: that one's pid, often its own."""

    process: str
    leader: int
    pid: int
    born: int | None

    @property
    def is_there(self) -> bool:
        return self.born is not None and procfs.start_time(self.pid) == self.born

    def __str__(self) -> str:
        letter = procfs.state(self.pid)
        facts = [f"state {letter}, {_STATES[letter]}" if letter in _STATES else f"state {letter}"]
        if tracer := procfs.tracer(self.pid):
            facts.append(f"traced by pid {tracer} ({procfs.command(tracer) or 'gone'})")
        return f"pid {self.pid} ({'; '.join(facts)})"


class Abandoned:
    """All of them; those that have ended since are left out whenever somebody asks."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._left: list[Left] = []

    def __iter__(self) -> Iterator[Left]:
        self._left = [one for one in self._left if one.is_there]
        return iter(tuple(self._left))

    def add(self, process: str, leader: int, pids: Iterable[int]) -> None:
        """Nobody waits for these any more, which are the process or what it has left."""
        if words := in_words(one for one in self.note(process, leader, pids) if one.is_there):
            self._journal.error(f"given up: still there {ABANDONED_AFTER:g} s after SIGKILL: {words}", name=process)

    def note(self, process: str, leader: int, pids: Iterable[int]) -> list[Left]:
        """The same without a word: those that were not known."""
        known = {(one.pid, one.born) for one in self._left}
        found = [Left(process, leader, pid, procfs.start_time(pid)) for pid in dict.fromkeys(pids)]
        new = [one for one in found if (one.pid, one.born) not in known]
        self._left += new
        return new

    def add_leftovers(self, mark: Sequence[str], leader: int, pids: Iterable[int]) -> None:
        """mark: the names of the pool, first, and of the process, last."""
        self.add(f"{mark[0]}:{mark[-1]}", leader, pids)

    def reaped(self, pid: int) -> bool:
        """A child has been reaped that nobody knows: whether it was one of these."""
        process = next((one.process for one in self if one.pid == pid), None)
        if process is not None:
            self._journal.info("what was given up has ended", name=process, pid=pid)
        return process is not None

    def of(self, leader: int | None) -> str | None:
        """What is left, in words, of the process that had this pid; None: nothing."""
        return in_words(one for one in self if one.leader == leader) or None


def in_words(left: Iterable[Left]) -> str:
    return ", ".join(map(str, left))
