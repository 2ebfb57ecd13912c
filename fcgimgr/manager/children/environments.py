"""What stands in the environment of a process that is not ours, as a helper sees it (ground/helping.py): whose it is.

/proc/PID/environ is read from the memory of the process, which can have whoever reads it wait for as long as it likes
(userfaultfd(2), a lock of its memory that it holds). So it is asked for, and known later. Whose a process is is known
once and for all; that it is nobody's only for a while, for one that is about to execute its program shows nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fcgimgr.linux import procfs
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.glance import NoGlanceError, glance
from fcgimgr.linux.pidfd import which
from fcgimgr.manager.ground.helpers import StuckError
from fcgimgr.manager.ground.helping import Ground, Tell

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon

#: Of which process a descendant is: FCGIMGR_POOL, FCGIMGR_GENERATION, FCGIMGR_PROCESS.
Mark = tuple[str, str, str]
#: Seconds until it is tried again to have a helper.
AGAIN: Final = 0.5
#: Seconds for which it is believed that a process bears no mark.
FRESH: Final = 0.5


class Known(NamedTuple):
    """What is known of a process. mark: None, it has none, or may not be looked at. notify: its NOTIFY_SOCKET."""

    mark: Mark | None = None
    notify: str = ""


class Here:
    """The same read here and now: where that may block us."""

    def of(self, pid: int) -> Known | None:
        return Known(*look_at(pid)[1:])

    def learn(self, pids: Iterable[int], then: Callable[[], None]) -> None:
        """All is known."""


class Looking:
    """What a helper does for it: answers [pid, which process, mark, notify socket] of each that was asked for."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def answer(self, request: Any, tell: Tell) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        for pid in request:
            self._ground.at(pid)
            found.append((pid, *look_at(pid)))
        return found

    def end(self) -> None:
        """There is nothing to be left behind."""


class Environments:
    """What is known of all that were asked about."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._known: dict[int, tuple[int | None, float, Known]] = {}  # by pid: which process, when it was learned
        self._wanted: dict[int, None] = {}
        self._then: dict[Callable[[], None], None] = {}
        self._learning = False

    def of(self, pid: int) -> Known | None:
        """None: it has to be learned."""
        if pid not in self._known:
            return None
        process, learned, known = self._known[pid]
        if known.mark is None and self._daemon.loop.time() > learned + FRESH:
            return None
        return known if which(pid) == process else None

    def learn(self, pids: Iterable[int], then: Callable[[], None]) -> None:
        """Get to know these, and call `then`, once for all that wait for it; also for who cannot be looked at."""
        self._wanted.update(dict.fromkeys(pids))
        self._then[then] = None
        if not self._learning:
            self._learning = True
            self._daemon.in_background(self._learn())

    async def learned(self, pids: Iterable[int]) -> None:
        """Wait until these are known."""
        known = self._daemon.loop.create_future()

        def then() -> None:
            if not known.done():
                known.set_result(None)

        self.learn(pids, then)
        await known

    async def _learn(self) -> None:
        job = self._daemon.helpers.job("environments")
        try:
            while self._wanted:
                given_up = self._daemon.helpers.given_up
                for pid in self._wanted.keys() & set(given_up):
                    self._note(pid, which(pid), Known())
                try:
                    found = await job.ask(list(self._wanted), lambda told: None) if self._wanted else []
                except StuckError:
                    continue
                except LinuxError:
                    await asyncio.sleep(AGAIN)
                    continue
                for pid, process, mark, notify in found:
                    self._note(pid, process, Known(mark, notify))
        finally:
            job.drop()
            self._learning = False
            self._forget_dead()
            then, self._then = self._then, {}
            for call in then:
                call()

    def _note(self, pid: int, process: int | None, known: Known) -> None:
        self._known[pid] = process, self._daemon.loop.time(), known
        self._wanted.pop(pid, None)

    def _forget_dead(self) -> None:
        living = set(procfs.pids())
        self._known = {pid: known for pid, known in self._known.items() if pid in living}


def look_at(pid: int) -> tuple[int | None, Mark | None, str]:
    """Which process it is, its mark, its notify socket. May block."""
    process, environment = which(pid), procfs.environment_of(pid) or {}
    mark = None
    if "FCGIMGR_PROCESS" in environment:
        mark = (
            environment.get("FCGIMGR_POOL", ""),
            environment.get("FCGIMGR_GENERATION", ""),
            environment["FCGIMGR_PROCESS"],
        )
    return process, mark, environment.get("NOTIFY_SOCKET", "")


def marked(pids: Iterable[int], patience: float) -> list[int]:
    """Those of these that bear a mark, for where there is no loop any more. Begins no other look after so many seconds;
    who does not let itself be looked at bears none."""
    found: list[int] = []
    left = sorted(pids)
    until = time.monotonic() + patience
    while left and time.monotonic() < until:
        try:
            found += glance(partial(_marked_of, left))
            break
        except NoGlanceError as error:
            if error.at not in left:
                break
            stuck = left.index(error.at)
        with suppress(NoGlanceError):  # those before it could be looked at
            found += glance(partial(_marked_of, left[:stuck]))
        left = left[stuck + 1 :]
    return found


def _marked_of(pids: Iterable[int], at: Callable[[int], None]) -> list[int]:
    found = []
    for pid in pids:
        at(pid)
        if look_at(pid)[1] is not None:
            found.append(pid)
    return found
