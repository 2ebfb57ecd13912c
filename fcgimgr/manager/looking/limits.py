"""What a process may use: its memory (max_rss) and the time for one request (request_timeout).

There is no event for either, so they are looked at, by one timer that runs only while there is a process with such a
limit. Memory is looked at every RSS_INTERVAL seconds; requests, on the scoreboard, when the oldest of them would be
overdue, and where none is in hand, when one that began right now would be. The timer stands at the earliest of these
moments, of all pools: a process that comes up can only bring it forward.

A process that is being recycled is waited for as long as its requests take, so they are looked at there, too.

A request that takes too long is told with its traceback: the worker writes that to its standard error when it gets
TRACEBACK_SIGNAL, in C, so also where the interpreter is stuck in an extension. Then core ends the process.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from fcgimgr.config.settings import PoolSettings
from fcgimgr.core.generation import Overdue, Recycle
from fcgimgr.core.process import Running, Stopping
from fcgimgr.fastcgi.scoreboard import TRACEBACK_SIGNAL, Request
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.procfs import rss

if TYPE_CHECKING:
    from fcgimgr.manager.daemon import Daemon
    from fcgimgr.manager.pools.generation import Generation

#: Seconds between two looks at the memory of a process.
RSS_INTERVAL: Final = 5.0
#: With many requests in hand one is due at any moment; they are looked at this often within a request_timeout at most.
LOOKS: Final = 20
#: Seconds that a worker has to write its traceback before it is told to end.
TRACEBACK_TIME: Final = 0.2


class Limits:
    """Looks at the processes whose settings limit them, as long as there are any."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._timer: asyncio.TimerHandle | None = None
        self._rss_at = 0.0
        self._overdue: dict[int, asyncio.TimerHandle] = {}  # by pid: those that are about to be told to end

    def process_changed(self, generation: Generation, index: int) -> None:
        """A process of this generation went into another state."""
        if not has_limits(generation) or index >= len(generation.core.processes):
            return
        state = generation.core.processes[index]
        if isinstance(state, Running):
            now = self._daemon.loop.time()
            due = [self._request_due(generation, index, state.pid, now)]
            if generation.settings.max_rss is not None:
                due.append(self._memory_due(now))
            self._look_at(due)

    def look_soon(self) -> None:
        """Settings, or what there is to look at, may be others from now on."""
        self._look_at([self._daemon.loop.time()])

    def _look_at(self, due: list[float | None]) -> None:
        """Look no later than at the first of these moments."""
        first = min((at for at in due if at is not None), default=None)
        if first is None or (self._timer is not None and self._timer.when() <= first):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._daemon.loop.call_at(first, self._look)

    def close(self) -> None:
        for timer in (self._timer, *self._overdue.values()):
            if timer is not None:
                timer.cancel()

    def _look(self) -> None:
        self._timer = None
        now = self._daemon.loop.time()
        limited = [
            generation
            for pool in self._daemon.pools.values()
            for generation in pool.generations.values()
            if has_limits(generation) and serving(generation)
        ]
        due = [self._look_at_requests(generation, now) for generation in limited]
        if with_rss := [generation for generation in limited if generation.settings.max_rss is not None]:
            if now >= self._rss_at:
                self._rss_at = now + RSS_INTERVAL
                for generation in with_rss:
                    self._look_at_memory(generation)
            due.append(self._memory_due(now))
        self._look_at(due)

    def _memory_due(self, now: float) -> float:
        return self._rss_at if self._rss_at > now else now + RSS_INTERVAL

    def _look_at_memory(self, generation: Generation) -> None:
        most = generation.settings.max_rss
        assert most is not None
        for index, state in generation.processes_in(Running).items():
            used = rss(state.pid)
            if used is None or used <= most:
                continue
            fresh = generation.slots[index].fresh_rss
            if fresh is not None and fresh > most:
                self._warn_of_max_rss(generation, most, fresh)
            else:
                why = f"it uses {used / 1024**2:.1f} MB, above max_rss ({most / 1024**2:g} MB)"
                generation.feed(Recycle(index, why))

    def _warn_of_max_rss(self, generation: Generation, most: int, fresh: int) -> None:
        """The next process would be no smaller, so that they would be replaced for ever."""
        if generation.max_rss_in_vain != most:
            generation.max_rss_in_vain = most
            self._daemon.journal.warning(
                f"a new process already uses {fresh / 1024**2:.1f} MB: raise max_rss ({most / 1024**2:g} MB), for "
                "which such a process is not recycled",
                name=generation.name,
            )

    def _look_at_requests(self, generation: Generation, now: float) -> float | None:
        """Tell of those that are overdue, and answer when to look again; None: there is nothing to look at."""
        due = []
        for index, pid in serving(generation):
            at = self._request_due(generation, index, pid, now)
            if at is not None:
                due.append(at)
        return min(due, default=None)

    def _request_due(self, generation: Generation, index: int, pid: int, now: float) -> float | None:
        """When to look at this process's requests again; one that is overdue is told of. None: never."""
        settings, slot = generation.settings, generation.slots[index]
        if not isinstance(settings, PoolSettings) or settings.request_timeout is None or slot.board is None:
            return None
        timeout = settings.request_timeout
        if pid in self._overdue:
            return None
        reading = slot.reading(now)
        if reading is None:  # it was written to all the while: what it says is not known, and no reason to wait long
            return now + timeout / LOOKS
        if not reading.in_hand:
            return now + timeout
        oldest = reading.in_hand[0]
        if oldest.since + timeout <= now:
            self._tell(generation, index, pid, oldest, now)
            return None
        return max(oldest.since + timeout, now + timeout / LOOKS)

    def _tell(self, generation: Generation, index: int, pid: int, request: Request, now: float) -> None:
        settings = generation.settings
        assert isinstance(settings, PoolSettings)
        self._daemon.journal.warning(
            f"{request.method} {request.uri} has taken {now - request.since:.1f} s (request_timeout is "
            f"{settings.request_timeout:g} s): the process is to end; its traceback is on its standard error",
            name=generation.process_name(index),
            pid=pid,
            thread=f"{request.thread:#018x}",  # as faulthandler writes it
        )
        try:
            generation.signal(index, pid, TRACEBACK_SIGNAL)
        except LinuxError as error:
            self._daemon.journal.error(str(error), name=generation.process_name(index))
        self._overdue[pid] = self._daemon.loop.call_later(TRACEBACK_TIME, self._end, generation, pid, index)

    def _end(self, generation: Generation, pid: int, index: int) -> None:
        del self._overdue[pid]
        settings = generation.settings
        hopeless = False
        if isinstance(settings, PoolSettings) and settings.request_timeout is not None:
            now = self._daemon.loop.time()
            reading = generation.slots[index].reading(now) if index < len(generation.slots) else None
            in_hand = reading.in_hand if reading is not None else ()
            hopeless = bool(in_hand) and all(one.since + settings.request_timeout <= now for one in in_hand)
        generation.feed(Overdue(index, pid, hopeless))


def has_limits(generation: Generation) -> bool:
    """Whether its processes are to be looked at."""
    settings = generation.settings
    return settings.max_rss is not None or (isinstance(settings, PoolSettings) and settings.request_timeout is not None)


def serving(generation: Generation) -> list[tuple[int, int]]:
    """(index, pid) of the processes that run, and of those that may take as long as their requests need to end.

    Not of those that have ended while what they have left is waited for.
    """
    return [
        (i, state.pid)
        for i, state in enumerate(generation.core.processes)
        if isinstance(state, Running)
        or (isinstance(state, Stopping) and state.patient and generation.is_there(i, state.pid))
    ]
