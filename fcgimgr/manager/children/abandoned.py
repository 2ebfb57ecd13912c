"""Processes that SIGKILL has not ended: nobody waits for them, and nobody forgets them.

The kernel keeps a process that is in uninterruptible sleep (a file system that does not answer), and the end of one
that another traces is shown to that one alone (ptrace(2)). Neither runs code of its own any more. So what waited for
such a process goes on, and is told which one is left, its state, and who traces it. `status` shows it for as long as it
is there, and a manager that ends before it says so with its exit code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from fcgimgr.core.process import ABANDONED_AFTER
from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.glance import NoGlanceError, glance
from fcgimgr.linux.pidfd import PidFd

if TYPE_CHECKING:
    from fcgimgr.manager.logs.journal import Journal

_STATES: Final = {
    "D": "in uninterruptible sleep: a file system that does not answer?",
    "T": "stopped",
    "t": "stopped by its tracer",
    "X": "dead",
    "Z": "dead, but not to be reaped yet",
}


class AbandonedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One that SIGKILL has not ended, written down. `leader`: the pid of the process that it is, or was, of."""

    process: str
    leader: int
    pid: int
    born: int | None = None
    identity: int | None = None


class Left:
    """One that is left. `process`: of which it is, as app:app_00; `leader`: that one's pid, often its own; `held` is
    open while it is there; `born`: its start time in ticks, if it has no identity."""

    def __init__(self, process: str, leader: int, held: PidFd, born: int | None) -> None:
        self.process = process
        self.leader = leader
        self.held = held
        self._born = born

    @property
    def pid(self) -> int:
        return self.held.pid

    @property
    def is_there(self) -> bool:
        return self.held.is_there

    @property
    def record(self) -> AbandonedRecord:
        """As it is told to a manager after us."""
        return AbandonedRecord(
            process=self.process, leader=self.leader, pid=self.pid, born=self._born, identity=self.held.identity
        )

    def __str__(self) -> str:
        letter = procfs.state(self.pid)
        facts = [f"state {letter}, {_STATES[letter]}" if letter in _STATES else f"state {letter}"]
        if tracer := procfs.tracer(self.pid):
            facts.append(f"traced by pid {tracer} ({procfs.command(tracer) or 'gone'})")
        return f"pid {self.pid} ({'; '.join(facts)})"


class Abandoned:
    """All of them; those that have ended since are left out whenever somebody asks. changed: is told when there are
    more."""

    def __init__(self, journal: Journal, changed: Callable[[], None]) -> None:
        self._journal = journal
        self._changed = changed
        self._left: list[Left] = []

    def __iter__(self) -> Iterator[Left]:
        for one in tuple(self._left):
            if not one.is_there:
                self._left.remove(one)
                one.held.close()
        return iter(tuple(self._left))

    def __contains__(self, pid: object) -> bool:
        return any(one.pid == pid for one in self)

    def add(self, process: str, leader: int, pids: Iterable[int]) -> None:
        """Nobody waits for these any more, which are the process or what it has left."""
        if words := in_words(self.note(process, leader, pids)):
            self._journal.error(f"given up: still there {ABANDONED_AFTER:g} s after SIGKILL: {words}", name=process)

    def note(self, process: str, leader: int, pids: Iterable[int]) -> list[Left]:
        """The same without a word: those that were not known."""
        known = {one.pid for one in self}
        new: list[PidFd] = []
        for pid in dict.fromkeys(pids):
            if pid not in known:
                with suppress(LinuxError):  # it has gone
                    new.append(PidFd(pid))
        if not new:
            return []
        left = [Left(process, leader, held, born_of(held)) for held in new]
        self._left += left
        self._changed()
        return left

    @property
    def records(self) -> tuple[AbandonedRecord, ...]:
        """As they are told to a manager after us."""
        return tuple(one.record for one in self)

    def take_over(self, records: Iterable[AbandonedRecord]) -> None:
        """Go on with those that a manager before us has abandoned in this boot, and that are there still."""
        for record in records:
            try:
                held = PidFd(record.pid)
            except LinuxError:
                continue
            if held.was_known_as(record.born, record.identity):
                self._left.append(Left(record.process, record.leader, held, record.born))
            else:
                held.close()

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


def born_of(held: PidFd) -> int | None:
    """The start time of what may be in the midst of an exec for ever, where nothing else tells who it is."""
    if held.identity is None:
        with suppress(NoGlanceError):
            return int(glance(lambda at: procfs.start_time(held.pid)) or 0) or None
    return None


def in_words(left: Iterable[Left]) -> str:
    return ", ".join(map(str, left))
